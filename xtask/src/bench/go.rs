//! What reading a Go process costs: the readers' time and memory, following the collector, and what the target notices.
//!
//! Reads are timed by the program itself (`leaktrace debug go-read`), so that starting it is no part of them. Invariant:
//! a goal is measured on a process that has what it names; one with fewer buckets or goroutines is an error, no number.
//!
//! What bounds leaktrace's memory: stacks are read in groups of at most 341 goroutines and 16 MiB and dropped once walked, so
//! that a snapshot keeps 112 bytes and 8 a frame for each goroutine (and no more than 2^26 frames); buckets are read in
//! windows and keep 104 bytes and 8 a frame (no more than 2^21 buckets and 2^25 frames); following the collector keeps 4,096
//! points of its trend, whatever the time. The limits here are for the programs here: about half as much again as they need.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use leaktrace_tests::golang;
use leaktrace_tests::process::Process;
use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;

use super::outcome::{Goal, median};
use crate::{command, workspace};

/// Minor releases of Go that are measured: those that are always there.
const MINORS: [u32; 2] = [19, 23];
/// No program takes longer to get ready, and no reader to end.
const LIMIT: Duration = Duration::from_secs(120);
const MEGABYTE: f64 = 1024.0 * 1024.0;

/// Time and memory of reads of a program with 8,000 buckets and 100,000 goroutines.
pub fn reads(smoke: bool) -> Result<Vec<Goal>> {
    let mut goals = Vec::new();
    for minor in MINORS {
        let target = start(minor, "large", &[])?;
        let pid = target.pid();
        let passes = passes(pid, if smoke { 3 } else { 11 })?;
        let (first, times) = (&passes[0], passes.len());
        let go = format!("Go 1.{minor}");
        let timing = |what: &str, limit, took: fn(&Pass) -> &Took| {
            let [clock, cpu] = [|took: &Took| took.ms, |took: &Took| took.cpu_ms]
                .map(|value: fn(&Took) -> f64| passes.iter().map(|pass| value(took(pass))).collect::<Vec<_>>());
            let busy = median(&cpu).unwrap_or_default();
            let (least, most) = range(&clock);
            Goal::at_most(&format!("{go}, ms: {what}"), median(&clock), limit)
                .noting(format!("{least:.2} to {most:.2}; CPU {busy:.2}"))
        };
        goals.push(timing("attach", 10.0, |pass| &pass.attach));
        let what = format!("heap of {} buckets", first.buckets);
        goals.push(timing(&what, 10.0, |pass| &pass.heap));
        let what = format!("{} goroutines with whole stacks", first.complete);
        goals.push(timing(&what, 300.0, |pass| &pass.goroutines));
        // A high-water mark can only rise, so that of the heap is told by the first pass, that of all by the last.
        let last = &passes[times - 1];
        for (what, bytes, limit) in [
            ("attached, heap read".to_owned(), first.peak[1], 32.0),
            (format!("goroutines and stacks too, {times} times"), last.peak[2], 64.0),
        ] {
            let name = format!("{go}, MB resident at most: {what}");
            goals.push(Goal::at_most(&name, Some(bytes as f64 / MEGABYTE), limit));
        }
        // As users call it: symbolized, grouped and printed too.
        for (name, limit) in [("heap", 48.0), ("goroutines", 64.0)] {
            let usage = ended(reader(&["go", name, "-p", &pid.to_string()])?)?;
            goals.push(Goal::at_most(
                &format!("{go}, MB resident at most: `go {name}`, start to end"),
                Some(usage.peak_bytes / MEGABYTE),
                limit,
            ));
        }
    }
    Ok(goals)
}

/// Processor time and memory of `leaktrace go gc` at its usual interval, on programs that rest and that collect all the time.
pub fn collector(smoke: bool) -> Result<Vec<Goal>> {
    let seconds = if smoke { 3 } else { 20 };
    let mut goals = Vec::new();
    for minor in MINORS {
        for (name, what) in [("small", "at rest"), ("churn", "collecting all the time")] {
            let target = start(minor, name, &[])?;
            // Longer than it is looked at: it is ended by a signal, as by Ctrl-C.
            let pid = target.pid().to_string();
            let child = reader(&["go", "gc", "-p", &pid, "--interval", "10ms", "--for", "1h"])?;
            // Attaching is no part of the polls.
            thread::sleep(Duration::from_secs(1));
            let before = used(child.0.id())?;
            let (waking, elapsed) = sleep_in_steps(Duration::from_secs(seconds))?;
            let after = used(child.0.id())?;
            child.interrupt()?;
            let usage = ended(child)?;
            let share = (after.processor - before.processor).as_secs_f64() / elapsed.as_secs_f64();
            let waking = waking.as_secs_f64() / elapsed.as_secs_f64();
            // It sleeps between two looks and nowhere else. A share of 10 ms is so many times 10,000 microseconds.
            let looks = (after.sleeps - before.sleeps).max(1) as f64 / elapsed.as_secs_f64();
            let note = format!(
                "{looks:.0} looks a second of {:.0} µs, {:.0} of a mere sleep",
                share * 1e6 / looks,
                waking * 1e4
            );
            let name = format!("Go 1.{minor} {what}: % of one CPU to follow it at 10 ms");
            goals.push(Goal::at_most(&name, Some(share * 100.0), 0.3).noting(note));
            goals.push(
                Goal::at_most(
                    &format!("Go 1.{minor} {what}: MB that following it grows by in {seconds} s"),
                    Some((after.resident - before.resident) / MEGABYTE),
                    0.5,
                )
                .noting(format!("{:.1} MB at most", usage.peak_bytes / MEGABYTE)),
            );
        }
    }
    Ok(goals)
}

/// Sleeps so long, 10 ms at a time: the processor time of that, which no polling goes below, and how long it was.
fn sleep_in_steps(duration: Duration) -> Result<(Duration, Duration)> {
    let processor = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let (begin, used) = (Instant::now(), processor()?);
    while begin.elapsed() < duration {
        thread::sleep(Duration::from_millis(10));
    }
    Ok((processor()?.saturating_sub(used), begin.elapsed()))
}

#[derive(Deserialize)]
struct Speed {
    ns: f64,
    cpu_ns: f64,
}

/// What an allocation-heavy program notices of being read every second: A B A B … A, each B against the As around it.
pub fn overhead(smoke: bool) -> Result<Vec<Goal>> {
    let (pairs, millis) = if smoke { (6, 600) } else { (15, 2000) };
    let mut goals = Vec::new();
    for minor in MINORS {
        // One processor for it, so that the reader has another: what is asked is what reading does to the target.
        let mut target = start(minor, "allocating", &[("GOMAXPROCS", "1")])?;
        // Caches and the heap settle.
        measured(&mut target, millis)?;
        let mut alone = vec![measured(&mut target, millis)?];
        let mut watched = Vec::new();
        for _ in 0..pairs {
            let pid = target.pid().to_string();
            let times = (millis / 1000 + 2).to_string();
            let arguments = ["debug", "go-read", "-p", &pid, "--interval", "1s", "--times", &times];
            let mut command = Command::new(workspace::program());
            let mut reader = Process::spawn(command.args(arguments))?;
            reader.expect("attached")?;
            watched.push(measured(&mut target, millis)?);
            ensure!(
                reader.alive(),
                "the reader ended before the target was measured: {}",
                reader.errors()
            );
            drop(reader);
            alone.push(measured(&mut target, millis)?);
        }
        for (what, value) in [
            ("time", (|speed| speed.ns) as fn(&Speed) -> f64),
            ("CPU time", |speed| speed.cpu_ns),
        ] {
            let [alone, watched] = [&alone, &watched].map(|speeds| speeds.iter().map(value).collect::<Vec<_>>());
            let ratio = median(&watched)
                .zip(median(&alone))
                .map(|(with, without)| with / without);
            let mut ratios = against_neighbours(&alone, &watched);
            let (low, high) = interval(&mut ratios).context("too few pairs")?;
            let name = format!("Go 1.{minor}: {what} of an allocation, times that without a read a second");
            let spread = format!("{pairs} pairs; 95 %: {low:.3} to {high:.3}");
            goals.push(Goal::at_most(&name, ratio, 1.01).noting(spread));
            // Above 1 the reads would be told from the noise.
            goals.push(Goal::at_most(&format!("{name}, lower end"), Some(low), 1.0).noting(format!("{low:.4}")));
        }
    }
    Ok(goals)
}

fn measured(target: &mut Process, millis: u32) -> Result<Speed> {
    target.send(&millis.to_string())?;
    target.json(LIMIT)
}

/// Each value of `watched` over the mean of the two of `alone` around it, so that a drift of the machine drops out.
fn against_neighbours(alone: &[f64], watched: &[f64]) -> Vec<f64> {
    alone
        .windows(2)
        .zip(watched)
        .map(|(around, with)| with / ((around[0] + around[1]) / 2.0))
        .collect()
}

/// An interval that holds the median of what the values are drawn from with 95 % or more, whatever their distribution
/// (order statistics of the sign test); `None` for fewer than six values.
fn interval(values: &mut [f64]) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    // Chance that at most `below` of all are under the median: a sum of binomial terms.
    let mut term = 0.5_f64.powi(i32::try_from(count).ok()?);
    let (mut chance, mut below) = (term, 0);
    while chance <= 0.025 && below < count {
        below += 1;
        term *= (count - below + 1) as f64 / below as f64;
        chance += term;
    }
    let index = below.checked_sub(1)?;
    Some((values[index], values[count - 1 - index]))
}

#[derive(Deserialize)]
struct Took {
    ms: f64,
    cpu_ms: f64,
}

#[derive(Deserialize)]
struct Pass {
    attach: Took,
    heap: Took,
    buckets: usize,
    torn: u64,
    goroutines: Took,
    complete: usize,
    peak: [u64; 3],
}

/// So many reads of a process at rest.
fn passes(pid: u32, times: usize) -> Result<Vec<Pass>> {
    let mut command = Command::new(workspace::program());
    command.args([
        "debug",
        "go-read",
        "-p",
        &pid.to_string(),
        "--times",
        &times.to_string(),
    ]);
    let shown = command::shown(&command);
    let mut reader = Process::spawn(&mut command)?;
    let passes: Vec<Pass> = (0..times).map(|_| reader.json(LIMIT)).collect::<Result<_>>()?;
    ensure!(reader.wait(LIMIT)?.success(), "`{shown}` failed: {}", reader.errors());
    for pass in &passes {
        ensure!(pass.buckets >= 8000, "only {} buckets were read", pass.buckets);
        ensure!(pass.torn == 0, "{} buckets of a program at rest were torn", pass.torn);
        ensure!(
            pass.complete >= 100_000,
            "only {} goroutines were read with whole stacks",
            pass.complete
        );
    }
    Ok(passes)
}

fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(0.0, f64::max))
}

/// Starts a test program, stripped as in production.
fn start(minor: u32, program: &str, environment: &[(&str, &str)]) -> Result<Process> {
    let mut target = Process::spawn(Command::new(build(minor, program)?).envs(environment.iter().copied()))?;
    target.wait_for("that it is ready", |line| line.starts_with("ready"), LIMIT)?;
    Ok(target)
}

/// Builds a program of `tests/programs/go`; where it is up to date, Go's cache makes that quick.
fn build(minor: u32, program: &str) -> Result<PathBuf> {
    let root = golang::goroot(minor).with_context(|| format!("no Go 1.{minor}: run `cargo xtask setup`"))?;
    let folder = workspace::target().join("go-tests");
    let output = folder.join(format!("1.{minor}/{program}-bench"));
    let mut build = Command::new(root.join("bin/go"));
    build
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(&output)
        .arg(format!("./{program}"))
        .current_dir(workspace::root().join("tests/programs/go"))
        .env("GOROOT", &root)
        .env("GOCACHE", folder.join("cache"))
        .envs([
            ("CGO_ENABLED", "0"),
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", "-mod=mod"),
            ("GOPROXY", "off"),
            ("GOTELEMETRY", "off"),
        ]);
    command::run(&mut build)?;
    Ok(output)
}

/// A leaktrace at work, its output thrown away; killed when this is dropped.
struct Reader(Child);

fn reader(arguments: &[&str]) -> Result<Reader> {
    let mut command = Command::new(workspace::program());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // The kernel counts a program's highest memory from before its start on, when it was still ours: what other
    // workloads took here would be in it, and what the allocator keeps of it.
    // SAFETY: it gives free pages back and touches nothing else.
    unsafe { libc::malloc_trim(0) };
    fs::write("/proc/self/clear_refs", "5").context("failed to reset our own highest memory")?;
    let child = command.spawn();
    Ok(Reader(child.with_context(|| {
        format!("failed to start `{}`", command::shown(&command))
    })?))
}

impl Reader {
    fn interrupt(&self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).expect("a process id fits");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
            .context("leaktrace ended before it was told to")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Both fail where it has ended already, and then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process used over its life.
struct Usage {
    /// Highest resident memory. The kernel counts from the fork on, so it is never below this program's own few MB.
    peak_bytes: f64,
}

/// Waits for a reader's end, which has to be a success.
fn ended(reader: Reader) -> Result<Usage> {
    let deadline = Instant::now() + LIMIT;
    let pid = i32::try_from(reader.0.id()).expect("a process id fits");
    loop {
        let mut status = 0;
        // SAFETY: all zeros are a valid `rusage`, which has numbers alone.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to locals that live through the call, and the kernel writes no more than their types.
        match unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            0 => return Err(anyhow!("leaktrace did not end within {LIMIT:?}")),
            reaped if reaped == pid => {
                // Its id may be another's by now.
                std::mem::forget(reader);
                let status = ExitStatus::from_raw(status);
                ensure!(status.success(), "leaktrace failed: {status}");
                return Ok(Usage {
                    peak_bytes: usage.ru_maxrss as f64 * 1024.0,
                });
            }
            _ => return Err(std::io::Error::last_os_error()).context("failed to wait for leaktrace"),
        }
    }
}

/// What a running process used until now.
struct Used {
    processor: Duration,
    /// Times that its threads gave a processor up to wait.
    sleeps: u64,
    resident: f64,
}

fn used(pid: u32) -> Result<Used> {
    let (mut nanos, mut sleeps) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("leaktrace ended early")? {
        let task = task?.path();
        let path = task.join("status");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps += line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(0);
        let path = task.join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let first = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        nanos += first.with_context(|| format!("`{text}` tells no processor time"))?;
    }
    Ok(Used {
        processor: Duration::from_nanos(nanos),
        sleeps,
        resident: super::feats::resident(pid)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drift_drops_out_of_the_pairs() {
        let ratios = against_neighbours(&[1.0, 3.0, 5.0], &[2.0, 4.4]);
        assert_eq!(ratios.len(), 2);
        assert!(
            (ratios[0] - 1.0).abs() < 1e-9 && (ratios[1] - 1.1).abs() < 1e-9,
            "{ratios:?}"
        );
    }

    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        let numbers = |count: u32| (1..=count).rev().map(f64::from).collect::<Vec<_>>();
        // As in the tables: no interval for 5, the extremes for 6, the 2nd for 10, the 4th for 15.
        assert_eq!(interval(&mut numbers(0)), None);
        assert_eq!(interval(&mut numbers(5)), None);
        assert_eq!(interval(&mut numbers(6)), Some((1.0, 6.0)));
        assert_eq!(interval(&mut numbers(10)), Some((2.0, 9.0)));
        assert_eq!(interval(&mut numbers(15)), Some((4.0, 12.0)));
    }

    #[test]
    fn processor_time_and_peak_are_those_of_the_child() {
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; read x"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("sh starts");
        let input = child.stdin.take();
        let reader = Reader(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while used(reader.0.id()).expect("it runs").processor < Duration::from_millis(20) {
            assert!(Instant::now() < deadline, "no processor time is seen");
            thread::sleep(Duration::from_millis(5));
        }
        drop(input);
        // At the end of its input `read` fails, and so does the shell.
        let error = ended(reader).map(|usage| usage.peak_bytes).expect_err("it fails");
        assert!(error.to_string().contains("exit status: 1"), "{error:#}");
        let child = Command::new("true").spawn().expect("true starts");
        assert!(ended(Reader(child)).expect("it succeeds").peak_bytes > 65536.0);
    }
}
