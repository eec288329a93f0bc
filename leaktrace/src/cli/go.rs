//! `leaktrace go …`: what the runtime of a Go process knows, read from outside.
//!
//! A file per subcommand; this one holds what they share. Nothing here reads memory by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::quantity::bytes;
use crate::runtime::go::{GoError, GoProcess};

mod census;
mod gc;
mod goroutines;
mod heap;
mod objects;
mod pause;
mod summary;

/// Arguments of `leaktrace go`.
#[derive(Args, Debug)]
pub struct GoArgs {
    #[command(subcommand)]
    command: GoCommand,
}

#[derive(Subcommand, Debug)]
enum GoCommand {
    /// Read the heap profile: who allocated what is held.
    #[command(
        after_help = "Examples:\n  leaktrace go heap -p 1234                    # who allocated what is held now\n  leaktrace go heap -p 1234 -o heap.pb.gz      # the same for go tool pprof"
    )]
    Heap(heap::HeapArgs),
    /// Group goroutines by what they do; find those that pile up.
    #[command(
        after_help = "Examples:\n  leaktrace go goroutines -p 1234                     # groups by what they do\n  leaktrace go goroutines -p 1234 --leaks --watch 60s  # those that pile up, with the evidence"
    )]
    Goroutines(goroutines::GoroutinesArgs),
    /// Follow the garbage collector.
    #[command(
        after_help = "Examples:\n  leaktrace go gc -p 1234                     # until Ctrl-C, a line for each collection\n  leaktrace go gc -p 1234 --interval 50ms     # looking less often"
    )]
    Gc(gc::GcArgs),
    /// Count objects, spans and stacks, and say where resident memory goes.
    #[command(
        after_help = "Examples:\n  leaktrace go census -p 1234          # spans, objects and stacks, and where resident memory goes\n  leaktrace go census -p 1234 --json   # for a program; sizes in bytes"
    )]
    Census(census::CensusArgs),
    /// Sampled live objects by allocation site, with their ages.
    #[command(
        after_help = "Examples:\n  leaktrace go objects -p 1234         # sampled live objects by allocation site, with their ages\n  leaktrace go objects -p 1234 --watch 1m --min-age 30s  # those that are half a minute old at least"
    )]
    Objects(objects::ObjectsArgs),
}

/// The process to read.
#[derive(Args, Debug, Clone)]
struct Target {
    /// Process id.
    #[arg(short, long, value_name = "PID")]
    pid: u32,
}

impl Target {
    fn attach(&self) -> Result<GoProcess, GoError> {
        GoProcess::attach(self.pid)
    }
}

impl GoArgs {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// A [`GoError`] (downcast to map it to an exit code), or a file that cannot be written.
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            GoCommand::Heap(args) => heap::run(args),
            GoCommand::Goroutines(args) => goroutines::run(args),
            GoCommand::Gc(args) => gc::run(args),
            GoCommand::Census(args) => census::run(args),
            GoCommand::Objects(args) => objects::run(args),
        }
    }
}

/// `30s`, `5m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Nanoseconds since 1970.
fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds for people: `18µs`, `2.3ms`, `41s`, `2h 5m`.
fn short_duration(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", nanos / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1}ms", nanos as f64 / 1e6),
        1_000_000_000..10_000_000_000 => format!("{:.1}s", nanos as f64 / 1e9),
        _ => humantime::format_duration(Duration::from_secs(nanos / 1_000_000_000)).to_string(),
    }
}
