//! A Go heap that was read, as recordings and reports take it: samples, losses, and a line of facts.

use std::sync::Arc;

use super::profile;
use crate::report::{Losses, MappingId, NumericLabel, Profile, ProfileBuilder};
use crate::runtime::go::gc::CollectorState;
use crate::runtime::go::heap::{HeapSnapshot, View};
use crate::runtime::go::process::GoProcess;
use crate::runtime::{Heap, HeapMarks};

/// The heap profile of a process at one moment, with the collector's state then.
pub struct ReadHeap {
    process: Arc<GoProcess>,
    heap: HeapSnapshot,
    collector: Option<CollectorState>,
}

impl ReadHeap {
    /// Of what was read of a process.
    pub fn new(process: Arc<GoProcess>, heap: HeapSnapshot, collector: Option<CollectorState>) -> Self {
        Self {
            process,
            heap,
            collector,
        }
    }
}

impl Heap for ReadHeap {
    fn marks(&self) -> HeapMarks {
        let buckets = self.heap.view(View::Now);
        HeapMarks {
            allocated: buckets
                .map(|(bucket, counts)| (bucket.address, counts.allocs))
                .collect(),
            collections: self.collector.as_ref().map_or(0, |state| state.finished),
            pauses: self.collector.as_ref().map_or(0, |state| state.pause_total),
        }
    }

    fn add_samples(
        &self,
        builder: &mut ProfileBuilder,
        mapping: &dyn Fn(u64) -> Option<MappingId>,
        since: Option<&HeapMarks>,
        numbers: &[NumericLabel],
    ) {
        let mapping = mapping(self.process.table().text())
            .unwrap_or_else(|| builder.mapping(profile::text_mapping(&self.process)));
        let since = since.map(|marks| &marks.allocated);
        profile::add_heap_labelled(builder, mapping, &self.process, since, &self.heap, View::Now, numbers);
    }

    fn facts(&self, since: Option<&HeapMarks>) -> String {
        let version = &self.process.version;
        let mut text = match self.heap.rate {
            0 => {
                format!(
                    "Go heap ({version}): the program does not profile itself (MemProfileRate is 0): no samples of it"
                )
            }
            1 => format!("Go heap ({version}): every allocation that the runtime's profile holds"),
            rate => format!("Go heap ({version}): one sample per {rate} bytes on average, scaled"),
        };
        text.push_str(&format!(
            "; inuse is as of the end and includes {} bytes allocated since the last collection, garbage or not",
            since_collection(&self.heap)
        ));
        if let Some(collector) = &self.collector {
            let collections = collector
                .finished
                .saturating_sub(since.map_or(0, |marks| marks.collections));
            let pauses = collector
                .pause_total
                .saturating_sub(since.map_or(0, |marks| marks.pauses));
            text.push_str(&format!(
                "; {collections} collections while recording, {:.3} ms of pauses; {} bytes live, {}",
                pauses as f64 / 1e6,
                collector.live,
                next_collection(collector)
            ));
        }
        text
    }

    fn losses(&self) -> Losses {
        profile::losses(&self.heap, View::Now)
    }

    fn profile(&self, time_nanos: i64) -> Profile {
        profile::heap_profile(&self.process, &self.heap, View::Now, time_nanos)
    }

    fn memory(&self) -> usize {
        self.process.table().memory() + self.heap.memory()
    }
}

/// Bytes in use that were allocated since the last collection: what of them is garbage the next one will tell.
fn since_collection(heap: &HeapSnapshot) -> i64 {
    let in_use = |view| -> i64 {
        heap.view(view)
            .map(|(bucket, counts)| heap.scale(bucket, counts).inuse_bytes)
            .sum()
    };
    in_use(View::Now).saturating_sub(in_use(View::LastGc)).max(0)
}

fn next_collection(collector: &CollectorState) -> String {
    match collector.next_goal() {
        Some(goal) => format!("the next collection at {goal}"),
        None => "garbage collection is off (GOGC=off)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_is_off_has_no_next_collection() {
        let with_goal = |goal| CollectorState {
            goal,
            ..CollectorState::default()
        };
        assert_eq!(next_collection(&with_goal(4 << 20)), "the next collection at 4194304");
        assert_eq!(
            next_collection(&with_goal(u64::MAX)),
            "garbage collection is off (GOGC=off)"
        );
    }
}
