//! Code that has no call-frame information at all.

use leaktrace_common::unwind::{RULE_FRAME_POINTER, RULE_UNKNOWN};
use object::{Object, ObjectSymbol};

use super::{compile_bytes, gcc};
use crate::model::ElfAddress;

/// A covered function, then three stretches of 8 KiB without entries, with a covered function behind each: one of
/// framed functions, one of functions that keep none, and one that has a single prologue.
const SOURCE: &str = "
        .macro covered name
        .globl \\name
\\name:  .cfi_startproc
        ret
        .cfi_endproc
        .endm
        .text
        covered before
framed: .rept 64
        pushq %rbp
        movq %rsp, %rbp
        .skip 122, 0x90
        popq %rbp
        ret
        .endr
        covered between
plain:  .rept 64
        pushq %rbx
        .skip 125, 0x90
        popq %rbx
        ret
        .endr
        covered behind
seldom: pushq %rbp
        movq %rsp, %rbp
        .skip 8188, 0x90
        covered last
";

#[test]
fn what_keeps_frame_pointers_is_followed_by_them() {
    let (_directory, path) = gcc("uncovered.S", SOURCE, &["-nostdlib", "-shared"]);
    let bytes = std::fs::read(path).unwrap();
    let table = compile_bytes(&bytes);
    let file = object::File::parse(&*bytes).unwrap();
    let rule = |name: &str, offset: u64| {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
        table.row_at(ElfAddress(symbol.address() + offset)).unwrap().rule
    };
    for offset in [0, 5, 128 + 60, 64 * 128 - 1] {
        assert_eq!(rule("framed", offset), RULE_FRAME_POINTER, "{offset}");
        assert_eq!(rule("plain", offset), RULE_UNKNOWN, "{offset}");
        assert_eq!(rule("seldom", offset), RULE_UNKNOWN, "{offset}");
    }
    for name in ["before", "between", "behind", "last"] {
        let rule = rule(name, 0);
        assert!(rule != RULE_FRAME_POINTER && rule != RULE_UNKNOWN, "{name}: {rule}");
    }
}
