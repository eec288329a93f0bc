//! A recording that lost every call says so, and is no success.

use std::process::Command;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;

/// Status of such a recording.
const ALL_LOST: i32 = 22;

/// leaktrace stands still while its smallest ring fills up with mappings; allocations that follow find no room.
fn record(stopped_while_allocating: bool) -> Result<(i32, String, Profile)> {
    let mut target = Process::ready(&mut programs::command("lost_calls")?)?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("profile.json");
    let mut command = Command::new(machine::leaktrace());
    command
        .args(["record", "--ring-size", "4KiB", "-p", &target.pid().to_string(), "-o"])
        .arg(&output);
    let mut tracer = Process::spawn(&mut command)?;
    tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
    tracer.signal(Signal::SIGSTOP)?;
    target.send("go")?;
    target.expect("mapped")?;
    if !stopped_while_allocating {
        tracer.signal(Signal::SIGCONT)?;
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    target.send("allocate")?;
    target.finished()?;
    tracer.signal(Signal::SIGINT)?;
    tracer.signal(Signal::SIGCONT)?;
    let status = tracer.wait(PATIENCE)?;
    let profile = Profile::read(&output)?;
    unharmed(&mut target)?;
    target.exit()?;
    Ok((status.code().unwrap_or(-1), tracer.errors(), profile))
}

#[test]
fn no_call_was_recorded() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (status, said, profile) = record(true)?;
    ensure!(status == ALL_LOST, "status {status}: {said}");
    ensure!(
        said.contains("all calls were lost") && said.contains("500 alloc_lost") && said.contains("--mode sampled"),
        "{said}"
    );
    // The profile is there for its losses.
    ensure!(
        profile.outstanding_through("leak_here").objects == 0,
        "{}",
        profile.shown()
    );
    Ok(())
}

#[test]
fn one_that_lost_some_is_a_success() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (status, said, profile) = record(false)?;
    ensure!(
        status == 0 && !said.contains("all calls were lost"),
        "status {status}: {said}"
    );
    ensure!(
        profile.outstanding_through("leak_here").objects > 0,
        "{}",
        profile.shown()
    );
    Ok(())
}
