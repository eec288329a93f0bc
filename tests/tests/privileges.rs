//! A user other than root: of a smaller set than the README's each message says which capability is missing, and what one
//! more is for. That the set suffices is tried on every kernel (`tests/kernels/privileges.rs`).

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Answer, run};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::user::{User, daemon_capabilities, needs_more, readme_capabilities, recording_capabilities};
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;

const PERF_EVENTS: (&str, &str) = ("LEAKTRACE_UPROBES", "perf");

fn without(capabilities: &[String], name: &str) -> Vec<String> {
    capabilities.iter().filter(|other| *other != name).cloned().collect()
}

#[test]
fn files_that_only_their_owner_may_read() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    use std::os::unix::fs::PermissionsExt as _;
    let user = User::new()?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("malloc_family");
    fs::copy(programs::path("malloc_family")?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
    user.record_exactly(&recording_capabilities()?, Command::new(&program).arg("malloc"), &[])
}

#[test]
fn perf_events_take_one_more() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let mut target = programs::command("malloc_family")?;
    user.record_exactly(&daemon_capabilities()?, target.arg("malloc"), &[PERF_EVENTS])?;
    let fewer = without(&daemon_capabilities()?, "CAP_SYS_ADMIN");
    let answer = refused(&user, &fewer, &[PERF_EVENTS])?;
    ensure!(answer.stderr.contains("missing capability CAP_SYS_ADMIN"), "{answer:?}");
    Ok(())
}

/// Tries to record a process of root's; nothing may come of it.
fn refused(user: &User, capabilities: &[String], variables: &[(&str, &str)]) -> Result<Answer> {
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let output = user.path("refused.json");
    let mut command = user.leaktrace(capabilities);
    command.envs(variables.iter().copied());
    command
        .args(["record", "-d", "5s", "-p", &target.pid().to_string(), "-o"])
        .arg(&output);
    let answer = run(&mut command, PATIENCE)?;
    ensure!(answer.status.code() == Some(6), "{answer:?}");
    ensure!(answer.stderr.lines().count() == 1, "{answer:?}");
    ensure!(!output.exists(), "something was written: {answer:?}");
    unharmed(&mut target)?;
    Ok(answer)
}

#[test]
fn each_that_is_missing_is_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    // CAP_SYS_ADMIN would stand in for two of them, so the smaller set is the one to take them from.
    for name in readme_capabilities("Recording")? {
        let fewer = without(&readme_capabilities("Recording")?, &name);
        let answer = refused(&user, &fewer, &[])?;
        ensure!(answer.stderr.contains(&name), "no {name} in: {answer:?}");
        let doctor = run(user.leaktrace(&fewer).arg("doctor"), PATIENCE)?;
        let verdict = doctor.stdout.lines().last().unwrap_or_default();
        ensure!(
            doctor.status.code() == Some(1) && verdict.contains(&format!("missing capability {name}")),
            "no {name} in: {doctor:?}"
        );
    }
    Ok(())
}

/// Nobody has mounted it, and this user may not: one line says what to do.
#[test]
fn tracefs_that_is_not_mounted() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let capabilities = readme_capabilities("Recording")?;
    let inner = user.leaktrace(&capabilities);
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /sys/kernel/tracing && exec \"$0\" \"$@\"",
        ])
        .arg(inner.get_program())
        .args(inner.get_args())
        .args(["record", "-p", "1", "-o"])
        .arg(user.path("profile.json"));
    let answer = run(&mut command, PATIENCE)?;
    ensure!(!answer.status.success(), "{answer:?}");
    if !needs_more() {
        ensure!(
            answer.stderr.contains("tracefs is not mounted") && answer.stderr.contains("run as root: mount -t tracefs"),
            "{answer:?}"
        );
    }
    Ok(())
}

/// Runs a daemon of this user's for a while; what it said.
fn daemon_says(user: &User, capabilities: &[String]) -> Result<String> {
    let path = |name: &str| user.path(name).display().to_string();
    fs::write(
        user.path("leaktrace.toml"),
        format!(
            "[watch]\ninterval = \"1s\"\n\n[http]\nlisten = \"\"\nsocket = \"{}\"\ntoken_file = \"{}\"\n\n[export]\n\
             directory = \"{}\"\ninterval = \"1s\"\n",
            path("socket"),
            path("token"),
            path("store")
        ),
    )?;
    let mut daemon =
        Process::spawn(
            user.leaktrace(capabilities)
                .args(["daemon", "--config", &path("leaktrace.toml")]),
        )?;
    daemon.wait_for_error("that it listens", |line| line.contains("profiles go to"), PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    daemon.signal(Signal::SIGTERM)?;
    let status = daemon.wait(PATIENCE)?;
    let said = daemon.errors();
    ensure!(status.success(), "{status}: {said}");
    Ok(said)
}

#[test]
fn a_daemon_says_when_it_cannot_keep_its_budget() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let blind = "cannot be measured";
    let said = daemon_says(&user, &daemon_capabilities()?)?;
    ensure!(!said.contains(blind), "{said}");
    if !needs_more() {
        let said = daemon_says(&user, &recording_capabilities()?)?;
        ensure!(said.contains(blind) && said.contains("CAP_SYS_ADMIN"), "{said}");
    }
    Ok(())
}
