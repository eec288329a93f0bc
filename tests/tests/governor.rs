//! What probes cost is measured on this machine, and kept within budgets, in both ways of attaching.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{breakpoints, machine, programs};
use serde_json::Value;

/// As the kernel has it, and as kernels before 6.13 have it.
const SESSIONS: &[(&str, &str)] = &[];
const PERF_EVENTS: &[(&str, &str)] = &[("LEAKTRACE_UPROBES", "perf")];

fn home(target_cpu: &str) -> Result<Home> {
    Home::new(&format!(
        "\n[trace]\nauto = false\n\n[budget]\ntarget_cpu = \"{target_cpu}\"\nmachine_cpu = \"100%\""
    ))
}

fn start<'h>(home: &'h Home, variables: &[(&str, &str)]) -> Result<Daemon<'h>> {
    home.start_with(home.command().envs(variables.iter().copied()))
}

/// A process that allocates and frees so often in a second.
fn paced(pairs: u32) -> Result<Process> {
    Process::ready(programs::command("bench_paced")?.arg(pairs.to_string()))
}

fn tracing(daemon: &Daemon<'_>, pid: u32) -> Result<Value> {
    Ok(daemon.get(&format!("/api/v1/processes/{pid}"))?["tracing"].take())
}

/// Begins to trace and waits until it is told what that costs.
fn measured(daemon: &mut Daemon<'_>, pid: u32, interval: u64) -> Result<Value> {
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    daemon.trace(pid, interval)?;
    let mut told = Value::Null;
    daemon.until("its cost is told", PATIENCE, |daemon| {
        told = tracing(daemon, pid)?;
        Ok(told["cost"].as_f64() > Some(0.0))
    })?;
    Ok(told)
}

fn prices_are_measured(variables: &[(&str, &str)]) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = paced(1000)?;
    let home = home("100%")?;
    let mut daemon = start(&home, variables)?;
    ensure!(
        daemon.get("/api/v1/status")?["traps"].is_null(),
        "a daemon that traces nothing has measured something"
    );
    measured(&mut daemon, target.pid(), 512 << 10)?;
    let traps = daemon.get("/api/v1/status")?["traps"].take();
    let nanos = |name: &str| traps[name].as_u64().with_context(|| format!("no {name}: {traps}"));
    ensure!(traps["measured"] == true, "{traps}\n{}", daemon.process.errors_so_far());
    let (emulated, stepped, returned) = (nanos("emulated")?, nanos("stepped")?, nanos("returned")?);
    ensure!(emulated > 0 && returned > 0, "{traps}");
    // A single step is an exception more, and a copy of the instruction.
    ensure!(stepped > emulated, "{traps}");
    let (_, metrics) = daemon.ask("GET", "/metrics", None)?;
    let metrics = String::from_utf8(metrics)?;
    let line = format!("leaktrace_trap_seconds{{at=\"stepped\"}} {}", stepped as f64 / 1e9);
    ensure!(metrics.lines().any(|other| other == line), "no `{line}`");
    let left = breakpoints::changed_code(daemon.process.pid())?;
    ensure!(left.is_empty(), "probes are left in the daemon itself: {left:?}");
    daemon.end()?;
    unharmed(&mut target)
}

#[test]
fn prices_of_traps_are_measured_with_sessions() -> Result<()> {
    prices_are_measured(SESSIONS)
}

#[test]
fn prices_of_traps_are_measured_with_perf_events() -> Result<()> {
    prices_are_measured(PERF_EVENTS)
}

/// One process that is beyond the budget by far, and one that is far below.
fn the_budget_is_kept(variables: &[(&str, &str)]) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut busy, mut calm) = (paced(50_000)?, paced(500)?);
    // Two traps for a pair, none of which takes less than 50 ns anywhere: half a percent at least.
    let home = home("0.4%")?;
    let mut daemon = start(&home, variables)?;
    let told = measured(&mut daemon, calm.pid(), 512 << 10)?;
    let hits = told["hits"].as_f64().context("no hits")?;
    // Two or three hits for a pair, in a window that cuts bursts.
    ensure!((500.0..3000.0).contains(&hits), "{told}");
    ensure!(told["cost"].as_f64() < Some(0.004), "{told}");
    let pid = busy.pid();
    daemon.trace(pid, 512 << 10)?;
    daemon.until("the busy process is detached from", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("detached"))
    })?;
    let reason = tracing(&daemon, pid)?["reason"].take();
    let reason = reason.as_str().unwrap_or_default();
    ensure!(
        reason.contains("hits/s") && reason.contains("budget of a process"),
        "{reason}"
    );
    ensure!(breakpoints::changed_code(pid)?.is_empty(), "probes are left");
    // The other one has a cost of its own.
    let told = tracing(&daemon, calm.pid())?;
    ensure!(told["state"] == "traced", "{told}");
    ensure!(told["hits"].as_f64() < Some(3000.0), "it has the hits of both: {told}");
    daemon.end()?;
    unharmed(&mut busy)?;
    unharmed(&mut calm)
}

#[test]
fn a_budget_is_kept_with_sessions() -> Result<()> {
    the_budget_is_kept(SESSIONS)
}

#[test]
fn a_budget_is_kept_with_perf_events() -> Result<()> {
    the_budget_is_kept(PERF_EVENTS)
}

/// Where traps fit into the budget and programs do not, samples get rarer and the probes stay.
#[test]
fn with_perf_events_samples_get_rarer_first() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    // What traps take, with hardly a sample, and what all takes when each call is one.
    let (mut sparse, mut dense) = (paced(5_000)?, paced(5_000)?);
    let generous = home("100%")?;
    let mut daemon = start(&generous, PERF_EVENTS)?;
    let least = measured(&mut daemon, sparse.pid(), 512 << 10)?["cost"].as_f64();
    let most = measured(&mut daemon, dense.pid(), 16)?["cost"].as_f64();
    let (least, most) = least.zip(most).context("no cost")?;
    ensure!(most > least * 1.2, "samples cost nothing: {least} and {most}");
    daemon.end()?;
    let budget = format!("{:.3}%", (least + most) / 2.0 * 100.0);
    let tight = home(&budget)?;
    let mut daemon = start(&tight, PERF_EVENTS)?;
    let pid = dense.pid();
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    daemon.trace(pid, 16)?;
    daemon.until("its samples get rarer", Duration::from_secs(30), |daemon| {
        let told = tracing(daemon, pid)?;
        ensure!(told["state"] != "detached", "budget {budget}: {told}");
        Ok(told["sample_interval"].as_u64() > Some(16))
    })?;
    daemon.end()?;
    unharmed(&mut sparse)?;
    unharmed(&mut dense)
}
