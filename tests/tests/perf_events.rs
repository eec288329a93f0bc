//! Kernels before 6.13 have no uprobe sessions: entry and return are two perf events there. The same programs, counted as
//! exactly, in that way.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::{Process, Truth};
use leaktrace_tests::recording::{Recorded, Recording};
use leaktrace_tests::scenario::{amount, assert_exact, assert_exact_in_total, unharmed};
use leaktrace_tests::{machine, programs};

/// What the tracer has attached, by the kernel's name for it.
fn attachments(tracer: u32, kind: &str) -> Result<usize> {
    let folder = format!("/proc/{tracer}/fdinfo");
    let wanted = format!("link_type:\t{kind}");
    let mut count = 0;
    for entry in fs::read_dir(&folder).with_context(|| format!("failed to read `{folder}`"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        count += usize::from(text.lines().any(|line| line == wanted));
    }
    Ok(count)
}

/// As `scenario::record`, attached through perf events.
fn record(command: &mut Command) -> Result<(Truth, Recorded)> {
    let mut target = Process::ready(command)?;
    let mut recording = Recording::attach_with_variables(target.pid(), &[], &[("LEAKTRACE_UPROBES", "perf")])?;
    let tracer = recording.tracer().pid();
    ensure!(attachments(tracer, "uprobe_multi")? == 0, "a session is in use");
    // malloc, calloc, realloc and free at least, three of them twice; and the tracepoints.
    ensure!(attachments(tracer, "perf")? >= 7, "no perf events are in use");
    let truth = target.work()?;
    let recorded = recording.stop()?;
    unharmed(&mut target)?;
    target.exit()?;
    Ok((truth, recorded))
}

fn family(function: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(programs::command("malloc_family")?.arg(function))?;
    assert_exact(&truth, &recorded.profile);
    let freed = recorded.profile.allocated_through("use_and_free");
    assert_eq!(freed.objects, 750, "{}", recorded.profile.shown());
    Ok(())
}

#[test]
fn malloc() -> Result<()> {
    family("malloc")
}

#[test]
fn calloc() -> Result<()> {
    family("calloc")
}

#[test]
fn reallocarray_which_jumps_to_realloc() -> Result<()> {
    family("reallocarray")
}

#[test]
fn posix_memalign() -> Result<()> {
    family("posix_memalign")
}

#[test]
fn realloc_growing_shrinking_failing() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(&mut programs::command("realloc_moves")?)?;
    assert_exact_in_total(&truth, &recorded.profile);
    assert_eq!(
        recorded.profile.outstanding_through("grow_here"),
        amount(50, 50 * 5000),
        "{}",
        recorded.profile.shown()
    );
    Ok(())
}

#[test]
fn eight_threads() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(&mut programs::command("threads8")?)?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

/// Return instructions in place of a return probe.
#[test]
fn operator_new_with_alignment() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(programs::command("new_delete")?.arg("aligned"))?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

#[test]
fn an_exception_through_operator_new() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(&mut programs::command("throwing_custom")?)?;
    assert_exact_in_total(&truth, &recorded.profile);
    Ok(())
}
