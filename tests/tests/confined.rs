//! Targets that are confined, or whose files are not where their names say.

use std::fs;
use std::process::Command;

use anyhow::Result;
use leaktrace_tests::process::Process;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{assert_exact, assert_exact_through};
use leaktrace_tests::{machine, programs};

/// The program lies in a mount namespace of its own: its path leads nowhere outside.
#[test]
fn a_mount_namespace() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none /mnt && cp \"$0\" /mnt/inside && exec /mnt/inside malloc",
    ]);
    let mut target = Process::ready(command.arg(programs::path("malloc_family_static")?))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    let recorded = recording.stop()?;
    assert_exact(&truth, &recorded.profile);
    target.exit()
}

/// The program's file has been deleted, as after an upgrade: it is still mapped.
#[test]
fn a_deleted_program() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("upgraded");
    fs::copy(programs::path("malloc_family_static")?, &copy)?;
    let mut target = Process::ready(Command::new(&copy).arg("malloc"))?;
    fs::remove_file(&copy)?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    let recorded = recording.stop()?;
    assert_exact(&truth, &recorded.profile);
    target.exit()
}

/// A pid namespace: the target's own idea of its pid is another.
#[test]
fn a_pid_namespace() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(programs::path("malloc_family")?)
        .arg("malloc");
    let mut parent = Process::ready(&mut command)?;
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", parent.pid()))?;
    let child: u32 = children.trim().parse()?;
    let recording = Recording::attach(child, &[])?;
    let truth = parent.work()?;
    let recorded = recording.stop()?;
    assert_exact_through("leak_here", &truth, &recorded.profile);
    parent.exit()
}
