//! What is derived against the call-frame information of code that has some, and on code made for the purpose.

use std::collections::HashMap;

use leaktrace_common::unwind::{RULE_BP, RULE_END, RULE_SIGNAL, RULE_SP, RULE_UNKNOWN};
use object::{Object, ObjectSection, ObjectSymbol};

use super::*;
use crate::model::ElfAddress;
use crate::unwind::{UnwindTable, compile};

#[derive(Default, Debug)]
struct Compared {
    answered: u64,
    asked: u64,
    compared: u64,
    wrong: Vec<String>,
}

/// At each byte of `.text` that call-frame information describes, as if there were none.
fn compare(bytes: &[u8], table: &UnwindTable) -> Compared {
    let file = object::File::parse(bytes).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let text = text.address()..text.address() + text.size();
    let whole = std::slice::from_ref(&text);
    let derived = rules(&file, whole, std::iter::empty());
    let (walked, _) = analyse(&file, whole, std::iter::empty()).unwrap();
    let mut states: HashMap<u64, Vec<State>> = HashMap::new();
    for (at, _, state) in walked {
        states.entry(at).or_default().push(state);
    }
    let mut result = Compared::default();
    let mut derived = derived.into_iter().peekable();
    for at in text {
        while derived.next_if(|(range, _)| range.end <= at).is_some() {}
        let row = table.row_at(ElfAddress(at)).unwrap();
        if row.rule == RULE_UNKNOWN || row.rule == RULE_END {
            continue;
        }
        result.asked += 1;
        let Some(_) = derived.peek().filter(|(range, _)| range.contains(&at)) else {
            continue;
        };
        result.answered += 1;
        for state in states.get(&at).into_iter().flatten() {
            let Some(agrees) = state.agrees(row.rule, row.cfa, row.bp_offset) else {
                continue;
            };
            result.compared += 1;
            if !agrees {
                result.wrong.push(format!("{at:#x}: {row:?}, but {state:?}"));
            }
        }
    }
    result
}

#[test]
fn what_is_derived_is_what_call_frame_information_says() {
    for (path, least) in [
        ("/usr/lib/x86_64-linux-gnu/libz.so.1", 0.5),
        ("/usr/lib/x86_64-linux-gnu/libm.so.6", 0.7),
    ] {
        let Ok(bytes) = std::fs::read(path) else {
            eprintln!("skipped: no {path} here");
            continue;
        };
        let table = compile(&object::File::parse(&*bytes).unwrap(), &[]).unwrap();
        let compared = compare(&bytes, &table);
        let share = compared.answered as f64 / compared.asked as f64;
        println!(
            "{path}: {:.1} % of {} bytes answered, {} instructions compared",
            share * 100.0,
            compared.asked,
            compared.compared
        );
        assert!(share > least, "{path}: {share}");
        assert!(compared.wrong.is_empty(), "{path}: {:#?}", compared.wrong);
    }
}

/// No entries at all; symbols for some.
const SOURCE: &str = r#"
        .macro function name
        .type \name, @function
\name:
        .endm
        .text
        .globl _start
function _start
        xorl %ebp, %ebp
        call plain
        hlt
function plain
        pushq %rbx
        subq $32, %rsp
plain_inside:
        call framed
        addq $32, %rsp
        popq %rbx
        ret
function framed
        pushq %rbp
        movq %rsp, %rbp
        pushq %rbx
        subq %rdi, %rsp
        andq $-16, %rsp
framed_inside:
        call saves
        leaq -8(%rbp), %rsp
        popq %rbx
        popq %rbp
framed_end:
        ret
function saves
        subq $24, %rsp
        movq %rbp, 8(%rsp)
        movl $7, %ebp
saves_inside:
        call ends
saves_behind:
        movq 8(%rsp), %rbp
        addq $24, %rsp
        ret
function ends
        testl %edi, %edi
        je 1f
        ret
1:      pushq %rax
        call never
# Nobody's, if the call never returns: not at the height that the call was made at.
hidden:
        pushq %rbx
        pushq %rbp
        movl $1, %ebp
hidden_inside:
        syscall
        popq %rbp
        popq %rbx
        ret
function never
        subq $8, %rsp
1:      syscall
        jmp 1b
function differs
        testl %edi, %edi
        je 1f
        pushq %rbx
1:
differs_inside:
        syscall
        cmpl $1, %eax
        je 1f
        ud2
1:      jmp 1b
function clobbers
        movl %edi, %ebp
clobbers_inside:
        ret
function choose
        cmpl $2, %edi
        ja 9f
        subq $8, %rsp
        leaq table(%rip), %rdx
        movslq (%rdx,%rdi,4), %rax
        addq %rdx, %rax
        jmp *%rax
case0:  call plain
case1:
        addq $8, %rsp
9:      ret
case2:  pushq %rbx
        pushq %rbx
case2_inside:
        call plain
        addq $16, %rsp
        jmp case1
function last
        leaq pointed(%rip), %rax
        ret
pointed:
        subq $8, %rsp
pointed_inside:
        call *%rdi
        addq $8, %rsp
        ret
        nop
restore:
        movq $15, %rax
        syscall
        ud2
        leaq restore(%rip), %rax
        .rept 600
        leaq restore(%rip), %rax
        .endr
        .section .rodata
table:  .long case0 - table, case1 - table, case2 - table
"#;

#[test]
fn what_is_not_proven_has_no_rule() {
    let (_directory, path) = crate::unwind::tests::gcc("derived.S", SOURCE, &["-nostdlib", "-static-pie"]);
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let table = compile(&file, &[]).unwrap();
    let rule = |name: &str| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
        let row = table.row_at(ElfAddress(symbol.expect(name).address())).unwrap();
        (row.rule, row.cfa, row.bp_offset)
    };
    for (name, expected) in [
        ("plain", (RULE_SP, 8, 0)),
        ("plain_inside", (RULE_SP, 48, 0)),
        ("framed_inside", (RULE_BP, 16, -16)),
        ("framed_end", (RULE_SP, 8, 0)),
        ("saves_inside", (RULE_SP, 32, -24)),
        ("saves_behind", (RULE_SP, 32, -24)),
        ("case0", (RULE_SP, 16, 0)),
        ("case2", (RULE_SP, 16, 0)),
        ("case2_inside", (RULE_SP, 32, 0)),
        ("pointed_inside", (RULE_SP, 16, 0)),
        ("restore", (RULE_SIGNAL, 0, 0)),
    ] {
        assert_eq!(rule(name), expected, "{name}");
    }
    for name in ["hidden", "hidden_inside", "differs_inside", "clobbers_inside"] {
        assert_eq!(rule(name).0, RULE_UNKNOWN, "{name}");
    }
}

/// Damaged code, without any entries: rules or none, in bounded time.
#[test]
fn damaged_code_costs_a_bounded_amount() {
    let bytes = std::fs::read("/lib64/ld-linux-x86-64.so.2").unwrap();
    let range = |name: &str| {
        let file = object::File::parse(&*bytes).unwrap();
        let (offset, size) = file.section_by_name(name).unwrap().file_range().unwrap();
        offset as usize..(offset + size) as usize
    };
    let (frames, text) = (range(".eh_frame"), range(".text"));
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    for share in [7, 300] {
        let mut damaged = bytes.clone();
        damaged[frames.clone()].fill(0);
        for _ in 0..text.len() / share {
            let at = text.start + random() as usize % text.len();
            damaged[at] = random() as u8;
        }
        let begun = std::time::Instant::now();
        let table = compile(&object::File::parse(&*damaged).unwrap(), &[]).unwrap();
        assert!(table.stats.derived_bytes <= table.stats.text_bytes, "{:?}", table.stats);
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}
