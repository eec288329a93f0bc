//! The leaks of the field: named by the readers, while pools and caches of constant size are not.

use leaktrace::export::pprof;
use leaktrace::report::Profile;
use leaktrace::runtime::go::census::reconcile;
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::leaks::LeakWatch;
use leaktrace::runtime::go::residency::{PageMap, read_mappings};
use leaktrace::runtime::go::stacks::Symbolizer;
use leaktrace::runtime::go::{GoProcess, dump, groups, profile};

use super::support::{Form, MANDATORY, Program, build};

/// Bytes in use below a function.
fn held(profile: &Profile, function: &str) -> i64 {
    let position = profile.sample_type(Some("inuse_space")).unwrap();
    let passes = |sample: &&leaktrace::report::Sample| {
        profile
            .stack(sample)
            .flat_map(|location| &location.lines)
            .any(|line| profile.function(line).name == function)
    };
    profile
        .samples
        .iter()
        .filter(passes)
        .map(|sample| sample.values[position])
        .sum()
}

fn heap(process: &GoProcess) -> Profile {
    profile::heap_profile(process, &process.heap().unwrap(), View::Now, 0)
}

#[test]
fn what_only_grows_grows_in_the_profile_and_the_cache_does_not() {
    for minor in MANDATORY {
        for (kind, function, bytes) in [("slice", "main.remember", 4096), ("map", "main.openSession", 908)] {
            let path = build(minor, "leaks", Form::Stripped).unwrap();
            let mut program = Program::start(&path, &[], &[kind]);
            let process = GoProcess::attach(program.pid()).unwrap();
            let before = heap(&process);
            for _ in 0..3 {
                program.command("work");
            }
            let after = heap(&process);
            let grown = held(&after, function) - held(&before, function);
            let expected = 900 * bytes;
            assert!(
                grown > expected * 8 / 10 && grown < expected * 2,
                "Go 1.{minor} {kind}: {grown} of {expected}"
            );
            // The cache holds 64 blocks; garbage of the last cycle may still count.
            let cache = held(&after, "main.cacheRecent") - held(&before, "main.cacheRecent");
            assert!(
                cache.abs() < 128 * 8192,
                "Go 1.{minor} {kind}: the cache grew by {cache}"
            );
        }
    }
}

#[test]
fn workers_that_nobody_wakes_are_named_with_their_channel_and_creator() {
    for minor in MANDATORY {
        let path = build(minor, "leaks", Form::Stripped).unwrap();
        let mut program = Program::start(&path, &[], &["goroutines"]);
        let process = GoProcess::attach(program.pid()).unwrap();
        let mut watch = LeakWatch::default();
        for _ in 0..4 {
            watch.look(&process.goroutines().unwrap(), process.collector().unwrap().finished);
            program.command("work");
        }
        let snapshot = process.goroutines().unwrap();
        watch.look(&snapshot, process.collector().unwrap().finished);
        let suspects = watch.suspects();
        assert_eq!(suspects.len(), 1, "Go 1.{minor}: {suspects:#?}");
        let suspect = &suspects[0];
        assert_eq!(suspect.counts, [200, 500, 800, 1100, 1400], "Go 1.{minor}");
        assert_eq!(suspect.persisted, 200, "Go 1.{minor}");
        let site = dump::creation_site(process.table(), suspect.key.creator_pc).unwrap();
        assert!(
            site.starts_with("main.startWorker ") && site.contains("leaks/main.go:"),
            "Go 1.{minor}: {site}"
        );
        let all = groups::group(&snapshot, |_| true);
        let group = all.iter().find(|group| group.key == suspect.key).unwrap();
        assert_eq!(group.channels().len(), 1, "Go 1.{minor}");
        let (channel, count) = group.channels()[0];
        assert_eq!(count, 1400, "Go 1.{minor}");
        let waiters = groups::waiters(&process, &snapshot)[&channel];
        assert_eq!((waiters.receivers, waiters.senders), (1400, 0), "Go 1.{minor}");
        // The idle pool is blocked just as long, and is not among the suspects.
        let pool = all.iter().find(|group| group.goroutines.len() == 16).unwrap();
        let mut symbolizer = Symbolizer::new(process.table(), &process.version);
        let frames = symbolizer.goroutine_stack(&pool.key.stack);
        assert!(
            frames
                .iter()
                .flat_map(|place| &place.frames)
                .any(|frame| frame.function == "main.idle"),
            "Go 1.{minor}"
        );
    }
}

#[test]
fn what_c_caches_is_not_in_gos_profile_but_in_the_census() {
    for minor in MANDATORY {
        let path = build(minor, "leaks", Form::CgoStripped).unwrap();
        let mut program = Program::start(&path, &[], &["strings"]);
        let process = GoProcess::attach(program.pid()).unwrap();
        let split = || {
            let (spans, state) = (process.spans().unwrap(), process.collector().unwrap());
            let pages = PageMap::open(process.pid()).unwrap();
            let mappings = read_mappings(process.pid()).unwrap();
            reconcile(&spans, &state, &mappings, true, |start, end| pages.resident(start, end))
        };
        let before = split();
        for _ in 0..20 {
            program.command("work");
        }
        let after = split();
        let grown = after.c_heap.saturating_sub(before.c_heap);
        // 6,000 entries of 1,008 bytes.
        assert!(
            grown > 5_000_000 && grown < 12_000_000,
            "Go 1.{minor}: {before:?} {after:?}"
        );
        // Go's own profile, taken beside it, does not know of any of them.
        let file = tempfile::NamedTempFile::new().unwrap();
        program.command(&format!("heap {}", file.path().display()));
        let own = pprof::read(std::fs::read(file.path()).unwrap().as_slice()).unwrap();
        assert!(held(&own, "main.cacheString") < 100_000, "Go 1.{minor}");
        assert!(held(&heap(&process), "main.cacheString") < 100_000, "Go 1.{minor}");
    }
}
