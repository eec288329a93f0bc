//! The daemon on real processes: it finds what leaks by itself, and leaves nothing behind, however it ends.

#[path = "page/browser.rs"]
#[allow(dead_code, reason = "the page's own tests use all of it")]
mod browser;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::golang::{Form, Toolchain};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Answer, leaktrace, run};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{breakpoints, machine, pprof, programs};

/// The leaking function of `leaky_service`.
const LEAK: &str = "remember_request";

/// Keys of `[watch]` and a rule that names the leaking service.
const BY_RULE: &str =
    "[trace]\nauto = false\nsample_interval = \"4KiB\"\n\n[[trace.rule]]\nname = \"leaky\"\ncomm = \"leaky_service\"";

fn leaky(rate: u32) -> Result<Process> {
    let mut process = Process::spawn(programs::command("leaky_service")?.arg(rate.to_string()))?;
    process.expect("ready")?;
    Ok(process)
}

fn traced(daemon: &Daemon<'_>) -> Result<Vec<u64>> {
    let list = daemon.get("/api/v1/processes?state=traced&limit=1000")?;
    let processes = list["processes"].as_array().context("no processes")?;
    Ok(processes.iter().filter_map(|process| process["pid"].as_u64()).collect())
}

#[test]
fn what_leaks_among_fifty_is_found_traced_and_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    // Fifty that do not grow: some sleep, some allocate and free all the time.
    let mut innocents = Vec::new();
    for index in 0..50 {
        innocents.push(if index % 10 == 0 {
            let mut busy = Process::ready(&mut programs::command("churn")?)?;
            if index == 0 {
                busy.send("go")?;
            }
            busy
        } else {
            Process::spawn(Command::new("sleep").arg("600"))?
        });
    }
    let leaky = leaky(512)?;
    let home = Home::new(
        "growth_slope = \"100MiB/h\"\ngrowth_time = \"32s\"\nrelease_time = \"1m\"\n\n[trace]\nsample_interval = \"16KiB\"",
    )?;
    let mut daemon = home.start()?;
    let pid = leaky.pid();
    daemon.until("the leaking process is traced", Duration::from_secs(90), |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("traced"))
    })?;
    // Nobody else here; builds of this machine may grow while a test runs, but not those of the test.
    let ours: Vec<u64> = innocents.iter().map(|process| u64::from(process.pid())).collect();
    let traced = traced(&daemon)?;
    ensure!(
        !traced.iter().any(|pid| ours.contains(pid)),
        "innocent processes are traced: {traced:?}"
    );
    let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
    let reason = details["tracing"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("grew"), "no reason: {details}");
    daemon.until("a profile names the leak", Duration::from_secs(30), |daemon| {
        let Some(id) = daemon.home.stored(pid)?.into_iter().next() else {
            return Ok(false);
        };
        let store = daemon.home.store().display().to_string();
        let shown = leaktrace(&["show", &id, "--store", &store, "--top", "1"], PATIENCE)?;
        Ok(shown.stdout.lines().last().is_some_and(|line| line.contains(LEAK)) || shown.stdout.contains(LEAK))
    })?;
    let top = daemon.get(&format!("/api/v1/processes/{pid}/top?limit=1"))?;
    ensure!(top["rows"][0]["function"] == LEAK, "{top}");
    the_page_names_it(&home, pid)?;
    pprof_reads_it(&home, pid)?;
    let took = daemon.end()?;
    ensure!(took < Duration::from_secs(5), "it took {took:?} to end");
    let mut leaky = leaky;
    unharmed(&mut leaky)?;
    innocents.iter_mut().try_for_each(|process| {
        ensure!(process.alive(), "an innocent process ended");
        Ok(())
    })
}

fn the_page_names_it(home: &Home, pid: u32) -> Result<()> {
    if !browser::is_installed() {
        eprintln!("skipped: the page needs a browser (apt-get install chromium chromium-driver)");
        return Ok(());
    }
    let token = fs::read_to_string(home.path("token"))?;
    let page = browser::Browser::start(1360, 900)?;
    page.open(&format!("http://127.0.0.1:{}/login#token={}", home.port, token.trim()))?;
    page.wait("document.querySelector('.grid tbody.rows tr')", Duration::from_secs(20))?;
    page.open(&format!("http://127.0.0.1:{}/#/p/{pid}/top", home.port))?;
    page.wait(
        &format!("document.body.innerText.includes('{LEAK}')"),
        Duration::from_secs(30),
    )?;
    Ok(())
}

fn pprof_reads_it(home: &Home, pid: u32) -> Result<()> {
    let token = fs::read_to_string(home.path("token"))?;
    let address = format!(
        "http://leaktrace:{}@127.0.0.1:{}/debug/pprof/heap?pid={pid}",
        token.trim(),
        home.port
    );
    let folder = tempfile::tempdir()?;
    let mut command = Command::new("go");
    command
        .args(["tool", "pprof", "-top", "-sample_index=inuse_space", &address])
        .env("HOME", folder.path())
        .env("PPROF_TMPDIR", folder.path());
    let answer = run(&mut command, PATIENCE)?;
    ensure!(answer.status.success(), "{answer:?}");
    let rows = pprof::rows(&answer.stdout)?;
    ensure!(
        rows.iter().any(|row| row.name == LEAK),
        "go tool pprof does not name the leak:\n{}",
        answer.stdout
    );
    Ok(())
}

#[test]
fn killed_twenty_times_it_leaves_no_probe_and_a_store_that_opens() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = leaky(2000)?;
    let home = Home::new(BY_RULE)?;
    // Once to the end, so that the test would see a probe.
    let mut daemon = home.start()?;
    let pid = target.pid();
    daemon.until("the target is traced", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("traced"))
    })?;
    ensure!(
        !breakpoints::changed_code(pid)?.is_empty(),
        "no probe is seen while it traces: this test would not see one left either"
    );
    daemon.kill()?;
    for round in 0..20u64 {
        let daemon = home.start()?;
        thread::sleep(Duration::from_millis(round * 617 % 4000));
        daemon.kill()?;
        ensure!(target.alive(), "the target ended in round {round}");
    }
    unharmed(&mut target)?;
    let before = home.stored(pid)?;
    let mut daemon = home.start()?;
    daemon.until("it stores profiles again", PATIENCE, |daemon| {
        Ok(daemon.home.stored(pid)?.len() > before.len())
    })?;
    for id in home.stored(pid)? {
        let store = home.store().display().to_string();
        let shown = leaktrace(&["show", &id, "--store", &store], PATIENCE)?;
        ensure!(shown.status.success(), "{id}: {shown:?}");
    }
    let ids = home.stored(pid)?;
    let store = home.store().display().to_string();
    let (new, old) = (&ids[0], ids.last().context("no profile")?);
    let diff = leaktrace(&["diff", old, new, "--store", &store], PATIENCE)?;
    ensure!(diff.status.success(), "{diff:?}");
    daemon.end()?;
    unharmed(&mut target)
}

#[test]
fn on_sigterm_it_writes_last_profiles_and_is_gone() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = leaky(2000)?;
    let pid = target.pid();
    let home = Home::new(&format!(
        "{BY_RULE}\n\n[export]\ndirectory = \"{}\"\ninterval = \"1h\"",
        "STORE"
    ))?;
    let text = fs::read_to_string(home.path("leaktrace.toml"))?;
    let store = home.store().display().to_string();
    fs::write(home.path("leaktrace.toml"), text.replace("STORE", &store))?;
    let mut daemon = home.start()?;
    daemon.until("the target is traced", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("traced"))
    })?;
    thread::sleep(Duration::from_secs(1));
    let took = daemon.end()?;
    ensure!(took < Duration::from_secs(5), "it took {took:?} to end");
    ensure!(home.stored(pid)?.len() == 1, "no last profile");
    unharmed(&mut target)
}

#[test]
fn on_sighup_it_reads_its_configuration_again_and_loses_nothing() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = leaky(2000)?;
    let pid = target.pid();
    let tracked = |daemon: &Daemon<'_>| -> Result<u64> {
        let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
        Ok(details["memory"]["tracked"].as_u64().unwrap_or(0))
    };
    let home = Home::new(BY_RULE)?;
    let mut daemon = home.start()?;
    daemon.until("there is something to lose", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.is_some() && tracked(daemon)? > 4 << 20)
    })?;
    let before = tracked(&daemon)?;
    let kept = |daemon: &Daemon<'_>| -> Result<()> {
        ensure!(
            daemon.state(pid)?.as_deref() == Some("traced"),
            "it is traced no longer"
        );
        let now = tracked(daemon)?;
        ensure!(now >= before, "{before} bytes were outstanding, now {now} are");
        Ok(())
    };

    daemon.configure(&format!("no_such_key = 1\n\n{BY_RULE}"))?;
    daemon.until("that it says what is wrong", PATIENCE, |daemon| {
        kept(daemon)?;
        Ok(daemon.troubles()?.iter().any(|what| what.contains("no_such_key")))
    })?;
    daemon.configure(&format!("history = \"2h\"\n\n{BY_RULE}"))?;
    daemon.until("that nothing is wrong", PATIENCE, |daemon| {
        kept(daemon)?;
        Ok(daemon.troubles()?.is_empty())
    })?;
    thread::sleep(Duration::from_secs(2));
    kept(&daemon)?;
    // Without the rule nothing asks for it.
    daemon.configure("[trace]\nauto = false")?;
    daemon.until("it is released", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() != Some("traced"))
    })?;
    ensure!(
        breakpoints::changed_code(pid)?.is_empty(),
        "a probe was left in the target"
    );
    daemon.end()?;
    unharmed(&mut target)
}

#[test]
fn a_process_that_ends_leaves_its_last_profile() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let target = leaky(2000)?;
    let pid = target.pid();
    let home = Home::new("")?;
    let mut daemon = home.start()?;
    daemon.until("the target is known", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.is_some())
    })?;
    daemon.trace(pid, 4096)?;
    thread::sleep(Duration::from_millis(500));
    drop(target);
    daemon.until("its last profile", PATIENCE, |daemon| {
        Ok(!daemon.home.stored(pid)?.is_empty() && daemon.state(pid)?.is_none())
    })?;
    daemon.end()?;
    Ok(())
}

/// The answer is a failure with this status, told in one line with these words.
fn refused(answer: &Answer, status: i32, words: &[&str]) -> Result<()> {
    ensure!(answer.status.code() == Some(status), "not status {status}: {answer:?}");
    let lines: Vec<&str> = answer.stderr.lines().filter(|line| !line.is_empty()).collect();
    for word in words {
        ensure!(
            lines.last().is_some_and(|line| line.contains(word)),
            "no `{word}` in: {}",
            answer.stderr
        );
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_told_before_anything_is_traced() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let home = Home::new("")?;
    let daemon = home.start()?;
    // A second one on the same store, on another port.
    let second = Home::new(&format!("\n[export]\ndirectory = \"{}\"\n", home.store().display()))?;
    refused(&run(&mut second.command(), PATIENCE)?, 18, &["store"])?;
    // A port in use, with a store of its own.
    let other = Home::new("")?;
    let text = fs::read_to_string(other.path("leaktrace.toml"))?;
    fs::write(
        other.path("leaktrace.toml"),
        text.replace(&format!(":{}\"", other.port), &format!(":{}\"", home.port)),
    )?;
    refused(&run(&mut other.command(), PATIENCE)?, 21, &[&home.port.to_string()])?;
    // A store of another version.
    let foreign = Home::new("")?;
    fs::create_dir(foreign.store())?;
    fs::set_permissions(foreign.store(), fs::Permissions::from_mode(0o700))?;
    fs::write(foreign.store().join("version"), "leaktrace profile store 999\n")?;
    refused(&run(&mut foreign.command(), PATIENCE)?, 17, &["store"])?;
    // Unknown keys and impossible values.
    let wrong = Home::new("growth_tim = \"1s\"\nhistory = \"-1s\"")?;
    let answer = run(&mut wrong.command(), PATIENCE)?;
    refused(&answer, 20, &[])?;
    ensure!(
        answer.stderr.contains("growth_time") && answer.stderr.contains("history"),
        "{}",
        answer.stderr
    );
    let check = run(wrong.command().arg("--check"), PATIENCE)?;
    ensure!(check.status.code() == Some(20), "{check:?}");
    // Somebody else on the socket.
    let socket = home.path("socket");
    fs::set_permissions(home.path(""), fs::Permissions::from_mode(0o755))?;
    let mut stranger = Command::new("python3");
    stranger.args(["-c", STRANGER]).arg(&socket).uid(65_534).gid(65_534);
    let answer = run(&mut stranger, PATIENCE)?;
    ensure!(answer.stdout.contains(" 403 "), "{answer:?}");
    // The first is none the worse.
    daemon.get("/api/v1/status")?;
    daemon.end()?;
    Ok(())
}

const STRANGER: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b'GET /api/v1/status HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n')
print(s.recv(4096).decode())
";

#[test]
fn hostile_names_are_harmless_everywhere() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let hostile = "<b>\u{1b}[31m\n\u{202e}x";
    let mut target = Process::spawn(
        Command::new("sleep")
            .arg0(format!("{hostile}<script>alert(1)</script>"))
            .arg("600"),
    )?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join(hostile);
    fs::copy("/bin/sleep", &program)?;
    let mut named = Process::spawn(Command::new(&program).arg("600"))?;
    let home = Home::new("")?;
    let mut daemon = home.start()?;
    let pid = named.pid();
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
    ensure!(
        details["comm"].as_str().is_some_and(|comm| comm.contains('\u{1b}')),
        "{details}"
    );
    daemon.trace(pid, 4096)?;
    daemon.until("a profile", PATIENCE, |daemon| Ok(!daemon.home.stored(pid)?.is_empty()))?;
    let store = home.store().display().to_string();
    let list = leaktrace(&["list", "--store", &store], PATIENCE)?;
    let socket = home.path("socket").display().to_string();
    let top = leaktrace(&["top", "--batch", "-n", "1", "--socket", &socket], PATIENCE)?;
    let (status, metrics) = daemon.ask("GET", "/metrics", None)?;
    ensure!(status == 200, "{status}");
    for (what, text) in [
        ("list", list.stdout.as_bytes()),
        ("top", top.stdout.as_bytes()),
        ("the log", daemon.process.errors_so_far().as_bytes()),
        ("metrics", &metrics),
    ] {
        ensure!(!text.is_empty(), "{what} says nothing: {top:?}");
        ensure!(!text.contains(&0x1b), "{what} shows an escape sequence");
    }
    daemon.end()?;
    ensure!(named.alive() && target.alive(), "a target ended");
    Ok(())
}

/// Cells of a process's row in a table of `leaktrace top --batch`, by heading; those of its last page.
fn row(table: &str, pid: u32) -> Result<HashMap<String, String>> {
    // The only heading with a blank in it.
    let table = table.replace("GO HEAP", "GO_HEAP");
    let heading = table
        .lines()
        .rfind(|line| line.contains("PID"))
        .with_context(|| table.clone())?;
    let number = pid.to_string();
    let line = table
        .lines()
        .rfind(|line| line.split_whitespace().next() == Some(&number));
    let cells = line
        .with_context(|| format!("no pid {pid}:\n{table}"))?
        .split_whitespace();
    Ok(heading
        .split_whitespace()
        .map(str::to_owned)
        .zip(cells.map(str::to_owned))
        .collect())
}

/// `+1.25M` as a number.
fn figure(cells: &HashMap<String, String>, heading: &str) -> Result<f64> {
    let text = cells.get(heading).with_context(|| format!("no {heading}: {cells:?}"))?;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = ["", "B", "K", "M", "G", "T"]
        .iter()
        .position(|unit| *unit == &text[digits.len()..]);
    let power = unit.with_context(|| format!("{heading} is {text}"))?.saturating_sub(1);
    let number: f64 = digits.parse().with_context(|| format!("{heading} is {text}"))?;
    Ok(number * 1024f64.powi(i32::try_from(power)?))
}

#[test]
fn the_daemon_and_top_say_the_same_of_a_process() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = Toolchain::newest()?.build("small", Form::Pure)?;
    let gopher = Process::ready(&mut Command::new(program))?;
    let leaky = leaky(4000)?;
    let home = Home::new("growth_time = \"40s\"\n\n[trace]\nauto = false")?;
    let mut daemon = home.start()?;
    let pids = [leaky.pid(), gopher.pid()].map(|pid| pid.to_string());
    daemon.until("both are known", PATIENCE, |daemon| {
        Ok(daemon.state(leaky.pid())?.is_some() && daemon.state(gopher.pid())?.is_some())
    })?;
    let config = home.path("leaktrace.toml").display().to_string();
    let socket = home.path("socket").display().to_string();
    let of_top = leaktrace(
        &[
            "top",
            "--batch",
            "-n",
            "16",
            "-i",
            "1s",
            "--no-trace",
            "--config",
            &config,
            "-p",
            &pids[0],
            "-p",
            &pids[1],
        ],
        PATIENCE,
    )?;
    let of_daemon = leaktrace(&["top", "--batch", "--socket", &socket], PATIENCE)?;
    for (pid, headings) in [
        (leaky.pid(), &["RSS", "ANON", "GROWTH/h"][..]),
        (gopher.pid(), &["RSS", "ANON", "GO_HEAP"][..]),
    ] {
        let (own, daemons) = (row(&of_top.stdout, pid)?, row(&of_daemon.stdout, pid)?);
        ensure!(own["COMM"] == daemons["COMM"], "{own:?} and {daemons:?}");
        for heading in headings {
            let (own, daemons) = (figure(&own, heading)?, figure(&daemons, heading)?);
            // Two looks at most lie between both, and a second between the beginnings.
            ensure!(
                daemons > 0.0 && (own / daemons - 1.0).abs() < 0.2,
                "{heading} of pid {pid}: top says {own}, the daemon {daemons}"
            );
        }
    }
    daemon.end()?;
    Ok(())
}

#[test]
fn a_full_disk_pauses_exporting_and_nothing_else() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = leaky(2000)?;
    let pid = target.pid();
    let disk = tempfile::tempdir()?;
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400k,mode=700", "tmpfs"])
        .arg(disk.path())
        .status()?;
    ensure!(mounted.success(), "no tmpfs");
    let result = full_disk(&mut target, pid, disk.path());
    let unmounted = Command::new("umount").arg("-l").arg(disk.path()).status()?;
    ensure!(unmounted.success(), "the tmpfs is left");
    result
}

fn full_disk(target: &mut Process, pid: u32, disk: &std::path::Path) -> Result<()> {
    let store = disk.join("store");
    let home = Home::new(&format!(
        "{BY_RULE}\n\n[export]\ndirectory = \"{}\"\ninterval = \"1s\"",
        store.display()
    ))?;
    let mut daemon = home.start()?;
    daemon.until("a profile, or a pause", PATIENCE, |daemon| {
        let status = daemon.get("/api/v1/status")?;
        Ok(status["store"]["paused"] == true || status["store"]["profiles"].as_u64() > Some(0))
    })?;
    // Somebody fills the disk.
    let filler = disk.join("filler");
    let _ = fs::write(&filler, vec![0u8; 1 << 20]);
    daemon.until("exporting pauses and says so", PATIENCE, |daemon| {
        let status = daemon.get("/api/v1/status")?;
        let told = status["troubles"]
            .as_array()
            .is_some_and(|troubles| !troubles.is_empty());
        Ok(status["store"]["paused"] == true && told)
    })?;
    let store = store.display().to_string();
    let list = leaktrace(&["list", "--store", &store], PATIENCE)?;
    ensure!(list.status.success(), "{list:?}");
    ensure!(
        daemon.state(pid)?.as_deref() == Some("traced"),
        "it is not traced any more"
    );
    fs::remove_file(&filler)?;
    daemon.end()?;
    unharmed(target)
}

#[test]
fn a_target_in_namespaces_of_its_own_and_one_that_replaces_its_binary() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("leaky_service");
    fs::copy(programs::path("leaky_service")?, &program)?;
    let mut replaced = Process::spawn(Command::new(&program).arg("2000"))?;
    replaced.expect("ready")?;
    fs::remove_file(&program)?;
    fs::write(&program, "#!/bin/true\n")?;
    // Its own mount, PID and user namespaces, with a libc of its own in a root of its own.
    let root = folder.path().join("root");
    let inside = container(&root)?;
    let home = Home::new("")?;
    let mut daemon = home.start()?;
    let mut unshare = Process::spawn(
        Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["chroot"])
            .arg(&root)
            .args([&inside, "2000"]),
    )?;
    unshare.expect("ready")?;
    let contained = child_named(unshare.pid(), "leaky_service")?;
    for pid in [replaced.pid(), contained] {
        daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
        daemon.trace(pid, 4096)?;
        daemon.until("its leak is named", PATIENCE, |daemon| {
            let top = daemon.get(&format!("/api/v1/processes/{pid}/top?limit=1"))?;
            Ok(top["rows"][0]["function"] == LEAK)
        })?;
    }
    daemon.end()?;
    unharmed(&mut replaced)?;
    ensure!(breakpoints::changed_code(contained)?.is_empty(), "probes are left");
    Ok(())
}

/// A root folder with the program and the libraries that it needs, copied; the program's path in it.
fn container(root: &std::path::Path) -> Result<String> {
    let program = programs::path("leaky_service")?;
    let needed = run(Command::new("ldd").arg(&program), PATIENCE)?;
    let libraries = needed
        .stdout
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned);
    for library in libraries {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().context("a library has a folder")?)?;
        fs::copy(&library, &target)?;
    }
    fs::create_dir_all(root.join("bin"))?;
    fs::copy(&program, root.join("bin/leaky_service"))?;
    Ok("/bin/leaky_service".to_owned())
}

/// The descendant of a process with a name.
fn child_named(pid: u32, name: &str) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        let child: u32 = child.parse()?;
        if fs::read_to_string(format!("/proc/{child}/comm"))?
            .trim()
            .starts_with(&name[..name.len().min(15)])
        {
            return Ok(child);
        }
        if let Ok(found) = child_named(child, name) {
            return Ok(found);
        }
    }
    anyhow::bail!("pid {pid} has no child called {name}")
}
