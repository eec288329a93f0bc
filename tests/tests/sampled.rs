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

/// Functions that make other hooked calls: one point on the stream for what goes through both. 250 blocks of 400 bytes on
/// average at a mean interval of 512: each is a sample with a chance of 0.54, a deviation of 6 %. Six of those; with a point
/// in each call it were twice or three times as much.
#[test]
fn calls_inside_calls_are_no_chances_more() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for function in ["malloc", "realloc", "reallocarray", "posix_memalign"] {
        let mut command = programs::command("malloc_family")?;
        let (truth, recorded) = record(
            command.arg(function),
            &["--mode", "sampled", "--sample-interval", "512"],
        )?;
        let outstanding = recorded.profile.outstanding_through("leak_here");
        assert_within(
            0.36,
            outstanding.objects,
            i64::try_from(truth.leaked_objects)?,
            function,
        );
    }
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
