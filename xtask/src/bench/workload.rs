//! The work that is watched, and how its speed is read.
//!
//! Invariant: a value is one run's own measurement, made by the program itself or by redis-benchmark; the time it takes
//! to attach is never part of it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::Process;
use leaktrace_tests::programs;
use leaktrace_tests::recording;
use leaktrace_tests::redis::Redis;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::tracer::{Peers, Tracer};

/// No run may take longer.
const LIMIT: Duration = Duration::from_secs(240);
/// How long a run is meant to take; work is scaled to the tracer's speed by a short run before.
const NANOS: f64 = 1.5e9;

/// The workloads, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// malloc(64) and free in a loop.
    Pairs,
    /// The same at the end of 30 frames.
    DeepPairs,
    /// Two threads over a live set of 50,000, at the end of 30 frames.
    LiveSet,
    /// redis-server under redis-benchmark.
    Redis,
}

#[derive(Deserialize)]
struct Speed {
    ns_per_pair: f64,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pairs, Self::DeepPairs, Self::LiveSet, Self::Redis];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::DeepPairs => "deep-pairs",
            Self::LiveSet => "live-set",
            Self::Redis => "redis",
        }
    }

    /// Its name in the tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pairs => "malloc(64) and free",
            Self::DeepPairs => "malloc(64) and free, 30 frames deep",
            Self::LiveSet => "two threads, 16 to 4096 bytes, 50,000 live, 30 frames deep",
            Self::Redis => "redis-server, SET",
        }
    }

    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Pairs | Self::DeepPairs | Self::LiveSet => "ns a pair",
            Self::Redis => "requests/s",
        }
    }

    /// One run under a tracer.
    ///
    /// # Errors
    /// When the tracer does not attach, or the work fails or takes too long.
    pub fn run(self, tracer: Tracer, peers: &Peers, smoke: bool) -> Result<f64> {
        let scale = |short: f64| if smoke { short / 10.0 } else { short };
        match self {
            Self::Pairs | Self::DeepPairs => {
                let mode = if self == Self::DeepPairs { "deep" } else { "flat" };
                let estimate = program("bench_pairs", &["20000", mode], tracer, peers)?;
                let pairs = (scale(NANOS) / estimate).clamp(20_000.0, 1e8);
                program("bench_pairs", &[&format!("{pairs:.0}"), mode], tracer, peers)
            }
            // Always the same work: what it costs depends on how full the live set is.
            Self::LiveSet => program("bench_live_set", &[&format!("{:.0}", scale(100_000.0))], tracer, peers),
            Self::Redis => redis(tracer, peers, smoke),
        }
    }
}

fn program(name: &str, arguments: &[&str], tracer: Tracer, peers: &Peers) -> Result<f64> {
    let scratch = TempDir::new()?;
    let mut command = programs::command(name)?;
    command.args(arguments);
    tracer.prepare(&mut command, scratch.path())?;
    let mut target = Process::ready(&mut command)?;
    let attached = tracer.attach(target.pid(), peers)?;
    target.send("go")?;
    let speed: Speed = target.json(LIMIT)?;
    target.expect("done")?;
    // The tracer first: none of them is to be measured, or to hang, on the target's end.
    drop(attached);
    Ok(speed.ns_per_pair)
}

fn redis(tracer: Tracer, peers: &Peers, smoke: bool) -> Result<f64> {
    let scratch = TempDir::new()?;
    let mut command = Command::new("redis-server");
    tracer.prepare(&mut command, scratch.path())?;
    let redis = Redis::start_under(&mut command)?;
    let _attached = tracer.attach(redis.pid(), peers)?;
    let estimate = requests(&redis, 3000.0)?;
    requests(
        &redis,
        (estimate * if smoke { 0.3 } else { 3.0 }).clamp(3000.0, 500_000.0),
    )
}

/// Requests a second of a run of so many.
fn requests(redis: &Redis, count: f64) -> Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &redis.port().to_string(),
        "-t",
        "set",
        "-c",
        "20",
        "-d",
        "64",
        "-r",
        "100000",
    ]);
    command.args(["--csv", "-n", &format!("{count:.0}")]);
    let answer = recording::run(&mut command, LIMIT)?;
    ensure!(answer.status.success(), "redis-benchmark failed: {}", answer.stderr);
    let line = answer
        .stdout
        .lines()
        .find(|line| line.starts_with("\"SET\""))
        .context("redis-benchmark tells no SET")?;
    let rate = line.split(',').nth(1).context("redis-benchmark tells no rate")?;
    rate.trim_matches('"')
        .parse()
        .with_context(|| format!("`{rate}` is no rate"))
}
