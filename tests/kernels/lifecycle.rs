//! Processes that change while they are recorded: fork, exec, dlopen, and memory mapped directly.

use anyhow::Result;
use leaktrace_tests::process::Process;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, assert_exact, record_program, unharmed};
use leaktrace_tests::{losses, machine, programs, scenario};

/// The child frees its copies: the parent's blocks stay outstanding.
#[test]
fn fork_then_exec_in_the_child() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("fork_exec", "fork")?;
    let profile = &recorded.profile;
    assert_eq!(
        profile.outstanding_through("leak_here"),
        amount(truth.leaked_objects, truth.leaked_bytes),
        "{}",
        profile.shown()
    );
    Ok(())
}

/// What was outstanding before the exec is gone with the old program; the new one is followed.
#[test]
fn exec_in_the_target() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("fork_exec")?.arg("exec"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    target.expect("exec")?;
    // The new program's libraries are inspected as they are mapped; it allocates only when it is told to.
    machine::pause();
    let truth = target.work()?;
    let recorded = recording.stop()?;
    assert_exact(&truth, &recorded.profile);
    unharmed(&mut target)?;
    target.exit()
}

#[test]
fn dlopen_of_a_library_after_attach() -> Result<()> {
    scenario::late_library("libplugin.so", "plugin_leak")
}

#[test]
fn dlopen_of_an_allocator_after_attach() -> Result<()> {
    scenario::late_library("libplugin_allocator.so", "malloc")
}

/// Anonymous memory that is mapped, grown, moved, cut and given back, to the page. What is grown belongs to who grew it.
#[test]
fn mappings() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("mappings", "")?;
    let mapped = recorded.profile.mapped_through("main");
    assert_eq!(
        mapped.bytes,
        i64::try_from(truth.leaked_bytes)?,
        "{}",
        recorded.profile.shown()
    );
    losses::none(&recorded.profile)
}
