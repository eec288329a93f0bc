//! Who is let in, and who is not.

use std::path::Path;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_health_without_the_token() {
    let demo = demo().await;
    let health = demo.bare("GET", "/healthz", "", "").await;
    assert_eq!((health.status, health.text()), (200, "ok"));
    for path in [
        "/api/v1/status",
        "/api/v1/processes",
        "/api/v1/openapi.json",
        "/metrics",
        "/debug/pprof/heap?pid=100",
        "/index.html",
        "/nothing",
    ] {
        let reply = demo.bare("GET", path, "", "").await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(
            reply.header("www-authenticate").unwrap().starts_with("Bearer"),
            "{path}"
        );
        let wrong = demo.bare("GET", path, "Authorization: Bearer 00\r\n", "").await;
        assert_eq!(wrong.status, 401, "{path}");
        for header in ["content-security-policy", "x-content-type-options", "referrer-policy"] {
            assert!(reply.header(header).is_some(), "{path}: {header}");
        }
    }
    let error = demo.bare("GET", "/api/v1/status", "", "").await.json();
    assert!(error["error"].as_str().unwrap().contains("token"));
    let text = demo.bare("GET", "/debug/pprof/heap?pid=100", "", "").await;
    assert_eq!(text.header("x-go-pprof"), Some("1"));
    let page = demo.bare("GET", "/", "", "").await;
    assert_eq!(
        (page.status, page.header("content-type")),
        (401, Some("text/html; charset=utf-8"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_in_three_ways_and_the_cookie_is_not_the_token() {
    let demo = demo().await;
    assert_eq!(demo.get("/api/v1/status").await.status, 200);
    use base64::Engine as _;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("leaktrace:{}", demo.token));
    let reply = demo
        .bare(
            "GET",
            "/api/v1/status",
            &format!("Authorization: Basic {basic}\r\n"),
            "",
        )
        .await;
    assert_eq!(reply.status, 200);

    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for wrong in ["token=wrong", "token=", "tokn=x", "", "%ff", "token=a&token=b"] {
        let refused = demo.bare("POST", "/login", form, wrong).await;
        assert_eq!((refused.status, refused.header("set-cookie")), (401, None), "{wrong}");
    }
    let right = format!("token={}", demo.token);
    let json = "Content-Type: application/json\r\n";
    assert_eq!(demo.bare("POST", "/login", json, &right).await.status, 415);
    let login = demo.bare("POST", "/login", form, &format!("{right}+")).await;
    assert_eq!((login.status, login.header("location")), (303, Some("/")));
    let cookie = login.header("set-cookie").unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
        "{cookie}"
    );
    assert!(!cookie.contains(&demo.token));
    // In an address it would be kept by whoever keeps addresses: it is worth nothing there.
    let asked = demo.bare("GET", &format!("/login?{right}"), "", "").await;
    assert_eq!((asked.status, asked.header("set-cookie")), (200, None));
    // Or else browsers send the form as a page of another site does.
    assert_eq!(asked.header("referrer-policy"), Some("same-origin"));
    let foreign = format!("{form}Origin: http://evil.example\r\n");
    assert_eq!(demo.bare("POST", "/login", &foreign, &right).await.status, 403);
    let cookie = cookie.split(';').next().unwrap();
    let with = format!("Cookie: other=1; {cookie}\r\n");
    assert_eq!(demo.bare("GET", "/api/v1/status", &with, "").await.status, 200);
    let page = demo.bare("GET", "/", &with, "").await;
    assert_eq!(page.status, 200);
    let tag = page.header("etag").unwrap().to_owned();
    let again = demo
        .bare("GET", "/", &format!("{with}If-None-Match: {tag}\r\n"), "")
        .await;
    assert_eq!((again.status, again.body.len()), (304, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_and_other_sites_are_refused_in_spite_of_the_token() {
    let demo = demo().await;
    let port = demo.address.port();
    let status = async |method: &str, headers: &str| {
        let headers = format!("{}{headers}", demo.bearer());
        demo.bare(method, "/api/v1/status", &headers, "").await.status
    };
    for host in [
        format!("localhost:{port}"),
        format!("LOCALHOST:{port}"),
        format!("[::1]:{port}"),
    ] {
        assert_eq!(status("GET", &format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for host in [
        format!("evil.example:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        "localhost".to_owned(),
        "localhost:1".to_owned(),
        format!("192.0.2.1:{port}"),
        format!("user@localhost:{port}"),
    ] {
        let answer = status("GET", &format!("Host: {host}\r\n")).await;
        assert_eq!(answer, 403, "{host}");
    }
    let twice = format!("Host: localhost:{port}\r\nHost: evil.example\r\n");
    assert_eq!(status("GET", &twice).await, 400);

    let own = format!("Origin: http://127.0.0.1:{port}\r\n");
    assert_eq!(status("GET", &own).await, 200);
    for headers in [
        "Origin: http://evil.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1:1\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        assert_eq!(status("GET", headers).await, 403, "{headers}");
    }
    for site in ["same-origin", "none"] {
        assert_eq!(status("GET", &format!("Sec-Fetch-Site: {site}\r\n")).await, 200);
    }
    // The address in the request line counts as well.
    let absolute = format!("GET http://evil.example:{port}/api/v1/status HTTP/1.1\r\nHost: localhost:{port}\r\n");
    let request = format!("{absolute}{}Connection: close\r\n\r\n", demo.bearer());
    let reply = exchange(TcpStream::connect(demo.address).await.unwrap(), request).await;
    assert_eq!(reply.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_answers_its_owner_without_a_token() {
    let demo = demo().await;
    let request = "GET /api/v1/status HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n";
    let reply = exchange(UnixStream::connect(&demo.socket).await.unwrap(), request.to_owned()).await;
    assert_eq!(reply.status, 200);
    if !nix::unistd::geteuid().is_root() || !has("setpriv") || !has("curl") {
        eprintln!("skipped for other users: this needs root, setpriv and curl");
        return;
    }
    // The way to the socket has to be open to others for them to be told.
    let open = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(demo.socket.parent().unwrap());
    let socket = demo.socket.clone();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--clear-groups",
            "curl",
            "-s",
            "-m",
            "10",
            "-w",
            " %{http_code}",
        ]);
        command
            .arg("--unix-socket")
            .arg(socket)
            .arg("http://localhost/api/v1/status");
        command.output().unwrap()
    })
    .await
    .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output, "{\"error\":\"the socket answers root alone\"} 403");
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// TLS for real: a certificate made by openssl, a request by curl.
#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_the_names_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args([
            "-subj",
            "/CN=trace.test",
            "-addext",
            "subjectAltName=DNS:trace.test,IP:127.0.0.1",
        ])
        .arg("-keyout")
        .arg(file("key.pem"))
        .arg("-out")
        .arg(file("cert.pem"))
        .output();
    if !made.is_ok_and(|output| output.status.success()) || !has("curl") {
        eprintln!("skipped: there is no openssl or curl on this machine");
        return;
    }
    let settings = Settings {
        listen: Some("0.0.0.0:0".parse().unwrap()),
        socket: None,
        token_file: file("token"),
        tls: Some(TlsFiles {
            certificate: file("cert.pem"),
            key: file("key.pem"),
        }),
        names: vec!["trace.test".to_owned(), "other-name.test".to_owned()],
        max_clients: 8,
    };
    let server = serve(settings, Arc::new(Fake::new(10, 10)), std::future::pending())
        .await
        .unwrap();
    let port = server.address().unwrap().port();
    let token = std::fs::read_to_string(file("token")).unwrap();
    let curl_with = async |host: &str, with_token: bool, headers: &[String]| {
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "-k"]);
        for header in headers {
            command.arg("-H").arg(header);
        }
        command.arg("--resolve").arg(format!("{host}:{port}:127.0.0.1"));
        if with_token {
            command.arg("-H").arg(format!("Authorization: Bearer {}", token.trim()));
        }
        command.arg(format!("https://{host}:{port}/api/v1/status"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let curl = async |host: &str, with_token: bool| curl_with(host, with_token, &[]).await;
    assert_eq!(curl("trace.test", true).await, "200");
    assert_eq!(curl("other-name.test", true).await, "200");
    let with = async |host: String, origin: String| {
        let mut headers = vec![format!("Host: {host}")];
        headers.extend((!origin.is_empty()).then(|| format!("Origin: {origin}")));
        curl_with("trace.test", true, &headers).await
    };
    for host in ["TRACE.Test", "trace.test."] {
        assert_eq!(with(format!("{host}:{port}"), String::new()).await, "200", "{host}");
        let origin = format!("https://trace.test:{port}");
        assert_eq!(with(format!("{host}:{port}"), origin).await, "200", "{host}");
    }
    for host in [
        format!("trace.test:{}", port ^ 1),
        "trace.test".to_owned(),
        format!("trace.test..:{port}"),
        format!(".trace.test:{port}"),
        format!("sub.trace.test:{port}"),
        format!("trace.test.evil.example:{port}"),
        format!("eviltrace.test:{port}"),
        format!("user@trace.test:{port}"),
    ] {
        assert_eq!(with(host.clone(), String::new()).await, "403", "{host}");
    }
    for origin in [
        format!("http://trace.test:{port}"),
        format!("https://trace.test:{}", port ^ 1),
        "https://trace.test".to_owned(),
        // An origin of its own, although the same daemon.
        format!("https://other-name.test:{port}"),
        format!("https://127.0.0.1:{port}"),
        "null".to_owned(),
    ] {
        assert_eq!(
            with(format!("trace.test:{port}"), origin.clone()).await,
            "403",
            "{origin}"
        );
    }
    assert_eq!(curl("trace.test", false).await, "401");
    assert_eq!(curl("127.0.0.1", true).await, "200");
    assert_eq!(curl("other.test", true).await, "403");
}

#[tokio::test]
async fn what_cannot_start_leaves_nothing() {
    let demo = demo().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings {
        listen: Some(demo.address),
        socket: Some(folder.path().join("socket")),
        token_file: folder.path().join("token"),
        ..Settings::default()
    };
    let backend = Arc::new(Fake::new(1, 1));
    let error = serve(settings, backend, std::future::pending()).await.err().unwrap();
    assert!(matches!(error, HttpError::PortInUse { .. }), "{error}");
    assert!(!folder.path().join("socket").exists());
}
