//! `leaktrace go goroutines`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hashbrown::HashMap;

use super::pause::Pause;
use super::{Target, bytes, duration, now_nanos, short_duration};
use crate::export::file;
use crate::runtime::go::goroutines::{ChannelState, Goroutine, GoroutineSnapshot, read_channels};
use crate::runtime::go::groups::{Group, GroupKey, Waiters, group, waiters};
use crate::runtime::go::leaks::{LeakWatch, Suspect};
use crate::runtime::go::stacks::Symbolizer;
use crate::runtime::go::{Area, GoProcess, clock, dump, profile};

/// Channels of one group that are named.
const SHOWN_CHANNELS: usize = 3;
/// Goroutine ids that are named as evidence.
const SHOWN_IDS: usize = 8;
/// Frames of a group that are shown.
const SHOWN_FRAMES: usize = 12;
/// Looks of a leak watch.
const LOOKS: u32 = 5;
/// The runtime collects at least every two minutes, unless it is told not to; a leak watch waits that long for one.
const MAX_WAIT_FOR_COLLECTION: Duration = Duration::from_secs(130);

/// Arguments of `leaktrace go goroutines`.
#[derive(Args, Debug)]
pub struct GoroutinesArgs {
    #[command(flatten)]
    target: Target,
    /// Only goroutines that have waited at least so long. The collector notes when it first finds one waiting, so a
    /// wait since its last run is not known yet and does not count.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    min_wait: Option<Duration>,
    /// Only goroutines in this state or with this wait reason, such as `running` or `chan receive`.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Print every goroutine, in the runtime's own text layout.
    #[arg(long, conflicts_with_all = ["output", "leaks"])]
    debug: bool,
    /// Write Go's goroutine profile.
    #[arg(short, long, value_name = "FILE", conflicts_with = "leaks")]
    output: Option<PathBuf>,
    /// Look several times and report goroutines that pile up at one place.
    #[arg(long)]
    leaks: bool,
    /// How long to look for leaks; longer if no collection happens meanwhile.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", requires = "leaks")]
    watch: Duration,
    /// Groups to show; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// The runtime's own goroutines too.
    #[arg(long)]
    system: bool,
}

/// Runs the subcommand.
pub fn run(args: &GoroutinesArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.output {
        file::Format::check(path)?;
    }
    let process = args.target.attach()?;
    if args.leaks {
        return leaks(&process, args);
    }
    let snapshot = process.goroutines()?;
    let now = clock::monotonic();
    let mut symbolizer = Symbolizer::new(process.table(), &process.version);
    let selected = |goroutine: &Goroutine| args.selects(&process, goroutine, now);
    let system: HashMap<u64, bool> = system_entries(&symbolizer, &snapshot);
    let keep = |goroutine: &Goroutine| selected(goroutine) && (args.system || !system[&goroutine.start_pc]);
    if args.debug {
        let mut text = String::new();
        for goroutine in snapshot.goroutines.iter().filter(|goroutine| keep(goroutine)) {
            text.clear();
            dump::write(&mut text, &process, &mut symbolizer, goroutine, now);
            print!("{text}");
        }
    } else if let Some(path) = &args.output {
        let profile = profile::goroutine_profile(&process, &snapshot, now_nanos(), keep);
        file::write(path, &profile, 0)?;
        let count: i64 = profile.samples.iter().filter_map(|sample| sample.values.first()).sum();
        println!(
            "{}: {count} goroutines of pid {} ({})",
            path.display(),
            process.pid(),
            process.version
        );
    } else {
        print!(
            "{}",
            overview(&process, &mut symbolizer, &snapshot, keep, now, args.top)?
        );
    }
    if snapshot.unsettled + snapshot.incomplete + snapshot.unreadable > 0 {
        eprintln!(
            "note: without a whole stack: {} that kept running while they were read, {} whose stack could not be walked to its \
             end; {} could not be read at all",
            snapshot.unsettled, snapshot.incomplete, snapshot.unreadable
        );
    }
    Ok(())
}

impl GoroutinesArgs {
    fn selects(&self, process: &GoProcess, goroutine: &Goroutine, now: u64) -> bool {
        let waited = |min: Duration| {
            goroutine.wait_since != 0 && u128::from(now.saturating_sub(goroutine.wait_since)) >= min.as_nanos()
        };
        let in_state =
            |state: &str| goroutine.status.name() == state || process.wait_text(goroutine).eq_ignore_ascii_case(state);
        self.min_wait.is_none_or(waited) && self.state.as_deref().is_none_or(in_state)
    }
}

/// For each entry function whether it is the runtime's own.
fn system_entries(symbolizer: &Symbolizer<'_>, snapshot: &GoroutineSnapshot) -> HashMap<u64, bool> {
    let mut known = HashMap::new();
    for goroutine in &snapshot.goroutines {
        known
            .entry(goroutine.start_pc)
            .or_insert_with(|| dump::is_system(symbolizer, goroutine));
    }
    known
}

fn overview(
    process: &GoProcess,
    symbolizer: &mut Symbolizer<'_>,
    snapshot: &GoroutineSnapshot,
    keep: impl Fn(&Goroutine) -> bool,
    now: u64,
    top: usize,
) -> anyhow::Result<String> {
    let groups = group(snapshot, keep);
    let channels = Channels::new(process, snapshot, &groups)?;
    let total: usize = groups.iter().map(|group| group.goroutines.len()).sum();
    let stacks: u64 = groups.iter().map(Group::stack_bytes).sum();
    let mut text = format!(
        "pid {} ({}, {}): {total} goroutines in {} groups, {} of stacks\n",
        process.pid(),
        process.exe.display(),
        process.version,
        groups.len(),
        bytes(stacks)
    );
    let shown = if top == 0 { groups.len() } else { top };
    for group in groups.iter().take(shown) {
        text.push('\n');
        write_group(&mut text, process, symbolizer, group, &channels, now);
    }
    if groups.len() > shown {
        let _ = writeln!(text, "\n{} more groups (--top 0 shows all)", groups.len() - shown);
    }
    Ok(text)
}

/// Channels that groups wait for, with their state and everybody who waits.
struct Channels {
    states: HashMap<u64, ChannelState>,
    waiters: HashMap<u64, Waiters>,
}

impl Channels {
    fn new(process: &GoProcess, snapshot: &GoroutineSnapshot, groups: &[Group<'_>]) -> anyhow::Result<Self> {
        let (layout, _) = process.layout(Area::Goroutines)?;
        let mut named: Vec<u64> = groups
            .iter()
            .flat_map(|group| group.channels().into_iter().take(SHOWN_CHANNELS))
            .map(|(at, _)| at)
            .collect();
        named.sort_unstable();
        named.dedup();
        let states = read_channels(process.memory(), layout, &named)
            .map_err(|source| crate::runtime::go::GoError::memory(process.pid(), source))?;
        Ok(Self {
            states,
            waiters: waiters(process, snapshot),
        })
    }

    fn describe(&self, channel: u64) -> String {
        let mut text = format!("channel {channel:#x}");
        if let Some(state) = self.states.get(&channel) {
            let _ = match state.capacity {
                0 => write!(text, ", unbuffered"),
                capacity => write!(text, ", {} of {capacity} buffered", state.len),
            };
            if state.closed {
                text += ", closed";
            }
        }
        let waiters = self.waiters.get(&channel).copied().unwrap_or_default();
        let _ = write!(
            text,
            "; waiting on it: {} receivers, {} senders",
            waiters.receivers, waiters.senders
        );
        if waiters.selecting > 0 {
            let _ = write!(text, ", {} in select", waiters.selecting);
        }
        text
    }
}

fn write_group(
    text: &mut String,
    process: &GoProcess,
    symbolizer: &mut Symbolizer<'_>,
    group: &Group<'_>,
    channels: &Channels,
    now: u64,
) {
    let Some(first) = group.goroutines.first() else { return };
    let _ = write!(
        text,
        "{} goroutines [{}",
        group.goroutines.len(),
        process.wait_text(first)
    );
    match group.waits(now) {
        Some((longest, shortest)) if longest / 1_000_000_000 == shortest / 1_000_000_000 => {
            let _ = write!(text, ", {}", short_duration(longest));
        }
        Some((longest, shortest)) => {
            let _ = write!(text, ", {} to {}", short_duration(shortest), short_duration(longest));
        }
        None => {}
    }
    let _ = writeln!(text, "], {} of stacks", bytes(group.stack_bytes()));
    write_frames(text, symbolizer, &group.key.stack);
    write_creation(text, symbolizer, &group.key, &group.parents());
    let waited = group.channels();
    for &(channel, count) in waited.iter().take(SHOWN_CHANNELS) {
        let _ = writeln!(text, "    {count} on {}", channels.describe(channel));
    }
    if waited.len() > SHOWN_CHANNELS {
        let _ = writeln!(text, "    {} more channels", waited.len() - SHOWN_CHANNELS);
    }
}

fn write_frames(text: &mut String, symbolizer: &mut Symbolizer<'_>, stack: &[u64]) {
    let places = symbolizer.goroutine_stack(stack);
    let frames: Vec<_> = places
        .iter()
        .flat_map(|place| &place.frames)
        .filter(|frame| frame.function != "runtime.goexit")
        .collect();
    for frame in frames.iter().take(SHOWN_FRAMES) {
        let _ = writeln!(text, "    {} {}:{}", frame.display(), frame.file, frame.line);
    }
    if frames.len() > SHOWN_FRAMES {
        let _ = writeln!(text, "    … {} more", frames.len() - SHOWN_FRAMES);
    }
}

fn write_creation(text: &mut String, symbolizer: &Symbolizer<'_>, key: &GroupKey, parents: &[(u64, u64)]) {
    let Some(site) = dump::creation_site(symbolizer.table(), key.creator_pc) else {
        return;
    };
    let _ = write!(text, "  created by {site}");
    match parents {
        [] => {}
        [(parent, _)] => {
            let _ = write!(text, " in goroutine {parent}");
        }
        [(parent, count), ..] => {
            let _ = write!(text, " in {} goroutines, {count} in goroutine {parent}", parents.len());
        }
    }
    text.push('\n');
}

fn leaks(process: &GoProcess, args: &GoroutinesArgs) -> anyhow::Result<()> {
    let mut pause = Pause::new()?;
    let begin = Instant::now();
    let mut watch = LeakWatch::default();
    let mut interrupted = false;
    let last = loop {
        let collections = process.collector()?.finished;
        let snapshot = process.goroutines()?;
        watch.look(&snapshot, collections);
        let elapsed = begin.elapsed();
        let enough = elapsed >= args.watch && watch.looks() > 1 && watch.collections() > 0;
        if enough || interrupted || elapsed >= args.watch.max(MAX_WAIT_FOR_COLLECTION) {
            break snapshot;
        }
        let step = (args.watch / LOOKS).max(Duration::from_millis(100));
        interrupted = pause.wait(Some(
            step.min(args.watch.saturating_sub(elapsed).max(Duration::from_millis(100))),
        ));
    };
    let now = clock::monotonic();
    let mut symbolizer = Symbolizer::new(process.table(), &process.version);
    let system = system_entries(&symbolizer, &last);
    let suspects: Vec<Suspect> = watch.suspects();
    let groups = group(&last, |goroutine| !system[&goroutine.start_pc]);
    let channels = Channels::new(process, &last, &groups)?;
    println!(
        "pid {} ({}, {}): {} looks in {}, {} collections in between",
        process.pid(),
        process.exe.display(),
        process.version,
        watch.looks(),
        short_duration(begin.elapsed().as_nanos() as u64),
        watch.collections()
    );
    let by_key: HashMap<&GroupKey, &Group<'_>> = groups.iter().map(|group| (&group.key, group)).collect();
    let mut found = 0;
    for suspect in &suspects {
        let Some(group) = by_key.get(&suspect.key) else {
            continue;
        };
        found += 1;
        let mut text = String::from("\nLEAK ");
        write_group(&mut text, process, &mut symbolizer, group, &channels, now);
        write_evidence(&mut text, suspect, group, now);
        if let Some(site) = dump::creation_site(symbolizer.table(), suspect.key.creator_pc) {
            let _ = writeln!(
                text,
                "  to fix: what starts these goroutines at {site}, and what should wake or end them"
            );
        }
        print!("{text}");
    }
    if found == 0 {
        match watch.collections() {
            0 => println!(
                "unknown: no collection ran (the collector notes which goroutines still wait); look longer with --watch"
            ),
            _ => println!("no goroutines pile up: no group grew while all of its goroutines stayed blocked"),
        }
    }
    Ok(())
}

fn write_evidence(text: &mut String, suspect: &Suspect, group: &Group<'_>, now: u64) {
    let counts: Vec<String> = suspect.counts.iter().map(u64::to_string).collect();
    let first = suspect.counts.first().copied().unwrap_or(0);
    let _ = writeln!(
        text,
        "  evidence: {} goroutines over time; {} of the first {first} never went on, through {} collections",
        counts.join(" → "),
        suspect.persisted,
        suspect.collections
    );
    let mut oldest: Vec<&&Goroutine> = group.goroutines.iter().collect();
    oldest.sort_by_key(|goroutine| (goroutine.wait_since == 0, goroutine.wait_since, goroutine.id));
    let ids: Vec<String> = oldest
        .iter()
        .take(SHOWN_IDS)
        .map(|goroutine| match goroutine.wait_since {
            0 => goroutine.id.to_string(),
            since => format!("{} ({})", goroutine.id, short_duration(now.saturating_sub(since))),
        })
        .collect();
    let more = if oldest.len() > SHOWN_IDS { ", …" } else { "" };
    let _ = writeln!(text, "  oldest: {}{more}", ids.join(", "));
}
