//! Options of `record` that change what is recorded or where it goes.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::leaktrace;
use leaktrace_tests::scenario::{amount, record};
use leaktrace_tests::{machine, pprof, programs};
use nix::sys::signal::Signal;

#[test]
fn smaller_allocations_are_left_out() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (_, recorded) = record(&mut programs::command("innocent")?, &["--min-size", "300"])?;
    let profile = &recorded.profile;
    // The cache's entries have 264 bytes, the leaks 40, the pool's blocks 512.
    assert_eq!(profile.outstanding(), amount(100, 100 * 512), "{}", profile.shown());
    assert_eq!(
        profile.allocated_through("cache_insert"),
        amount(0, 0),
        "{}",
        profile.shown()
    );
    Ok(())
}

#[test]
fn the_file_is_named_after_the_target() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let mut command = Command::new(machine::leaktrace());
    command
        .current_dir(directory.path())
        .args(["record", "--top", "2", "-p", &target.pid().to_string()]);
    let mut tracer = Process::spawn(&mut command)?;
    tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
    target.work()?;
    tracer.signal(Signal::SIGINT)?;
    ensure!(tracer.wait(PATIENCE)?.success(), "{}", tracer.errors());
    let names: Vec<_> = fs::read_dir(directory.path())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    ensure!(
        names == [format!("leaktrace.innocent.{}.pb.gz", target.pid()).as_str()],
        "{names:?}"
    );
    // Two rows, as asked; a progress line is for terminals.
    let output = tracer.output();
    ensure!(pprof::rows(&output)?.len() == 2, "{output}");
    ensure!(
        !tracer.errors().contains('\r') && !tracer.errors().contains('\u{1b}'),
        "{:?}",
        tracer.errors()
    );
    target.exit()
}

#[test]
fn help_names_every_command() -> Result<()> {
    let answer = leaktrace(&["--help"], PATIENCE)?;
    ensure!(answer.status.success(), "{answer:?}");
    for command in ["record", "report", "diff", "doctor"] {
        ensure!(answer.stdout.contains(command), "no {command} in:\n{}", answer.stdout);
    }
    Ok(())
}
