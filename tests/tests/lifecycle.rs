//! Processes that change while they are recorded: threads, and their end. fork, exec and dlopen: `tests/kernels/lifecycle.rs`.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process, Truth};
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, assert_exact, record_program, unharmed};
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;

#[test]
fn eight_threads_free_each_others_blocks() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("threads8", "")?;
    assert_exact(&truth, &recorded.profile);
    let exchanged = recorded.profile.allocated_through("allocate_for_neighbour");
    assert_eq!(exchanged.objects, 8 * 5000, "{}", recorded.profile.shown());
    Ok(())
}

/// A profile is written all the same, of what was outstanding at the end.
#[test]
fn target_killed_in_the_middle() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("churn")?)?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    thread::sleep(Duration::from_millis(500));
    target.signal(Signal::SIGKILL)?;
    target.wait(PATIENCE)?;
    let recorded = recording.finish()?;
    let seen = recorded.profile.allocated_through("work");
    ensure!(
        seen.objects > 1000,
        "hardly anything was recorded:\n{}",
        recorded.profile.shown()
    );
    Ok(())
}

#[test]
fn recording_ends_with_its_target() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    target.exit()?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

#[test]
fn recording_ends_after_its_duration() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &["-d", "3s"])?;
    let truth = target.work()?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    let lasted = Duration::from_nanos(u64::try_from(recorded.profile.duration_nanos)?);
    ensure!(
        (2500..6000).contains(&lasted.as_millis()),
        "the recording lasted {lasted:?}"
    );
    unharmed(&mut target)?;
    target.exit()
}

/// Tracing begins before the command's first instruction: even what its loader and constructors allocate is seen, so
/// the blocks that the program has before it says "ready" are among the allocated ones.
#[test]
fn a_command_is_traced_from_its_first_instruction() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("innocent")?;
    let mut recording = Recording::of_command(&[], &[&program.to_string_lossy()])?;
    let command = recording.tracer();
    command.expect("ready")?;
    let truth: Truth = command.work()?;
    command.send("exit")?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    // innocent allocates 200 blocks in main before it is ready, and frees them later.
    let in_main = recorded.profile.allocated_through("main");
    ensure!(in_main.objects >= 200 + 7 + 600, "{}", recorded.profile.shown());
    let earlier = recorded.profile.heap().filter(|sample| {
        sample.names().into_iter().find(|name| !name.contains("malloc")) == Some("main")
            && sample.allocated().bytes == 200_000
    });
    assert_eq!(
        earlier.count(),
        1,
        "the blocks from before \"ready\" are missing:\n{}",
        recorded.profile.shown()
    );
    Ok(())
}

#[test]
fn two_processes_in_one_recording() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut first = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let mut second = Process::ready(programs::command("malloc_family")?.arg("calloc"))?;
    let recording = Recording::attach(first.pid(), &["-p", &second.pid().to_string()])?;
    let (one, two) = (first.work()?, second.work()?);
    let recorded = recording.stop()?;
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        amount(
            one.leaked_objects + two.leaked_objects,
            one.leaked_bytes + two.leaked_bytes
        ),
        "{}",
        recorded.profile.shown()
    );
    unharmed(&mut first)?;
    unharmed(&mut second)?;
    first.exit()?;
    second.exit()
}
