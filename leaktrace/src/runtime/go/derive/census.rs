//! What the heap's spans hold, by size class, and where a process's resident memory goes.
//!
//! Pure computation over snapshots; residency by page comes from an argument, so that it tests without a process.

use std::collections::BTreeMap;

use crate::runtime::go::gc::CollectorState;
use crate::runtime::go::spans::{SpanSnapshot, SpanUse};

/// Spans of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCensus {
    /// Bytes of one object; 0 in the row of large objects.
    pub object_size: u64,
    /// Spans.
    pub spans: u64,
    /// Bytes of their pages.
    pub span_bytes: u64,
    /// Objects allocated.
    pub objects: u64,
    /// Bytes of them.
    pub object_bytes: u64,
    /// Objects that there is room for.
    pub slots: u64,
    /// Of `object_bytes`, bytes of objects without pointers.
    pub no_scan_bytes: u64,
}

impl ClassCensus {
    /// Share of the room that is taken, 0 to 1.
    pub fn occupancy(&self) -> f64 {
        if self.slots == 0 {
            0.0
        } else {
            self.objects as f64 / self.slots as f64
        }
    }
}

/// All spans, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// By size class; class 0 are large objects.
    pub classes: BTreeMap<u8, ClassCensus>,
    /// Bytes in spans of stacks.
    pub stack_bytes: u64,
    /// Spans of them.
    pub stack_spans: u64,
}

impl Census {
    /// Counts.
    pub fn new(snapshot: &SpanSnapshot) -> Self {
        let mut census = Self::default();
        for span in &snapshot.spans {
            if span.usage == SpanUse::Manual {
                census.stack_bytes += span.bytes();
                census.stack_spans += 1;
                continue;
            }
            let class = census.classes.entry(span.class).or_default();
            class.object_size = if span.class == 0 { 0 } else { span.element_size };
            class.spans += 1;
            class.span_bytes += span.bytes();
            class.objects += span.allocated;
            class.object_bytes = class
                .object_bytes
                .saturating_add(span.allocated.saturating_mul(span.element_size));
            class.slots += span.elements;
            if span.no_scan {
                class.no_scan_bytes = class
                    .no_scan_bytes
                    .saturating_add(span.allocated.saturating_mul(span.element_size));
            }
        }
        census
    }

    /// Objects of all classes.
    pub fn objects(&self) -> u64 {
        self.classes.values().map(|class| class.objects).sum()
    }

    /// Bytes of them.
    pub fn object_bytes(&self) -> u64 {
        self.classes.values().map(|class| class.object_bytes).sum()
    }

    /// Bytes of all heap spans.
    pub fn span_bytes(&self) -> u64 {
        self.classes.values().map(|class| class.span_bytes).sum()
    }
}

/// A mapping and how much of it is resident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentMapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Path, name in brackets, or empty.
    pub name: String,
    /// Backed by a file.
    pub file: bool,
    /// Resident bytes.
    pub resident: u64,
}

/// Where resident memory goes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Reconciliation {
    /// What the kernel counts (`Rss` of all mappings).
    pub rss: u64,
    /// Objects that the last collection found reachable.
    pub heap_live: u64,
    /// Objects allocated since then: live or garbage, the next collection will tell.
    pub heap_new: u64,
    /// Objects that died before the last collection and are not swept yet.
    pub heap_garbage: u64,
    /// Room in spans that no object takes.
    pub heap_unused: u64,
    /// Free spans that are still backed by memory.
    pub heap_idle: u64,
    /// Stacks of goroutines.
    pub stacks: u64,
    /// The runtime's own tables.
    pub runtime: u64,
    /// `[heap]` and anonymous memory that is not Go's: C's malloc, thread stacks.
    pub c_heap: u64,
    /// Files: program, libraries, what the program mapped.
    pub files: u64,
    /// `[stack]`, `[vdso]` and the like, and what fits nowhere else.
    pub other: u64,
}

/// Splits resident memory. `resident` gives the resident bytes of a range of the Go heap.
pub fn reconcile(
    spans: &SpanSnapshot,
    state: &CollectorState,
    mappings: &[ResidentMapping],
    has_c: bool,
    resident: impl Fn(u64, u64) -> u64,
) -> Reconciliation {
    let mut split = Reconciliation {
        rss: mappings.iter().map(|mapping| mapping.resident).sum(),
        ..Default::default()
    };
    let mut used: Vec<(u64, u64, SpanUse)> = spans
        .spans
        .iter()
        .map(|span| (span.start, span.start.saturating_add(span.bytes()), span.usage))
        .collect();
    used.sort_unstable_by_key(|&(start, ..)| start);
    let mut heap_resident = 0;
    for mapping in mappings {
        let first = used.partition_point(|&(_, end, _)| end <= mapping.start);
        let inside: Vec<&(u64, u64, SpanUse)> = used[first..]
            .iter()
            .take_while(|&&(start, ..)| start < mapping.end)
            .collect();
        if !inside.is_empty() && !mapping.file {
            let mut in_spans = 0;
            for &&(start, end, usage) in &inside {
                let bytes = resident(start.max(mapping.start), end.min(mapping.end));
                in_spans += bytes;
                match usage {
                    SpanUse::Heap => heap_resident += bytes,
                    SpanUse::Manual => split.stacks += bytes,
                }
            }
            split.heap_idle += mapping.resident.saturating_sub(in_spans);
        } else if mapping.file {
            split.files += mapping.resident;
        } else if mapping.name.starts_with("[anon: Go:") || holds_landmark(mapping, &spans.landmarks) {
            split.runtime += mapping.resident;
        } else if mapping.name == "[heap]" || (mapping.name.is_empty() && has_c) {
            split.c_heap += mapping.resident;
        } else if mapping.name.is_empty() || mapping.name.starts_with("[anon:") {
            // Without C code all anonymous memory is the Go runtime's.
            split.runtime += mapping.resident;
        } else {
            split.other += mapping.resident;
        }
    }
    let census = Census::new(spans);
    // Objects are counted by size, memory by page: of objects on pages that were never touched no more is resident than
    // the spans have.
    let mut left = heap_resident;
    let mut take = |bytes: u64| {
        let taken = bytes.min(left);
        left -= taken;
        taken
    };
    split.heap_live = take(state.marked);
    split.heap_new = take(state.live.saturating_sub(state.marked));
    split.heap_garbage = take(census.object_bytes().saturating_sub(state.live.max(state.marked)));
    split.heap_unused = left;
    split
}

fn holds_landmark(mapping: &ResidentMapping, landmarks: &[u64]) -> bool {
    landmarks
        .iter()
        .any(|landmark| (mapping.start..mapping.end).contains(landmark))
}
