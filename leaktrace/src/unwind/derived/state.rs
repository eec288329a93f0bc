//! What is known of the stack at one instruction, and what an instruction does to it.
//!
//! Follows the distance from the stack pointer to the CFA, what the frame pointer holds, and where the caller's frame
//! pointer was stored. It does not know where control flows.
//! Invariant: what an instruction does to one of these in a way that is not followed makes it unknown; nothing is guessed.

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use leaktrace_common::unwind::{RULE_BP, RULE_SP};

use super::super::rule::Rule;

/// Largest frame that is followed.
const MAX_HEIGHT: i64 = 1 << 24;
/// At a function's first instruction the return address alone lies between the stack pointer and the CFA.
pub(super) const ENTRY_HEIGHT: i32 = 8;

/// What the frame pointer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramePointer {
    /// What it held in the caller.
    Callers,
    /// The address that lies so many bytes below the CFA.
    Frame(i32),
    /// Zero, and the caller's was not stored: code that has no caller says so this way (System V ABI for AMD64, 3.4.1).
    Outermost,
    /// Anything.
    Other,
}

/// The stack at one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Bytes from the stack pointer up to the CFA.
    pub height: Option<i32>,
    frame_pointer: FramePointer,
    /// How many bytes below the CFA the caller's frame pointer is stored.
    saved: Option<i32>,
}

impl State {
    /// At the first instruction of a function.
    pub const ENTRY: Self = Self {
        height: Some(ENTRY_HEIGHT),
        frame_pointer: FramePointer::Callers,
        saved: None,
    };

    /// What holds if either of two states may be.
    pub fn meet(self, other: Self) -> Self {
        Self {
            height: self.height.filter(|_| self.height == other.height),
            frame_pointer: if self.frame_pointer == other.frame_pointer {
                self.frame_pointer
            } else {
                FramePointer::Other
            },
            saved: self.saved.filter(|_| self.saved == other.saved),
        }
    }

    /// The rule that gets from here to the caller, if there is one for certain.
    pub fn rule(self) -> Option<Rule> {
        if self.frame_pointer == FramePointer::Outermost {
            return Some(Rule::END);
        }
        let bp_offset = match self.saved {
            Some(saved) => i16::try_from(-saved).ok()?,
            None if self.frame_pointer == FramePointer::Callers => 0,
            None => return None,
        };
        let (kind, cfa) = match (self.height, self.frame_pointer) {
            (Some(height), _) if height >= ENTRY_HEIGHT => (RULE_SP, height),
            (None, FramePointer::Frame(below)) => (RULE_BP, below),
            _ => return None,
        };
        Some(Rule { kind, bp_offset, cfa })
    }

    /// Whether a rule of call-frame information says what is known here; `None` if it rests on what is not.
    #[cfg(test)]
    pub fn agrees(self, kind: u8, cfa: i32, bp_offset: i16) -> Option<bool> {
        let known = match kind {
            RULE_SP => self.height,
            RULE_BP => self.frame(),
            _ => return Some(false),
        };
        // Compilers do not say that the frame pointer is restored while the slot still holds it.
        let saved = match self.saved {
            Some(saved) => -saved == i32::from(bp_offset),
            None => self.frame_pointer == FramePointer::Callers && bp_offset <= 0,
        };
        Some(known? == cfa && saved)
    }

    /// The state behind an instruction that control runs through. Calls leave the stack as it was.
    pub fn behind(self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Self {
        let mut next = self.moved(instruction, info);
        next.height = next
            .height
            .filter(|height| (0..=MAX_HEIGHT).contains(&i64::from(*height)));
        // What lies below the stack pointer is nobody's.
        if next
            .height
            .zip(next.saved)
            .is_some_and(|(height, saved)| saved > height)
        {
            next.saved = None;
        }
        next
    }

    fn moved(self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> Self {
        use Register::{EBP, RBP, RSP};
        let mut next = self;
        let (to, from) = (register(instruction, 0), register(instruction, 1));
        match instruction.mnemonic() {
            Mnemonic::Push if instruction.stack_pointer_increment() == -8 => {
                next.height = plus(self.height, 8);
                if to == RBP && self.saves() {
                    next.saved = next.height;
                }
            }
            Mnemonic::Pop if to == RBP && instruction.stack_pointer_increment() == 8 => next.restore(),
            Mnemonic::Leave if instruction.code() == Code::Leaveq => {
                next.height = self.frame();
                next.restore();
            }
            Mnemonic::Mov if (to, from) == (RBP, RSP) => next.frame_pointer = frame_at(self.height),
            Mnemonic::Mov if (to, from) == (RSP, RBP) => next.height = self.frame(),
            Mnemonic::Mov if from == RBP && self.saves() && self.place(instruction).is_some() => {
                next.saved = self.place(instruction);
            }
            Mnemonic::Mov if to == RBP && self.saved.is_some() && self.place(instruction) == self.saved => {
                next.frame_pointer = FramePointer::Callers;
                next.saved = None;
            }
            Mnemonic::Lea if to == RBP && instruction.memory_base() == RSP => {
                next.frame_pointer = frame_at(self.place(instruction));
            }
            Mnemonic::Lea if to == RSP => next.height = self.place(instruction),
            Mnemonic::Sub | Mnemonic::Add if to == RSP && is_immediate(instruction) => {
                let by = instruction.immediate(1) as i64;
                let by = if instruction.mnemonic() == Mnemonic::Add {
                    -by
                } else {
                    by
                };
                next.height = plus(self.height, by);
            }
            Mnemonic::Xor if matches!((to, from), (EBP, EBP) | (RBP, RBP)) && self.saves() => {
                next.frame_pointer = FramePointer::Outermost
            }
            _ => next.overwritten(instruction, info),
        }
        next
    }

    /// Any other instruction: whatever it writes is unknown behind it.
    fn overwritten(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let before = *self;
        let used = info.info(instruction);
        let writes = |access| {
            use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(access, Write | ReadWrite | CondWrite | ReadCondWrite)
        };
        for register in used.used_registers().iter().filter(|used| writes(used.access())) {
            match register.register().full_register() {
                Register::RSP => {
                    // Implicitly (pop, pushf), or in some other way.
                    let explicit = instruction.op0_kind() == OpKind::Register
                        && instruction.op0_register().full_register() == Register::RSP;
                    let by = -i64::from(instruction.stack_pointer_increment());
                    self.height = if explicit || by == 0 {
                        None
                    } else {
                        plus(before.height, by)
                    };
                }
                Register::RBP => self.frame_pointer = FramePointer::Other,
                _ => {}
            }
        }
        let Some(saved) = before.saved else { return };
        for memory in used.used_memory().iter().filter(|used| writes(used.access())) {
            let base = match memory.base() {
                Register::RSP => before.height,
                Register::RBP => before.frame(),
                _ => continue,
            };
            let size = memory.memory_size().size() as i64;
            let Some(lowest) = plus(base, -(memory.displacement() as i64)).filter(|_| memory.index() == Register::None)
            else {
                continue;
            };
            // Bytes CFA - lowest to CFA - lowest + size, against the eight from CFA - saved on.
            let (start, slot) = (-i64::from(lowest), -i64::from(saved));
            if start < slot + 8 && slot < start + size {
                self.saved = None;
            }
        }
    }

    /// Whether storing the frame pointer now stores the caller's, for the first time.
    fn saves(self) -> bool {
        self.frame_pointer == FramePointer::Callers && self.saved.is_none()
    }

    fn frame(self) -> Option<i32> {
        match self.frame_pointer {
            FramePointer::Frame(below) => Some(below),
            _ => None,
        }
    }

    /// `pop rbp`.
    fn restore(&mut self) {
        let caller_s = self.saved.is_some() && self.saved == self.height;
        self.frame_pointer = if caller_s {
            FramePointer::Callers
        } else {
            FramePointer::Other
        };
        if caller_s {
            self.saved = None;
        }
        self.height = plus(self.height, -8);
    }

    /// How many bytes below the CFA the memory operand lies, which is at a fixed distance from stack or frame pointer.
    fn place(self, instruction: &Instruction) -> Option<i32> {
        let base = match instruction.memory_base() {
            Register::RSP => self.height,
            Register::RBP => self.frame(),
            _ => return None,
        };
        if instruction.memory_index() != Register::None || instruction.segment_prefix() != Register::None {
            return None;
        }
        plus(base, (instruction.memory_displacement64() as i64).checked_neg()?)
    }
}

fn frame_at(height: Option<i32>) -> FramePointer {
    height.map_or(FramePointer::Other, FramePointer::Frame)
}

fn plus(height: Option<i32>, by: i64) -> Option<i32> {
    let sum = i64::from(height?).checked_add(by)?;
    i32::try_from(sum)
        .ok()
        .filter(|sum| i64::from(*sum).abs() <= MAX_HEIGHT)
}

/// The register that an operand is, if it is one.
fn register(instruction: &Instruction, operand: u32) -> Register {
    if operand < instruction.op_count() && instruction.op_kind(operand) == OpKind::Register {
        instruction.op_register(operand)
    } else {
        Register::None
    }
}

fn is_immediate(instruction: &Instruction) -> bool {
    matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
}
