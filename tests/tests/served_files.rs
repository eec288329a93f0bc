//! Targets with code on a file system that another process serves (FUSE) and that may never answer: it costs that
//! target's names and nothing else.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::daemon::Home;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::{machine, programs};
use tempfile::TempDir;

/// Reads at or behind this are answered.
const ANSWERS: &str = "18446744073709551615";
/// None is.
const SILENT: &str = "0";

/// A target that maps a library on its own file system, with the place where that is mounted.
fn target(silent_from: &str) -> Result<(Process, TempDir)> {
    let place = tempfile::tempdir()?;
    let mut command: Command = programs::command("silent_files")?;
    command
        .arg(place.path())
        .arg(programs::path("libplugin_allocator.so")?)
        .arg(silent_from);
    let target = Process::ready(&mut command).context("is /dev/fuse there?")?;
    Ok((target, place))
}

/// Whether a process of the kernel side or the target may be left waiting: nothing of leaktrace itself is.
#[test]
fn a_file_system_that_never_answers() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut silent, _place) = target(SILENT)?;
    let pid = silent.pid().to_string();

    let begin = Instant::now();
    let answer = leaktrace(&["doctor", "-p", &pid], PATIENCE)?;
    ensure!(
        begin.elapsed() < machine::scaled(Duration::from_secs(20)),
        "doctor took {:?}",
        begin.elapsed()
    );
    ensure!(
        answer.status.success() && answer.stdout.contains("has not answered for"),
        "{answer:?}"
    );

    // All but that file's names is there, to the byte.
    let recording = Recording::attach(silent.pid(), &[])?;
    let truth = silent.work()?;
    let begin = Instant::now();
    let recorded = recording.stop()?;
    ensure!(
        begin.elapsed() < machine::scaled(Duration::from_secs(5)),
        "SIGTERM took {:?}",
        begin.elapsed()
    );
    assert_exact(&truth, &recorded.profile);
    ensure!(
        recorded.stdout.contains("not read wholly: ") && recorded.stdout.contains("for 60 s"),
        "no reason in:\n{}",
        recorded.stdout
    );
    unharmed(&mut silent)?;
    silent.exit()
}

/// The daemon traces an innocent process beside it, and ends in time.
#[test]
fn the_daemon_and_an_innocent_process_beside_it() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut silent, _place) = target(SILENT)?;
    let innocent = Process::ready(&mut programs::command("innocent")?)?;
    let home = Home::new("")?;
    let mut daemon = home.start()?;
    let (one, other) = (silent.pid(), innocent.pid());
    daemon.until("both are known", PATIENCE, |daemon| {
        Ok(daemon.state(one)?.is_some() && daemon.state(other)?.is_some())
    })?;
    daemon.trace(one, 4096)?;
    let begin = Instant::now();
    daemon.trace(other, 4096)?;
    ensure!(
        begin.elapsed() < machine::scaled(Duration::from_secs(5)),
        "the innocent one took {:?}",
        begin.elapsed()
    );
    let (status, _) = daemon.ask("GET", "/healthz", None)?;
    ensure!(status == 200, "{status}");
    let took = daemon.end()?;
    ensure!(took < machine::scaled(Duration::from_secs(5)), "SIGTERM took {took:?}");
    unharmed(&mut silent)
}

/// Files of one that answers are read, from a copy. Nothing is probed there.
#[test]
fn a_file_system_that_answers() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut served, _place) = target(ANSWERS)?;
    let answer = leaktrace(&["doctor", "-p", &served.pid().to_string()], PATIENCE)?;
    ensure!(
        answer.status.success() && answer.stdout.contains("a process serves (FUSE)"),
        "{answer:?}"
    );
    let recording = Recording::attach(served.pid(), &[])?;
    let truth = served.work()?;
    assert_exact(&truth, &recording.stop()?.profile);
    unharmed(&mut served)?;
    served.exit()
}
