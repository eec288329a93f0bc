//! leaktrace killed at any moment under a program in which everything happens that its probes could disturb.
//!
//! `LEAKTRACE_TEST_KILLS` says how often.

use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;
use serde::Deserialize;

/// The longest that leaktrace lives, in milliseconds: it has attached by then, and has seen the program at work.
const LONGEST: u64 = 1200;

#[derive(Deserialize)]
struct Count {
    rounds: u64,
}

/// The next of a row of numbers that look random (Knuth's MMIX generator).
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *state >> 33
}

#[test]
fn at_any_moment() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(programs::path("hardest")?);
    let mut target = Process::ready(command.arg(programs::path("libplugin.so")?))?;
    target.send("go")?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    println!("seed {seed}");
    let mut state = seed;
    for kill in 0..machine::kills() {
        let mut command = Command::new(machine::leaktrace());
        command.args(["record", "-o", "/dev/null", "-p", &target.pid().to_string()]);
        let mut tracer = Process::spawn(&mut command)?;
        thread::sleep(Duration::from_millis(next(&mut state) % LONGEST));
        tracer.signal(Signal::SIGKILL)?;
        tracer.wait(PATIENCE)?;
        ensure!(
            target.alive(),
            "the target ended after leaktrace was killed, in round {kill} of seed {seed}"
        );
    }
    // It is stopped meanwhile: libraries that come and go cannot be compared with their files.
    target.signal(Signal::SIGSTOP)?;
    thread::sleep(machine::scaled(Duration::from_millis(100)));
    unharmed(&mut target)?;
    target.signal(Signal::SIGCONT)?;
    // Each of its parts goes on: since the first answer all have made rounds.
    target.send("count")?;
    target.json::<Count>(PATIENCE)?;
    thread::sleep(machine::scaled(Duration::from_millis(500)));
    target.send("count")?;
    let rounds = target.json::<Count>(PATIENCE)?.rounds;
    ensure!(
        rounds > 0,
        "a part of the target stands still after the kills of seed {seed}"
    );
    Ok(())
}
