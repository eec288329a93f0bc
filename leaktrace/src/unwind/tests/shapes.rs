//! Rows of hand-written call-frame information, one function per shape.

use std::fmt::Write;

use leaktrace_common::unwind::{
    BP_VIA_BP, RULE_BP, RULE_BP_DEREF, RULE_END, RULE_FRAME_POINTER, RULE_PLT, RULE_SIGNAL, RULE_SP, RULE_SP_DEREF,
    Row, deref_addend, deref_offset,
};
use object::{Object, ObjectSection, ObjectSymbol};

use super::{ENTRIES_ALONE, check_layout, compile_bytes, gcc};
use crate::model::ElfAddress;
use crate::unwind::{ForcedRule, UnknownReason, UnwindTable, compile};

const SHAPES: &str = include_str!("shapes.S");

fn describe(row: Row) -> String {
    let (offset, addend) = (deref_offset(row.cfa), deref_addend(row.cfa));
    let mut text = match row.rule & !BP_VIA_BP {
        RULE_SP => format!("sp{:+}", row.cfa),
        RULE_BP => format!("bp{:+}", row.cfa),
        RULE_SP_DEREF => format!("*(sp{offset:+}){addend:+}"),
        RULE_BP_DEREF => format!("*(bp{offset:+}){addend:+}"),
        RULE_PLT => format!("plt from {}", row.cfa),
        RULE_END => "end".into(),
        RULE_SIGNAL => "signal".into(),
        RULE_FRAME_POINTER => "frame pointer".into(),
        _ => format!("unknown: {:?}", UnknownReason::from_row(row).unwrap()),
    };
    match (row.rule & BP_VIA_BP != 0, row.bp_offset) {
        (true, offset) => write!(text, ", bp at bp{offset:+}").unwrap(),
        (false, 0) => {}
        (false, offset) => write!(text, ", bp at cfa{offset:+}").unwrap(),
    }
    text
}

/// The rules of a function by offset, where they change.
fn render(file: &object::File<'_>, table: &UnwindTable, name: &str) -> String {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    let mut text = String::new();
    let mut last = String::new();
    for offset in 0..symbol.size() {
        let row = table.row_at(ElfAddress(symbol.address() + offset)).unwrap();
        let rule = describe(row);
        if rule != last {
            writeln!(text, "{name}+{offset}: {rule}").unwrap();
        }
        last = rule;
    }
    text
}

fn render_all(bytes: &[u8], forced: impl Fn(&object::File<'_>) -> Vec<ForcedRule>, names: &[&str]) -> String {
    let file = object::File::parse(bytes).unwrap();
    let mut forced = forced(&file);
    forced.extend(ENTRIES_ALONE);
    let table = compile(&file, &forced).unwrap();
    check_layout(&table);
    names.iter().map(|name| render(&file, &table, name)).collect()
}

fn link() -> Vec<u8> {
    let (_directory, path) = gcc("shapes.S", SHAPES, &["-nostdlib", "-static", "-no-pie"]);
    std::fs::read(path).unwrap()
}

fn range(file: &object::File<'_>, name: &str) -> std::ops::Range<ElfAddress> {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    ElfAddress(symbol.address())..ElfAddress(symbol.address() + symbol.size())
}

#[test]
fn usual_frames() {
    let names = ["pushes", "framed", "remembered", "realigned", "realigned_with_rbp"];
    insta::assert_snapshot!(render_all(&link(), |_| vec![], &names), @r"
    pushes+0: sp+8
    pushes+1: sp+16, bp at cfa-16
    pushes+2: sp+24, bp at cfa-16
    pushes+6: sp+96, bp at cfa-16
    pushes+15: sp+24, bp at cfa-16
    pushes+16: sp+16, bp at cfa-16
    pushes+17: sp+8
    framed+0: sp+8
    framed+1: sp+16, bp at cfa-16
    framed+4: bp+16, bp at cfa-16
    framed+9: sp+8, bp at cfa-16
    remembered+0: sp+8
    remembered+4: sp+32
    remembered+12: sp+8
    remembered+13: sp+32
    remembered+22: sp+8
    realigned+0: sp+8
    realigned+5: unknown: CfaRegister
    realigned+19: *(bp-8)+0, bp at bp+0
    realigned+26: unknown: CfaRegister
    realigned+31: sp+8, bp at bp+0
    realigned_with_rbp+0: sp+8
    realigned_with_rbp+1: sp+16, bp at cfa-16
    realigned_with_rbp+4: bp+16, bp at cfa-16
    realigned_with_rbp+14: sp+8, bp at cfa-16
    ");
}

#[test]
fn expressions_and_ends() {
    let names = [
        "loaded",
        "register_expression",
        "outermost",
        "trampoline",
        "no_table",
        "_start",
    ];
    insta::assert_snapshot!(render_all(&link(), |_| vec![], &names), @r"
    loaded+0: sp+8
    loaded+3: unknown: CfaRegister
    loaded+15: *(sp+40)+8
    loaded+22: sp+8
    register_expression+0: sp+16
    register_expression+1: bp+16
    outermost+0: end
    trampoline+0: signal
    no_table+0: unknown: NoTable
    _start+0: end
    ");
}

#[test]
fn what_has_no_rule_is_unknown() {
    let names = [
        "cfa_elsewhere",
        "odd_expression",
        "huge",
        "lost_rbp",
        "moved_return",
        "switched_stack",
        "broken",
    ];
    insta::assert_snapshot!(render_all(&link(), |_| vec![], &names), @r"
    cfa_elsewhere+0: unknown: CfaRegister
    odd_expression+0: unknown: CfaExpression
    huge+0: unknown: Operand
    lost_rbp+0: unknown: FramePointer
    lost_rbp+3: sp+8
    moved_return+0: unknown: ReturnAddress
    switched_stack+0: unknown: StackPointer
    broken+0: sp+8
    broken+1: unknown: BadProgram
    ");
}

#[test]
fn forced_rules_replace_others() {
    let forced = |file: &object::File<'_>| {
        let framed = range(file, "framed");
        let middle = ElfAddress(framed.start.0 + 2)..ElfAddress(framed.start.0 + 5);
        vec![
            ForcedRule::FramePointer(middle),
            ForcedRule::End(range(file, "no_table")),
        ]
    };
    insta::assert_snapshot!(render_all(&link(), forced, &["framed", "no_table"]), @r"
    framed+0: sp+8
    framed+1: sp+16, bp at cfa-16
    framed+2: frame pointer
    framed+5: bp+16, bp at cfa-16
    framed+9: sp+8, bp at cfa-16
    no_table+0: end
    ");
}

#[test]
fn lazy_binding_stubs() {
    let source = "#include <stdlib.h>\nint main(void) { free(malloc(3)); return puts(\"\"); }\nint puts(const char *);";
    let options = ["-O1", "-Wl,-z,lazy", "-fno-builtin", "-fcf-protection=none", "-w"];
    let (_directory, path) = gcc("stubs.c", source, &options);
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let table = compile_bytes(&bytes);
    let plt = file.section_by_name(".plt").unwrap();
    let code = plt.data().unwrap();
    // The first slot pushes the link map at its start: the return address is 16 bytes up, then 24.
    let rule = |offset: u64| describe(table.row_at(ElfAddress(plt.address() + offset)).unwrap());
    assert_eq!(code[..2], [0xff, 0x35], "push of the link map");
    assert_eq!((rule(0), rule(6)), ("sp+16".into(), "sp+24".into()));
    // Every other slot: jmp *slot (6 bytes), push index (5 bytes), jmp to the first.
    assert_eq!((code[16], code[22], code[27]), (0xff, 0x68, 0xe9));
    for slot in (16..plt.size()).step_by(16) {
        for byte in slot..slot + 16 {
            assert_eq!(rule(byte), "plt from 11");
        }
    }
}
