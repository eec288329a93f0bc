//! Memory that a process has left to a userfaultfd handler which never answers: whoever touches it waits for ever. It costs
//! what would be read there and nothing else.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use leaktrace_tests::daemon::Home;
use leaktrace_tests::golang::{self, Form, MANDATORY};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::{machine, programs};

/// What the longest of all steps may take, be it an answer or the end at a signal.
const LIMIT: Duration = Duration::from_secs(5);

/// A Go process none of whose memory answers.
fn silent() -> Result<Process> {
    let program = golang::program(MANDATORY[1], "userfault", Form::Pure)?;
    let target = Process::ready(&mut Command::new(program))?;
    // It says so before it drops its memory, while it still can.
    thread::sleep(machine::scaled(Duration::from_millis(200)));
    Ok(target)
}

fn innocent() -> Result<Process> {
    Process::ready(programs::command("malloc_family")?.arg("malloc"))
}

fn within(what: &str, begin: Instant) -> Result<()> {
    let took = begin.elapsed();
    ensure!(took < machine::scaled(LIMIT), "{what} took {took:?}");
    Ok(())
}

/// Readers say why, a recording has all of the innocent process, and both end in time.
#[test]
fn readers_and_a_recording() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut silent, mut innocent) = (silent()?, innocent()?);
    let pid = silent.pid().to_string();
    for command in ["heap", "goroutines", "gc"] {
        let begin = Instant::now();
        let answer = leaktrace(&["go", command, "-p", &pid], PATIENCE)?;
        within(command, begin)?;
        ensure!(
            !answer.status.success() && answer.stderr.contains("userfaultfd"),
            "{command}: {answer:?}"
        );
    }
    let recording = Recording::attach(innocent.pid(), &["-p", &pid])?;
    let truth = innocent.work()?;
    let begin = Instant::now();
    let profile = recording.stop()?.profile;
    within("SIGINT", begin)?;
    assert_exact(&truth, &profile);
    ensure!(
        profile.comments.iter().any(|comment| comment.contains("userfaultfd")),
        "no reason: {:?}",
        profile.comments
    );
    unharmed(&mut innocent)?;
    ensure!(silent.alive(), "it ended");
    innocent.exit()
}

/// The daemon, which looks at the collectors of Go processes by itself, traces an innocent process beside it.
#[test]
fn the_daemon() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (silent, innocent) = (silent()?, innocent()?);
    let home = Home::new("\n[trace]\nauto = false")?;
    let mut daemon = home.start()?;
    let (one, other) = (silent.pid(), innocent.pid());
    daemon.until("both are known", PATIENCE, |daemon| {
        Ok(daemon.state(one)?.is_some() && daemon.state(other)?.is_some())
    })?;
    // It has nothing that could be probed.
    let _ = daemon.trace(one, 4096);
    let begin = Instant::now();
    daemon.trace(other, 4096)?;
    within("the innocent process", begin)?;
    let (status, _) = daemon.ask("GET", "/healthz", None)?;
    ensure!(status == 200, "{status}");
    let took = daemon.end()?;
    ensure!(took < machine::scaled(LIMIT), "SIGTERM took {took:?}");
    Ok(())
}
