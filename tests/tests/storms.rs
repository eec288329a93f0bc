//! Machines with many processes, and with processes that come and go all the time: to the daemon an ordinary day.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

/// The leaking function of `leaky_service`.
const LEAK: &str = "remember_request";
const BY_RULE: &str = "[trace]\nauto = false\nsample_interval = \"4KiB\"\n\n[[trace.rule]]\nname = \"leaky\"\n\
                       comm = \"leaks_in_storm\"\n\n[budget]\nmachine_cpu = \"50%\"\ntarget_cpu = \"50%\"\n\
                       own_cpu = \"100%\"\nown_memory = \"1GiB\"";
const IDLE: usize = 1000;
/// A storm of ten seconds.
const RATE: usize = 500;
const SECONDS: usize = 10;
/// What the daemon's memory may have grown by: names and figures of what it saw, not of five thousand processes.
const ROOM: u64 = 32 << 20;

/// What the daemon holds.
#[derive(Debug)]
struct Holdings {
    /// Open files but those of watched processes.
    files: usize,
    threads: usize,
    resident: u64,
}

impl Holdings {
    fn of(pid: u32) -> Result<Self> {
        let count = |folder: &str| -> Result<Vec<fs::DirEntry>> {
            Ok(fs::read_dir(format!("/proc/{pid}/{folder}"))?.collect::<Result<_, _>>()?)
        };
        let is_watched = |entry: &fs::DirEntry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            target.to_string_lossy().ends_with("/statm")
        };
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let pages: u64 = statm.split(' ').nth(1).context("no statm")?.parse()?;
        Ok(Self {
            files: count("fd")?.iter().filter(|entry| !is_watched(entry)).count(),
            threads: count("task")?.len(),
            resident: pages * 4096,
        })
    }
}

fn watched(daemon: &Daemon<'_>) -> Result<HashSet<u64>> {
    let list = daemon.get("/api/v1/processes?limit=100000")?;
    let processes = list["processes"].as_array().context("no processes")?;
    Ok(processes.iter().filter_map(|process| process["pid"].as_u64()).collect())
}

fn is_there(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A leaking process is started, found by its rule, and its leak is named. It has a name of its own: what else leaks on
/// this machine is not to be traced.
fn leak_is_found(daemon: &mut Daemon<'_>) -> Result<Process> {
    let program = daemon.home.path("leaks_in_storm");
    fs::copy(programs::path("leaky_service")?, &program)?;
    let mut leaky = Process::spawn(Command::new(&program).arg("2000"))?;
    leaky.expect("ready")?;
    let pid = leaky.pid();
    daemon.until("the leaking process is traced", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("traced"))
    })?;
    daemon.until("its leak is named", PATIENCE, |daemon| {
        let top = daemon.get(&format!("/api/v1/processes/{pid}/top?limit=1"))?;
        Ok(top["rows"][0]["function"] == LEAK)
    })?;
    Ok(leaky)
}

/// It ends; nothing of it is left.
fn leak_ends(daemon: &mut Daemon<'_>, mut leaky: Process) -> Result<()> {
    let pid = leaky.pid();
    ensure!(leaky.alive(), "the leaking process ended");
    drop(leaky);
    daemon.until("nothing is traced any more", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.is_none() && daemon.get("/api/v1/status")?["traced"] == 0)
    })
}

#[test]
fn a_storm_of_processes_leaves_the_daemon_as_it_was() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let arguments = [IDLE, RATE, SECONDS].map(|number| number.to_string());
    let mut storm = Process::ready(programs::command("storm")?.args(arguments))?;
    let home = Home::new(BY_RULE)?;
    let mut daemon = home.start()?;
    let pid = daemon.process.pid();
    daemon.until("all idle processes are watched", PATIENCE, |daemon| {
        Ok(watched(daemon)?.len() > IDLE)
    })?;
    // Once to the end, so that what tracing needs is in the base line.
    let leaky = leak_is_found(&mut daemon)?;
    leak_ends(&mut daemon, leaky)?;
    let before = Holdings::of(pid)?;

    storm.send("go")?;
    let leaky = leak_is_found(&mut daemon)?;
    let told: serde_json::Value = storm.json(PATIENCE * 3)?;
    ensure!(told["made"] == RATE * SECONDS, "{told}");
    ensure!(
        daemon.state(leaky.pid())?.as_deref() == Some("traced"),
        "the storm ended the tracing"
    );
    leak_ends(&mut daemon, leaky)?;

    daemon.until("no process in its table is dead", PATIENCE, |daemon| {
        let watched = watched(daemon)?;
        Ok(watched.len() > IDLE && watched.into_iter().all(is_there))
    })?;
    let mut after = Holdings::of(pid)?;
    daemon
        .until("its files and threads are as many as before", PATIENCE, |_| {
            after = Holdings::of(pid)?;
            Ok(after.files <= before.files && after.threads <= before.threads)
        })
        .with_context(|| format!("{before:?}"))?;
    ensure!(after.resident < before.resident + ROOM, "{before:?}, then {after:?}");
    let status = daemon.get("/api/v1/status")?;
    ensure!(status["troubles"].as_array().is_some_and(Vec::is_empty), "{status}");

    storm.exit()?;
    daemon.until("the idle processes are forgotten", Duration::from_secs(30), |daemon| {
        Ok(watched(daemon)?.len() < IDLE)
    })?;
    daemon.end()?;
    Ok(())
}

#[test]
fn samples_of_a_program_that_is_gone_take_no_room() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    /// Two programs' samples fit into the kernel's set, three programs' do not.
    const COUNT: usize = 400_000;
    let home = Home::new(
        "\n[trace]\nauto = false\n\n[budget]\nmachine_cpu = \"100%\"\ntarget_cpu = \"100%\"\nown_memory = \"1GiB\"\nown_cpu = \"100%\"",
    )?;
    let mut daemon = home.start()?;
    let mut target = Process::ready(programs::command("exec_hoard")?.arg(COUNT.to_string()))?;
    let pid = target.pid();
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    // The shortest distance: of blocks of 64 bytes nearly all are taken.
    daemon.trace(pid, 16)?;
    let held = |daemon: &Daemon<'_>| -> Result<u64> {
        let top = daemon.get(&format!(
            "/api/v1/processes/{pid}/top?limit=1&sample_type=inuse_objects"
        ))?;
        top["total"].as_u64().with_context(|| top.to_string())
    };
    for round in 0..4 {
        if round > 0 {
            target.send("exec")?;
            target.expect("ready")?;
        }
        target.send("go")?;
        target.expect("held")?;
        daemon.until("its blocks are told", PATIENCE, |daemon| {
            Ok(held(daemon)? > COUNT as u64 * 9 / 10)
        })?;
    }
    let status = daemon.get("/api/v1/status")?;
    let losses = status["losses"].as_array().context("no losses")?;
    ensure!(
        !losses.iter().any(|loss| loss["name"] == "sampled_set_full"),
        "samples of gone programs are kept: {status}"
    );
    // What the last program allocated before anybody had noticed it is freed with the rest: its samples were kept.
    target.send("free")?;
    target.expect("freed")?;
    daemon.until("its frees are told", PATIENCE, |daemon| {
        Ok(held(daemon)? < COUNT as u64 / 1000)
    })?;
    daemon.end()?;
    unharmed(&mut target)
}
