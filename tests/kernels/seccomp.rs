//! A target that a system call too many would end, and kernels whose return probes make one.

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::{losses, machine, programs};

/// Kernels whose return probes make a system call that no filter expects.
const DEADLY: std::ops::RangeInclusive<(u32, u32)> = (6, 11)..=(6, 13);

/// Attached to while the filter is in force. Where return probes would end it, there are none: `doctor` says so, and the
/// calls are seen whole all the same.
#[test]
fn a_filtered_process_lives_and_is_counted() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("seccomp")?)?;
    let pid = target.pid().to_string();
    let doctor = leaktrace(&["doctor", "-p", &pid], PATIENCE)?.stdout;
    let malloc = doctor
        .lines()
        .find(|line| line.split_whitespace().next() == Some("malloc"));
    let switched = doctor.contains("return instructions");
    ensure!(
        malloc.is_some() && switched == DEADLY.contains(&machine::kernel()?),
        "return instructions instead of return probes: {switched}\n{doctor}"
    );
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    let recorded = recording.stop()?;
    assert_exact(&truth, &recorded.profile);
    losses::none(&recorded.profile)?;
    unharmed(&mut target)?;
    target.exit()
}
