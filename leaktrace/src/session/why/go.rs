//! What Go's runtime tells of its memory: which areas are its heap, how much of them goroutines' stacks take, and what
//! of the heap grew by whom.
//!
//! Everything may fail for good reasons, such as a release that is not known; then less is known, and a note says why.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::kinds::{Facts, Kind, Range};
use crate::{
    proc::smaps::Area,
    report::{diff, profile::Profile},
    runtime::go::{
        GoError, GoProcess,
        heap::{HeapSnapshot, View},
        profile,
        residency::PageMap,
        spans::SpanUse,
        stacks::Symbolizer,
    },
};

/// Ranges of stacks whose pages are looked at, and for how long.
const MAX_RANGES: usize = 1 << 18;
const BUDGET: Duration = Duration::from_secs(3);

/// A Go process at the begin.
pub struct Begin {
    /// How it is read.
    pub process: GoProcess,
    heap: Result<HeapSnapshot, GoError>,
    starts: HashMap<u64, u64>,
}

/// What grew since.
#[derive(Debug, Default)]
pub struct Grown {
    /// Growth of the heap by stack; `None` where the runtime keeps no profile, or it was not read.
    pub heap: Option<Profile>,
    /// More goroutines than at the begin, most first.
    pub goroutines: Vec<Goroutines>,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

/// Goroutines that one `go` statement started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goroutines {
    /// The function with the statement.
    pub function: String,
    /// Where it is.
    pub file: String,
    /// And the line.
    pub line: i64,
    /// How many there are now.
    pub count: u64,
    /// How many more than before.
    pub growth: i64,
}

/// Reads a Go process; `None` for one that is none.
pub fn begin(pid: u32, notes: &mut Vec<String>) -> Option<Begin> {
    match GoProcess::attach(pid) {
        Ok(process) => {
            let heap = process.heap();
            let starts = starts(&process).unwrap_or_default();
            Some(Begin { process, heap, starts })
        }
        Err(GoError::NotGo { .. }) => None,
        Err(error) => {
            notes.push(format!("Go's runtime was not read: {error}"));
            None
        }
    }
}

/// Goroutines by the `go` statement that started them.
fn starts(process: &GoProcess) -> Result<HashMap<u64, u64>, GoError> {
    let mut starts = HashMap::new();
    for goroutine in process.goroutines()?.goroutines {
        *starts.entry(goroutine.creator_pc).or_default() += 1;
    }
    Ok(starts)
}

impl Begin {
    /// What grew until now.
    pub fn grown(&self) -> Grown {
        let mut grown = Grown::default();
        match (&self.heap, self.process.heap()) {
            (Ok(before), Ok(after)) if after.rate > 0 => {
                // Garbage that no collection has seen is no growth, if there was a collection to tell.
                let view = if after.cycle == before.cycle {
                    grown.notes.push(
                        "no collection ended meanwhile: growth of the Go heap may be garbage that was not collected yet"
                            .to_owned(),
                    );
                    View::Now
                } else {
                    View::LastGc
                };
                let of = |snapshot| profile::heap_profile(&self.process, snapshot, view, 0);
                match diff::diff(&of(before), &of(&after)) {
                    Ok(profile) => grown.heap = Some(profile),
                    Err(error) => grown.notes.push(format!("Go heap not compared: {error}")),
                }
            }
            (Ok(_), Ok(_)) => grown
                .notes
                .push("the program does not profile its Go heap (MemProfileRate is 0): no Go stacks of it".to_owned()),
            (Err(error), _) => grown.notes.push(format!("Go heap not read at the start: {error}")),
            (_, Err(error)) => grown.notes.push(format!("Go heap not read at the end: {error}")),
        }
        match starts(&self.process) {
            Ok(now) => grown.goroutines = self.more(&now),
            Err(error) => grown.notes.push(format!("goroutines not read: {error}")),
        }
        grown
    }

    fn more(&self, now: &HashMap<u64, u64>) -> Vec<Goroutines> {
        let mut symbolizer = Symbolizer::new(self.process.table(), &self.process.version);
        let mut more: Vec<(i64, u64, u64)> = now
            .iter()
            .map(|(creator, count)| {
                let before = self.starts.get(creator).copied().unwrap_or(0);
                let growth = i64::try_from(*count).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
                (growth, *count, *creator)
            })
            .filter(|(growth, _, creator)| *growth > 0 && *creator != 0)
            .collect();
        more.sort_by(|a, b| b.cmp(a));
        more.truncate(MAX_GROUPS);
        more.into_iter()
            .filter_map(|(growth, count, creator)| {
                let frames = symbolizer.frames(creator.saturating_sub(1));
                let frame = frames.first()?;
                Some(Goroutines {
                    function: frame.function.to_string(),
                    file: frame.file.to_string(),
                    line: frame.line.into(),
                    count,
                    growth,
                })
            })
            .collect()
    }
}

/// Groups of goroutines that are told.
const MAX_GROUPS: usize = 5;

/// Says which areas are Go's.
pub fn add_facts(process: &GoProcess, areas: &[Area], facts: &mut Facts, notes: &mut Vec<String>) {
    let snapshot = match process.spans() {
        Ok(snapshot) => snapshot,
        Err(error) => {
            notes.push(format!("Go's spans were not read: {error}"));
            return;
        }
    };
    let mut spans: Vec<(Range, SpanUse)> = snapshot
        .spans
        .iter()
        .map(|span| (span.start..span.start.saturating_add(span.bytes()), span.usage))
        .collect();
    spans.sort_unstable_by_key(|(range, _)| range.start);
    let pages = PageMap::open(process.pid()).ok();
    let begin = Instant::now();
    let mut ranges = 0;
    for area in areas.iter().filter(|area| !area.has_inode && !area.shared) {
        let first = spans.partition_point(|(range, _)| range.end <= area.start);
        let inside = spans[first..].iter().take_while(|(range, _)| range.start < area.end);
        let mut any = false;
        let mut stacks = 0u64;
        let mut open: Option<Range> = None;
        let mut count = |range: &Range| {
            let (start, end) = (range.start.max(area.start), range.end.min(area.end));
            ranges += 1;
            let measured = pages
                .as_ref()
                .filter(|_| ranges <= MAX_RANGES && begin.elapsed() < BUDGET);
            // What was not measured is taken for resident: stacks are used as a whole.
            measured.map_or(end.saturating_sub(start), |pages| pages.resident(start, end))
        };
        for (range, usage) in inside {
            any = true;
            if *usage != SpanUse::Manual {
                continue;
            }
            match &mut open {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => {
                    if let Some(last) = open.replace(range.clone()) {
                        stacks += count(&last);
                    }
                }
            }
        }
        if let Some(last) = open {
            stacks += count(&last);
        }
        if any {
            facts.whole.insert(area.start, Kind::GoHeap);
            facts
                .parts
                .entry(area.start)
                .or_default()
                .push((Kind::GoStacks, stacks));
        } else if snapshot
            .landmarks
            .iter()
            .any(|landmark| (area.start..area.end).contains(landmark))
        {
            facts.whole.insert(area.start, Kind::GoRuntime);
        }
    }
    facts.only_go = !has_c(process, areas);
}

/// Whether the program has C code, whose memory is no one else's.
fn has_c(process: &GoProcess, areas: &[Area]) -> bool {
    let maps_libc = areas.iter().filter(|area| area.has_inode).any(|area| {
        let name = crate::report::name::base(&area.name);
        ["libc.so", "libc-", "ld-musl"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    });
    let called = process
        .table()
        .find_by_name(["_cgo_topofstack", "runtime/cgo.init.0"])
        .iter()
        .any(Option::is_some);
    maps_libc || called
}
