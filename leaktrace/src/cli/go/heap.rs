//! `leaktrace go heap`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::pause::Pause;
use super::{Target, duration, now_nanos};
use crate::export::file;
use crate::report::graph::GraphOptions;
use crate::report::table::{TableOptions, table};
use crate::runtime::go::heap::{HeapSnapshot, View};
use crate::runtime::go::rate::ProfilingGuard;
use crate::runtime::go::{Area, GoProcess, profile};

/// Default of the runtime where profiling is on.
const DEFAULT_RATE: u64 = 512 << 10;

/// Which allocations to show.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ViewArg {
    /// Everything up to this moment, uncollected garbage included.
    Now,
    /// What the program's own pprof would show.
    Pprof,
    /// Everything up to the last collection.
    LastGc,
}

/// Arguments of `leaktrace go heap`.
#[derive(Args, Debug)]
pub struct HeapArgs {
    #[command(flatten)]
    target: Target,
    /// Write the profile (.pb.gz for pprof, .svg, .folded, .json) instead of showing a table.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which allocations to show.
    #[arg(long, value_enum, default_value = "now")]
    view: ViewArg,
    /// What to weigh by: alloc_objects, alloc_space, inuse_objects or inuse_space.
    #[arg(long, value_name = "TYPE")]
    sample_type: Option<String>,
    /// Rows of the table; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 30)]
    top: usize,
    /// Turn profiling on in a program that has it off: writes one sample per RATE bytes (524288 is usual) into the
    /// program's MemProfileRate, waits for --for, Ctrl-C or SIGTERM, reads the profile, and puts the old value back.
    /// SIGKILL leaves RATE in place: the program then goes on sampling until it ends.
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    enable_profiling: Option<u64>,
    /// How long to keep profiling on.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, requires = "enable_profiling")]
    keep: Option<Duration>,
}

/// Runs the subcommand.
pub fn run(args: &HeapArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.output {
        file::Format::check(path)?;
    }
    let view = match args.view {
        ViewArg::Now => View::Now,
        ViewArg::Pprof => View::Pprof,
        ViewArg::LastGc => View::LastGc,
    };
    let process = args.target.attach()?;
    let snapshot = match args.enable_profiling {
        Some(rate) => read_with_profiling(&process, rate, args.keep)?,
        None => process.heap()?,
    };
    if let Some(cut) = &snapshot.cut {
        eprintln!(
            "warning: the heap profile of pid {} is incomplete: {cut}",
            process.pid()
        );
    }
    if snapshot.rate == 0 {
        eprintln!(
            "pid {} has heap profiling off (MemProfileRate is 0: nothing in it uses runtime.MemProfile), so only what was \
             sampled before counts. `--enable-profiling {DEFAULT_RATE}` writes that rate into its memory (8 bytes), \
             records allocations from then on until Ctrl-C, and puts 0 back",
            process.pid()
        );
    }
    let profile = profile::heap_profile(&process, &snapshot, view, now_nanos());
    let sample_type = profile.sample_type(args.sample_type.as_deref())?;
    match &args.output {
        Some(path) => {
            file::write(path, &profile, sample_type)?;
            println!(
                "{}: {} samples of pid {} ({})",
                path.display(),
                profile.samples.len(),
                process.pid(),
                process.version
            );
        }
        None => {
            let graph = GraphOptions {
                top: args.top,
                ..GraphOptions::trimmed(sample_type)
            };
            print!("{}", table(&profile, &TableOptions { graph, width: None }));
        }
    }
    Ok(())
}

fn read_with_profiling(process: &GoProcess, rate: u64, keep: Option<Duration>) -> anyhow::Result<HeapSnapshot> {
    process.layout(Area::Heap)?;
    let mut pause = Pause::new()?;
    let guard = ProfilingGuard::enable(process, rate)
        .with_context(|| format!("failed to turn on heap profiling for pid {}", process.pid()))?;
    eprintln!(
        "pid {}: MemProfileRate was {}, is {rate} until {}",
        process.pid(),
        guard.previous(),
        match keep {
            Some(keep) => format!("{} have passed or Ctrl-C", humantime::format_duration(keep)),
            None => "Ctrl-C".to_owned(),
        }
    );
    wait(&mut pause, process, keep);
    // Read while the rate still is what the samples were taken with.
    let snapshot = process.heap();
    guard
        .restore()
        .with_context(|| format!("failed to put MemProfileRate of pid {} back", process.pid()))?;
    Ok(snapshot?)
}

/// How often it is looked whether the program still runs.
const LIVENESS: Duration = Duration::from_millis(200);

/// Waits for the end of the time, a signal or the end of the program.
fn wait(pause: &mut Pause, process: &GoProcess, keep: Option<Duration>) {
    let begin = Instant::now();
    loop {
        let left = keep.map_or(LIVENESS, |keep| keep.saturating_sub(begin.elapsed()).min(LIVENESS));
        if left.is_zero() || pause.wait(Some(left)) || !process.is_alive() {
            return;
        }
    }
}
