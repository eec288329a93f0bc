//! Whole files: what is read from them, everything that can be wrong, and the documents that are generated.

use std::time::Duration;

use proptest::prelude::*;

use super::schema::SECTIONS;
use super::*;
use crate::api::Identity;
use crate::daemon::push::Kind;

const MINUTE: Duration = Duration::from_secs(60);

/// All findings, one a line.
fn findings(text: &str) -> String {
    let problems = Config::parse(text).expect_err("something is wrong with it");
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[test]
fn defaults() {
    let config = Config::default();
    assert_eq!(config.watch.interval, Duration::from_secs(5));
    assert_eq!(config.watch.growth_slope, (10 << 20) as f64);
    assert_eq!(config.watch.growth_time, 10 * MINUTE);
    assert!(config.trace.auto);
    assert_eq!(config.trace.sample_interval, 64 << 10);
    assert_eq!((config.budget.target_cpu, config.budget.machine_cpu), (0.05, 0.02));
    assert_eq!(config.export.directory, Path::new("/var/lib/leaktrace/profiles"));
    assert_eq!(
        (config.export.interval, config.export.go_interval),
        (MINUTE, 10 * MINUTE)
    );
    assert_eq!(config.http.listen, Some("127.0.0.1:7373".parse().unwrap()));
    assert_eq!(config.http.socket.as_deref(), Some(Path::new("/run/leaktrace.sock")));
    assert!(config.push.is_empty() && config.trace.rules.is_empty());
}

#[test]
fn every_default_and_example_is_possible() {
    for section in SECTIONS {
        for key in section.keys {
            assert!(!key.required || key.default.is_none(), "{}", key.name);
            let shown = key.default.or(key.example).unwrap();
            let value = toml::de::DeValue::parse(shown).unwrap();
            super::value::check(key.kind, value.get_ref())
                .unwrap_or_else(|fault| panic!("{}: {}", key.name, fault.message));
        }
    }
}

#[test]
fn a_whole_file() {
    let config = Config::parse(
        r#"
        [watch]
        interval = 2
        growth_slope = "1MiB/m"

        [trace]
        auto = false
        sample_interval = 4096

        [[trace.rule]]
        name = "shop"
        comm = "java*"
        user = 1000
        sample_interval = "1KiB"

        [[trace.rule]]
        name = "pid"
        pid = 4711

        [budget]
        target_cpu = "1.5%"

        [[push]]
        name = "a"
        kind = "pyroscope"
        url = "https://pyroscope.example:4040/base"
        headers = { "X-Scope-OrgID" = "ops" }
        token_file = "/etc/token"
        timeout = "3s"

        [http]
        listen = "[::]:7373"
        socket = ""
        tls_certificate = "/a"
        tls_key = "/b"
        "#,
    )
    .unwrap();
    assert_eq!(config.watch.interval, Duration::from_secs(2));
    assert_eq!(config.watch.growth_slope, (60 << 20) as f64);
    assert!(!config.trace.auto);
    assert_eq!(config.trace.sample_interval, 4096);
    let [shop, pid] = config.trace.rules.as_slice() else {
        panic!("two rules")
    };
    let identity = Identity {
        pid: 4711,
        comm: "java".to_owned(),
        uid: 1000,
        ..Identity::default()
    };
    assert!(shop.matches(&identity) && pid.matches(&identity));
    assert_eq!((shop.sample_interval, pid.sample_interval), (Some(1024), None));
    assert_eq!(config.budget.target_cpu, 0.015);
    let [push] = config.push.as_slice() else {
        panic!("one target")
    };
    assert_eq!(push.kind, Kind::Pyroscope);
    assert_eq!(push.headers, [("x-scope-orgid".to_owned(), "ops".to_owned())]);
    assert_eq!((push.timeout, push.queue_profiles), (Duration::from_secs(3), 256));
    assert_eq!(config.http.socket, None);
    assert_eq!(config.http.tls_key.as_deref(), Some(Path::new("/b")));
}

#[test]
fn every_push_kind_is_its_own() {
    let kind = |name: &str| {
        let text = format!("[[push]]\nname = \"a\"\nkind = \"{name}\"\nurl = \"http://host\"\n");
        Config::parse(&text).map(|config| config.push[0].kind)
    };
    for (name, wanted) in Kind::ALL {
        assert_eq!(kind(name), Ok(wanted));
    }
    assert_eq!(Kind::NAMES, ["otlp-grpc", "otlp-http", "pyroscope"]);
}

#[test]
fn all_findings_at_once() {
    let text = r#"[watch]
intervall = "5s"
interval = 0
growth_slope = "10MiB"
growth_time = "1s"
release_time = "yes"
listen = "127.0.0.1:1"

[trace]
max_processes = 0
sample_interval = "2GiB"

[[trace.rule]]
name = "a"
comm = "re:("

[[trace.rule]]
name = "a"
user = true

[[trace.rule]]

[budget]
target_cpu = "150%"
machine_cpu = 5
own_cpu = "0%"
own_memory = "1MiB"

[export]
directory = "profiles"
keep_count = -1

[[push]]
name = "two words"
kind = "otlp"
url = "collector:4317"
headers = { "a b" = "c" }

[http]
listen = "0.0.0.0:7373"
tls = true

[exports]
"#;
    insta::assert_snapshot!(findings(text), @r###"
    2:1: watch.intervall: unknown key; did you mean `interval`?
    3:12: watch.interval: is 0s; from 100ms to 10m is possible
    4:16: watch.growth_slope: `10MiB` is no rate; write 10MiB/h
    5:15: watch.growth_time: is 1s; from 10s to 1d is possible
    6:16: watch.release_time: expected number at 0; write a duration such as "30s" or "10m"
    7:1: watch.listen: unknown key; it belongs under [http]
    10:17: trace.max_processes: is 0; from 1 to 1024 is possible
    11:19: trace.sample_interval: is 2GiB; from 16B to 1GiB is possible
    15:8: trace.rule.comm: not a pattern: unclosed group
    18:8: trace.rule.name: `a` is the name of another [[trace.rule]]; choose one of its own
    19:8: trace.rule.user: is of the wrong type (boolean); write a pattern such as "nginx*"
    21:1: trace.rule: has no condition; add one, such as comm = "java*" (or comm = "*" to mean every process)
    21:1: trace.rule.name: is missing; write name = "shop"
    24:14: budget.target_cpu: is 150%; at most 100% is possible
    25:15: budget.machine_cpu: is of the wrong type (integer); write a percentage such as "5%"
    26:11: budget.own_cpu: must be more than 0; write a percentage such as "5%"
    27:14: budget.own_memory: is 1MiB; from 32MiB to 1TiB is possible
    30:13: export.directory: `profiles` is not absolute; write a path that begins with `/`
    31:14: export.keep_count: is -1; from 1 to 10000000 is possible
    34:8: push.name: `two words` is no name; write 1 to 64 letters, digits, `-`, `_` or `.`
    35:8: push.kind: `otlp` is not known; known are otlp-grpc, otlp-http, pyroscope
    36:7: push.url: `collector:4317` is no URL that can be sent to; write http://HOST:PORT or https://HOST:PORT
    37:11: push.headers: `a b` is no header name
    40:10: http.listen: 0.0.0.0 is not on loopback, and the daemon can read any process's memory; add tls_certificate and tls_key, or listen on 127.0.0.1
    41:1: http.tls: unknown key; known are listen, socket, token_file, tls_certificate, tls_key, names, max_clients
    43:2: exports: unknown section or key; did you mean [export]?
    "###);
}

#[test]
fn what_several_keys_say_together() {
    let text = r#"
[watch]
interval = "30s"
growth_time = "45s"
history = "5m"

[[push]]
name = "a"
kind = "pyroscope"
url = "http://user:secret@host"
[[push]]
name = "a"
kind = "pyroscope"
url = "http://host"
token_file = "/t"
headers = { Authorization = "Basic x" }

[http]
tls_key = "/k"
"#;
    insta::assert_snapshot!(findings(text), @r###"
    4:15: watch.growth_time: is 45s, and a slope takes two looks at least; make it 1m or more, or `interval` shorter
    10:7: push.url: holds a user name or password, which would be shown in messages; use `token_file` or `headers`
    12:8: push.name: `a` is the name of another [[push]]; choose one of its own
    15:14: push.token_file: `token_file` and a header `authorization` exclude each other
    19:11: http.tls_key: needs `tls_certificate` as well
    "###);
    insta::assert_snapshot!(findings("[watch]\nhistory = \"5m\"\n"), @r###"
    2:11: watch.history: is 5m, and growth is measured over `growth_time` = 10m; make it at least as long
    "###);
    insta::assert_snapshot!(findings("[http]\nlisten = \"localhost:1\"\n"), @r###"
    2:10: http.listen: `localhost:1` is no address with a port; write "127.0.0.1:7373" or "[::1]:7373" (host names are not looked up)
    "###);
}

#[test]
fn names_of_the_machine() {
    let tls = "[http]\ntls_certificate = \"/a\"\ntls_key = \"/b\"\n";
    let names = |value: &str| Config::parse(&format!("{tls}names = {value}\n")).map(|config| config.http.names);
    assert_eq!(
        names(r#"["Host-A.example.", "localhost", "a_b", "xn--mnchen-3ya.example", "1.de"]"#).unwrap(),
        ["host-a.example", "localhost", "a_b", "xn--mnchen-3ya.example", "1.de"]
    );
    assert_eq!(names("[]").unwrap(), Vec::<String>::new());
    for wrong in [
        r#""a.example""#,
        "[1]",
        r#"[""]"#,
        r#"["."]"#,
        r#"["a..b"]"#,
        r#"["-a"]"#,
        r#"["a:7373"]"#,
        r#"["https://a"]"#,
        r#"["*.example"]"#,
        r#"["münchen.example"]"#,
        r#"["10.0.0.7"]"#,
        r#"["[::1]"]"#,
        r#"["fe80::1"]"#,
        r#"["a.example", "A.EXAMPLE."]"#,
    ] {
        assert_eq!(names(wrong).err().map(|problems| problems.len()), Some(1), "{wrong}");
    }
    let long = format!("[\"{}a\"]", "a.".repeat(127));
    assert!(names(&long).is_err());
    let text = r#"
[http]
names = [
    "host-a.example",
    "host b.example",
]
"#;
    insta::assert_snapshot!(findings(text), @r###"
    5:5: http.names: `host b.example` is no DNS name; write it without scheme and port, such as "host-a.example" (`xn--…` for one with other letters)
    "###);
    insta::assert_snapshot!(findings("[http]\nnames = [\"a.example\"]\n"), @r###"
    2:9: http.names: count with TLS alone; add tls_certificate and tls_key, or ask for 127.0.0.1 or localhost
    "###);
}

#[test]
fn push_targets_that_no_one_could_send_to() {
    let push = |kind: &str, rest: &str| format!("[[push]]\nname = \"a\"\nkind = \"{kind}\"\n{rest}\n");
    let wrong = [
        ("otlp-grpc", r#"url = "http://host:4317/path""#, "gRPC does not use"),
        ("otlp-grpc", r#"url = "http://host:4317?a=b""#, "gRPC does not use"),
        ("pyroscope", r#"url = "http://host/#x""#, "behind `#`"),
        ("pyroscope", r#"url = "ftp://host""#, "no URL"),
        ("pyroscope", r#"url = "http://""#, "no URL"),
        ("pyroscope", r#"url = "http://host:99999""#, "is not a URL"),
        ("otlp-http", r#"url = "http://[::1""#, "no URL"),
        ("otlp-http", r#"url = "http://a b""#, "no URL"),
        ("otlp-http", r#"url = "http://1.2.3.4.5""#, "is not a URL"),
        (
            "otlp-grpc",
            "url = \"http://host\"\nheaders = { x-bin = \"x\" }",
            "is not the name of a header",
        ),
        (
            "pyroscope",
            "url = \"http://host\"\nheaders = { Host = \"x\" }",
            "made by the sender",
        ),
        (
            "pyroscope",
            "url = \"http://host\"\nheaders = { a = \"x\\n\" }",
            "no header may have",
        ),
        (
            "pyroscope",
            "url = \"http://host\"\nheaders = { a = \"x\", A = \"y\" }",
            "there twice",
        ),
    ];
    for (kind, rest, part) in wrong {
        let findings = findings(&push(kind, rest));
        assert!(
            findings.contains(part) && !findings.contains('\n'),
            "{rest}: {findings}"
        );
    }
    for (kind, url) in [
        ("otlp-grpc", "http://host:4317/"),
        ("otlp-http", "https://[::1]:4318/v1development/profiles"),
        ("pyroscope", "https://host/base"),
    ] {
        let config = Config::parse(&push(kind, &format!("url = \"{url}\""))).unwrap();
        assert_eq!(config.push[0].url, url);
    }
}

/// `--check` finds what starting would come upon, at its place; starting alone does not look.
#[test]
fn what_the_machine_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let path = folder.path().join("leaktrace.toml");
    let push = |name: &str, url: &str, rest: &str| {
        let kind = if url.starts_with("https") {
            "otlp-grpc"
        } else {
            "pyroscope"
        };
        format!("[[push]]\nname = \"{name}\"\nkind = \"{kind}\"\nurl = \"{url}\"\n{rest}\n")
    };
    let text = [
        push(
            "a",
            "http://127.0.0.1:1",
            &format!("token_file = \"{}\"", file("missing")),
        ),
        push(
            "b",
            "https://host:1",
            &format!("token_file = \"{}\"", file("two-words")),
        ),
        push("c", "https://host:1", &format!("token_file = \"{}\"", file("good"))),
        format!(
            "[http]\ntoken_file = \"{}\"\ntls_certificate = \"{}\"\ntls_key = \"{}\"\n",
            file("open"),
            file("none.crt"),
            file("none.key")
        ),
    ]
    .concat();
    std::fs::write(&path, &text).unwrap();
    std::fs::write(folder.path().join("two-words"), "a b\n").unwrap();
    std::fs::write(folder.path().join("good"), "token\n").unwrap();
    std::fs::write(folder.path().join("open"), "k".repeat(40)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(folder.path().join("open"), mode).unwrap();
    Config::load(&path).unwrap();
    let message = Config::check(&path).unwrap_err().to_string();
    let told: Vec<String> = message
        .lines()
        .map(|line| line.replace(&folder.path().display().to_string(), "DIR"))
        .collect();
    insta::assert_snapshot!(told.join("\n"), @r###"
    DIR/leaktrace.toml:5:14: push.token_file: failed to read the token file `DIR/missing`: No such file or directory (os error 2)
    DIR/leaktrace.toml:10:14: push.token_file: failed to read the token file `DIR/two-words`: it is not one word of printable characters
    DIR/leaktrace.toml:17:14: http.token_file: the token `DIR/open` is not safe: others may use it (mode 0644); delete the file, a new one is made at the next start
    DIR/leaktrace.toml:18:19: http.tls_certificate: No such file or directory (os error 2)
    "###);
    // A token of its own is made at the start, and nothing else is wrong with this.
    std::fs::write(
        &path,
        push("a", "http://host", "") + &format!("[http]\ntoken_file = \"{}\"", file("new")),
    )
    .unwrap();
    Config::check(&path).unwrap();
    assert!(!folder.path().join("new").exists());
}

#[test]
fn what_is_no_toml() {
    insta::assert_snapshot!(findings("[watch\ninterval = \n"), @r###"
    1:7: not TOML: unclosed table, expected `]`
    "###);
    insta::assert_snapshot!(findings("[watch]\ninterval = 1\ninterval = 2\n"), @r###"
    3:1: not TOML: duplicate key
    "###);
    insta::assert_snapshot!(findings("watch = 3\ninterval = 1\ntrace = { rule = 1 }\npush = [1]\n"), @r###"
    1:9: watch: is of the wrong type (integer); write a section [watch]
    2:1: interval: unknown section or key; it belongs under [watch]
    3:18: trace.rule: is of the wrong type (integer); write [[trace.rule]]
    4:9: push: is of the wrong type (integer); write [[push]]
    "###);
}

#[test]
fn files_that_are_not_there_or_are_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("leaktrace.toml");
    assert!(matches!(Config::load(&path), Err(ConfigError::Missing { .. })));
    assert_eq!(Config::load_or_default(&path).unwrap(), Config::default());

    std::fs::write(&path, "[watch]\ninterval = \"1s\"\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().watch.interval, Duration::from_secs(1));

    std::fs::write(&path, "[wtch]\n\n[budgt]\n").unwrap();
    let message = Config::load_or_default(&path).unwrap_err().to_string();
    let file = path.display();
    assert_eq!(
        message,
        format!(
            "{file}:1:2: wtch: unknown section or key; did you mean [watch]?\n\
             {file}:3:2: budgt: unknown section or key; did you mean [budget]?"
        )
    );

    std::fs::write(&path, b"# \xc3\xa9\n[watch]\n# \xff\n").unwrap();
    let message = Config::load(&path).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("{file}:3:3: not UTF-8; save the file in that encoding")
    );

    std::fs::write(&path, vec![b'\n'; 1 << 21]).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::Unreadable { .. })));
    assert!(matches!(
        Config::load(directory.path()),
        Err(ConfigError::Unreadable { .. })
    ));
    assert!(matches!(
        Config::load(Path::new("/dev/zero")),
        Err(ConfigError::Unreadable { .. })
    ));
}

#[test]
fn what_needs_a_restart() {
    let old = Config::default();
    let new = Config::parse("[watch]\ninterval = \"1s\"\n[http]\nlisten = \"\"\n").unwrap();
    assert_eq!(old.restart_needed(&new), ["http.listen"]);
    assert_eq!(old.restart_needed(&old), Vec::<&str>::new());
}

/// Each key that is marked so is told by its own name when it changes, and no other is.
#[test]
fn each_restart_key_is_compared() {
    let changes = [
        ("export.directory", "[export]\ndirectory = \"/x\""),
        ("http.listen", "[http]\nlisten = \"127.0.0.1:1\""),
        ("http.socket", "[http]\nsocket = \"/x\""),
        ("http.token_file", "[http]\ntoken_file = \"/x\""),
        ("http.tls_certificate", ""),
        ("http.tls_key", ""),
        ("http.names", ""),
        ("http.max_clients", "[http]\nmax_clients = 7"),
    ];
    let mut marked = Vec::new();
    for section in SECTIONS {
        for key in section.keys {
            if let Some((name, _)) = key.restart {
                assert_eq!(name, format!("{}.{}", section.name, key.name));
                marked.push(name);
            }
        }
    }
    assert_eq!(marked, changes.map(|(name, _)| name));
    for (name, text) in changes.into_iter().filter(|(_, text)| !text.is_empty()) {
        let new = Config::parse(text).unwrap();
        assert_eq!(Config::default().restart_needed(&new), [name]);
    }
    let tls = "[http]\ntls_certificate = \"/a\"\ntls_key = \"/b\"\n";
    let named = Config::parse(&format!("{tls}names = [\"a.example\"]")).unwrap();
    let tls = Config::parse(tls).unwrap();
    assert_eq!(
        Config::default().restart_needed(&tls),
        ["http.tls_certificate", "http.tls_key"]
    );
    assert_eq!(tls.restart_needed(&named), ["http.names"]);
}

/// Compares with a committed file; with `LEAKTRACE_BLESS` set, writes it.
fn committed(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("LEAKTRACE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "{} is not what the table of keys says; run this test with LEAKTRACE_BLESS=1 and commit it",
        path.display()
    );
}

#[test]
fn the_reference_is_up_to_date() {
    committed("docs/configuration.md", &reference());
}

#[test]
fn the_example_is_up_to_date_and_says_nothing_but_defaults() {
    let example = example();
    committed("packaging/leaktrace.toml", &example);
    assert_eq!(Config::parse(&example).unwrap(), Config::default());
    // With every comment that is no sentence taken away it is a whole configuration.
    let live: Vec<&str> = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .collect();
    let config = Config::parse(&live.join("\n")).unwrap();
    assert_eq!((config.trace.rules.len(), config.push.len()), (1, 1));
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _ = Config::parse(&text);
    }

    #[test]
    fn any_value_at_any_key_is_answered(
        index in 0usize..60,
        value in prop_oneof![
            "[-+0-9.e_]{1,12}", "\"\\PC{0,20}\"", "\\[[0-9,]{0,8}\\]", "\\{ a = [0-9]{1,3} \\}",
            "\"[0-9]{1,20}(%|ms|s|h|KiB|TiB|MiB/h)\"", Just("1979-05-27T07:32:00Z".to_owned()),
        ],
    ) {
        let keys: Vec<_> = SECTIONS.iter().flat_map(|s| s.keys.iter().map(move |k| (s, k))).collect();
        let (section, key) = keys[index % keys.len()];
        let text = format!("{}\n{} = {value}\n", section.header(), key.name);
        if let Err(problems) = Config::parse(&text) {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                prop_assert!(problem.line >= 1 && problem.line <= 3 && !problem.to_string().contains('\n'));
            }
        }
    }
}
