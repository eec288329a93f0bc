//! Executes the call-frame programs of DWARF for the three registers that a walk needs, and states each row as a rule.
//!
//! It does not find programs (see `cfi`) and does not lay rows out (see `compact`). gimli decodes the instructions; its
//! own interpreter tracks every register and is several times slower.
//! Invariant: a state that the kernel side cannot follow exactly becomes an unknown rule with its [`UnknownReason`].

use gimli::{CallFrameInstruction as Instruction, EndianSlice, LittleEndian, Operation, UnwindSection};
use leaktrace_common::unwind::{BP_VIA_BP, RULE_BP, RULE_BP_DEREF, RULE_PLT, RULE_SP, RULE_SP_DEREF, pack_deref};

use super::rule::{Rule, UnknownReason};
use super::{Machine, aarch64, x86_64};

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Nested `DW_CFA_remember_state`s that are followed; compilers emit one.
const MAX_REMEMBERED: usize = 16;
/// Operations of an expression that are looked at; the longest that has a rule (the lazy-binding stub's) has nine.
const MAX_OPERATIONS: usize = 9;

/// DWARF numbers of the registers that a walk needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegisterNumbers {
    pub sp: u16,
    pub bp: u16,
    pub ra: u16,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    Unspecified,
    Undefined,
    Same,
    AtCfa(i64),
    ViaBp(i64),
    IsCfa,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cfa {
    Register { register: u16, offset: i64 },
    Deref { register: u16, offset: i64, addend: i64 },
    Plt { threshold: i32 },
    Other,
}

/// The registers' rules at one point of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    cfa: Cfa,
    sp: Saved,
    bp: Saved,
    ra: Saved,
}

/// A malformed program: everything from the current location on is unknown.
#[derive(Debug)]
pub(super) struct BadProgram;

/// What the entries that share a CIE have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub machine: Machine,
    pub code_alignment: u64,
    pub data_alignment: i64,
    pub signal: bool,
    /// State after the CIE's own instructions; `None` while these run.
    pub initial: Option<State>,
}

/// Executes programs one after the other, reusing its memory.
pub(super) struct Interpreter<'s, S> {
    section: &'s S,
    numbers: RegisterNumbers,
    common: Common,
    remembered: Vec<State>,
}

impl State {
    pub const START: Self = Self {
        cfa: Cfa::Other,
        sp: Saved::Unspecified,
        bp: Saved::Unspecified,
        ra: Saved::Unspecified,
    };

    /// The rule that this state amounts to.
    pub fn rule(&self, machine: Machine, signal: bool) -> Rule {
        self.try_rule(machine, signal).unwrap_or_else(Rule::unknown)
    }

    fn try_rule(&self, machine: Machine, signal: bool) -> Result<Rule, UnknownReason> {
        let numbers = machine.numbers();
        if signal && self.is_kernel_signal_frame(machine) {
            return Ok(Rule::SIGNAL);
        }
        if self.ra == Saved::Undefined {
            return Ok(Rule::END);
        }
        let operand = |_| UnknownReason::Operand;
        let (kind, cfa) = match self.cfa {
            Cfa::Register { register, offset } => {
                let kind = base_rule(numbers, register, RULE_SP, RULE_BP)?;
                (kind, i32::try_from(offset).map_err(operand)?)
            }
            Cfa::Deref {
                register,
                offset,
                addend,
            } => {
                let kind = base_rule(numbers, register, RULE_SP_DEREF, RULE_BP_DEREF)?;
                let (offset, addend) = (i16::try_from(offset), i16::try_from(addend));
                (kind, pack_deref(offset.map_err(operand)?, addend.map_err(operand)?))
            }
            Cfa::Plt { threshold } => (RULE_PLT, threshold),
            Cfa::Other => return Err(UnknownReason::CfaExpression),
        };
        match machine {
            Machine::X86_64 => x86_64::check_return_address(self.ra)?,
            Machine::Aarch64 => aarch64::check_return_address(self.bp, self.ra)?,
        }
        if !matches!(self.sp, Saved::Unspecified | Saved::IsCfa) {
            return Err(UnknownReason::StackPointer);
        }
        let (flag, bp_offset) = match self.bp {
            Saved::Unspecified | Saved::Same => (0, 0),
            // Zero would read as "not changed".
            Saved::AtCfa(0) => return Err(UnknownReason::FramePointer),
            Saved::AtCfa(offset) => (0, i16::try_from(offset).map_err(operand)?),
            Saved::ViaBp(offset) => (BP_VIA_BP, i16::try_from(offset).map_err(operand)?),
            Saved::Undefined | Saved::IsCfa | Saved::Other => return Err(UnknownReason::FramePointer),
        };
        Ok(Rule {
            kind: kind | flag,
            bp_offset,
            cfa,
        })
    }

    /// Whether an entry marked as a signal frame describes the one that the kernel pushes: other code (stack switching,
    /// hand-written entry points) bears the mark as well.
    fn is_kernel_signal_frame(&self, machine: Machine) -> bool {
        match machine {
            Machine::X86_64 => {
                let offset = x86_64::SIGNAL_SP as i64;
                self.cfa
                    == Cfa::Deref {
                        register: x86_64::REGISTERS.sp,
                        offset,
                        addend: 0,
                    }
            }
            Machine::Aarch64 => true,
        }
    }
}

impl Machine {
    pub(super) fn numbers(self) -> RegisterNumbers {
        match self {
            Self::X86_64 => x86_64::REGISTERS,
            Self::Aarch64 => aarch64::REGISTERS,
        }
    }
}

fn base_rule(numbers: RegisterNumbers, register: u16, sp: u8, bp: u8) -> Result<u8, UnknownReason> {
    match register {
        r if r == numbers.sp => Ok(sp),
        r if r == numbers.bp => Ok(bp),
        _ => Err(UnknownReason::CfaRegister),
    }
}

impl<'s, 'a: 's, S: UnwindSection<Slice<'a>>> Interpreter<'s, S> {
    pub fn new(section: &'s S, machine: Machine) -> Self {
        let common = Common {
            machine,
            code_alignment: 1,
            data_alignment: 1,
            signal: false,
            initial: None,
        };
        Self {
            section,
            numbers: machine.numbers(),
            common,
            remembered: Vec::with_capacity(MAX_REMEMBERED),
        }
    }

    /// The state after a CIE's instructions, which may not advance.
    pub fn initial(
        &mut self,
        common: Common,
        mut next: impl Iterator<Item = NextInstruction>,
    ) -> Result<State, BadProgram> {
        self.common = common;
        self.remembered.clear();
        let mut state = State::START;
        next.try_for_each(|instruction| match instruction.map_err(|_| BadProgram)? {
            Instruction::SetLoc { .. } | Instruction::AdvanceLoc { .. } => Err(BadProgram),
            instruction => self.apply(&mut state, instruction),
        })?;
        Ok(state)
    }

    /// Runs an entry's program over `start..end` and hands each change of rule to `emit`, with the address where it
    /// takes effect. Addresses never decrease; of several at one address the last counts.
    pub fn run(
        &mut self,
        common: Common,
        mut next: impl Iterator<Item = NextInstruction>,
        (start, end): (u64, u64),
        mut emit: impl FnMut(u64, Rule),
    ) -> Result<(), BadProgram> {
        self.common = common;
        self.remembered.clear();
        let mut state = common.initial.unwrap_or(State::START);
        let mut location = start;
        let result = loop {
            let target = match next.next() {
                None => break Ok(()),
                Some(Err(_)) => break Err(BadProgram),
                Some(Ok(Instruction::AdvanceLoc { delta })) => {
                    location.saturating_add(u64::from(delta).saturating_mul(common.code_alignment))
                }
                Some(Ok(Instruction::SetLoc { address })) if address >= location => address,
                Some(Ok(Instruction::SetLoc { .. })) => break Err(BadProgram),
                Some(Ok(instruction)) => match self.apply(&mut state, instruction) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                },
            };
            emit(location, state.rule(common.machine, common.signal));
            location = target;
            if location >= end {
                return Ok(());
            }
        };
        match &result {
            Ok(()) => emit(location, state.rule(common.machine, common.signal)),
            Err(BadProgram) => emit(location, Rule::unknown(UnknownReason::BadProgram)),
        }
        result
    }

    fn apply(&mut self, state: &mut State, instruction: Instruction<usize>) -> Result<(), BadProgram> {
        let factor = self.common.data_alignment;
        // Wrapping, as gimli does: an absurd offset becomes one that does not fit a row.
        let scaled = |offset: i64| offset.wrapping_mul(factor);
        match instruction {
            Instruction::DefCfa { register, offset } => {
                state.cfa = Cfa::Register {
                    register: register.0,
                    offset: offset as i64,
                };
            }
            Instruction::DefCfaSf {
                register,
                factored_offset,
            } => {
                state.cfa = Cfa::Register {
                    register: register.0,
                    offset: scaled(factored_offset),
                };
            }
            Instruction::DefCfaRegister { register: new } => match &mut state.cfa {
                Cfa::Register { register, .. } => *register = new.0,
                _ => return Err(BadProgram),
            },
            Instruction::DefCfaOffset { offset: new } => match &mut state.cfa {
                Cfa::Register { offset, .. } => *offset = new as i64,
                _ => return Err(BadProgram),
            },
            Instruction::DefCfaOffsetSf { factored_offset } => match &mut state.cfa {
                Cfa::Register { offset, .. } => *offset = scaled(factored_offset),
                _ => return Err(BadProgram),
            },
            Instruction::DefCfaExpression { expression } => {
                let expression = expression.get(self.section).map_err(|_| BadProgram)?;
                state.cfa = self.cfa_expression(expression);
            }
            Instruction::Undefined { register } => self.save(state, register, Saved::Undefined),
            Instruction::SameValue { register } => self.save(state, register, Saved::Same),
            Instruction::Offset {
                register,
                factored_offset,
            } => {
                self.save(state, register, Saved::AtCfa(scaled(factored_offset as i64)));
            }
            Instruction::OffsetExtendedSf {
                register,
                factored_offset,
            } => {
                self.save(state, register, Saved::AtCfa(scaled(factored_offset)));
            }
            Instruction::ValOffset {
                register,
                factored_offset: 0,
            }
            | Instruction::ValOffsetSf {
                register,
                factored_offset: 0,
            } => self.save(state, register, Saved::IsCfa),
            Instruction::ValOffset { register, .. }
            | Instruction::ValOffsetSf { register, .. }
            | Instruction::Register {
                dest_register: register,
                ..
            }
            | Instruction::ValExpression { register, .. } => self.save(state, register, Saved::Other),
            Instruction::Expression { register, expression } => {
                if register.0 == self.numbers.bp {
                    let expression = expression.get(self.section).map_err(|_| BadProgram)?;
                    state.bp = self.saved_expression(expression);
                } else {
                    self.save(state, register, Saved::Other);
                }
            }
            Instruction::Restore { register } => {
                let initial = self.common.initial.ok_or(BadProgram)?;
                match register.0 {
                    r if r == self.numbers.sp => state.sp = initial.sp,
                    r if r == self.numbers.bp => state.bp = initial.bp,
                    r if r == self.numbers.ra => state.ra = initial.ra,
                    _ => {}
                }
            }
            Instruction::RememberState if self.remembered.len() < MAX_REMEMBERED => self.remembered.push(*state),
            Instruction::RememberState => return Err(BadProgram),
            Instruction::RestoreState => *state = self.remembered.pop().ok_or(BadProgram)?,
            Instruction::ArgsSize { .. } | Instruction::NegateRaState | Instruction::Nop => {}
            // Handled by the callers; gimli may learn new instructions, which are not followed blindly.
            _ => return Err(BadProgram),
        }
        Ok(())
    }

    fn save(&self, state: &mut State, register: gimli::Register, saved: Saved) {
        match register.0 {
            r if r == self.numbers.sp => state.sp = saved,
            r if r == self.numbers.bp => state.bp = saved,
            r if r == self.numbers.ra => state.ra = saved,
            _ => {}
        }
    }

    /// Register + constant, an optional load, and constants after it; or the lazy-binding stub's expression.
    fn cfa_expression(&self, expression: gimli::Expression<Slice<'a>>) -> Cfa {
        let mut buffer = [const { Operation::Nop }; MAX_OPERATIONS];
        let Some(operations) = decode(expression, &mut buffer) else {
            return Cfa::Other;
        };
        if let Some(threshold) = self.plt_threshold(operations) {
            return Cfa::Plt { threshold };
        }
        let Some((Operation::RegisterOffset { register, offset, .. }, rest)) = operations.split_first() else {
            return Cfa::Other;
        };
        let mut cfa = Cfa::Register {
            register: register.0,
            offset: *offset,
        };
        let mut rest = rest.iter();
        while let Some(operation) = rest.next() {
            let constant = match operation {
                Operation::Deref {
                    size: 8, space: false, ..
                } => match cfa {
                    Cfa::Register { register, offset } => {
                        cfa = Cfa::Deref {
                            register,
                            offset,
                            addend: 0,
                        };
                        continue;
                    }
                    _ => return Cfa::Other,
                },
                Operation::PlusConstant { value } => *value as i64,
                Operation::UnsignedConstant { value } if matches!(rest.next(), Some(Operation::Plus)) => *value as i64,
                Operation::SignedConstant { value } if matches!(rest.next(), Some(Operation::Plus)) => *value,
                _ => return Cfa::Other,
            };
            match &mut cfa {
                Cfa::Register { offset: sum, .. } | Cfa::Deref { addend: sum, .. } => *sum = sum.wrapping_add(constant),
                Cfa::Plt { .. } | Cfa::Other => return Cfa::Other,
            }
        }
        cfa
    }

    /// sp + 8 + ((pc & 15) >= threshold) << 3: binutils and mold write this for `.plt`.
    fn plt_threshold(&self, operations: &[Operation<Slice<'a>>]) -> Option<i32> {
        use Operation::{And, Ge, Plus, RegisterOffset, Shl, UnsignedConstant};
        let [
            RegisterOffset {
                register: sp,
                offset: 8,
                ..
            },
            RegisterOffset {
                register: pc,
                offset: 0,
                ..
            },
            UnsignedConstant { value: 15 },
            And,
            UnsignedConstant { value: threshold },
            Ge,
            UnsignedConstant { value: 3 },
            Shl,
            Plus,
        ] = operations
        else {
            return None;
        };
        let matches = sp.0 == self.numbers.sp && pc.0 == self.numbers.ra && *threshold <= 16;
        matches.then_some(*threshold as i32)
    }

    /// gcc's realigned frames state that the old frame pointer lies at the frame pointer.
    fn saved_expression(&self, expression: gimli::Expression<Slice<'a>>) -> Saved {
        let mut buffer = [const { Operation::Nop }; MAX_OPERATIONS];
        match decode(expression, &mut buffer) {
            Some([Operation::RegisterOffset { register, offset, .. }]) if register.0 == self.numbers.bp => {
                Saved::ViaBp(*offset)
            }
            _ => Saved::Other,
        }
    }
}

/// An instruction as gimli's iterator gives it.
pub(super) type NextInstruction = gimli::Result<Instruction<usize>>;

/// Decodes a whole expression into `buffer`; `None` if it is malformed or longer than any that has a rule.
fn decode<'a, 'b>(
    expression: gimli::Expression<Slice<'a>>,
    buffer: &'b mut [Operation<Slice<'a>>; MAX_OPERATIONS],
) -> Option<&'b [Operation<Slice<'a>>]> {
    let encoding = gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    };
    let mut iter = expression.operations(encoding);
    let mut count = 0;
    while let Some(operation) = iter.next().ok()? {
        *buffer.get_mut(count)? = operation;
        count += 1;
    }
    buffer.get(..count)
}
