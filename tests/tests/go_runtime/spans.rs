//! Spans, sampled objects and the reconciliation with resident memory.

use std::time::Duration;

use leaktrace::runtime::go::GoProcess;
use leaktrace::runtime::go::census::{Census, reconcile};
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::objects::ObjectTracker;
use leaktrace::runtime::go::residency::{PageMap, read_mappings};

use super::support::{Truth, everywhere};

#[test]
fn objects_and_spans_equal_memstats() {
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "").unwrap();
        let stats = truth.memstats();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let spans = process.spans().unwrap();
        assert_eq!(spans.torn, 0, "{name}");
        let census = Census::new(&spans);
        let near = |found: u64, key: &str, share: f64| {
            let expected = stats[key].as_u64().unwrap();
            let slack = (expected as f64 * share) as u64;
            assert!(
                found.abs_diff(expected) <= slack,
                "{name}: {key} is {expected}, read {found}"
            );
        };
        near(census.objects(), "HeapObjects", 0.05);
        near(census.object_bytes(), "HeapAlloc", 0.02);
        near(census.span_bytes(), "HeapInuse", 0.02);
        near(census.stack_bytes, "StackInuse", 0.10);
        let state = process.collector().unwrap();
        assert_eq!(census.span_bytes(), state.in_use, "{name}");
        // Classes as the program states them.
        for class in stats["BySize"].as_array().unwrap() {
            let (size, live) = (
                class["Size"].as_u64().unwrap(),
                class["Mallocs"].as_u64().unwrap() - class["Frees"].as_u64().unwrap(),
            );
            let found = census
                .classes
                .values()
                .find(|row| row.object_size == size)
                .map_or(0, |row| row.objects);
            assert!(
                found.abs_diff(live) <= live / 4 + 400,
                "{name}: {live} objects of {size} bytes, read {found}"
            );
        }
    }
}

#[test]
fn resident_memory_is_accounted_for() {
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let (spans, state) = (process.spans().unwrap(), process.collector().unwrap());
        let pages = PageMap::open(process.pid()).unwrap();
        let mappings = read_mappings(process.pid()).unwrap();
        let split = reconcile(&spans, &state, &mappings, true, |start, end| pages.resident(start, end));
        let parts = split.heap_live
            + split.heap_new
            + split.heap_garbage
            + split.heap_unused
            + split.heap_idle
            + split.stacks
            + split.runtime
            + split.c_heap
            + split.files
            + split.other;
        // Mappings and pages are read one after the other.
        assert!(parts.abs_diff(split.rss) <= 256 << 10, "{name}: {parts} {split:?}");
        assert!(split.other * 50 < split.rss, "{name}: {split:?}");
        assert!(
            split.heap_live > 1 << 20 && split.files > 0 && split.stacks > 0,
            "{name}: {split:?}"
        );
    }
}

#[test]
fn sampled_objects_are_those_that_the_profile_counts() {
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let mut truth = Truth::of(minor, form, "4096").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let heap = process.heap().unwrap();
        let objects = process.objects(&process.spans().unwrap(), &heap).unwrap();
        assert_eq!(objects.torn, 0, "{name}");
        for (bucket, counts) in heap.view(View::Now) {
            let found = objects
                .objects
                .iter()
                .filter(|object| object.bucket == bucket.address)
                .count() as u64;
            assert_eq!(
                found,
                counts.in_use(),
                "{name}: bucket {:#x} of {} bytes",
                bucket.address,
                bucket.size
            );
        }
        // What was there before a collection and is held still keeps its age; nothing else does.
        let mut tracker = ObjectTracker::default();
        let look = |tracker: &mut ObjectTracker, now: u64, process: &GoProcess| {
            let (state, heap) = (process.collector().unwrap(), process.heap().unwrap());
            let objects = process.objects(&process.spans().unwrap(), &heap).unwrap();
            tracker.look(&objects, now, state.finished, now.saturating_sub(1));
        };
        look(&mut tracker, 1000, &process);
        let held = tracker.objects().filter(|(.., seen)| seen.survived).count();
        assert!(held > 100, "{name}: {held}");
        truth.program.command("gc");
        // Sweeping goes on behind the collection.
        std::thread::sleep(Duration::from_millis(50));
        look(&mut tracker, 2000, &process);
        let old = tracker.objects().filter(|(.., seen)| seen.since < 1000).count();
        assert!(old >= held * 9 / 10, "{name}: {old} of {held}");
    }
}
