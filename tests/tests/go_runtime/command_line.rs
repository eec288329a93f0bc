//! `leaktrace go …` as people run it: results as text and files, and one clear line for bad input.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use leaktrace::export::pprof;
use leaktrace::runtime::go::GoProcess;
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::memory::Target;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{Form, MANDATORY, MINORS, Program, Truth, build, goroot};

/// `LEAKTRACE_BIN`, or what `cargo xtask build` made.
fn leaktrace() -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::var_os("LEAKTRACE_BIN").map_or_else(|| root.join("target/release/leaktrace"), PathBuf::from)
}

fn run(arguments: &[&str]) -> Output {
    Command::new(leaktrace()).arg("go").args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that it fails with.
fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    text
}

/// All readers as they are used, on each release in the forms that differ most.
#[test]
fn every_subcommand_on_every_release() {
    // How a program is built decides where its parts are found, which is the same for all releases; where fields lie is not.
    let forms = |minor: u32| match minor {
        19 | 23 => &[Form::Normal, Form::Stripped, Form::Pie, Form::CgoStripped, Form::Static][..],
        _ => &[Form::Stripped][..],
    };
    let releases = MINORS.into_iter().filter(|&minor| goroot(minor).is_some());
    for (minor, form) in releases.flat_map(|minor| forms(minor).iter().map(move |form| (minor, *form))) {
        println!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "4096").unwrap();
        let pid = truth.program.pid().to_string();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("heap.pb.gz");
        let name = file.to_str().unwrap();
        let table = succeeds(&["heap", "-p", &pid]);
        assert!(table.contains("flat%") && table.contains("main.allocate"), "{table}");
        succeeds(&["heap", "-p", &pid, "--view", "pprof", "-o", name]);
        let ours = pprof::read(std::fs::read(&file).unwrap().as_slice()).unwrap();
        let theirs = pprof::read(truth.bytes("heap.pb.gz").as_slice()).unwrap();
        assert_eq!(ours.totals(), theirs.totals(), "Go 1.{minor} {form:?}");
        let groups = succeeds(&["goroutines", "-p", &pid, "--state", "chan send"]);
        assert!(
            groups.contains("40 goroutines [chan send") && groups.contains("40 senders"),
            "{groups}"
        );
        assert!(groups.contains("created by main.park"), "{groups}");
        let dump = succeeds(&["goroutines", "-p", &pid, "--debug"]);
        assert!(
            dump.contains("goroutine 1 [") && dump.contains("created by main.park"),
            "{dump}"
        );
        succeeds(&["goroutines", "-p", &pid, "-o", name]);
        assert!(
            pprof::read(std::fs::read(&file).unwrap().as_slice())
                .unwrap()
                .totals()
                .get("goroutine")
                .unwrap()
                > 100
        );
        let long = succeeds(&["goroutines", "-p", &pid, "--min-wait", "1h"]);
        assert!(long.contains(": 0 goroutines"), "{long}");
        let census = succeeds(&["census", "-p", &pid]);
        assert!(
            census.contains("Go heap, reachable") && census.contains("goroutines hold"),
            "{census}"
        );
        let json: serde_json::Value = serde_json::from_str(&succeeds(&["census", "-p", &pid, "--json"])).unwrap();
        assert!(json["resident"]["rss"].as_u64().unwrap() > 1 << 20);
        let objects = succeeds(&["objects", "-p", &pid]);
        assert!(
            objects.contains("main.allocate") && objects.contains("held for at least"),
            "{objects}"
        );
        let gc = succeeds(&["gc", "-p", &pid, "--for", "100ms", "--json"]);
        let summary: serde_json::Value = serde_json::from_str(gc.lines().last().unwrap()).unwrap();
        assert_eq!(summary["collections_total"], 3, "Go 1.{minor}");
    }
}

#[test]
fn leaks_are_reported_with_evidence_and_pools_are_not() {
    let path = build(23, "leaks", Form::Stripped).unwrap();
    let mut program = Program::start(&path, &[], &["goroutines"]);
    let pid = program.pid().to_string();
    let child = Command::new(leaktrace())
        .args(["go", "goroutines", "-p", &pid, "--leaks", "--watch", "2s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(2500) {
        program.command("work");
        std::thread::sleep(Duration::from_millis(200));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.matches("LEAK").count(), 1, "{text}");
    for wanted in [
        "goroutines [chan receive",
        "main.awaitOrder",
        "created by main.startWorker",
        "evidence:",
        "receivers, 0 senders",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in: {text}");
    }
    assert!(!text.contains("main.idle"), "{text}");
}

fn rate(process: &GoProcess) -> u64 {
    process.memory().u64_at(process.globals.profile_rate.unwrap()).unwrap()
}

#[test]
fn profiling_is_turned_on_and_put_back() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        for form in [Form::Stripped, Form::Pie] {
            let program = Program::start(&build(minor, "off", form).unwrap(), &[], &[]);
            let pid = program.pid().to_string();
            let process = GoProcess::attach(program.pid()).unwrap();
            assert_eq!(rate(&process), 0, "Go 1.{minor} {form:?}");
            let output = run(&["heap", "-p", &pid]);
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(
                told.contains("profiling off") && told.contains("--enable-profiling"),
                "{told}"
            );
            let table = succeeds(&[
                "heap",
                "-p",
                &pid,
                "--enable-profiling",
                "65536",
                "--for",
                "1s",
                "--sample-type",
                "alloc_space",
            ]);
            assert!(table.contains("main.request"), "Go 1.{minor} {form:?}: {table}");
            assert_eq!(rate(&process), 0, "Go 1.{minor} {form:?}");
        }
    }
}

/// `heap --enable-profiling` under way.
fn enable(process: &GoProcess) -> Child {
    let child = Command::new(leaktrace())
        .args([
            "go",
            "heap",
            "-p",
            &process.pid().to_string(),
            "--enable-profiling",
            "65536",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while rate(process) != 65536 {
        assert!(begin.elapsed() < Duration::from_secs(10), "never turned on");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    child
}

#[test]
fn every_signal_that_can_be_held_back_puts_the_rate_back() {
    for minor in MANDATORY {
        let program = Program::start(&build(minor, "off", Form::Stripped).unwrap(), &[], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            let child = enable(&process);
            kill(Pid::from_raw(child.id() as i32), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success() && String::from_utf8_lossy(&output.stdout).contains("flat%"),
                "Go 1.{minor} {signal}: {output:?}"
            );
            assert_eq!(rate(&process), 0, "Go 1.{minor} {signal}");
        }
        // SIGKILL cannot be: the program goes on sampling, and its profile says so.
        let mut child = enable(&process);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(rate(&process), 65536, "Go 1.{minor}");
        let before: u64 = allocations(&process);
        std::thread::sleep(Duration::from_millis(300));
        assert!(process.is_alive() && allocations(&process) > before, "Go 1.{minor}");
    }
}

fn allocations(process: &GoProcess) -> u64 {
    let heap = process.heap().unwrap();
    heap.view(View::Now).map(|(_, counts)| counts.allocs).sum()
}

#[test]
fn the_end_of_the_program_ends_profiling_it() {
    let mut program = Program::start(&build(23, "off", Form::Stripped).unwrap(), &[], &[]);
    let process = GoProcess::attach(program.pid()).unwrap();
    let child = enable(&process);
    program.kill();
    let begin = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let text = String::from_utf8(output.stderr).unwrap();
    let last = text.trim_end().lines().last().unwrap_or_default();
    assert!(
        !output.status.success() && last.contains(&program.pid().to_string()) && last.contains("exited"),
        "{text}"
    );
}

#[test]
fn bad_input_is_one_line_that_names_the_process() {
    let sleep = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = sleep.id().to_string();
    let message = fails(&["heap", "-p", &pid]);
    assert!(
        message.contains(&pid) && message.contains("not a Go program") && message.contains("leaktrace record"),
        "{message}"
    );
    let message = fails(&["goroutines", "-p", "4000000"]);
    assert!(message.contains("no process has pid 4000000"), "{message}");
    let truth = Truth::of(19, Form::Stripped, "").unwrap();
    let message = fails(&[
        "heap",
        "-p",
        &truth.program.pid().to_string(),
        "-o",
        "/no/such/folder/x.pb.gz",
    ]);
    assert!(message.contains("/no/such/folder"), "{message}");
    // Somebody else's process, without privilege.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = folder.path().join("leaktrace");
    std::fs::copy(leaktrace(), &copy).unwrap();
    let output = Command::new(&copy)
        .args(["go", "heap", "-p", &truth.program.pid().to_string()])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("permission denied") && message.contains("run as root"),
        "{message}"
    );
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    let mut sleep = sleep;
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}
