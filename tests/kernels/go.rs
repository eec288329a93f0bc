//! Go's heap and goroutines, read from outside: no probe, but another process's memory.

use std::process::Command;

use anyhow::{Result, ensure};
use leaktrace_tests::golang::{self, Form, MANDATORY};
use leaktrace_tests::machine;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{as_json, leaktrace};

#[test]
fn heap_and_goroutines_as_the_program_tells_them() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for minor in MANDATORY {
        let folder = tempfile::tempdir()?;
        let mut target = Process::spawn(
            Command::new(golang::program(minor, "truth", Form::Pure)?)
                .envs([("MEMPROFILERATE", "4096"), ("GOMAXPROCS", "4")]),
        )?;
        target.wait_for("that it is ready", |line| line.starts_with("ready"), PATIENCE)?;
        target.send(&format!("snap {}", folder.path().display()))?;
        target.expect("done")?;
        let pid = target.pid().to_string();
        let file = folder.path().join("ours.pb.gz");
        let name = file.to_string_lossy().into_owned();
        let heap = leaktrace(&["go", "heap", "-p", &pid, "--view", "pprof", "-o", &name], PATIENCE)?;
        ensure!(heap.status.success(), "Go 1.{minor}: {heap:?}");
        let (ours, theirs) = (as_json(&file)?, as_json(&folder.path().join("heap.pb.gz"))?);
        assert_eq!(ours.totals, theirs.totals, "Go 1.{minor}");
        let groups = leaktrace(&["go", "goroutines", "-p", &pid, "--state", "chan send"], PATIENCE)?;
        ensure!(
            groups.status.success() && groups.stdout.contains("40 goroutines [chan send"),
            "Go 1.{minor}: {groups:?}"
        );
        ensure!(target.alive(), "Go 1.{minor}: it ended");
    }
    Ok(())
}
