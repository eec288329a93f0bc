//! The collector: numbers of `runtime.MemStats`, and lines of gctrace.

use std::time::{Duration, Instant};

use leaktrace::runtime::go::gc::{Follower, trace_line};
use leaktrace::runtime::go::{GoProcess, clock};

use super::support::{Form, MINORS, Program, Truth, build, everywhere, goroot};

#[test]
fn counters_equal_memstats() {
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "").unwrap();
        let stats = truth.memstats();
        let number = |key: &str| stats[key].as_u64().unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let state = process.collector().unwrap();
        assert!(!state.is_running(), "{name}");
        assert_eq!(state.finished, number("NumGC"), "{name}");
        assert_eq!(state.forced, number("NumForcedGC"), "{name}");
        assert_eq!(state.pause_total, number("PauseTotalNs"), "{name}");
        assert_eq!(state.last_end, number("LastGC"), "{name}");
        let ring = |key: &str| -> Vec<u64> {
            stats[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|n| n.as_u64().unwrap())
                .collect()
        };
        assert_eq!(state.pauses, ring("PauseNs"), "{name}");
        assert_eq!(state.pause_ends, ring("PauseEnd"), "{name}");
        // The last digit is lost in reading JSON.
        let share = stats["GCCPUFraction"].as_f64().unwrap();
        assert!(
            (state.cpu_fraction - share).abs() <= share * 1e-12,
            "{name}: {} {share}",
            state.cpu_fraction
        );
        assert_eq!(state.percent, -1, "{name}");
        // Writing the statistics down allocates a little.
        let near = |found: u64, key: &str, slack: u64| {
            let expected = number(key);
            assert!(
                found.abs_diff(expected) <= slack,
                "{name}: {key} is {expected}, read {found}"
            );
        };
        near(state.live, "HeapAlloc", 1 << 20);
        near(state.in_use, "HeapInuse", 1 << 20);
        near(state.released, "HeapReleased", 4 << 20);
        near(state.total_alloc - state.total_free, "HeapAlloc", 1 << 20);
    }
}

/// Lines as gctrace prints them, without the time since start, which is the process's here and the runtime's there.
fn without_time(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    words.retain(|word| !word.starts_with('@'));
    words.join(" ")
}

#[test]
fn lines_equal_gctrace() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let path = build(minor, "truth", Form::Stripped).unwrap();
        let mut program = Program::start(&path, &[("GODEBUG", "gctrace=1"), ("GOMAXPROCS", "2")], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        let start = clock::process_start(&process.key);
        program.errors();
        let mut follower = Follower::after(&process.collector().unwrap());
        let mut lines = Vec::new();
        for _ in 0..5 {
            program.command("gc");
            let state = process.collector().unwrap();
            lines.extend(follower.follow(&state).map(|seen| trace_line(&seen, start).to_string()));
        }
        let expected = program.errors();
        assert_eq!(lines.len(), 5, "Go 1.{minor}: {lines:?}");
        for (line, expected) in lines.iter().zip(&expected) {
            assert_eq!(without_time(line), without_time(expected), "Go 1.{minor}");
            let at = |line: &str| -> f64 { line.split(['@', 's']).nth(1).unwrap().parse().unwrap() };
            assert!(
                (at(line) - at(expected)).abs() < 0.2,
                "Go 1.{minor}: {line} | {expected}"
            );
        }
    }
}

#[test]
fn no_collection_is_missed_at_twenty_milliseconds() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let path = build(minor, "churn", Form::Stripped).unwrap();
        let program = Program::start(&path, &[], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        let first = process.collector().unwrap();
        let mut follower = Follower::after(&first);
        let mut seen = Vec::new();
        let begin = Instant::now();
        let (mut last, mut buffer) = (first.clone(), Vec::new());
        while begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
            process.collector_into(&mut buffer, &mut last).unwrap();
            seen.extend(
                follower
                    .follow(&last)
                    .map(|collection| (collection.number, collection.pause)),
            );
        }
        assert!(seen.len() > 10, "Go 1.{minor}: {} collections in 2 s", seen.len());
        assert!(seen.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "Go 1.{minor}");
        assert_eq!(seen.len() as u64, last.finished - first.finished, "Go 1.{minor}");
        assert!(
            seen.iter().all(|(_, pause)| pause.is_some_and(|pause| pause > 0)),
            "Go 1.{minor}"
        );
    }
}
