//! How long the readers take. Bounds are those of a machine that does nothing else, times four: a guard against reads
//! that became quadratic, not a measurement (`cargo xtask bench` measures).

use std::time::{Duration, Instant};

use leaktrace::runtime::go::GoProcess;
use leaktrace::runtime::go::goroutines::StackState;
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::profile;

use super::support::{Form, MANDATORY, Program, build};

/// The fastest of several runs.
fn fastest<T>(times: usize, mut run: impl FnMut() -> T) -> (Duration, T) {
    let mut best: Option<(Duration, T)> = None;
    for _ in 0..times {
        let begin = Instant::now();
        let result = run();
        let took = begin.elapsed();
        if best.as_ref().is_none_or(|(least, _)| took < *least) {
            best = Some((took, result));
        }
    }
    best.unwrap()
}

#[test]
fn large_programs_are_read_in_milliseconds() {
    for minor in MANDATORY {
        let program = Program::start(&build(minor, "large", Form::Stripped).unwrap(), &[], &[]);
        let (attach, process) = fastest(5, || GoProcess::attach(program.pid()).unwrap());
        let (heap, snapshot) = fastest(10, || process.heap().unwrap());
        assert!(
            snapshot.buckets.len() >= 8192,
            "Go 1.{minor}: {}",
            snapshot.buckets.len()
        );
        let (symbols, _) = fastest(3, || profile::heap_profile(&process, &snapshot, View::Now, 0));
        let (goroutines, all) = fastest(3, || process.goroutines().unwrap());
        let complete = all
            .goroutines
            .iter()
            .filter(|goroutine| goroutine.state == StackState::Complete)
            .count();
        assert!(complete >= 100_000, "Go 1.{minor}: {complete} complete");
        let (collector, _) = fastest(200, || process.collector().unwrap());
        let (spans, count) = fastest(5, || process.spans().unwrap().spans.len());
        println!(
            "Go 1.{minor}: attach {attach:?}; {} buckets {heap:?}, as a profile {symbols:?}; {complete} goroutines with stacks \
             {goroutines:?}; collector {collector:?}; {count} spans {spans:?}",
            snapshot.buckets.len()
        );
        assert!(heap < Duration::from_millis(40), "Go 1.{minor}: {heap:?}");
        assert!(goroutines < Duration::from_millis(1200), "Go 1.{minor}: {goroutines:?}");
        // At 10 ms between two looks 0.3 % of one CPU is 30 µs a look.
        assert!(collector < Duration::from_micros(120), "Go 1.{minor}: {collector:?}");
    }
}
