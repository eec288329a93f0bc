//! What `doctor` promises has to be so: the other tests of this suite try it.

use std::fs;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::leaktrace;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

#[test]
fn recording_would_work() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("known_truth")?)?;
    let answer = leaktrace(&["doctor", "-p", &target.pid().to_string()], PATIENCE)?;
    ensure!(
        answer.status.success() && answer.stdout.lines().last() == Some("recording would work"),
        "{answer:?}"
    );
    // The line on uprobes says how they are attached; who runs this suite elsewhere wants to know.
    if let Some(path) = std::env::var_os("LEAKTRACE_TEST_DOCTOR") {
        fs::write(path, &answer.stdout)?;
    }
    unharmed(&mut target)
}
