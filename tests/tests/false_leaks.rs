//! Memory that is no leak is not shown as one, however hard the tracer is pressed.

use anyhow::{Result, ensure};
use leaktrace_tests::profile::Amount;
use leaktrace_tests::scenario::{amount, assert_exact, record, record_program};
use leaktrace_tests::{machine, programs};

#[test]
fn cache_pool_and_arena() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("innocent", "")?;
    let profile = &recorded.profile;
    assert_exact(&truth, profile);
    assert_eq!(
        profile.outstanding_through("arena_allocate"),
        Amount::default(),
        "{}",
        profile.shown()
    );
    assert_eq!(
        profile.outstanding_through("pool_take"),
        amount(100, 100 * 512),
        "{}",
        profile.shown()
    );
    assert_eq!(
        profile.allocated_through("cache_insert").objects,
        20_000,
        "{}",
        profile.shown()
    );
    Ok(())
}

#[test]
fn memory_mapped_directly_is_a_heap_of_its_own() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("mappings", "")?;
    let profile = &recorded.profile;
    let mapped = profile.mapped_through(&truth.function).bytes;
    // What mremap grew is the work of whoever called it: main.
    let in_main = profile.mapped_through("main").bytes;
    assert_eq!(
        amount(0, truth.leaked_bytes).bytes,
        in_main,
        "through map_here: {mapped}\n{}",
        profile.shown()
    );
    assert_eq!(profile.outstanding(), Amount::default(), "{}", profile.shown());
    Ok(())
}

/// Two threads over a live set of 50,000 blocks, which is freed in the end. In a ring buffer that is far too small
/// allocations are lost, and counted; frees are not: nothing but the planted leak is outstanding.
#[test]
fn none_from_a_ring_buffer_that_is_too_small() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("bench_live_set")?;
    let (truth, recorded) = record(command.args(["150000", "free"]), &["--ring-size", "16KiB"])?;
    let profile = &recorded.profile;
    let lost = profile.loss("alloc_lost");
    ensure!(
        lost > 0,
        "the ring was not too small: nothing was lost, and nothing is proven\n{}",
        profile.shown()
    );
    let leaked = profile.outstanding_through("leak_here");
    ensure!(
        leaked.objects > 0,
        "nothing of the planted leak was recorded:\n{}",
        profile.shown()
    );
    ensure!(
        leaked.objects <= amount(truth.leaked_objects, 0).objects,
        "more than was leaked:\n{}",
        profile.shown()
    );
    assert_eq!(
        profile.outstanding(),
        leaked,
        "something that was freed is shown as outstanding:\n{}",
        profile.shown()
    );
    Ok(())
}

/// The same with the ring as it is by default: all is seen, so all is exact.
#[test]
fn two_threads_over_a_live_set() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(programs::command("bench_live_set")?.args(["50000", "free"]), &[])?;
    let leaked = amount(truth.leaked_objects, truth.leaked_bytes);
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        leaked,
        "{}",
        recorded.profile.shown()
    );
    assert_eq!(recorded.profile.outstanding(), leaked, "{}", recorded.profile.shown());
    Ok(())
}
