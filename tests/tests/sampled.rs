//! Sampled mode: estimates without bias, and nothing outstanding that was freed.

use anyhow::{Result, ensure};
use leaktrace_tests::scenario::{assert_within, record};
use leaktrace_tests::{machine, programs};

/// 200,000 blocks of 16 bytes at a mean interval of 4 KiB: about 780 samples, a deviation of 3.6 %. Six of those.
#[test]
fn small_blocks_are_scaled_without_bias() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("bench_outstanding")?;
    let (truth, recorded) = record(
        command.arg("200000"),
        &["--mode", "sampled", "--sample-interval", "4KiB"],
    )?;
    let profile = &recorded.profile;
    assert_eq!(profile.mode, "sampled");
    let outstanding = profile.outstanding_through("leak_here");
    assert_within(0.22, outstanding.bytes, i64::try_from(truth.leaked_bytes)?, "bytes");
    assert_within(
        0.22,
        outstanding.objects,
        i64::try_from(truth.leaked_objects)?,
        "objects",
    );
    Ok(())
}

/// Blocks far larger than the interval are all sampled, and hardly scaled: exact.
#[test]
fn large_blocks_are_exact() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("bench_outstanding")?;
    let sampled = ["--mode", "sampled", "--sample-interval", "128"];
    let (truth, recorded) = record(command.args(["3000", "4096"]), &sampled)?;
    let outstanding = recorded.profile.outstanding_through("leak_here");
    assert_within(0.001, outstanding.bytes, i64::try_from(truth.leaked_bytes)?, "bytes");
    assert_within(
        0.001,
        outstanding.objects,
        i64::try_from(truth.leaked_objects)?,
        "objects",
    );
    Ok(())
}

/// All but the planted leak is freed, sampled or not.
#[test]
fn frees_of_sampled_blocks_are_seen() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("bench_live_set")?;
    let (truth, recorded) = record(
        command.args(["100000", "free"]),
        &["--mode", "sampled", "--sample-interval", "16KiB"],
    )?;
    let profile = &recorded.profile;
    let leaked = profile.outstanding_through("leak_here");
    assert_eq!(profile.outstanding(), leaked, "{}", profile.shown());
    // About 200 leaks of 2 KiB: 25 samples of them, a deviation of 20 %.
    ensure!(
        leaked.bytes < i64::try_from(truth.leaked_bytes)? * 5 / 2,
        "{}",
        profile.shown()
    );
    let allocated = profile.allocated_through("bottom");
    ensure!(
        allocated.objects > 150_000 && allocated.objects < 250_000,
        "{allocated:?}"
    );
    Ok(())
}
