//! Compact rows against gimli: both rules are evaluated on one made-up machine state and must name the same caller.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EndianSlice, EvaluationResult, FrameDescriptionEntry, LittleEndian, Register,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value,
};
use leaktrace_common::unwind::{RULE_END, RULE_FRAME_POINTER, RULE_SIGNAL, RULE_UNKNOWN, Row};
use object::{Object, ObjectSection};
use proptest::prelude::*;
use proptest::sample::Index;

use super::{LIBC, LIBCRYPTO, LIBSTDCXX, LOADER, PYTHON, compile_bytes, gcc, optional};
use crate::model::ElfAddress;
use crate::unwind::replay::apply;
use crate::unwind::{Machine, Registers, UnknownReason, UnwindTable, WalkEnd};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

const SP: u64 = 0x7ffd_0000_1000;
const BP: u64 = 0x7ffd_0004_2000;

/// Made-up memory: every word differs and points above itself, so that each caller lies above its callee.
fn word(address: u64) -> u64 {
    let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    address + 0x10_0000 + hash * 16
}

struct Fixture<'a> {
    table: UnwindTable,
    eh_frame: EhFrame<Slice<'a>>,
    bases: BaseAddresses,
    /// By start, each ending no later than the next begins.
    entries: Vec<(u64, u64, FrameDescriptionEntry<Slice<'a>>)>,
    entry_point: u64,
}

impl<'a> Fixture<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let file = object::File::parse(bytes).unwrap();
        let section = file.section_by_name(".eh_frame").unwrap();
        let bases = BaseAddresses::default().set_eh_frame(section.address());
        let eh_frame = EhFrame::from(Slice::new(section.data().unwrap(), LittleEndian));
        let mut entries = Vec::new();
        let mut iter = eh_frame.entries(&bases);
        while let Some(entry) = iter.next().unwrap() {
            if let gimli::CieOrFde::Fde(partial) = entry {
                let entry = partial.parse(EhFrame::cie_from_offset).unwrap();
                entries.push((entry.initial_address(), entry.end_address(), entry));
            }
        }
        entries.sort_by_key(|entry| entry.0);
        for index in 1..entries.len() {
            entries[index - 1].1 = entries[index - 1].1.min(entries[index].0);
        }
        Self {
            table: compile_bytes(bytes),
            eh_frame,
            bases,
            entries,
            entry_point: file.entry(),
        }
    }

    /// Compares at the `pick`-th byte of an entry.
    fn check(&self, entry: Index, pick: Index, context: &mut UnwindContext<usize>) {
        let (start, end, entry) = &self.entries[entry.index(self.entries.len())];
        let address = start + pick.index((end - start) as usize) as u64;
        self.compare(entry, address, context);
    }

    /// Compares at the first and last byte of every row that gimli makes.
    fn check_all(&self) -> usize {
        let (mut context, mut other) = (UnwindContext::new(), UnwindContext::new());
        let mut compared = 0;
        for (start, end, entry) in &self.entries {
            let mut rows = entry.rows(&self.eh_frame, &self.bases, &mut context).unwrap();
            while let Some(row) = rows.next_row().unwrap() {
                let (first, last) = (row.start_address().max(*start), row.end_address().min(*end));
                for address in [first, last.saturating_sub(1)] {
                    if first < last {
                        self.compare(entry, address, &mut other);
                        compared += 1;
                    }
                }
            }
        }
        for pair in self.entries.windows(2) {
            let (from, to) = (pair[0].1, pair[1].0);
            // The entry point, which may be in a gap, begins a function as well.
            let next = if (from..to).contains(&self.entry_point) {
                self.entry_point
            } else {
                to
            };
            let from = if next - from < 16 && next.is_multiple_of(16) {
                next
            } else {
                from
            };
            for address in from..to {
                let row = self.table.row_at(ElfAddress(address)).unwrap();
                let entry = row.rule == RULE_END && (self.entry_point..self.entry_point + 128).contains(&address);
                let gap = UnknownReason::from_row(row) == Some(UnknownReason::NoTable);
                assert!(gap || entry, "{row:?} at {address:#x}, which no entry covers");
            }
        }
        compared
    }

    fn compare(&self, entry: &FrameDescriptionEntry<Slice<'a>>, address: u64, context: &mut UnwindContext<usize>) {
        let expected = entry
            .unwind_info_for_address(&self.eh_frame, &self.bases, context, address)
            .unwrap();
        let row = self
            .table
            .row_at(ElfAddress(address))
            .expect("a table covers its entries");
        let what = format!("{row:?} at {address:#x}, gimli: {expected:?}");
        if row.rule == RULE_UNKNOWN {
            let reason = UnknownReason::from_row(row).expect(&what);
            assert!(self.justified(reason, expected), "{reason:?} {what}");
            return;
        }
        assert_ne!(row.rule, RULE_FRAME_POINTER, "{what}");
        if row.rule == RULE_END {
            let at_entry = entry.initial_address() == self.entry_point;
            assert!(
                at_entry || expected.register(Register(16)) == Some(RegisterRule::Undefined),
                "{what}"
            );
            return;
        }
        assert_eq!(row.rule == RULE_SIGNAL, entry.is_signal_trampoline(), "{what}");
        let actual = evaluate_row(row, address).expect(&what);
        let cfa = match expected.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => register_value(*register, address) as i64 + offset,
            CfaRule::Expression(expression) => self.evaluate(*expression, address, None) as i64,
        } as u64;
        assert_eq!(actual.sp, cfa, "CFA: {what}");
        let pc = self.saved(expected.register(Register(16)), cfa, address).expect(&what);
        assert_eq!(actual.pc, pc, "return address: {what}");
        let bp = self.saved(expected.register(Register(6)), cfa, address).unwrap_or(BP);
        assert_eq!(actual.bp, bp, "frame pointer: {what}");
        let sp = self.saved(expected.register(Register(7)), cfa, address).unwrap_or(cfa);
        assert_eq!(actual.sp, sp, "stack pointer: {what}");
    }

    /// The caller's value of a register; `None` if nothing is said of it or it is unchanged.
    fn saved(&self, rule: Option<RegisterRule<usize>>, cfa: u64, address: u64) -> Option<u64> {
        match rule {
            None | Some(RegisterRule::SameValue) => None,
            Some(RegisterRule::Offset(offset)) => Some(word(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Expression(expression)) => Some(word(self.evaluate(expression, address, Some(cfa)))),
            Some(RegisterRule::ValExpression(expression)) => Some(self.evaluate(expression, address, Some(cfa))),
            other => panic!("{other:?} should have made the row unknown"),
        }
    }

    /// gimli's own evaluation of an expression.
    fn evaluate(&self, expression: UnwindExpression<usize>, address: u64, cfa: Option<u64>) -> u64 {
        let encoding = gimli::Encoding {
            address_size: 8,
            format: gimli::Format::Dwarf32,
            version: 4,
        };
        let mut evaluation = expression.get(&self.eh_frame).unwrap().evaluation(encoding);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut result = evaluation.evaluate().unwrap();
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(word(address))).unwrap()
                }
                EvaluationResult::RequiresRegister { register, .. } => evaluation
                    .resume_with_register(Value::Generic(register_value(register, address)))
                    .unwrap(),
                other => panic!("{other:?}"),
            };
        }
        match evaluation.result()[0].location {
            gimli::Location::Address { address } => address,
            ref other => panic!("{other:?}"),
        }
    }

    fn justified(&self, reason: UnknownReason, expected: &UnwindTableRow<usize>) -> bool {
        let (cfa, bp) = (expected.cfa(), expected.register(Register(6)));
        match reason {
            UnknownReason::CfaRegister => match cfa {
                CfaRule::RegisterAndOffset { register, .. } => !matches!(register.0, 6 | 7),
                // A load through a third register.
                CfaRule::Expression(expression) => {
                    let encoding = gimli::Encoding {
                        address_size: 8,
                        format: gimli::Format::Dwarf32,
                        version: 4,
                    };
                    let first = expression
                        .get(&self.eh_frame)
                        .unwrap()
                        .operations(encoding)
                        .next()
                        .unwrap();
                    matches!(first, Some(gimli::Operation::RegisterOffset { register, .. }) if !matches!(register.0, 6 | 7))
                }
            },
            UnknownReason::CfaExpression => matches!(cfa, CfaRule::Expression(_)),
            UnknownReason::FramePointer => {
                !matches!(bp, None | Some(RegisterRule::SameValue | RegisterRule::Offset(..-1)))
            }
            UnknownReason::ReturnAddress => expected.register(Register(16)) != Some(RegisterRule::Offset(-8)),
            UnknownReason::StackPointer => {
                !matches!(expected.register(Register(7)), None | Some(RegisterRule::ValOffset(0)))
            }
            UnknownReason::NoTable | UnknownReason::Operand | UnknownReason::BadProgram => false,
        }
    }
}

fn register_value(register: Register, address: u64) -> u64 {
    match register.0 {
        6 => BP,
        7 => SP,
        16 => address,
        other => panic!("register {other} should have made the row unknown"),
    }
}

fn evaluate_row(row: Row, address: u64) -> Result<Registers, WalkEnd> {
    let registers = Registers {
        pc: address,
        sp: SP,
        bp: BP,
        lr: None,
    };
    let caller = apply(Machine::X86_64, row, registers, &|address| Some(word(address)))?;
    Ok(caller.registers)
}

fn random_addresses(path: &str, cases: u32) {
    let Some(bytes) = optional(path) else { return };
    let fixture = Fixture::new(&bytes);
    let context = std::cell::RefCell::new(UnwindContext::new());
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(entry: Index, picks in prop::collection::vec(any::<Index>(), 1..8))| {
        for pick in picks {
            fixture.check(entry, pick, &mut context.borrow_mut());
        }
    });
}

#[test]
fn random_addresses_of_libstdcxx() {
    random_addresses(LIBSTDCXX, 3000);
}

#[test]
fn random_addresses_of_libcrypto() {
    random_addresses(LIBCRYPTO, 3000);
}

#[test]
fn random_addresses_of_python() {
    random_addresses(PYTHON, 3000);
}

#[test]
fn every_row_of_libc() {
    let bytes = std::fs::read(LIBC).unwrap();
    assert!(Fixture::new(&bytes).check_all() > 10_000);
}

#[test]
fn every_row_of_the_loader() {
    let bytes = std::fs::read(LOADER).unwrap();
    assert!(Fixture::new(&bytes).check_all() > 1000);
}

#[test]
fn every_row_of_libcrypto() {
    if let Some(bytes) = optional(LIBCRYPTO) {
        assert!(Fixture::new(&bytes).check_all() > 10_000);
    }
}

#[test]
fn every_row_of_an_optimised_program() {
    let arguments = ["-O2", "-fomit-frame-pointer", "-mavx2", "-Wl,-z,lazy", "-fno-plt"];
    for lazy in [&arguments[..4], &arguments[..]] {
        let (_directory, path) = gcc("chain.c", super::live::CHAIN, lazy);
        let bytes = std::fs::read(path).unwrap();
        assert!(Fixture::new(&bytes).check_all() > 100);
    }
}
