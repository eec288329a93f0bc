//! Limits that only leaktrace itself is held to: start-up, memory, throughput, large profiles, and no false leaks.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::Process;
use leaktrace_tests::recording::{self, Recording};
use leaktrace_tests::{programs, scenario};
use serde::Deserialize;

use super::outcome::Goal;
use super::{daemon, go};
use crate::workspace;

/// Measures one thing; the argument asks for a quick pass.
type Feat = fn(bool) -> Result<Vec<Goal>>;

/// All of them, by name.
pub const ALL: &[(&str, Feat)] = &[
    ("start-up", start_up),
    ("memory", memory),
    ("throughput", throughput),
    ("many-stacks", many_stacks),
    ("false-leaks", false_leaks),
    ("go-reads", go::reads),
    ("go-collector", go::collector),
    ("go-overhead", go::overhead),
    ("daemon-watch", daemon::watch),
    ("daemon-storm", daemon::storm),
    ("daemon-ten", daemon::ten),
    ("daemon-http", daemon::http),
    ("daemon-soak", daemon::soak),
];

const LIBRARIES: usize = 100;

/// From the start of leaktrace to probes in place, on a process that maps 100 libraries.
fn start_up(_smoke: bool) -> Result<Vec<Goal>> {
    let mut seconds = Vec::new();
    let mut first = None;
    for _ in 0..3 {
        let mut command = programs::command("bench_many_libraries")?;
        let mut target = Process::spawn(command.args(libraries()?))?;
        let loaded = target.wait_for(
            "how many it loaded",
            |line| line.starts_with('{'),
            Duration::from_secs(60),
        )?;
        target.expect("ready")?;
        let count = fs::read_to_string(format!("/proc/{}/maps", target.pid()))?
            .lines()
            .filter(|line| line.contains(" r-xp ") && line.contains(".so"))
            .count();
        ensure!(count >= LIBRARIES, "only {count} libraries are mapped: {loaded}");
        let begin = Instant::now();
        let recording = Recording::attach(target.pid(), &[])?;
        // The target allocates every millisecond, so the first event follows at once.
        let elapsed = begin.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_millis(200));
        let recorded = recording.stop()?;
        ensure!(
            recorded.profile.allocated_through("main").objects > 10,
            "no event was recorded"
        );
        first.get_or_insert(elapsed);
        seconds.push(elapsed);
    }
    let name = "start to first event, 100 libraries, seconds";
    let median = super::outcome::median(&seconds);
    Ok(vec![
        Goal::at_most(name, median, 1.5),
        Goal::at_most(&format!("{name}, first time"), first, 1.5),
    ])
}

/// libLLVM and 99 others, with different names and contents.
fn libraries() -> Result<Vec<PathBuf>> {
    let folder = "/usr/lib/x86_64-linux-gnu";
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("failed to list `{folder}`"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // These take over what others do as soon as they are loaded.
        let intrusive = [
            "libjemalloc",
            "libasan",
            "libtsan",
            "liblsan",
            "libubsan",
            "libc_malloc",
            "libmemusage",
            "libpcprofile",
        ];
        if name.contains(".so.") && !path.is_symlink() && !intrusive.iter().any(|prefix| name.starts_with(prefix)) {
            found.push((fs::metadata(&path)?.len(), path));
        }
    }
    // The largest last: LLVM is among them.
    found.sort();
    let llvm = found
        .iter()
        .rposition(|(_, path)| path.to_string_lossy().contains("libLLVM"));
    let llvm = llvm.context("no libLLVM on this machine")?;
    let llvm = found.remove(llvm).1;
    let mut chosen: Vec<PathBuf> = found
        .into_iter()
        .rev()
        .map(|(_, path)| path)
        .take(LIBRARIES + 60)
        .collect();
    chosen.insert(0, llvm);
    Ok(chosen)
}

/// Resident memory of leaktrace per outstanding allocation, at ten million of them.
fn memory(smoke: bool) -> Result<Vec<Goal>> {
    let count: u32 = if smoke { 100_000 } else { 10_000_000 };
    let mut target = Process::ready(programs::command("bench_outstanding")?.arg(count.to_string()))?;
    let mut recording = Recording::attach(target.pid(), &[])?;
    let tracer = recording.tracer().pid();
    let before = resident(tracer)?;
    target.send("go")?;
    target.wait_for("that it is done", |line| line == "done", Duration::from_secs(300))?;
    // The last events are on their way.
    std::thread::sleep(Duration::from_secs(1));
    let after = resident(tracer)?;
    let recorded = recording.stop()?;
    let seen = recorded.profile.outstanding_through("leak_here").objects;
    ensure!(
        seen == i64::from(count),
        "{seen} of {count} were recorded:\n{}",
        recorded.profile.shown()
    );
    let bytes = (after - before) / f64::from(count);
    Ok(vec![Goal::at_most(
        &format!("resident bytes per outstanding allocation, at {count}"),
        Some(bytes),
        48.0,
    )])
}

/// Resident bytes of a process.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kilobytes: f64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .with_context(|| format!("`{line}`"))?;
    Ok(kilobytes * 1024.0)
}

#[derive(Deserialize)]
struct Throughput {
    events_per_second: f64,
    lost: u64,
}

/// Events a second that the userspace half takes in, on one core, from records as the kernel side writes them.
fn throughput(smoke: bool) -> Result<Vec<Goal>> {
    let events = if smoke { "1000000" } else { "20000000" };
    let mut command = Command::new(workspace::program());
    command.args([
        "debug", "feed", "--events", events, "--live", "1000000", "--rate", "1200000",
    ]);
    let answer = recording::run(&mut command, Duration::from_secs(120))?;
    ensure!(
        answer.status.success(),
        "leaktrace debug feed failed: {}",
        answer.stderr.trim()
    );
    let throughput: Throughput = serde_json::from_str(answer.stdout.trim()).context("it tells no rate")?;
    ensure!(
        throughput.lost == 0,
        "{} events were lost at 1.2 million a second",
        throughput.lost
    );
    Ok(vec![Goal::at_least(
        "userspace: events a second of one core, none lost at 1.2 million/s",
        Some(throughput.events_per_second),
        1e6,
    )])
}

/// Symbolizing and writing a profile of 100,000 distinct stacks.
fn many_stacks(smoke: bool) -> Result<Vec<Goal>> {
    let stacks: u32 = if smoke { 5000 } else { 100_000 };
    let mut target = Process::ready(programs::command("bench_many_stacks")?.arg(stacks.to_string()))?;
    let recording = Recording::attach_to_file(target.pid(), &[], "profile.pb.gz")?;
    target.work()?;
    std::thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    let (_, file, _directory) = recording.stop_unread()?;
    let elapsed = begin.elapsed().as_secs_f64();
    let profile = recording::as_json(&file)?;
    let distinct = profile.heap().filter(|sample| sample.passes("leak_here")).count();
    ensure!(
        distinct == usize::try_from(stacks)?,
        "{distinct} of {stacks} stacks are in the profile"
    );
    Ok(vec![Goal::at_most(
        &format!("profile of {stacks} stacks: seconds from Ctrl-C to file"),
        Some(elapsed),
        10.0,
    )])
}

/// The two-thread workload in a ring buffer that is far too small: outstanding stacks that are in truth freed.
fn false_leaks(smoke: bool) -> Result<Vec<Goal>> {
    let rounds = if smoke { "20000" } else { "400000" };
    let mut command = programs::command("bench_live_set")?;
    let (truth, recorded) = scenario::record(command.args([rounds, "free"]), &["--ring-size", "16KiB"])?;
    let profile = &recorded.profile;
    let lost = profile.loss("alloc_lost");
    let leaked = profile.outstanding_through("leak_here").objects;
    let false_leaks = profile.outstanding().objects - leaked;
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let (share, false_leaks, lost) = (
        leaked as f64 / truth.leaked_objects as f64,
        false_leaks as f64,
        lost as f64,
    );
    Ok(vec![
        Goal::at_most(
            "blocks shown as outstanding that were freed, ring far too small",
            Some(false_leaks),
            0.0,
        ),
        Goal::at_most("share of the planted leak that is shown in that", Some(share), 1.0),
        Goal::at_least("allocations that were lost, and counted, in that", Some(lost), 1.0),
    ])
}
