//! Single steps of a walk on made-up tables: every rule, and every way to end early.

use std::cell::Cell;
use std::sync::Arc;

use leaktrace_common::config::INNER_FRAMES;
use leaktrace_common::unwind::{
    BP_VIA_BP, RULE_BP_DEREF, RULE_END, RULE_FRAME_POINTER, RULE_PLT, RULE_SIGNAL, RULE_SP, RULE_UNKNOWN, Row,
    pack_deref,
};

use crate::model::{ElfAddress, ProcessAddress};
use crate::unwind::{
    Code, FirstPc, MAX_FRAMES, MAX_WALK, Machine, Mapping, OMITTED_FRAMES, Registers, TableStats, Truncation,
    UnknownReason, UnwindTable, Walk, WalkEnd, replay,
};

const DELTA: u64 = 0x5555_0000_0000;
const STACK: u64 = 0x7fff_0000_0000;
const TEXT: u64 = DELTA + 0x1000;

/// A table at 0x1000 with a row every 16 bytes; code at `TEXT + 16 * n` has the n-th rule.
fn mapping(rules: &[(u8, i16, i32)]) -> Mapping {
    let row = |(index, &(rule, bp_offset, cfa)): (usize, &(u8, i16, i32))| Row {
        low: index as u8 * 16,
        rule,
        bp_offset,
        cfa,
    };
    let rows: Vec<_> = rules.iter().enumerate().map(row).collect();
    let table = UnwindTable {
        base: ElfAddress(0x1000),
        blocks: vec![0, rows.len() as u32],
        rows,
        stats: TableStats::default(),
    };
    let (start, end) = (ProcessAddress(TEXT), ProcessAddress(TEXT + 0x1000));
    Mapping {
        start,
        end,
        delta: DELTA,
        code: Code::Table(Arc::new(table)),
    }
}

fn walk(machine: Machine, mapping: Mapping, registers: Registers, first: FirstPc, stack: &[u64]) -> Walk {
    replay(machine, &[mapping], registers, first, |address| {
        let index = address.checked_sub(STACK)? / 8;
        stack.get(usize::try_from(index).ok()?).copied()
    })
}

fn at(index: u64) -> Registers {
    Registers {
        pc: TEXT + index * 16,
        sp: STACK,
        bp: STACK + 16,
        lr: None,
    }
}

fn x86(rules: &[(u8, i16, i32)], registers: Registers, stack: &[u64]) -> Walk {
    walk(Machine::X86_64, mapping(rules), registers, FirstPc::Exact, stack)
}

const END: (u8, i16, i32) = (RULE_END, 0, 0);

#[test]
fn a_return_address_is_looked_up_in_its_call() {
    // The call is the last instruction of the first function: behind it another one begins.
    let rules = [(RULE_SP, 0, 16), END];
    let behind = Registers { pc: TEXT + 16, ..at(0) };
    let stack = [0, TEXT + 20];
    assert_eq!(
        walk(Machine::X86_64, mapping(&rules), behind, FirstPc::Exact, &stack)
            .frames
            .len(),
        1
    );
    let called = walk(Machine::X86_64, mapping(&rules), behind, FirstPc::ReturnAddress, &stack);
    assert_eq!((called.frames.len(), called.end), (2, WalkEnd::Bottom));
}

#[test]
fn an_interrupted_instruction_has_its_own_rule() {
    // It was interrupted at the first instruction of a function: the rule before it would end the walk elsewhere.
    let rules = [(RULE_SIGNAL, 0, 0), (RULE_UNKNOWN, 0, 0), END];
    let mut stack = [0; 32];
    stack[15] = 7;
    stack[20] = STACK + 8;
    stack[21] = TEXT + 32;
    let walked = x86(&rules, at(0), &stack);
    assert_eq!((walked.frames, walked.end), (vec![TEXT, TEXT + 32], WalkEnd::Bottom));
}

#[test]
fn realigned_frames_are_left_by_their_saved_stack_pointer() {
    let rules = [(RULE_BP_DEREF | BP_VIA_BP, 0, pack_deref(-8, 8)), (RULE_SP, 0, 8), END];
    // CFA = *(bp - 8) + 8 = STACK + 48; the caller's bp is at bp.
    let stack = [0, STACK + 40, 0xb0, 0, 0, TEXT + 17, TEXT + 33];
    let walked = x86(&rules, at(0), &stack);
    assert_eq!(
        (walked.frames, walked.end),
        (vec![TEXT, TEXT + 17, TEXT + 33], WalkEnd::Bottom)
    );
}

#[test]
fn stubs_have_one_word_more_behind_their_push() {
    let rules = [(RULE_PLT, 0, 11), END];
    let stack = [TEXT + 17, TEXT + 18];
    let caller = |offset| {
        x86(
            &rules,
            Registers {
                pc: TEXT + offset,
                ..at(0)
            },
            &stack,
        )
        .frames[1]
    };
    assert_eq!(
        (caller(6), caller(10), caller(11), caller(15)),
        (TEXT + 17, TEXT + 17, TEXT + 18, TEXT + 18)
    );
}

#[test]
fn frame_pointers_chain_to_zero() {
    let rules = [(RULE_FRAME_POINTER, 0, 0)];
    let stack = [0, 0, STACK + 32, TEXT + 4, 0, TEXT + 5];
    let walked = x86(&rules, at(0), &stack);
    assert_eq!(
        (walked.frames, walked.end),
        (vec![TEXT, TEXT + 4, TEXT + 5], WalkEnd::Bottom)
    );
    let own_caller = [0, 0, STACK + 16, TEXT + 4];
    assert_eq!(
        x86(&rules, at(0), &own_caller).end,
        WalkEnd::Truncated(Truncation::NotProgressing)
    );
}

#[test]
fn early_ends_say_why() {
    let truncated = |walk: Walk| match walk.end {
        WalkEnd::Truncated(reason) => reason,
        WalkEnd::Bottom => panic!("{walk:?}"),
    };
    let call = [(RULE_SP, 0, 8)];
    assert_eq!(truncated(x86(&call, at(0), &[0x1234])), Truncation::NoMapping);
    assert_eq!(x86(&call, at(0), &[0]).end, WalkEnd::Bottom);
    assert_eq!(truncated(x86(&call, at(0), &[])), Truncation::UnreadableStack(STACK));
    let low = Registers {
        sp: u64::MAX - 3,
        ..at(0)
    };
    assert_eq!(truncated(x86(&call, low, &[])), Truncation::NotProgressing);
    assert_eq!(
        truncated(x86(&[(RULE_SP, 0, 0)], at(0), &[TEXT])),
        Truncation::NotProgressing
    );
    let unknown = [(RULE_UNKNOWN, 0, UnknownReason::CfaRegister as i32)];
    assert_eq!(
        truncated(x86(&unknown, at(0), &[])),
        Truncation::NoRule(UnknownReason::CfaRegister)
    );
    let beyond = Registers {
        pc: TEXT + 0x200,
        ..at(0)
    };
    assert_eq!(
        truncated(x86(&call, beyond, &[])),
        Truncation::NoRule(UnknownReason::NoTable)
    );
    // A rule that is of no known kind ends the walk like one that is unknown.
    assert_eq!(
        truncated(x86(&[(0x7f, 0, 0)], at(0), &[])),
        Truncation::NoRule(UnknownReason::NoTable)
    );

    let reads = Cell::new(0);
    let endless = replay(Machine::X86_64, &[mapping(&call)], at(0), FirstPc::Exact, |_| {
        reads.set(reads.get() + 1);
        Some(TEXT + 1)
    });
    assert_eq!(
        (endless.frames.len(), truncated(endless)),
        (INNER_FRAMES, Truncation::TooDeep)
    );
    assert_eq!(reads.get(), MAX_WALK);
}

#[test]
fn of_a_deep_stack_both_ends_stay() {
    let call = [(RULE_SP, 0, 8)];
    // Each word of the stack is a return address, the last one 0.
    let walked = |depth: u64| {
        let words: Vec<u64> = (1..depth).map(|number| TEXT + 1 + number % 8).chain([0]).collect();
        (x86(&call, at(0), &words), words)
    };
    let (whole, words) = walked(MAX_FRAMES as u64);
    assert_eq!(whole.frames.len(), MAX_FRAMES);
    assert_eq!(whole.frames[1..], words[..MAX_FRAMES - 1]);
    for depth in [MAX_FRAMES as u64 + 1, 200, MAX_WALK as u64] {
        let (deep, words) = walked(depth);
        assert_eq!((deep.end, deep.frames.len()), (WalkEnd::Bottom, MAX_FRAMES), "{depth}");
        let (inner, rest) = deep.frames.split_at(INNER_FRAMES);
        assert_eq!(inner[1..], words[..INNER_FRAMES - 1]);
        assert_eq!(rest[0], OMITTED_FRAMES);
        assert_eq!(rest[1..], words[words.len() - rest.len()..words.len() - 1], "{depth}");
    }
}

#[test]
fn a_link_register_serves_the_innermost_frame_alone() {
    // A leaf without frame, then a frame of 32 bytes with x29 and x30 at its bottom, then the end.
    let rules = [(RULE_SP, 0, 0), (RULE_SP, -32, 32), END];
    let leaf = Registers {
        lr: Some(TEXT + 20),
        ..at(0)
    };
    let stack = [0xb0, TEXT + 36];
    let arm = |rules: &[_], stack: &[_]| walk(Machine::Aarch64, mapping(rules), leaf, FirstPc::Exact, stack);
    let walked = arm(&rules, &stack);
    assert_eq!(
        (walked.frames, walked.end),
        (vec![TEXT, TEXT + 20, TEXT + 36], WalkEnd::Bottom)
    );
    let twice = arm(&[(RULE_SP, 0, 0), (RULE_SP, 0, 0)], &stack);
    assert_eq!(twice.end, WalkEnd::Truncated(Truncation::NotProgressing));
}
