//! Files without section headers: allocators are found by the dynamic table, stacks by the unwind table's own segment.

use anyhow::Result;
use leaktrace_tests::scenario::{assert_exact_in_total, record_program};
use leaktrace_tests::{machine, programs, scenario};

/// The program's own functions are not exported and have no names; its allocator is libc's.
#[test]
fn a_program() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("malloc_family_headless", "malloc")?;
    assert_exact_in_total(&truth, &recorded.profile);
    // Stacks are complete: they end in libc's entry into the program, not in the program itself.
    let complete = recorded
        .profile
        .heap()
        .all(|sample| sample.names().iter().any(|name| name.contains("libc_start")));
    assert!(complete, "{}", recorded.profile.shown());
    Ok(())
}

/// A library with an allocator of its own, which only its dynamic table tells of.
#[test]
fn a_library_that_is_an_allocator() -> Result<()> {
    scenario::late_library("libheadless_allocator.so", "malloc")
}

/// The whole process allocates by it.
#[test]
fn a_library_that_replaces_libcs_allocator() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let library = programs::path("libheadless_allocator.so")?;
    let (truth, recorded) = leaktrace_tests::scenario::record(
        programs::command("malloc_family")?
            .arg("malloc")
            .env("LD_PRELOAD", library),
        &[],
    )?;
    leaktrace_tests::scenario::assert_exact(&truth, &recorded.profile);
    Ok(())
}
