//! The course that most tests take: start a program, attach, let it work, stop, compare.
//!
//! Invariant: when [`record`] returns, the target was alive after the recording and its code was as in its files.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::breakpoints;
use crate::machine;
use crate::process::{Process, Truth};
use crate::profile::{Amount, Profile};
use crate::programs;
use crate::recording::{Recorded, Recording};

/// Runs a test program under a recording with further arguments for `leaktrace record`.
///
/// # Errors
/// When anything fails, the target is harmed or a probe is left in it.
pub fn record(command: &mut Command, arguments: &[&str]) -> Result<(Truth, Recorded)> {
    let mut target = Process::ready(command)?;
    let recording = Recording::attach(target.pid(), arguments)?;
    let truth = target.work()?;
    let recorded = recording.stop()?;
    unharmed(&mut target)?;
    target.exit()?;
    Ok((truth, recorded))
}

/// As [`record`], for a test program by name and one argument.
///
/// # Errors
/// As [`record`].
pub fn record_program(name: &str, argument: &str) -> Result<(Truth, Recorded)> {
    let mut command = programs::command(name)?;
    if !argument.is_empty() {
        command.arg(argument);
    }
    record(&mut command, &[])
}

/// The target lives and no probe is left in it.
///
/// # Errors
/// When it does not, or one is.
pub fn unharmed(target: &mut Process) -> Result<()> {
    ensure!(target.alive(), "the target ended:\n{}", target.errors());
    // The kernel removes probes a moment after their last descriptor is closed.
    let deadline = Instant::now() + machine::scaled(Duration::from_secs(5));
    loop {
        let changed = breakpoints::changed_code(target.pid())?;
        if changed.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "probes are left in the target: {changed:x?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Checks the profile against the truth, to the byte: what the leaking function holds, and that nothing else is held.
pub fn assert_exact(truth: &Truth, profile: &Profile) {
    assert_exact_through(&truth.function, truth, profile);
    assert_exact_in_total(truth, profile);
}

/// What leaked came through a function, to the byte.
pub fn assert_exact_through(function: &str, truth: &Truth, profile: &Profile) {
    assert_eq!(
        profile.outstanding_through(function),
        amount(truth.leaked_objects, truth.leaked_bytes),
        "outstanding through {function}:\n{}",
        profile.shown()
    );
}

/// Checks all that is outstanding against the truth, whatever the stacks: for programs without symbols.
pub fn assert_exact_in_total(truth: &Truth, profile: &Profile) {
    assert_eq!(
        profile.outstanding(),
        amount(truth.objects(), truth.bytes()),
        "outstanding in total:\n{}",
        profile.shown()
    );
}

/// An amount from a program's own numbers.
pub fn amount(objects: u64, bytes: u64) -> Amount {
    let whole = |number: u64| i64::try_from(number).expect("a test's numbers are small");
    Amount {
        objects: whole(objects),
        bytes: whole(bytes),
    }
}

/// Checks that two numbers of bytes differ by at most this share of the second.
pub fn assert_within(share: f64, measured: i64, stated: i64, what: &str) {
    #[expect(clippy::cast_precision_loss, reason = "a test's numbers are far below 2^52")]
    let (difference, allowed) = ((measured - stated).abs() as f64, stated.abs() as f64 * share);
    assert!(
        difference <= allowed,
        "{what}: {measured} is not within {:.0} % of {stated}",
        share * 100.0
    );
}

/// A library that is loaded after attach, and allocates by a function of its own: exact through `leak_here`.
///
/// # Errors
/// When anything fails, the target is harmed or a probe is left in it.
pub fn late_library(library: &str, function: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let library = programs::path(library)?;
    let mut target = Process::ready(programs::command("dlopen_late")?.arg(library).arg(function))?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    target.expect("loaded")?;
    machine::pause();
    target.send("on")?;
    let truth = target.finished()?;
    let recorded = recording.stop()?;
    assert_exact_through("leak_here", &truth, &recorded.profile);
    unharmed(&mut target)?;
    target.exit()
}
