//! `leaktrace go objects`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use hashbrown::HashMap;
use serde::Serialize;

use super::pause::Pause;
use super::{Target, bytes, duration, short_duration};
use crate::runtime::go::heap::{Bucket, Counts, HeapSnapshot};
use crate::runtime::go::objects::{ObjectTracker, Seen};
use crate::runtime::go::profile::hide_runtime;
use crate::runtime::go::stacks::Symbolizer;
use crate::runtime::go::{GoProcess, clock};

/// Frames of a site that are shown.
const SHOWN_FRAMES: usize = 6;
/// Time between two looks of a watch.
const STEP: Duration = Duration::from_millis(500);

/// Arguments of `leaktrace go objects`.
#[derive(Args, Debug)]
pub struct ObjectsArgs {
    #[command(flatten)]
    target: Target,
    /// Look over this time, so that ages reach back to its begin and beyond.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    watch: Option<Duration>,
    /// Only objects at least so old.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    min_age: Option<Duration>,
    /// Sites to show; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// One JSON object a line. Times in nanoseconds, sizes in bytes.
    #[arg(long)]
    json: bool,
}

/// Sampled objects of one bucket.
struct Site<'h> {
    bucket: &'h Bucket,
    sampled: u64,
    survived: u64,
    oldest: u64,
    youngest: u64,
    objects: i64,
    bytes: i64,
}

#[derive(Serialize)]
struct SiteJson<'a> {
    sampled: u64,
    survived_last_collection: u64,
    size: u64,
    estimated_objects: i64,
    estimated_bytes: i64,
    age_at_least_oldest: u64,
    age_at_least_youngest: u64,
    stack: &'a [String],
}

/// Runs the subcommand.
pub fn run(args: &ObjectsArgs) -> anyhow::Result<()> {
    let process = args.target.attach()?;
    let mut pause = Pause::new()?;
    let begin = Instant::now();
    let mut tracker = ObjectTracker::default();
    let first = process.collector()?.finished;
    let heap = loop {
        let heap = look(&process, &mut tracker)?;
        let left = args.watch.unwrap_or_default().saturating_sub(begin.elapsed());
        if left.is_zero() || pause.wait(Some(left.min(STEP))) {
            break heap;
        }
    };
    let now = clock::monotonic();
    let min_age = args.min_age.map_or(0, |age| age.as_nanos() as u64);
    let mut sites = sites(&heap, &tracker, now, min_age);
    // What has been held longest and weighs most is what a leak looks like: by bytes, the surviving ones first.
    sites.sort_by_key(|site| (site.survived == 0, std::cmp::Reverse(site.bytes), site.bucket.address));
    let mut symbolizer = Symbolizer::new(process.table(), &process.version);
    let shown = if args.top == 0 {
        sites.len()
    } else {
        args.top.min(sites.len())
    };
    if args.json {
        for site in &sites[..shown] {
            println!(
                "{}",
                serde_json::to_string(&json(site, &frames(&mut symbolizer, site.bucket)))?
            );
        }
        return Ok(());
    }
    let sampled: u64 = sites.iter().map(|site| site.sampled).sum();
    println!(
        "pid {} ({}, {}): {sampled} sampled objects at {} sites, one per {}; {} collections in {}",
        process.pid(),
        process.exe.display(),
        process.version,
        sites.len(),
        bytes(heap.rate),
        tracker.collections().saturating_sub(first),
        short_duration(begin.elapsed().as_nanos() as u64)
    );
    for site in &sites[..shown] {
        print!("{}", text(site, &frames(&mut symbolizer, site.bucket)));
    }
    if shown < sites.len() {
        println!("\n{} more sites (--top 0 shows all)", sites.len() - shown);
    }
    Ok(())
}

/// One look; gives the heap that the objects refer to.
fn look(process: &GoProcess, tracker: &mut ObjectTracker) -> anyhow::Result<HeapSnapshot> {
    let state = process.collector()?;
    let heap = process.heap()?;
    let spans = process.spans()?;
    let objects = process.objects(&spans, &heap)?;
    let now = clock::monotonic();
    // The end of the last collection is known in the other clock.
    let ago = clock::unix().saturating_sub(state.last_end);
    tracker.look(&objects, now, state.finished, now.saturating_sub(ago));
    Ok(heap)
}

fn sites<'h>(heap: &'h HeapSnapshot, tracker: &ObjectTracker, now: u64, min_age: u64) -> Vec<Site<'h>> {
    let buckets: HashMap<u64, &Bucket> = heap.buckets.iter().map(|bucket| (bucket.address, bucket)).collect();
    let mut sites: HashMap<u64, Site<'h>> = HashMap::new();
    for (_, bucket, Seen { since, survived, .. }) in tracker.objects() {
        let age = now.saturating_sub(since);
        let Some(&bucket) = buckets.get(&bucket).filter(|_| age >= min_age) else {
            continue;
        };
        let site = sites.entry(bucket.address).or_insert(Site {
            bucket,
            sampled: 0,
            survived: 0,
            oldest: 0,
            youngest: u64::MAX,
            objects: 0,
            bytes: 0,
        });
        site.sampled += 1;
        site.survived += u64::from(survived);
        site.oldest = site.oldest.max(age);
        site.youngest = site.youngest.min(age);
    }
    for site in sites.values_mut() {
        let scaled = heap.scale(
            site.bucket,
            Counts {
                allocs: site.sampled,
                frees: 0,
            },
        );
        (site.objects, site.bytes) = (scaled.inuse_objects, scaled.inuse_bytes);
    }
    sites.into_values().collect()
}

fn frames(symbolizer: &mut Symbolizer<'_>, bucket: &Bucket) -> Vec<String> {
    let mut places = symbolizer.heap_stack(&bucket.stack);
    hide_runtime(&mut places);
    let frames = places
        .iter()
        .flat_map(|place| &place.frames)
        .filter(|frame| frame.function != "runtime.goexit");
    frames
        .map(|frame| format!("{} {}:{}", frame.display(), frame.file, frame.line))
        .collect()
}

fn json<'a>(site: &Site<'_>, stack: &'a [String]) -> SiteJson<'a> {
    SiteJson {
        sampled: site.sampled,
        survived_last_collection: site.survived,
        size: site.bucket.size,
        estimated_objects: site.objects,
        estimated_bytes: site.bytes,
        age_at_least_oldest: site.oldest,
        age_at_least_youngest: site.youngest,
        stack,
    }
}

fn text(site: &Site<'_>, stack: &[String]) -> String {
    let mut text = format!(
        "\n{} in about {} objects of {} ({} sampled, {} survived the last collection), held for at least {}{}\n",
        bytes(site.bytes.unsigned_abs()),
        site.objects,
        bytes(site.bucket.size),
        site.sampled,
        site.survived,
        short_duration(site.oldest),
        if site.sampled > 1 {
            format!(" (youngest {})", short_duration(site.youngest))
        } else {
            String::new()
        },
    );
    for frame in stack.iter().take(SHOWN_FRAMES) {
        let _ = writeln!(text, "    {frame}");
    }
    if stack.len() > SHOWN_FRAMES {
        let _ = writeln!(text, "    … {} more", stack.len() - SHOWN_FRAMES);
    }
    text
}
