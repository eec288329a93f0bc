//! `leaktrace doctor`: what would work, and what would not.

use std::process::Command;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{leaktrace, run};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

#[test]
fn a_target_that_can_be_recorded() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let answer = leaktrace(&["doctor", "-p", &target.pid().to_string()], PATIENCE)?;
    ensure!(answer.status.success(), "{answer:?}");
    for word in ["libc.so.6", "malloc", "free", "BTF"] {
        ensure!(answer.stdout.contains(word), "no `{word}` in:\n{}", answer.stdout);
    }
    unharmed(&mut target)
}

#[test]
fn a_target_without_an_allocator() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("no_allocator")?)?;
    let answer = leaktrace(&["doctor", "-p", &target.pid().to_string()], PATIENCE)?;
    ensure!(answer.status.code() == Some(1), "{answer:?}");
    unharmed(&mut target)
}

#[test]
fn a_machine_without_privileges() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-sys_admin,-bpf,-perfmon"])
        .arg(machine::leaktrace())
        .arg("doctor");
    let answer = run(&mut command, PATIENCE)?;
    ensure!(answer.status.code() == Some(1), "{answer:?}");
    ensure!(answer.stdout.contains("CAP_"), "{}", answer.stdout);
    Ok(())
}
