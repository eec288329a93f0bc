//! Processes that use one memory (`clone` with `CLONE_VM`): what one frees, another has allocated.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{amount, assert_exact, unharmed};
use leaktrace_tests::{machine, programs};

/// To the byte: what the child freed is free, and what it leaked is there. Where the probes are attached again for a child that
/// comes later, that may be all left out on a slow machine, but nothing is there that is not held.
fn exact(when: &str, way: &str, variables: &[(&str, &str)]) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("shared_memory")?.args([when, way]))?;
    let recording = Recording::attach_with_variables(target.pid(), &[], variables)?;
    target.send("go")?;
    target.expect("made")?;
    // What is done before the child's calls are seen is left out.
    let may_miss = when == "after" && variables.is_empty();
    if may_miss {
        thread::sleep(machine::scaled(Duration::from_secs(3)));
    }
    machine::pause();
    target.send("on")?;
    let truth = target.finished()?;
    let recorded = if way == "stays" {
        // The parent ends first, and the recording with it.
        target.exit()?;
        recording.finish()?
    } else {
        let recorded = recording.stop()?;
        unharmed(&mut target)?;
        target.exit()?;
        recorded
    };
    let shown = recorded.profile.shown();
    if may_miss {
        let outstanding = recorded.profile.outstanding();
        let leaked = recorded.profile.outstanding_through("leak_here");
        ensure!(outstanding == leaked, "{shown}");
        let held = amount(truth.objects(), truth.bytes());
        ensure!(leaked.objects <= held.objects && leaked.bytes <= held.bytes, "{shown}");
    } else {
        assert_exact(&truth, &recorded.profile);
        let jobs = recorded.profile.allocated_through("make_job");
        ensure!(jobs.objects == 1000, "{shown}");
    }
    let included = recorded
        .profile
        .comments
        .iter()
        .any(|comment| comment.contains("use the memory of pid"));
    ensure!(included, "{:#?}", recorded.profile.comments);
    Ok(())
}

#[test]
fn a_child_that_was_there_before() -> Result<()> {
    exact("before", "exits", &[])
}

#[test]
fn a_child_that_comes_later() -> Result<()> {
    exact("after", "exits", &[])
}

#[test]
fn a_child_that_comes_later_with_perf_events() -> Result<()> {
    exact("after", "exits", &[("LEAKTRACE_UPROBES", "perf")])
}

#[test]
fn a_child_that_becomes_another_program() -> Result<()> {
    exact("after", "execs", &[])
}

#[test]
fn a_child_that_outlives_its_parent() -> Result<()> {
    exact("before", "stays", &[])
}

/// One memory has one ledger.
#[test]
fn a_child_is_not_traced_beside_its_parent() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("shared_memory")?.args(["before", "exits"]))?;
    let pid = target.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.trim().to_owned();
    let both = ["record", "-p", &pid.to_string(), "-p", &child, "-d", "1s"];
    let answer = leaktrace(&both, PATIENCE)?;
    ensure!(
        !answer.status.success() && answer.stderr.contains(&format!("uses the memory of pid {pid}")),
        "{answer:?}"
    );
    target.send("go")?;
    target.expect("made")?;
    target.send("on")?;
    target.finished()?;
    target.exit()
}
