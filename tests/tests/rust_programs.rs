//! Rust programs: the system allocator, jemalloc and mimalloc linked statically, allocators in Rust that are
//! partly inlined, and stripped programs.

use anyhow::Result;
use leaktrace_tests::machine;
use leaktrace_tests::profile::Profile;
use leaktrace_tests::scenario::{amount, assert_exact_in_total, record_program};

/// What each of the four leaking functions of the workload holds.
fn assert_functions(profile: &Profile) {
    let sizes: u64 = (0..250).map(|round| 32 + round % 13 * 24).sum();
    for (function, bytes) in [
        ("leak_here", sizes),
        ("leak_zeroed", sizes),
        ("leak_grown", 250 * 1000),
        ("leak_aligned", 250 * 512),
    ] {
        assert_eq!(
            profile.outstanding_through(function),
            amount(250, bytes),
            "{function}:\n{}",
            profile.shown()
        );
    }
}

fn with_symbols(program: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program(program, "")?;
    assert_exact_in_total(&truth, &recorded.profile);
    assert_functions(&recorded.profile);
    Ok(())
}

#[test]
fn system_allocator() -> Result<()> {
    with_symbols("rust_system")
}

#[test]
fn jemalloc() -> Result<()> {
    with_symbols("rust_jemalloc")
}

#[test]
fn mimalloc() -> Result<()> {
    with_symbols("rust_mimalloc")
}

/// The entry points are inlined into a part of their callers, the functions behind them are not.
#[test]
fn dlmalloc() -> Result<()> {
    with_symbols("rust_dlmalloc")
}

/// Nothing can be hooked that sees all calls: that is said, and nothing looks leaked.
#[test]
fn an_allocator_that_is_inlined_whole() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (_, recorded) = record_program("rust_free_list", "")?;
    let profile = &recorded.profile;
    assert_eq!(profile.outstanding(), amount(0, 0), "{}", profile.shown());
    assert!(
        profile
            .comments
            .iter()
            .any(|comment| comment.starts_with("not hooked: ") && comment.contains("partly inlined into")),
        "{:?}",
        profile.comments
    );
    Ok(())
}

#[test]
fn stripped() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("rust_system_stripped", "")?;
    assert_exact_in_total(&truth, &recorded.profile);
    // No names, but the stacks are whole: they end where every program begins.
    for sample in recorded.profile.heap().filter(|sample| sample.inuse().objects > 0) {
        assert!(
            sample.names().iter().any(|name| name.contains("libc_start")),
            "{:?}",
            sample.names()
        );
    }
    Ok(())
}

/// A static allocator whose symbols are only in the compressed table that distributions leave in.
#[test]
fn jemalloc_with_the_mini_symbol_table_alone() -> Result<()> {
    with_symbols("rust_jemalloc_minidebug")
}
