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
use serde::Serialize;

use crate::cli::quantity;
use crate::runtime::go::GoProcess;
use crate::runtime::go::goroutines::StackState;

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

/// One pass over everything, as it is printed: a JSON object a line.
#[derive(Serialize)]
struct Pass {
    attach_ms: f64,
    heap_ms: f64,
    buckets: usize,
    torn: u64,
    goroutines_ms: f64,
    goroutines: usize,
    complete: usize,
    collector_ms: f64,
    /// Highest resident memory of this program so far, in bytes, behind each of the three.
    peak: [u64; 3],
}

/// Reads and prints; `attached` first, once the process is found to be readable.
pub fn run(arguments: &GoReadArgs) -> Result<()> {
    let (mut process, mut attach_ms) = timed(|| GoProcess::attach(arguments.pid))?;
    println!("attached");
    let begin = Instant::now();
    for number in 0..arguments.times {
        match arguments.interval {
            Some(interval) => {
                let due = interval.saturating_mul(number);
                thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            None if number > 0 => (process, attach_ms) = timed(|| GoProcess::attach(arguments.pid))?,
            None => {}
        }
        let pass = read(&process, attach_ms)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&pass)?).and_then(|()| out.flush())?;
    }
    Ok(())
}

fn read(process: &GoProcess, attach_ms: f64) -> Result<Pass> {
    let attached = peak()?;
    let (heap, heap_ms) = timed(|| process.heap())?;
    let (buckets, torn) = (heap.buckets.len(), heap.torn);
    drop(heap);
    let behind_heap = peak()?;
    let (snapshot, goroutines_ms) = timed(|| process.goroutines())?;
    let states = snapshot.goroutines.iter().map(|goroutine| goroutine.state);
    let complete = states.filter(|state| *state == StackState::Complete).count();
    let goroutines = snapshot.goroutines.len();
    drop(snapshot);
    let (_, collector_ms) = timed(|| process.collector())?;
    Ok(Pass {
        attach_ms,
        heap_ms,
        buckets,
        torn,
        goroutines_ms,
        goroutines,
        complete,
        collector_ms,
        peak: [attached, behind_heap, peak()?],
    })
}

/// The result and milliseconds.
fn timed<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let begin = Instant::now();
    let result = run()?;
    Ok((result, begin.elapsed().as_secs_f64() * 1e3))
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
