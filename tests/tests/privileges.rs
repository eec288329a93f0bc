//! A user other than root: the capabilities that the README lists suffice, and of a smaller set each message says which is
//! missing.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::recording::{Answer, run};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::user::{User, readme_capabilities, without_capabilities};
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;

const PERF_EVENTS: (&str, &str) = ("LEAKTRACE_UPROBES", "perf");

/// What a recording needs on this kernel.
fn recording() -> Result<Vec<String>> {
    if needs_more() {
        daemon()
    } else {
        readme_capabilities("Recording")
    }
}

/// What the daemon needs, and a recording with perf events.
fn daemon() -> Result<Vec<String>> {
    readme_capabilities("Recording elsewhere, and the daemon")
}

/// Whether this kernel is one on which a recording needs more, as the README says it.
fn needs_more() -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    let release = read("osrelease");
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version < (6, 13) || read("perf_event_paranoid").trim().parse().unwrap_or(0) > 2
}

fn without(capabilities: &[String], name: &str) -> Vec<String> {
    capabilities.iter().filter(|other| *other != name).cloned().collect()
}

/// Records a program to the byte, which a user runs or root does.
fn exact(user: &User, capabilities: &[String], target: &mut Command, variables: &[(&str, &str)]) -> Result<()> {
    let mut target = Process::ready(target)?;
    let output = user.path("profile.json");
    let mut command = user.leaktrace(capabilities);
    command.envs(variables.iter().copied());
    command
        .args(["record", "-p", &target.pid().to_string(), "-o"])
        .arg(&output);
    let mut tracer = Process::spawn(&mut command)?;
    tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
    let truth = target.work()?;
    tracer.signal(Signal::SIGINT)?;
    let status = tracer.wait(PATIENCE)?;
    ensure!(status.success(), "{status}: {}", tracer.errors());
    assert_exact(&truth, &Profile::read(&output)?);
    unharmed(&mut target)?;
    target.exit()
}

#[test]
fn the_listed_capabilities_suffice() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    // A copy where everyone may run it, as another user's process and as one of the user's own.
    let program = user.path("malloc_family");
    fs::copy(programs::path("malloc_family")?, &program)?;
    exact(&user, &recording()?, Command::new(&program).arg("malloc"), &[]).context("another user's process")?;
    let mut own = without_capabilities();
    exact(&user, &recording()?, own.arg(&program).arg("malloc"), &[]).context("an own process")
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
    exact(&user, &recording()?, Command::new(&program).arg("malloc"), &[])
}

#[test]
fn perf_events_take_one_more() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let mut target = programs::command("malloc_family")?;
    exact(&user, &daemon()?, target.arg("malloc"), &[PERF_EVENTS])?;
    let fewer = without(&daemon()?, "CAP_SYS_ADMIN");
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

#[test]
fn doctor_says_that_they_suffice() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let answer = run(user.leaktrace(&recording()?).arg("doctor"), PATIENCE)?;
    ensure!(
        answer.status.success() && answer.stdout.lines().last() == Some("recording would work"),
        "{answer:?}"
    );
    ensure!(answer.stdout.contains("self-test    passed"), "{answer:?}");
    let answer = run(user.leaktrace(&daemon()?).arg("doctor").envs([PERF_EVENTS]), PATIENCE)?;
    ensure!(answer.status.success(), "{answer:?}");
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
    let said = daemon_says(&user, &daemon()?)?;
    ensure!(!said.contains(blind), "{said}");
    if !needs_more() {
        let said = daemon_says(&user, &recording()?)?;
        ensure!(said.contains(blind) && said.contains("CAP_SYS_ADMIN"), "{said}");
    }
    Ok(())
}
