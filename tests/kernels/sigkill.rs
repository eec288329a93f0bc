//! leaktrace killed in the middle, again and again, under load: the target goes on, unprobed.

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{breakpoints, machine, programs};
use serde::Deserialize;

#[derive(Deserialize)]
struct Count {
    rounds: u64,
}

fn rounds(target: &mut Process) -> Result<u64> {
    target.send("count")?;
    Ok(target.json::<Count>(PATIENCE)?.rounds)
}

/// A load that leaves a processor to whoever wants it: attaching to it is no race for that.
fn churning() -> Result<Process> {
    let mut target = Process::ready(Command::new("nice").args(["-n", "19"]).arg(programs::path("churn")?))?;
    target.send("go")?;
    Ok(target)
}

/// How often: an emulated machine is as slow at it as it is at everything.
fn often(times: u64) -> u64 {
    times / u64::from(machine::slowness().min(10))
}

#[test]
fn again_and_again() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = churning()?;
    let untraced = pace(&mut target)?;
    let mut before = rounds(&mut target)?;
    for round in 0..often(50) {
        let recording = Recording::attach(target.pid(), &[])?;
        if round == 0 {
            let changed = breakpoints::changed_code(target.pid())?;
            ensure!(
                !changed.is_empty(),
                "no probe is seen while it traces: this test would not see one left either"
            );
        }
        // From "just attached" to "well under way".
        thread::sleep(Duration::from_millis(round * 7 % 200));
        recording.kill()?;
        ensure!(
            target.alive(),
            "the target ended after leaktrace was killed, in round {round}"
        );
        let now = rounds(&mut target)?;
        ensure!(
            now > before,
            "the target stands still after leaktrace was killed, in round {round}"
        );
        before = now;
    }
    unharmed(&mut target)?;
    // At full speed again: with probes it makes a tenth of that. Others take the processor at times, so one second of
    // several is enough.
    let mut paces = Vec::new();
    for _ in 0..5 {
        paces.push(pace(&mut target)?);
        if paces.last() > Some(&(untraced / 3)) {
            return Ok(());
        }
    }
    bail!("after all kills the target makes {paces:?} rounds a second, {untraced} before")
}

/// Rounds in a second.
fn pace(target: &mut Process) -> Result<u64> {
    let begin = rounds(target)?;
    thread::sleep(Duration::from_secs(1));
    Ok(rounds(target)? - begin)
}

/// Killed before it says that it is tracing: while files are inspected, programs loaded, probes placed.
#[test]
fn while_attaching() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = churning()?;
    for round in 0..often(20) {
        let mut command = Command::new(machine::leaktrace());
        command.args(["record", "-o", "/dev/null", "-p", &target.pid().to_string()]);
        let mut tracer = Process::spawn(&mut command)?;
        thread::sleep(Duration::from_millis(round * 15));
        tracer.signal(nix::sys::signal::Signal::SIGKILL)?;
        tracer.wait(PATIENCE)?;
        ensure!(
            target.alive(),
            "the target ended after leaktrace was killed, in round {round}"
        );
    }
    unharmed(&mut target)
}
