//! Code that a program makes at run time: stacks lead on through it, and it has the names that the program gives it.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process, Truth};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, unharmed};
use leaktrace_tests::{machine, programs};

/// Code, by name, with the size of the blocks that it allocates.
const CODE: [(&str, i64); 3] = [("jit::before", 100), ("jit::mapped", 200), ("jit::protected", 300)];
/// Blocks of each.
const BLOCKS: i64 = 50;

/// Lets it make its code, and call it when the tracer has seen that.
fn work(target: &mut Process) -> Result<Truth> {
    target.send("go")?;
    target.expect("compiled")?;
    machine::pause();
    target.send("on")?;
    target.json(PATIENCE)
}

/// Every block came through `main`, `run_job` and code of its size, which has its name if there are any.
fn assert_stacks(profile: &Profile, truth: &Truth, named: bool) {
    let callers = profile.outstanding_through("run_job");
    assert_eq!(
        callers,
        amount(truth.leaked_objects, truth.leaked_bytes),
        "{}",
        profile.shown()
    );
    assert_eq!(profile.outstanding_through("main"), callers, "{}", profile.shown());
    for (name, size) in CODE {
        let through = profile.samples.iter().filter(|sample| sample.names().contains(&name));
        let bytes: i64 = through.map(|sample| sample.inuse().bytes).sum();
        assert_eq!(
            bytes,
            if named { BLOCKS * size } else { 0 },
            "{name}:\n{}",
            profile.shown()
        );
    }
}

#[test]
fn code_made_before_and_after() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("jit")?)?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = work(&mut target)?;
    let recorded = recording.stop()?;
    assert_stacks(&recorded.profile, &truth, true);
    unharmed(&mut target)?;
    target.exit()
}

#[test]
fn names_of_a_program_that_ends_by_itself() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("jit")?.arg("ends"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = work(&mut target)?;
    target.wait(PATIENCE)?;
    let recorded = recording.finish()?;
    assert_stacks(&recorded.profile, &truth, true);
    Ok(())
}

/// Another user's file gives no names: anybody can make one of that name.
#[test]
fn names_of_another_user() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("jit")?)?;
    chown(format!("/tmp/perf-{}.map", target.pid()), Some(65534), None)?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = work(&mut target)?;
    let recorded = recording.stop()?;
    assert_stacks(&recorded.profile, &truth, false);
    target.exit()
}

/// In a container the file is in another `/tmp`, under another pid.
#[test]
fn names_in_a_container() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("jit")?;
    // The program may itself lie below the folder that is covered.
    let line = format!(
        "exec 9<{} && mount -t tmpfs none /tmp && exec /proc/self/fd/9",
        program.display()
    );
    let mut container = Command::new("unshare");
    container.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &line]);
    let mut target = Process::ready(&mut container)?;
    let recording = Recording::attach(child_of(target.pid())?, &[])?;
    let truth = work(&mut target)?;
    let recorded = recording.stop()?;
    assert_stacks(&recorded.profile, &truth, true);
    target.exit()
}

/// The one child of a process.
fn child_of(pid: u32) -> Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().context("a pid");
        }
        ensure!(Instant::now() < deadline, "process {pid} has no child");
        std::thread::sleep(Duration::from_millis(20));
    }
}
