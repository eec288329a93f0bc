//! Files without section headers: allocators are found by the dynamic table, stacks by the unwind table's own segment.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use leaktrace_tests::process::Process;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, assert_exact_in_total, record_program, unharmed};
use leaktrace_tests::{machine, programs};

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
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let library = programs::path("libheadless_allocator.so")?;
    let mut target = Process::ready(programs::command("dlopen_late")?.arg(library).arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    target.expect("loaded")?;
    thread::sleep(Duration::from_secs(1));
    target.send("on")?;
    let truth = target.finished()?;
    let recorded = recording.stop()?;
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        amount(truth.leaked_objects, truth.leaked_bytes),
        "{}",
        recorded.profile.shown()
    );
    unharmed(&mut target)?;
    target.exit()
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
