//! A Go program that ends while the daemon traces it: its last profile still has both worlds.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::Home;
use leaktrace_tests::golang::{Form, Toolchain};
use leaktrace_tests::machine;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::recording::as_json;

/// The newest profile of a process in the store.
fn last_profile(home: &Home, pid: u32) -> Result<Option<Profile>> {
    let ids = home.stored(pid)?;
    ids.first().map(|id| as_json(&home.profile(id))).transpose()
}

fn bytes(profile: &Profile, heap: &str) -> i64 {
    let samples = profile.samples.iter().filter(|sample| sample.heap() == heap);
    samples.map(|sample| sample.inuse().bytes).sum()
}

#[test]
fn the_last_profile_has_the_go_heap_of_the_one_before() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = Toolchain::newest()?.build("cgocache", Form::Cgo)?;
    let mut target = Process::spawn(&mut Command::new(program))?;
    target.wait_for("that it is ready", |line| line.starts_with("ready"), PATIENCE)?;
    let pid = target.pid();
    let home = Home::new("\n[trace]\nauto = false")?;
    let mut daemon = home.start()?;
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    daemon.trace(pid, 16)?;
    for order in ["keep 500", "make 200"] {
        target.send(order)?;
        target.expect("done")?;
    }
    // 500 blocks of 1,000 bytes in C, 200 of 5,000 in Go.
    daemon.until("a profile has both heaps", PATIENCE, |daemon| {
        Ok(last_profile(daemon.home, pid)?
            .is_some_and(|profile| bytes(&profile, "go") > 1_000_000 && bytes(&profile, "native") > 400_000))
    })?;
    let before = home.stored(pid)?.len();
    drop(target);
    daemon.until("its last profile", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.is_none() && daemon.home.stored(pid)?.len() > before)
    })?;
    daemon.end()?;
    let last = last_profile(&home, pid)?.context("no profile")?;
    ensure!(
        bytes(&last, "go") > 1_000_000 && bytes(&last, "native") > 400_000,
        "{}",
        last.shown()
    );
    let said = |profile: &Profile| {
        profile
            .comments
            .iter()
            .any(|comment| comment.contains("ended by itself"))
    };
    ensure!(
        said(&last),
        "it does not say of when its Go heap is: {:?}",
        last.comments
    );
    Ok(())
}
