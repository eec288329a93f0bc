//! A user other than root: the capabilities that the README lists suffice on this kernel.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::process::PATIENCE;
use leaktrace_tests::recording::run;
use leaktrace_tests::user::{User, recording_capabilities, without_capabilities};
use leaktrace_tests::{machine, programs};

#[test]
fn the_listed_capabilities_suffice() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    // A copy where everyone may run it, as another user's process and as one of the user's own.
    let program = user.path("malloc_family");
    fs::copy(programs::path("malloc_family")?, &program)?;
    user.record_exactly(&recording_capabilities()?, Command::new(&program).arg("malloc"), &[])
        .context("another user's process")?;
    let mut own = without_capabilities();
    user.record_exactly(&recording_capabilities()?, own.arg(&program).arg("malloc"), &[])
        .context("an own process")
}

#[test]
fn doctor_says_that_they_suffice() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let user = User::new()?;
    let answer = run(user.leaktrace(&recording_capabilities()?).arg("doctor"), PATIENCE)?;
    ensure!(
        answer.status.success() && answer.stdout.lines().last() == Some("recording would work"),
        "{answer:?}"
    );
    ensure!(answer.stdout.contains("self-test    passed"), "{answer:?}");
    Ok(())
}
