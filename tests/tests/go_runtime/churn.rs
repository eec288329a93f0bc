//! Reading while the program allocates, collects and starts goroutines as fast as it can.

use std::time::{Duration, Instant};

use leaktrace::runtime::go::GoProcess;
use leaktrace::runtime::go::goroutines::{StackState, Status};
use leaktrace::runtime::go::heap::View;

use super::support::{Form, MINORS, Program, build, goroot};

#[test]
fn torn_records_and_incomplete_stacks_are_rare() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let path = build(minor, "churn", Form::Stripped).unwrap();
        let program = Program::start(&path, &[], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        let (mut buckets, mut torn, mut parked, mut bad, mut reads, mut last) = (0u64, 0, 0u64, 0, 0, 0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(4) {
            let heap = process.heap().unwrap();
            assert!(heap.cut.is_none(), "Go 1.{minor}: {:?}", heap.cut);
            buckets += heap.buckets.len() as u64;
            torn += heap.torn;
            // Allocations never become fewer.
            let allocs: u64 = heap.view(View::Now).map(|(_, counts)| counts.allocs).sum();
            if heap.torn == 0 && heap.stable {
                assert!(allocs >= last, "Go 1.{minor}: {last} allocations, then {allocs}");
                last = allocs;
            }
            let snapshot = process.goroutines().unwrap();
            for goroutine in snapshot
                .goroutines
                .iter()
                .filter(|goroutine| goroutine.status == Status::Waiting)
            {
                parked += 1;
                bad += u64::from(goroutine.state != StackState::Complete);
            }
            let spans = process.spans().unwrap();
            let objects = process.objects(&spans, &heap).unwrap();
            assert!(!objects.cut && !spans.spans.is_empty(), "Go 1.{minor}");
            process.collector().unwrap();
            reads += 1;
        }
        println!("Go 1.{minor}: {reads} reads, {torn} of {buckets} buckets torn, {bad} of {parked} stacks incomplete");
        assert!(
            reads > 20 && buckets > 1000 && parked > 4000,
            "Go 1.{minor}: {reads} {buckets} {parked}"
        );
        assert!(
            torn * 10_000 <= buckets.max(10_000),
            "Go 1.{minor}: {torn} of {buckets} torn"
        );
        // Each of them runs and parks thousands of times a second, so that some never stand still while they are read.
        assert!(bad * 1000 <= parked, "Go 1.{minor}: {bad} of {parked} incomplete");
    }
}

#[test]
fn the_exit_of_the_program_is_an_error_that_says_so() {
    let path = build(19, "churn", Form::Stripped).unwrap();
    let mut program = Program::start(&path, &[], &[]);
    let process = GoProcess::attach(program.pid()).unwrap();
    program.kill();
    for message in [
        process.heap().unwrap_err().to_string(),
        process.goroutines().unwrap_err().to_string(),
        process.spans().unwrap_err().to_string(),
        process.collector().unwrap_err().to_string(),
    ] {
        assert!(
            message.contains("exited") && message.contains(&process.pid().to_string()),
            "{message}"
        );
    }
    assert!(!process.is_alive());
}
