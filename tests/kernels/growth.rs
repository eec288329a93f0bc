//! Growth by stack without any probe: of a service whose allocator nobody knows.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::leaktrace;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{breakpoints, machine, programs};
use nix::sys::signal::Signal;

/// How much the service grows while it is followed, in MiB, and KiB between two samples of that: 768 of them, of which
/// 3.6 % is one standard deviation. An emulated machine grows by less and samples as often.
fn course() -> (u32, u32) {
    if machine::slowness() == 1 { (48, 64) } else { (12, 16) }
}

/// A process is a suspect after a quarter of `growth_time`, half a minute at least; it is never traced here.
fn configuration(budget: &str) -> String {
    let (_, interval) = course();
    format!(
        "growth_slope = \"100MiB/h\"\ngrowth_time = \"2m\"\nsuspect_interval = \"{interval}KiB\"\n\n[trace]\nauto = false\n\n{budget}"
    )
}

/// The service touches more pages a second than any real one, and an emulated processor is a slow one for the daemon, too.
const ENOUGH: &str = "[budget]\nmachine_cpu = \"100%\"\nown_cpu = \"100%\"";
const TOO_LITTLE: &str = "[budget]\nmachine_cpu = \"0.001%\"\nown_cpu = \"100%\"";
/// KiB a second of each of both ways to keep memory.
const RATE: u32 = 1024;

fn bytes_of(daemon: &Daemon<'_>, pid: u32, sample_type: &str, function: &str) -> Result<f64> {
    let path = format!("/api/v1/processes/{pid}/top?sample_type={sample_type}&cum=true&limit=1000");
    let top = daemon.get(&path)?;
    let rows = top["rows"].as_array().with_context(|| format!("no rows: {top}"))?;
    let row = rows.iter().find(|row| row["function"] == function);
    Ok(row.and_then(|row| row["cum"].as_f64()).unwrap_or(0.0))
}

fn anonymous(daemon: &Daemon<'_>, pid: u32) -> Result<f64> {
    let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
    details["memory"]["anonymous"].as_f64().context("no anonymous memory")
}

fn suspect(daemon: &Daemon<'_>, pid: u32) -> Result<Option<String>> {
    let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
    Ok(details["tracing"]["suspect"].as_str().map(str::to_owned))
}

#[test]
fn growth_is_told_by_stack_without_a_probe() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut innocent = Process::spawn(Command::new("sleep").arg("600"))?;
    let mut service = Process::spawn(programs::command("arena_service")?.arg(RATE.to_string()))?;
    service.expect("ready")?;
    let pid = service.pid();
    let home = Home::new(&configuration(ENOUGH))?;
    let mut daemon = home.start()?;
    daemon.until("its growth is followed", Duration::from_secs(90), |daemon| {
        Ok(daemon.state(pid)?.is_some() && suspect(daemon, pid)?.is_some())
    })?;
    // The kernel side is loaded after that, which takes its time.
    let told = |daemon: &Daemon<'_>, function: &str| bytes_of(daemon, pid, "inuse_space", function);
    daemon.until("its growth is told", PATIENCE, |daemon| Ok(told(daemon, "main")? > 0.0))?;
    let (before, told_before) = (anonymous(&daemon, pid)?, told(&daemon, "main")?);
    let grown = f64::from(course().0) * 1024.0 * 1024.0;
    daemon.until("it grows", Duration::from_secs(120), |daemon| {
        Ok(anonymous(daemon, pid)? - before > grown)
    })?;
    // It stands still while two numbers about it are read one after the other.
    service.signal(Signal::SIGSTOP)?;
    machine::pause();
    machine::pause();
    let resident = |function: &str| told(&daemon, function);
    let (arena, session, all) = (
        resident("keep_record")? + resident("keep_index")?,
        resident("keep_session")?,
        resident("main")?,
    );
    let (grown, grown_told) = (anonymous(&daemon, pid)? - before, all - told_before);
    // Scratch comes and goes while others look: it is 2 MiB, and stands in one of both numbers or in none.
    ensure!(
        (grown_told / grown - 1.0).abs() < 0.25,
        "{grown_told} bytes told, {grown} grown"
    );
    ensure!(
        (arena / session - 1.0).abs() < 0.35,
        "{arena} against {session}: both keep the same"
    );
    ensure!(
        resident("use_scratch")? < 0.1 * all,
        "memory that was given back is told as held"
    );

    // Address space: the chunks, the heap that malloc grows by brk, and all of the scratch.
    let reserved = |function: &str| bytes_of(&daemon, pid, "alloc_space", function);
    let (chunks, heap, scratch) = (
        reserved("open_chunk")?,
        reserved("keep_session")?,
        reserved("use_scratch")?,
    );
    ensure!((chunks / heap - 1.0).abs() < 0.5, "{chunks} in chunks, {heap} from brk");
    ensure!(scratch > 4.0 * chunks, "{scratch} in scratch, {chunks} in chunks");

    service.signal(Signal::SIGCONT)?;

    ensure!(
        suspect(&daemon, innocent.pid())?.is_none(),
        "an innocent process is a suspect"
    );
    ensure!(daemon.state(pid)?.as_deref() == Some("watched"), "it is traced");
    let profile = newest(&home, pid)?;
    ensure!(profile.contains("growth without probes"), "{profile}");
    ensure!(breakpoints::changed_code(pid)?.is_empty(), "a probe is in the service");
    // What it costs is told, and beyond the budget it ends.
    daemon.until("its cost is told", PATIENCE, |daemon| {
        Ok(daemon.get("/api/v1/status")?["own"]["growth"].as_f64() > Some(0.0))
    })?;
    daemon.configure(&configuration(TOO_LITTLE))?;
    daemon.until("it ends", Duration::from_secs(30), |daemon| {
        let status = daemon.get("/api/v1/status")?;
        Ok(suspect(daemon, pid)?.is_none() && status["own"]["growth"].as_f64() == Some(0.0))
    })?;
    daemon.end()?;
    unharmed(&mut service)?;
    unharmed(&mut innocent)
}

/// What `leaktrace show` says of the newest profile in the store.
fn newest(home: &Home, pid: u32) -> Result<String> {
    let ids = home.stored(pid)?;
    let id = ids.first().with_context(|| format!("no profile of pid {pid}"))?;
    let store = home.store().display().to_string();
    Ok(leaktrace(&["show", id, "--store", &store], PATIENCE)?.stdout)
}
