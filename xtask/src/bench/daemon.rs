//! What the daemon costs: watching, a storm of processes, tracing ten at once, a profile over HTTP, and ten minutes of
//! coming and going.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::Process;
use leaktrace_tests::programs;

use super::outcome::Goal;

/// Time for the daemon to have seen everything.
const SETTLE: Duration = Duration::from_secs(10);
/// Nothing is traced by itself.
const DEFAULTS: &str = "\n[trace]\nauto = false";

/// The pace of looks and exports that the defaults have; tests have a quicker one.
fn default_pace(home: &Home) -> Result<()> {
    let path = home.path("leaktrace.toml");
    let text = fs::read_to_string(&path)?;
    let slower = text
        .replace("interval = \"1s\"", "interval = \"5s\"")
        .replace("interval = \"2s\"", "interval = \"60s\"");
    fs::write(&path, slower)?;
    Ok(())
}

/// CPU time of a process until now, in seconds.
fn cpu(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let own = text
            .split_ascii_whitespace()
            .next()
            .and_then(|number| number.parse::<u64>().ok());
        nanos += own.context("no schedstat")?;
    }
    Ok(nanos as f64 / 1e9)
}

fn resident(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: f64 = text.split(' ').nth(1).context("no statm")?.parse()?;
    Ok(pages * 4096.0 / f64::from(1 << 20))
}

/// Share of one CPU over `time`, in percent.
fn share(pid: u32, time: Duration) -> Result<f64> {
    let (before, begin) = (cpu(pid)?, Instant::now());
    thread::sleep(time);
    Ok((cpu(pid)? - before) / begin.elapsed().as_secs_f64() * 100.0)
}

/// 300 and 1,000 idle processes.
pub fn watch(smoke: bool) -> Result<Vec<Goal>> {
    let mut goals = Vec::new();
    let mut idle = Vec::new();
    for (count, limit) in [(300, 0.5), (1000, 1.5)] {
        while idle.len() < count {
            idle.push(Process::spawn(Command::new("sleep").arg("3600"))?);
        }
        let home = Home::new(DEFAULTS)?;
        default_pace(&home)?;
        let daemon = home.start()?;
        thread::sleep(SETTLE);
        let pid = daemon.process.pid();
        let share = share(pid, Duration::from_secs(if smoke { 10 } else { 60 }))?;
        let name = format!("daemon, {count} idle processes: % of a CPU");
        goals.push(Goal::at_most(&name, Some(share), limit));
        if count == 300 {
            goals.push(Goal::at_most(
                "daemon, 300 idle processes: MiB resident",
                Some(resident(pid)?),
                60.0,
            ));
        }
        daemon.end()?;
    }
    Ok(goals)
}

/// 500 short-lived processes a second beside 1,000 idle ones. The limit is the daemon's own default budget.
pub fn storm(smoke: bool) -> Result<Vec<Goal>> {
    const RATE: u64 = 500;
    let seconds = if smoke { 10 } else { 60 };
    let arguments = [1000, RATE, seconds].map(|number| number.to_string());
    let mut storm = Process::ready(programs::command("storm")?.args(arguments))?;
    let home = Home::new(DEFAULTS)?;
    default_pace(&home)?;
    let daemon = home.start()?;
    thread::sleep(SETTLE);
    let pid = daemon.process.pid();
    let before = cpu(pid)?;
    storm.send("go")?;
    let told: serde_json::Value = storm.json(Duration::from_secs(seconds * 10))?;
    let taken = cpu(pid)? - before;
    let made = told["made"].as_f64().context("no count")?;
    let lasted = told["seconds"].as_f64().context("no time")?;
    alive(&daemon)?;
    daemon.end()?;
    storm.exit()?;
    Ok(vec![
        Goal::at_most(
            "daemon, 500 processes/s beside 1,000 idle ones: % of a CPU",
            Some(taken / lasted * 100.0),
            10.0,
        )
        .noting(format!("{:.0} processes/s", made / lasted)),
    ])
}

/// Ten processes of 20,000 allocations a second.
pub fn ten(smoke: bool) -> Result<Vec<Goal>> {
    let targets: Vec<Process> = (0..10)
        .map(|_| {
            let mut target = Process::spawn(programs::command("bench_paced")?.arg("20000"))?;
            target.expect("ready")?;
            Ok(target)
        })
        .collect::<Result<_>>()?;
    let mut goals = Vec::new();
    // With a budget that ten of them fit into, and with the default one.
    for (name, budget, fitting) in [("a budget of 50 %", "50%", 10.0), ("the default budget", "2%", 1.0)] {
        let home = Home::new(&format!("{DEFAULTS}\n\n[budget]\nmachine_cpu = \"{budget}\""))?;
        default_pace(&home)?;
        let daemon = home.start()?;
        thread::sleep(Duration::from_secs(3));
        for target in &targets {
            daemon.trace(target.pid(), 64 << 10)?;
        }
        thread::sleep(Duration::from_secs(if smoke { 15 } else { 70 }));
        let status = daemon.get("/api/v1/status")?;
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
        let traced = number(&status["traced"]);
        let own = number(&status["own"]["cpu"]) * 100.0;
        let lost: f64 = status["losses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|loss| loss["name"] != "return_missed")
            .map(|loss| number(&loss["count"]))
            .fold(0.0, |sum, count| sum + count);
        goals.push(
            Goal::at_most(
                &format!("daemon, ten processes of 20,000 allocations/s, {name}: probes' share of it"),
                Some(number(&status["own"]["probes"]) / number(&status["own"]["probes_budget"])),
                1.0,
            )
            .noting(format!("its own CPU time: {own:.1} %")),
        );
        goals.push(Goal::at_least(
            &format!("daemon, the same, {name}: how many stay traced"),
            Some(traced),
            fitting,
        ));
        goals.push(Goal::at_most(
            &format!("daemon, the same, {name}: events lost"),
            Some(lost),
            0.0,
        ));
        goals.push(Goal::at_most(
            &format!("daemon, the same, {name}: MiB resident"),
            Some(resident(daemon.process.pid())?),
            150.0,
        ));
        daemon.end()?;
    }
    Ok(goals)
}

/// A heap profile through HTTP of a process with 20,000 live stacks.
pub fn http(_smoke: bool) -> Result<Vec<Goal>> {
    let mut target = Process::ready(programs::command("bench_many_stacks")?.arg("32000"))?;
    let home = Home::new(DEFAULTS)?;
    let daemon = home.start()?;
    thread::sleep(Duration::from_secs(3));
    // At the shortest distance two of three blocks of 16 bytes are taken: 20,000 of 32,000 stacks.
    daemon.trace(target.pid(), 16)?;
    target.send("go")?;
    target.wait_for(
        "that it is done",
        |line| line.contains("done") || line.starts_with('{'),
        SETTLE * 6,
    )?;
    thread::sleep(Duration::from_secs(1));
    let mut seconds = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        let (status, body) = daemon.ask("GET", &format!("/debug/pprof/heap?pid={}", target.pid()), None)?;
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        seconds.push(begin.elapsed().as_secs_f64());
    }
    daemon.end()?;
    Ok(vec![Goal::at_most(
        "daemon, a heap profile of 20,000 stacks over HTTP, seconds",
        super::outcome::median(&seconds),
        1.0,
    )])
}

/// Processes that start, leak and die, and what is left of them.
pub fn soak(smoke: bool) -> Result<Vec<Goal>> {
    let home = Home::new(
        "\n[trace]\nauto = false\nmax_processes = 8\n\n[[trace.rule]]\nname = \"leaky\"\ncomm = \"leaky_service\"\n\n\
         [budget]\nmachine_cpu = \"50%\"",
    )?;
    let daemon = home.start()?;
    thread::sleep(Duration::from_secs(3));
    let pid = daemon.process.pid();
    let base = open_files(pid)?;
    let length = Duration::from_secs(if smoke { 40 } else { 600 });
    let begin = Instant::now();
    let mut memory = Vec::new();
    while begin.elapsed() < length {
        let mut leaking = Vec::new();
        for _ in 0..4 {
            let mut target = Process::spawn(programs::command("leaky_service")?.arg("1000"))?;
            target.expect("ready")?;
            leaking.push(target);
        }
        // Short-lived ones beside them.
        for _ in 0..50 {
            ensure!(Command::new("true").status()?.success(), "`true` failed");
        }
        thread::sleep(Duration::from_secs(5));
        memory.push((begin.elapsed(), resident(pid)?));
    }
    // The kernel side lingers for a minute when nothing is traced.
    thread::sleep(Duration::from_secs(70));
    let left = open_files(pid)? as f64 - base as f64;
    let mean = |from: f64, to: f64| {
        let within: Vec<f64> = memory
            .iter()
            .filter(|(at, _)| (from..to).contains(&(at.as_secs_f64() / length.as_secs_f64())))
            .map(|(_, mebibytes)| *mebibytes)
            .collect();
        super::outcome::median(&within)
    };
    let growth = mean(0.75, 1.1).zip(mean(0.25, 0.5)).map(|(last, second)| last / second);
    alive(&daemon)?;
    daemon.end()?;
    Ok(vec![
        Goal::at_most(
            "daemon, soak: memory of the last quarter, times the second's",
            growth,
            1.05,
        ),
        Goal::at_most(
            "daemon, soak: open files and BPF links more than at first",
            Some(left),
            0.0,
        ),
    ])
}

fn alive(daemon: &Daemon<'_>) -> Result<()> {
    daemon.get("/api/v1/status").map(|_| ())
}

fn open_files(pid: u32) -> Result<usize> {
    // A file for each process that it watches is no leak.
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        count += usize::from(!target.to_string_lossy().ends_with("/statm"));
    }
    Ok(count)
}
