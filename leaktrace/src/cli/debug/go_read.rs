//! `leaktrace debug go-read`: how long the readers of a Go process take, and what they hold.
//!
//! Owns the clock alone; the reads are those of `leaktrace go`. Invariant: nothing but the read itself is timed, neither
//! the start of this program nor the printing, and what a read returned is dropped before the next one begins.

use std::fs;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::cli::quantity;
use crate::runtime::go::goroutines::StackState;
use crate::runtime::go::{GoError, GoProcess};

/// Arguments of `debug go-read`.
#[derive(Debug, Args)]
pub struct GoReadArgs {
    /// Process.
    #[arg(short, long)]
    pid: u32,
    /// How often everything is read.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    times: u32,
    /// Attach once, then read everything this often, instead of attaching anew for each read and at once.
    #[arg(long, value_parser = quantity::duration)]
    interval: Option<Duration>,
}

/// How long a read took, in milliseconds.
#[derive(Clone, Copy, Serialize)]
struct Took {
    /// By the clock.
    ms: f64,
    /// Of the processor: less where others had it meanwhile.
    cpu_ms: f64,
}

/// One pass over everything, as it is printed: a JSON object a line.
#[derive(Serialize)]
struct Pass {
    attach: Took,
    heap: Took,
    buckets: usize,
    torn: u64,
    goroutines: Took,
    /// Goroutines alive, and those of them with whole stacks.
    alive: usize,
    complete: usize,
    collector: Took,
    /// Highest resident memory of this program so far, in bytes, behind the first, second and third of these.
    peak: [u64; 3],
}

/// Reads and prints; `attached` first, once the process is found to be readable.
pub fn run(arguments: &GoReadArgs) -> Result<()> {
    let (mut process, mut attach) = timed(|| GoProcess::attach(arguments.pid))?;
    println!("attached");
    let begin = Instant::now();
    for number in 0..arguments.times {
        match arguments.interval {
            Some(interval) => {
                let due = interval.saturating_mul(number);
                thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            None if number > 0 => (process, attach) = timed(|| GoProcess::attach(arguments.pid))?,
            None => {}
        }
        let pass = read(&process, attach)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&pass)?).and_then(|()| out.flush())?;
    }
    Ok(())
}

fn read(process: &GoProcess, attach: Took) -> Result<Pass> {
    let attached = peak()?;
    let (snapshot, heap) = timed(|| process.heap())?;
    let (buckets, torn) = (snapshot.buckets.len(), snapshot.torn);
    drop(snapshot);
    let behind_heap = peak()?;
    let (snapshot, goroutines) = timed(|| process.goroutines())?;
    let states = snapshot.goroutines.iter().map(|goroutine| goroutine.state);
    let complete = states.filter(|state| *state == StackState::Complete).count();
    let alive = snapshot.goroutines.len();
    drop(snapshot);
    let (_, collector) = timed(|| process.collector())?;
    Ok(Pass {
        attach,
        heap,
        buckets,
        torn,
        goroutines,
        alive,
        complete,
        collector,
        peak: [attached, behind_heap, peak()?],
    })
}

/// The result and how long it took; no other thread works meanwhile.
fn timed<T>(run: impl FnOnce() -> Result<T, GoError>) -> Result<(T, Took)> {
    let processor = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
    let (begin, used) = (Instant::now(), processor()?);
    let result = run()?;
    let (elapsed, busy) = (begin.elapsed(), processor()?.saturating_sub(used));
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok((
        result,
        Took {
            ms: millis(elapsed),
            cpu_ms: millis(busy),
        },
    ))
}

/// This program's own high-water mark of resident memory, in bytes. It can only rise.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("failed to read `/proc/self/status`")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("`/proc/self/status` states no VmHWM")? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_that_of_this_program() -> Result<()> {
        let before = peak()?;
        let block = vec![1_u8; 64 << 20];
        let after = peak()?;
        assert!(block.iter().all(|byte| *byte == 1));
        assert!(before > 1 << 16, "{before}");
        assert!(after >= 64 << 20, "{after}");
        Ok(())
    }

    #[test]
    fn a_process_that_is_not_go_is_refused() {
        let arguments = GoReadArgs {
            pid: std::process::id(),
            times: 1,
            interval: None,
        };
        assert!(run(&arguments).is_err());
    }
}
