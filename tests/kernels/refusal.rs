//! A kernel that cannot be used is refused in words: the version that is needed or the lock that is in the way, not what the
//! kernel said to some call. Each test runs where its kernel is one of that kind.

use std::fs;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::{machine, programs};

/// The oldest kernel that the guests boot and that has to work: README, `doctor` and messages name it.
const OLDEST: (u32, u32) = (6, 1);
/// As it is written.
const NAMED: &str = "6.1";
/// The status for "the kernel lacks something".
const KERNEL_LACKS: i32 = 7;
/// The status for "this process may not".
const FORBIDDEN: i32 = 6;

#[test]
fn the_version_that_is_needed_is_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    if machine::kernel()? >= OLDEST {
        eprintln!("skipped: this kernel is new enough");
        return Ok(());
    }
    let mut target = Process::ready(&mut programs::command("known_truth")?)?;
    let pid = target.pid().to_string();
    let record = leaktrace(&["record", "-d", "1s", "-p", &pid, "-o", "/tmp/refused.json"], PATIENCE)?;
    ensure!(record.status.code() == Some(KERNEL_LACKS), "{record:?}");
    ensure!(record.stderr.contains(NAMED), "no {NAMED} in: {}", record.stderr);
    let doctor = leaktrace(&["doctor"], PATIENCE)?;
    let verdict = doctor.stdout.lines().last().unwrap_or_default();
    ensure!(
        doctor.status.code() == Some(1) && verdict.starts_with("recording would not work: "),
        "{doctor:?}"
    );
    ensure!(doctor.stdout.contains(NAMED), "no {NAMED} in: {}", doctor.stdout);
    unharmed(&mut target)
}

#[test]
fn a_lockdown_is_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    if !fs::read_to_string("/proc/cmdline")?.contains("lockdown=confidentiality") {
        eprintln!("skipped: this kernel is not locked down for confidentiality");
        return Ok(());
    }
    let mut target = Process::ready(&mut programs::command("known_truth")?)?;
    let pid = target.pid().to_string();
    let record = leaktrace(&["record", "-d", "1s", "-p", &pid, "-o", "/tmp/locked.json"], PATIENCE)?;
    ensure!(record.status.code() == Some(KERNEL_LACKS), "{record:?}");
    ensure!(
        record.stderr.contains("locked down") && record.stderr.contains("lockdown=integrity"),
        "neither the lock nor what to do in: {}",
        record.stderr
    );
    let doctor = leaktrace(&["doctor"], PATIENCE)?;
    let verdict = doctor.stdout.lines().last().unwrap_or_default();
    ensure!(
        doctor.status.code() == Some(1)
            && verdict.starts_with("recording would not work: ")
            && verdict.contains("locked down"),
        "{doctor:?}"
    );
    unharmed(&mut target)
}

/// A command cannot be stopped at its start; a process that is there can be recorded.
#[test]
fn ptrace_that_is_forbidden_to_all_is_named() -> Result<()> {
    const SYSCTL: &str = "kernel.yama.ptrace_scope";
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if scope.trim() != "3" {
        eprintln!("skipped: {SYSCTL} is not 3");
        return Ok(());
    }
    let record = leaktrace(&["record", "-o", "/tmp/forbidden.json", "--", "true"], PATIENCE)?;
    ensure!(record.status.code() == Some(FORBIDDEN), "{record:?}");
    ensure!(
        record.stderr.contains(SYSCTL) && record.stderr.contains("record -p"),
        "neither the setting nor what to do in: {}",
        record.stderr
    );
    let doctor = leaktrace(&["doctor"], PATIENCE)?;
    ensure!(
        doctor.status.success() && doctor.stdout.contains(SYSCTL) && doctor.stdout.contains("record -p"),
        "{doctor:?}"
    );
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    assert_exact(&truth, &recording.stop()?.profile);
    // Its code cannot be read here either.
    target.exit()
}
