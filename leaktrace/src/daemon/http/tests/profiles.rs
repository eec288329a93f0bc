//! Profiles, by their sums and by Go's own tool.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn tables_trees_and_differences_add_up() {
    let demo = demo().await;
    let base = format!("/api/v1/processes/{GO}");
    let total = async |query: &str| demo.ok(&format!("{base}/top?{query}")).await["total"].as_i64().unwrap();
    let all = total("").await;
    let parts = [
        total("heap=native").await,
        total("heap=go").await,
        total("heap=mmap").await,
    ];
    assert!(parts.iter().all(|part| *part > 0));
    assert_eq!(all, parts.iter().sum::<i64>());
    assert_eq!(
        total(&format!("from={GO}-060m")).await,
        all - total(&format!("to={GO}-060m")).await
    );
    assert_eq!(
        total(&format!("from={GO}-060m&to={GO}-010m&sample_type=inuse_objects")).await,
        total(&format!("to={GO}-010m&sample_type=inuse_objects")).await
            - total(&format!("to={GO}-060m&sample_type=inuse_objects")).await
    );

    for query in [
        "limit=100000",
        "limit=50",
        "limit=1",
        "limit=0",
        &format!("limit=40&from={GO}-060m"),
    ] {
        let tree: api::Stacks = serde_json::from_value(demo.ok(&format!("{base}/stacks?{query}")).await).unwrap();
        let mut sums: Vec<i64> = tree.nodes.iter().map(|node| node.own).collect();
        for (index, node) in tree.nodes.iter().enumerate().skip(1).rev() {
            assert!((node.parent as usize) < index && (node.frame as usize) < tree.frames.len());
            sums[node.parent as usize] += sums[index];
        }
        assert!(
            tree.nodes.iter().map(|node| node.total).eq(sums),
            "{query}: own and children make the total"
        );
        assert_eq!(tree.nodes[0].frame, u32::MAX);
        if !query.contains("from") {
            assert_eq!(tree.nodes[0].total, all, "{query}");
        }
        let limit: usize = query
            .trim_start_matches("limit=")
            .split('&')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert!(tree.nodes.len() <= limit + 1);
        assert_eq!(tree.folded > 0, limit < 1000, "{query}: {}", tree.folded);
    }
    let hit = demo.ok(&format!("{base}/top?filter=%3CSCRIPT&cum=1&limit=5")).await;
    assert_eq!(hit["rows"][0]["function"], "<script>alert(1)</script>");
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_come_as_go_gives_them() {
    let demo = demo().await;
    let heap = demo.get(&format!("/debug/pprof/heap?pid={NATIVE}&gc=1")).await;
    assert_eq!(heap.status, 200);
    assert_eq!(heap.header("content-type"), Some("application/octet-stream"));
    assert_eq!(
        heap.header("content-disposition"),
        Some("attachment; filename=\"heap\"")
    );
    assert!(heap.body.starts_with(&[0x1f, 0x8b]));
    let profile = export::pprof::read(heap.body.as_slice()).unwrap();
    assert_eq!(profile.default_sample_type, "inuse_space");
    let allocs = demo.get(&format!("/debug/pprof/allocs?pid={NATIVE}")).await;
    let allocs = export::pprof::read(allocs.body.as_slice()).unwrap();
    assert_eq!(allocs.default_sample_type, "alloc_space");

    let delta = demo.get(&format!("/debug/pprof/heap?pid={NATIVE}&seconds=1")).await;
    assert_eq!(
        delta.header("content-disposition"),
        Some("attachment; filename=\"heap-delta\"")
    );
    let delta = export::pprof::read(delta.body.as_slice()).unwrap();
    assert!(delta.duration_nanos >= 1_000_000_000, "{}", delta.duration_nanos);
    assert!(delta.samples.is_empty(), "nothing changes in the fake");

    for (path, status) in [
        (format!("/debug/pprof/heap?pid={NATIVE}&seconds=0"), 400),
        (format!("/debug/pprof/heap?pid={NATIVE}&seconds=301"), 400),
        (format!("/debug/pprof/heap?pid={NATIVE}&seconds=1&debug=1"), 400),
        ("/debug/pprof/heap".to_owned(), 400),
        ("/debug/pprof/heap?pid=x".to_owned(), 400),
        ("/debug/pprof/heap?pid=5".to_owned(), 404),
        (format!("/debug/pprof/goroutine?pid={NATIVE}"), 404),
        ("/debug/pprof/cpu?pid=100".to_owned(), 404),
    ] {
        let reply = demo.get(&path).await;
        assert_eq!(
            (reply.status, reply.header("x-go-pprof")),
            (status, Some("1")),
            "{path}"
        );
        assert_eq!(
            reply.header("content-type"),
            Some("text/plain; charset=utf-8"),
            "{path}"
        );
    }
    let text = demo.get(&format!("/debug/pprof/heap?pid={NATIVE}&debug=1")).await;
    let read = text.text().lines().next().unwrap().to_owned();
    let sum = profile.totals().get("inuse_space").unwrap();
    assert!(
        read.starts_with("heap profile: ") && read.contains(&format!(": {sum} [")),
        "{read}"
    );
    assert!(!text.text().contains('\u{1b}'));
    let groups = demo.get(&format!("/debug/pprof/goroutine?pid={GO}&debug=1")).await;
    insta::assert_snapshot!(groups.text().lines().take(5).collect::<Vec<_>>().join("\n"), @r"
    goroutine profile: total 1810
    100 @ 0x2000 0x1000
    #	0x2000	main.worker0	/src/app/main.go:10
    #	0x1000	main.main	/src/app/main.go:10
    ");
    let dump = demo.get(&format!("/debug/pprof/goroutine?pid={GO}&debug=2")).await;
    assert!(dump.text().starts_with("goroutine 1 [chan receive, 5 minutes]:"));

    let stored = format!("/api/v1/processes/{NATIVE}/profiles/{NATIVE}-010m");
    for (format, kind, name) in [
        ("", "application/octet-stream", "101-010m.pb.gz"),
        ("?format=svg", "image/svg+xml", "101-010m.svg"),
        ("?format=folded", "text/plain; charset=utf-8", "101-010m.folded"),
        ("?format=json", "application/json", "101-010m.json"),
    ] {
        let reply = demo.get(&format!("{stored}{format}")).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some(kind)),
            "{format}"
        );
        let expected = format!("attachment; filename=\"{name}\"");
        assert_eq!(reply.header("content-disposition"), Some(expected.as_str()), "{format}");
    }
}

/// Go's own tool reads what the server gives, with the token as a password.
#[tokio::test(flavor = "multi_thread")]
async fn go_tool_pprof_reads_every_form() {
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("skipped: there is no go on this machine");
        return;
    }
    let demo = demo().await;
    let top = async |path: &str| {
        let url = format!("http://leaktrace:{}@{}{path}", demo.token, demo.address);
        let output = tokio::task::spawn_blocking(move || {
            let home = tempfile::tempdir().unwrap();
            let mut command = Command::new("go");
            command.args(["tool", "pprof", "-top", "-unit=B", "-symbolize=none", &url]);
            command
                .env("HOME", home.path())
                .env("PPROF_TMPDIR", home.path())
                .output()
                .unwrap()
        })
        .await
        .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            errors,
        )
    };
    let mut sums = std::collections::BTreeMap::new();
    for (path, expected) in [
        (format!("/debug/pprof/heap?pid={NATIVE}"), "Type: inuse_space"),
        (format!("/debug/pprof/allocs?pid={NATIVE}"), "Type: alloc_space"),
        (format!("/debug/pprof/goroutine?pid={GO}"), "Type: goroutine"),
        (format!("/debug/pprof/heap?pid={NATIVE}&seconds=1"), "Type: inuse_space"),
        (format!("/debug/pprof/heap?pid={NATIVE}&debug=1"), "Type: inuse_space"),
    ] {
        let (worked, output, errors) = top(&path).await;
        assert!(worked && output.contains(expected), "{path}: {output}{errors}");
        // Go's text form carries names as remarks, which its readers pass over.
        let is_named = !path.contains("seconds") && !path.contains("debug");
        assert!(output.contains("main") || !is_named, "{path}: {output}");
        let sum = output
            .lines()
            .find_map(|line| line.split(" of ").nth(1))
            .unwrap_or_default()
            .to_owned();
        sums.insert(path, sum);
    }
    let sum = |query: &str| sums.get(&format!("/debug/pprof/heap?pid={NATIVE}{query}")).cloned();
    assert!(sum("").is_some_and(|sum| sum.contains("total")));
    assert_eq!(sum(""), sum("&debug=1"), "values are not scaled again");
    let (worked, _, errors) = top(&format!("/debug/pprof/goroutine?pid={NATIVE}")).await;
    assert!(
        !worked && errors.contains("is not a Go program"),
        "the reason arrives: {errors}"
    );
}
