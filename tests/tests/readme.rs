//! The first command of the README: a recording of the program with the planted leak shows the leak at the top.

use anyhow::{Result, ensure};
use leaktrace_tests::recording::Recording;
use leaktrace_tests::{machine, programs};

#[test]
fn the_planted_leak_is_found() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("planted_leak")?;
    let recording = Recording::of_command(&["-d", "4s"], &[&program.to_string_lossy(), "8"])?;
    let recorded = recording.finish()?;
    let profile = &recorded.profile;
    let denials = profile.outstanding_through("record_denial");
    ensure!(denials.objects > 100, "{}", profile.shown());
    // One record of 200 bytes and one reason of 12 for each, but for one that was cut in the middle.
    ensure!((denials.bytes - denials.objects / 2 * 212).abs() <= 200, "{denials:?}");
    // The cache is bounded; only requests in flight are outstanding beside it.
    ensure!(
        profile.outstanding_through("remember_session").objects <= 256,
        "{}",
        profile.shown()
    );
    ensure!(
        profile.outstanding_through("receive").objects <= 2,
        "{}",
        profile.shown()
    );
    Ok(())
}
