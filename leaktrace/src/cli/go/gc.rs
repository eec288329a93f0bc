//! `leaktrace go gc`.

use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::pause::Pause;
use super::summary::{Percentiles, Trend};
use super::{Target, bytes, duration, short_duration};
use crate::runtime::go::gc::{Collection, CollectorState, Follower, trace_line};
use crate::runtime::go::pace::Pace;
use crate::runtime::go::{GoProcess, clock};

/// Arguments of `leaktrace go gc`.
#[derive(Args, Debug)]
pub struct GcArgs {
    #[command(flatten)]
    target: Target,
    /// Shortest time between two looks.
    ///
    /// While the program allocates too slowly for a collection to be overtaken by the next, leaktrace waits up to five
    /// times as long, though no more than a second for that. Number, time of the end and pauses of a collection are read
    /// from the runtime afterwards, so that none is missed. Phases, their clocks and heap sizes are there until the next
    /// collection begins: where that happens between two looks, as with collections that the program asks for one after
    /// another, or when it begins to allocate fast, the collection is shown with its pause alone. Where three and more end
    /// within this time, most are shown so at any pace, and leaktrace waits up to five times as long, too.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10ms")]
    interval: Duration,
    /// How long to look; without it until Ctrl-C or the program's exit.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    keep: Option<Duration>,
    /// One JSON object a line, the summary last.
    #[arg(long)]
    json: bool,
}

/// A collection, as `--json` prints it. Times in nanoseconds, sizes in bytes.
#[derive(Serialize)]
struct CollectionJson {
    event: &'static str,
    number: u64,
    end_unix_nanos: Option<u64>,
    pause: Option<u64>,
    forced: Option<bool>,
    sweep_termination: Option<u64>,
    mark: Option<u64>,
    mark_termination: Option<u64>,
    heap_before: Option<u64>,
    heap_after: Option<u64>,
    heap_live: Option<u64>,
    goal: Option<u64>,
}

impl CollectionJson {
    fn new(collection: &Collection<'_>) -> Self {
        let state = collection.state;
        let phases = state.map(|state| &state.phases);
        Self {
            event: "collection",
            number: collection.number,
            end_unix_nanos: collection.end,
            pause: collection.pause,
            forced: phases.map(|p| p.forced),
            sweep_termination: phases.map(|p| p.mark.saturating_sub(p.sweep_term)),
            mark: phases.map(|p| p.mark_term.saturating_sub(p.mark)),
            mark_termination: phases.map(|p| p.end.saturating_sub(p.mark_term)),
            heap_before: phases.map(|p| p.heap[0]),
            heap_after: phases.map(|p| p.heap[1]),
            heap_live: phases.map(|p| p.heap[2]),
            goal: state.map(|state| state.last_goal),
        }
    }
}

/// What is left at the end. Times in nanoseconds, sizes in bytes.
#[derive(Serialize)]
struct Summary {
    event: &'static str,
    pid: u32,
    version: String,
    watched: u64,
    collections: u64,
    collections_total: u64,
    forced_total: u64,
    phases_missed: u64,
    collections_per_minute: f64,
    pauses: u64,
    pause_p50: u64,
    pause_p90: u64,
    pause_p99: u64,
    pause_max: u64,
    heap_live: u64,
    heap_marked: u64,
    heap_goal: Option<u64>,
    heap_in_use: u64,
    heap_growth_per_hour: Option<i64>,
    allocation_rate_per_second: f64,
    gc_cpu_fraction: f64,
    gogc: i32,
    memory_limit: Option<u64>,
}

/// How old the last whole state may become while nothing is collected: what the summary of a program that ends shows.
const REFRESH: Duration = Duration::from_secs(1);

/// A line is written so soon after the look that found it: one write for many where collections follow each other.
const PROMPT: Duration = Duration::from_millis(100);

/// No two looks are nearer to each other.
const SHORTEST: Duration = Duration::from_micros(100);

/// Runs the subcommand.
pub fn run(args: &GcArgs) -> anyhow::Result<()> {
    let process = args.target.attach()?;
    let mut pause = Pause::new()?;
    let start = clock::process_start(&process.key);
    let begin = Instant::now();
    let first = process.collector()?;
    let mut follower = Follower::after(&first);
    let mut watch = Watch {
        finished: first.finished,
        total_alloc: first.total_alloc,
        last: first,
        marked: Trend::default(),
        pauses: Percentiles::default(),
        missed: 0,
    };
    let mut refreshed = Instant::now();
    let mut pace = Pace::new(args.interval.max(SHORTEST), REFRESH);
    let (mut step, mut looked) = (pace.shortest(), begin);
    // What a look needs is there once.
    let mut buffer = Vec::new();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut unseen: Option<Instant> = None;
    // Where every look finds something, a glance ahead of it is a call more and tells nothing.
    let mut whole = false;
    loop {
        if unseen.is_some_and(|since| since.elapsed() + step > PROMPT) {
            out.flush()?;
            unseen = None;
        }
        let left = args.keep.map(|keep| keep.saturating_sub(begin.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        if pause.wait(Some(left.map_or(step, |left| left.min(step)))) {
            break;
        }
        // A look that fails leaves the last one to the summary.
        let glance = if whole {
            let looked = process.collector_into(&mut buffer, &mut watch.last);
            looked.map(|()| watch.last.glance())
        } else {
            process.collector_glance(&mut buffer)
        };
        let now = Instant::now();
        let look = glance.and_then(|glance| {
            step = pace.next(&glance, now - std::mem::replace(&mut looked, now));
            if whole {
                return Ok(true);
            }
            // Nothing ended since.
            if glance.finished == watch.last.finished && now - refreshed < REFRESH {
                return Ok(false);
            }
            process.collector_into(&mut buffer, &mut watch.last).map(|()| true)
        });
        match look {
            Ok(true) => refreshed = now,
            Ok(false) => continue,
            // Its end is the end of the watch, not a failure.
            Err(_) if !process.is_alive() => break,
            Err(error) => return Err(error.into()),
        }
        let elapsed = begin.elapsed();
        whole = false;
        for collection in follower.follow(&watch.last) {
            whole = true;
            watch.pauses.extend(collection.pause);
            match collection.state {
                Some(state) => watch.marked.add(elapsed.as_secs_f64(), state.marked as f64),
                None => watch.missed += 1,
            }
            if args.json {
                serde_json::to_writer(&mut out, &CollectionJson::new(&collection))?;
                writeln!(out)?;
            } else {
                writeln!(out, "{}", trace_line(&collection, start))?;
            }
            unseen.get_or_insert(now);
        }
    }
    // Up to the end; where it is gone, the last state is a second old at most.
    let _ = process.collector_into(&mut buffer, &mut watch.last);
    let summary = watch.summary(&process, begin.elapsed());
    if args.json {
        serde_json::to_writer(&mut out, &summary)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", text(&summary))?;
    }
    out.flush()?;
    Ok(())
}

struct Watch {
    /// Collections that had ended, and bytes that had been allocated, at the begin.
    finished: u64,
    total_alloc: u64,
    last: CollectorState,
    /// Bytes marked live, by seconds since the begin.
    marked: Trend,
    pauses: Percentiles,
    missed: u64,
}

impl Watch {
    fn summary(&self, process: &GoProcess, watched: Duration) -> Summary {
        // Without a collection meanwhile the runtime's ring of the last 256 pauses tells.
        let mut recent = Percentiles::default();
        let pauses = if self.pauses.total() == 0 {
            recent.extend(self.last.recent_pauses());
            &recent
        } else {
            &self.pauses
        };
        let collections = self.last.finished.saturating_sub(self.finished);
        let seconds = watched.as_secs_f64().max(f64::MIN_POSITIVE);
        Summary {
            event: "summary",
            pid: process.pid(),
            version: process.version.to_string(),
            watched: watched.as_nanos() as u64,
            collections,
            collections_total: self.last.finished,
            forced_total: self.last.forced,
            phases_missed: self.missed,
            collections_per_minute: collections as f64 * 60.0 / seconds,
            pauses: pauses.total(),
            pause_p50: pauses.at(0.5),
            pause_p90: pauses.at(0.9),
            pause_p99: pauses.at(0.99),
            pause_max: pauses.max(),
            heap_live: self.last.live,
            heap_marked: self.last.marked,
            heap_goal: self.last.next_goal(),
            heap_in_use: self.last.in_use,
            heap_growth_per_hour: self.marked.slope().map(|per_second| (per_second * 3600.0) as i64),
            allocation_rate_per_second: self.last.total_alloc.saturating_sub(self.total_alloc) as f64 / seconds,
            gc_cpu_fraction: self.last.cpu_fraction,
            gogc: self.last.percent,
            memory_limit: Some(self.last.memory_limit).filter(|&limit| limit < i64::MAX as u64),
        }
    }
}

fn text(summary: &Summary) -> String {
    let growth = match summary.heap_growth_per_hour {
        Some(growth) if growth < 0 => format!("-{}/h", bytes(growth.unsigned_abs())),
        Some(growth) => format!("+{}/h", bytes(growth as u64)),
        None => "unknown (needs two collections)".to_owned(),
    };
    let limit = summary.memory_limit.map_or("off".to_owned(), bytes);
    format!(
        "pid {} ({}): {} collections in {} ({:.1}/min), {} since the start, {} of them forced\n\
         pauses of {} collections: p50 {}, p90 {}, p99 {}, max {}\n\
         heap: {} live, {} marked by the last collection, goal {}, {} in spans; live heap {growth}\n\
         allocating {}/s; collector's share of CPU since the start {:.2} %; GOGC {}, GOMEMLIMIT {limit}\n",
        summary.pid,
        summary.version,
        summary.collections,
        short_duration(summary.watched),
        summary.collections_per_minute,
        summary.collections_total,
        summary.forced_total,
        summary.pauses,
        short_duration(summary.pause_p50),
        short_duration(summary.pause_p90),
        short_duration(summary.pause_p99),
        short_duration(summary.pause_max),
        bytes(summary.heap_live),
        bytes(summary.heap_marked),
        summary.heap_goal.map_or("off".to_owned(), bytes),
        bytes(summary.heap_in_use),
        bytes(summary.allocation_rate_per_second as u64),
        summary.gc_cpu_fraction * 100.0,
        if summary.gogc < 0 {
            "off".to_owned()
        } else {
            summary.gogc.to_string()
        },
    )
}
