//! x86-64 control flow, by iced-x86.

use iced_x86::{ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{Flow, NullTest, Step, Target};
use crate::model::ElfAddress;

/// Registers that carry integer arguments by the System V ABI, in order.
pub const ARGUMENTS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
];

/// Decodes the first instruction of `bytes`.
pub(super) fn step(bytes: &[u8], address: ElfAddress) -> Step {
    let mut decoder = Decoder::with_ip(64, bytes, address.0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return Step {
            address,
            len: 1,
            flow: Flow::Stop,
            null_test: NullTest::None,
        };
    }
    Step {
        address,
        len: instruction.len() as u8,
        flow: flow(&instruction),
        null_test: null_test(&instruction),
    }
}

/// `endbr64`.
pub(super) fn is_landing_pad(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa])
}

fn flow(instruction: &Instruction) -> Flow {
    match instruction.flow_control() {
        FlowControl::Next => match instruction.mnemonic() {
            Mnemonic::Hlt => Flow::Stop,
            _ => Flow::Next,
        },
        FlowControl::UnconditionalBranch => Flow::Jump(Target::Address(ElfAddress(instruction.near_branch_target()))),
        FlowControl::ConditionalBranch => Flow::Branch(ElfAddress(instruction.near_branch_target())),
        FlowControl::Call if instruction.op0_kind() == OpKind::NearBranch64 => {
            Flow::Call(Target::Address(ElfAddress(instruction.near_branch_target())))
        }
        // System calls count as calls without a target.
        FlowControl::Call => Flow::Next,
        FlowControl::IndirectCall => Flow::Call(indirect(instruction)),
        FlowControl::IndirectBranch => Flow::Jump(indirect(instruction)),
        FlowControl::Return => Flow::Return,
        FlowControl::XbeginXabortXend => Flow::Next,
        FlowControl::Interrupt | FlowControl::Exception => Flow::Stop,
    }
}

fn indirect(instruction: &Instruction) -> Target {
    if instruction.op0_kind() == OpKind::Memory && instruction.is_ip_rel_memory_operand() {
        return Target::Slot(ElfAddress(instruction.ip_rel_memory_address()));
    }
    // A fixed-address program may name the slot absolutely.
    let absolute = instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::None
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None;
    if absolute {
        Target::Slot(ElfAddress(instruction.memory_displacement64()))
    } else {
        Target::Computed
    }
}

fn null_test(instruction: &Instruction) -> NullTest {
    let registers = instruction.op0_register() == Register::RDI;
    match (instruction.mnemonic(), instruction.condition_code()) {
        (Mnemonic::Test, _) if registers && instruction.op1_register() == Register::RDI => NullTest::Tests,
        (Mnemonic::Cmp, _) if registers && instruction.op1_kind() != OpKind::Register => {
            let zero = instruction.op1_kind() != OpKind::Memory && instruction.immediate(1) == 0;
            if zero { NullTest::Tests } else { NullTest::None }
        }
        (_, ConditionCode::e) if instruction.is_jcc_short_or_near() => NullTest::TakenIfZero,
        (_, ConditionCode::ne) if instruction.is_jcc_short_or_near() => NullTest::TakenIfNonZero,
        _ => NullTest::None,
    }
}
