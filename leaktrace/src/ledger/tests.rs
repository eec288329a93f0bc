//! The ledger against a naive model, and the cases that the model cannot show.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeMap;

use leaktrace_common::reason::WalkEnd;
use proptest::prelude::*;

use super::*;
use crate::model::StackId;

const A: u64 = 0x5555_0000_1000;
const B: u64 = 0x5555_0000_2000;

fn new(address: u64, size: u64, stack: u64) -> NewBlock {
    NewBlock {
        address: ProcessAddress(address),
        size,
        stack: StackId(stack),
        tid: 1,
        interval: 0,
    }
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::new();
    for stack in 1..=4u64 {
        ledger.stacks.define(
            StackId(stack),
            WalkEnd::Bottom,
            [ProcessAddress(stack)].into_iter(),
            &CodeHistory::default(),
        );
    }
    ledger
}

fn begin(old: u64, tid: u32) -> Event<'static> {
    Event::ReallocBegin {
        old: ProcessAddress(old),
        tid,
    }
}

fn end(old: u64, new: Option<NewBlock>, failed: bool, tid: u32) -> Event<'static> {
    Event::ReallocEnd {
        old: ProcessAddress(old),
        new,
        failed,
        tid,
        begin_deferred: false,
    }
}

fn live(ledger: &Ledger) -> BTreeMap<u64, u64> {
    ledger
        .blocks
        .iter()
        .map(|(address, block)| (address, block.size))
        .collect()
}

/// The invariant: totals are sums over the outstanding.
fn check(ledger: &Ledger) {
    let mut sums: BTreeMap<u32, (f64, u64)> = BTreeMap::new();
    for (_, block) in ledger.blocks.iter() {
        let sum = sums.entry(block.stack).or_default();
        sum.0 += block.size as f64;
        sum.1 += 1;
    }
    for (index, stack) in ledger.stacks.iter() {
        let (bytes, records) = sums.get(&index).copied().unwrap_or_default();
        assert_eq!(stack.native.live.bytes, bytes, "stack {index}");
        assert_eq!(stack.native.live_records, records, "stack {index}");
    }
}

#[test]
fn an_address_handed_out_during_realloc_stays_with_its_new_owner() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(begin(A, 1), 0);
    // Another thread is handed the old address before the first one comes back.
    ledger.apply(Event::Alloc(new(A, 50, 2)), 0);
    ledger.apply(end(A, Some(new(B, 200, 3)), false, 1), 0);
    assert_eq!(live(&ledger), BTreeMap::from([(A, 50), (B, 200)]));
    assert_eq!(ledger.notes.missed_frees, 0);
    check(&ledger);
}

#[test]
fn a_failed_realloc_leaves_the_old_block() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 7);
    ledger.apply(begin(A, 1), 8);
    ledger.apply(end(A, None, true, 1), 9);
    assert_eq!(live(&ledger), BTreeMap::from([(A, 100)]));
    assert_eq!(ledger.blocks.iter().next().unwrap().1.born, 7);
    check(&ledger);
}

#[test]
fn a_realloc_to_nothing_frees() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(begin(A, 1), 0);
    ledger.apply(end(A, None, false, 1), 0);
    assert_eq!(live(&ledger), BTreeMap::new());
    check(&ledger);
}

#[test]
fn a_realloc_whose_beginning_was_deferred_does_not_free_again() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(Event::Free(ProcessAddress(A)), 0);
    ledger.apply(Event::Alloc(new(A, 50, 2)), 0);
    let deferred = Event::ReallocEnd {
        old: ProcessAddress(A),
        new: Some(new(B, 200, 3)),
        failed: false,
        tid: 1,
        begin_deferred: true,
    };
    ledger.apply(deferred, 0);
    assert_eq!(live(&ledger), BTreeMap::from([(A, 50), (B, 200)]));
    check(&ledger);
}

#[test]
fn a_resize_in_place_replaces_the_size() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(end(A, Some(new(A, 160, 2)), false, 1), 0);
    assert_eq!(live(&ledger), BTreeMap::from([(A, 160)]));
    assert_eq!(ledger.notes.missed_frees, 0);
    check(&ledger);
}

#[test]
fn an_allocation_at_a_live_address_counts_a_missed_free() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(Event::Alloc(new(A, 30, 2)), 0);
    assert_eq!(live(&ledger), BTreeMap::from([(A, 30)]));
    assert_eq!(ledger.notes.missed_frees, 1);
    check(&ledger);
}

#[test]
fn exec_gives_everything_up_and_counts_on() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 100, 1)), 0);
    ledger.apply(Event::Mmap(new(0x10000, 4096, 1)), 0);
    ledger.apply(Event::Exec, 0);
    assert_eq!((ledger.outstanding(), ledger.live_bytes()), (0, 0.0));
    assert_eq!((ledger.notes.execs, ledger.notes.events), (1, 3));
}

#[test]
fn a_grown_mapping_keeps_its_first_part_with_who_mapped_it() {
    let mut ledger = ledger();
    ledger.apply(Event::Mmap(new(0x10000, 0x4000, 1)), 0);
    let (old, old_length, tid) = (ProcessAddress(0x10000), 0x4000, 1);
    ledger.apply(Event::MremapBegin { old, old_length, tid }, 0);
    assert_eq!(ledger.live_bytes(), 0.0);
    let grown = Event::MremapEnd {
        old,
        old_length,
        new: Some(new(0x90000, 0x6000, 2)),
        tid,
        begin_deferred: false,
    };
    ledger.apply(grown, 0);
    let snapshot = ledger.snapshot(0);
    let live: BTreeMap<u64, f64> = snapshot
        .rows
        .iter()
        .map(|row| (snapshot.frames(row).next().unwrap().0, row.live.bytes))
        .collect();
    assert_eq!(live, BTreeMap::from([(1, 0x4000 as f64), (2, 0x2000 as f64)]));
}

#[test]
fn a_failed_mremap_leaves_the_mapping() {
    let mut ledger = ledger();
    ledger.apply(Event::Mmap(new(0x10000, 0x4000, 1)), 0);
    let (old, old_length, tid) = (ProcessAddress(0x11000), 0x1000, 1);
    ledger.apply(Event::MremapBegin { old, old_length, tid }, 0);
    let failed = Event::MremapEnd {
        old,
        old_length,
        new: None,
        tid,
        begin_deferred: false,
    };
    ledger.apply(failed, 0);
    assert_eq!(ledger.live_bytes(), 0x4000 as f64);
}

/// The kernel gives whole pages back.
#[test]
fn an_unmapped_length_is_rounded_up() {
    let mut ledger = ledger();
    ledger.apply(Event::Mmap(new(0x10000, 5000, 1)), 0);
    let (address, length) = (ProcessAddress(0x10000), 5000);
    ledger.apply(Event::Munmap { address, length }, 0);
    assert_eq!(ledger.live_bytes(), 0.0);
}

#[test]
fn samples_are_scaled_before_they_are_summed() {
    let mut ledger = ledger();
    let interval = 512 * 1024;
    for (address, size) in [(A, 64u64), (B, 1 << 20)] {
        ledger.apply(
            Event::Alloc(NewBlock {
                interval,
                ..new(address, size, 1)
            }),
            0,
        );
    }
    let scale = |size: f64| 1.0 / (1.0 - (-size / interval as f64).exp());
    let expected = 64.0 * scale(64.0) + 1048576.0 * scale(1048576.0);
    let live = ledger.snapshot(0).rows[0].live;
    assert!((live.bytes / expected - 1.0).abs() < 1e-9, "{} {expected}", live.bytes);
    ledger.apply(Event::Free(ProcessAddress(A)), 0);
    ledger.apply(Event::Free(ProcessAddress(B)), 0);
    assert_eq!(ledger.snapshot(0).rows[0].live, Amount::default());
}

#[test]
fn ages_fall_into_their_classes() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 10, 1)), 0);
    ledger.apply(Event::Alloc(new(B, 20, 1)), 6500);
    let ages = ledger.snapshot(7000).rows[0].ages;
    assert_eq!(ages, [0.0, 20.0, 0.0, 10.0, 0.0, 0.0, 0.0]);
}

#[test]
fn growth_is_measured_from_the_mark_before_the_last() {
    let mut ledger = ledger();
    ledger.apply(Event::Alloc(new(A, 1000, 1)), 0);
    ledger.note_history(400);
    ledger.apply(Event::Alloc(new(B, 30, 1)), 500);
    let snapshot = ledger.snapshot(500);
    assert_eq!((snapshot.growth_since, snapshot.rows[0].growth), (0, 1030.0));
    ledger.note_history(800);
    ledger.apply(Event::Alloc(new(B + 64, 7, 1)), 900);
    let snapshot = ledger.snapshot(900);
    assert_eq!((snapshot.growth_since, snapshot.rows[0].growth), (400, 37.0));
    assert_eq!(snapshot.history.len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        address: u64,
        size: u64,
        stack: u64,
    },
    Free {
        address: u64,
    },
    Realloc {
        old: u64,
        new: u64,
        size: u64,
        stack: u64,
        fails: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let address = || (0u64..24).prop_map(|index| 0x7000_0000 + index * 32);
    prop_oneof![
        (address(), 0u64..5000, 1u64..5).prop_map(|(address, size, stack)| Step::Alloc { address, size, stack }),
        address().prop_map(|address| Step::Free { address }),
        (address(), address(), 1u64..5000, 1u64..5, any::<bool>()).prop_map(|(old, new, size, stack, fails)| {
            Step::Realloc {
                old,
                new,
                size,
                stack,
                fails,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_naive_allocator_model(steps in prop::collection::vec(step(), 0..300)) {
        let mut ledger = ledger();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Alloc { address, size, stack } => {
                    ledger.apply(Event::Alloc(new(address, size, stack)), 0);
                    model.insert(address, size);
                }
                Step::Free { address } => {
                    ledger.apply(Event::Free(ProcessAddress(address)), 0);
                    model.remove(&address);
                }
                Step::Realloc { old, new: to, size, stack, fails } => {
                    ledger.apply(begin(old, 1), 0);
                    if fails {
                        ledger.apply(end(old, None, true, 1), 0);
                    } else {
                        ledger.apply(end(old, Some(new(to, size, stack)), false, 1), 0);
                        model.remove(&old);
                        model.insert(to, size);
                    }
                }
            }
            check(&ledger);
        }
        prop_assert_eq!(live(&ledger), model);
    }
}

/// The plug-in that is closed and the one that is mapped in its place have one stack of addresses, and two names.
#[test]
fn a_stack_is_another_one_when_its_code_was_replaced() {
    let mut ledger = Ledger::new();
    let frames = || [ProcessAddress(0x1010), ProcessAddress(0x9000)].into_iter();
    ledger
        .stacks
        .define(StackId(1), WalkEnd::Bottom, frames(), &ledger.code);
    let elsewhere = |start: u64, time| NewCode {
        start: ProcessAddress(start),
        end: ProcessAddress(start + 0x100),
        begun: time,
        done: time + 1,
        is_made: false,
        was_there: false,
    };
    ledger.apply(Event::Alloc(new(A, 10, 1)), 0);
    // Code at other places, and memory that becomes executable, replace nothing.
    ledger.apply(Event::CodeMapped(elsewhere(0x5000, 10)), 0);
    let protected = NewCode {
        was_there: true,
        ..elsewhere(0x1000, 20)
    };
    ledger.apply(Event::CodeMapped(protected), 0);
    ledger.apply(Event::Alloc(new(A + 64, 10, 1)), 0);
    assert_eq!(ledger.snapshot(0).rows.len(), 1);
    ledger.apply(Event::CodeMapped(elsewhere(0x1000, 30)), 0);
    ledger.apply(Event::Alloc(new(A + 128, 5, 1)), 0);
    ledger.apply(Event::Free(ProcessAddress(A)), 0);
    // The kernel side may send the stack again.
    ledger
        .stacks
        .define(StackId(1), WalkEnd::Bottom, frames(), &ledger.code);
    ledger.apply(Event::Alloc(new(A + 192, 5, 1)), 0);
    let snapshot = ledger.snapshot(0);
    let mut rows: Vec<_> = snapshot
        .rows
        .iter()
        .map(|row| {
            let leaf = snapshot.frames(row).next().unwrap();
            let interval = snapshot.code.interval(leaf, row.code);
            (interval.from, interval.until, row.live.bytes)
        })
        .collect();
    rows.sort_by_key(|row| row.0);
    assert_eq!(rows, [(0, 30, 10.0), (31, u64::MAX, 10.0)]);
    check(&ledger);
}

#[test]
fn stacks_without_memory_are_counted_together() {
    let mut ledger = Ledger::new();
    ledger.set_stack_limit(100_000);
    let mut bytes = 0;
    for stack in 1..=2000u64 {
        let frames = (0..50).map(|depth| ProcessAddress(if depth < 3 { stack } else { depth }));
        ledger
            .stacks
            .define(StackId(stack), WalkEnd::Bottom, frames, &CodeHistory::default());
        assert!(ledger.stack_memory() <= 100_000);
        ledger.apply(Event::Alloc(new(A + stack * 32, stack, stack)), 0);
        bytes += stack;
    }
    let snapshot = ledger.snapshot(0);
    let others: Vec<_> = snapshot.rows.iter().filter(|row| row.is_other).collect();
    assert_eq!(others.len(), 1);
    assert_eq!(snapshot.frames(others[0]).count(), 0);
    assert_eq!(others[0].live.objects, 2000.0 - (snapshot.rows.len() - 1) as f64);
    assert_eq!(ledger.notes.other_stacks as f64, others[0].live.objects);
    assert_eq!(ledger.notes.unknown_stacks, 0);
    assert!(snapshot.rows.len() > 150, "{}", snapshot.rows.len());
    assert!(ledger.stack_memory() > 99_000);
    assert_eq!(
        snapshot.rows.iter().map(|row| row.live.bytes).sum::<f64>(),
        bytes as f64
    );
    assert_eq!(ledger.live_bytes(), bytes as f64);
    check(&ledger);
    for stack in 1..=2000u64 {
        ledger.apply(Event::Free(ProcessAddress(A + stack * 32)), 0);
    }
    assert_eq!((ledger.live_bytes(), ledger.notes.unknown_frees), (0.0, 0));
    // Another program has it all to itself.
    ledger.apply(Event::Exec, 0);
    assert_eq!((ledger.stack_memory(), ledger.stacks.len()), (0, 0));
}
