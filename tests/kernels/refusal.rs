//! A kernel that is too old is refused in words: the version that is needed, not what the kernel said to some call.

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::leaktrace;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

/// The oldest kernel that the guests boot and that has to work: README, `doctor` and messages name it.
const OLDEST: (u32, u32) = (6, 1);
/// As it is written.
const NAMED: &str = "6.1";
/// The status for "the kernel lacks something".
const KERNEL_LACKS: i32 = 7;

#[test]
fn the_version_that_is_needed_is_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    if machine::kernel()? >= OLDEST {
        eprintln!("skipped: this kernel is new enough");
        return Ok(());
    }
    let mut target = Process::ready(&mut programs::command("known_truth")?)?;
    let pid = target.pid().to_string();
    let record = leaktrace(&["record", "-d", "1s", "-p", &pid, "-o", "/tmp/refused.json"], PATIENCE)?;
    ensure!(record.status.code() == Some(KERNEL_LACKS), "{record:?}");
    ensure!(record.stderr.contains(NAMED), "no {NAMED} in: {}", record.stderr);
    let doctor = leaktrace(&["doctor"], PATIENCE)?;
    let verdict = doctor.stdout.lines().last().unwrap_or_default();
    ensure!(
        doctor.status.code() == Some(1) && verdict.starts_with("recording would not work: "),
        "{doctor:?}"
    );
    ensure!(doctor.stdout.contains(NAMED), "no {NAMED} in: {}", doctor.stdout);
    unharmed(&mut target)
}
