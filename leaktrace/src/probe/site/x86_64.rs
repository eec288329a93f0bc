//! x86-64 prologues.
//!
//! What the kernel emulates (`arch/x86/kernel/uprobes.c`: `branch_setup_xol_ops`, `push_setup_xol_ops`): relative jumps,
//! conditional jumps and calls without an operand-size prefix, pushes of a register, NOPs. `endbr64`, moves and arithmetic
//! are single-stepped.

use std::collections::HashSet;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};
use leaktrace_common::signature::Signature;

use super::{Demand, Site, at_entry};
use crate::model::{ElfAddress, FileOffset};
use crate::object::code::{ARGUMENTS, CodeReader, Flow, Target};
use crate::object::image::ElfImage;
use crate::probe::decoded::Decoded;

/// How far from the entry a site may be, in instructions.
const MAX_STRAIGHT: usize = 32;
/// How much of a function is searched for jumps back into its prologue.
const MAX_SEARCH: usize = 8192;
/// Bytes behind the entry that count as the same function for such jumps.
const PROLOGUE: u64 = 512;

pub(super) fn choose(image: &ElfImage, entry: ElfAddress, offset: FileOffset, demand: Demand) -> Site {
    let code = image.bytes_at(entry, MAX_STRAIGHT * 15);
    let mut targets = None;
    let mut find_targets = || -> HashSet<u64> { jump_targets(image, entry) };
    let mut decoder = Decoder::with_ip(64, &code, entry.0, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut stack_offset = 0u32;
    let mut arguments = Arguments::new(demand.signature);
    let mut first = String::from("no instruction");
    let mut first_len = 1;
    let mut passed = Vec::new();
    let fallback = |first: String, len: u8, why: &str| {
        let code = Decoded::runs(image, vec![(entry, len)]);
        at_entry(entry, offset, demand, first, format!("at the entry: {why}"), code)
    };

    for index in 0..MAX_STRAIGHT {
        if !decoder.can_decode() {
            return fallback(first, first_len, "the code ends");
        }
        let position = decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return fallback(first, first_len, "the code cannot be decoded");
        }
        let bytes = &code[position..decoder.position()];
        if index == 0 {
            first = text(&instruction);
            first_len = instruction.len() as u8;
        }
        passed.push((ElfAddress(instruction.ip()), instruction.len() as u8));
        if position > 0
            && targets
                .get_or_insert_with(&mut find_targets)
                .contains(&instruction.ip())
        {
            return fallback(first, first_len, "the code behind it is jumped back to");
        }
        if emulated(&instruction, bytes, demand.long_nops) {
            return Site {
                offset: FileOffset(offset.0 + position as u64),
                address: ElfAddress(instruction.ip()),
                distance: position as u32,
                instruction: text(&instruction),
                signature: arguments.signature(demand.signature),
                stack_offset,
                emulated: true,
                reason: match position {
                    0 => "the entry itself is emulated by the kernel".into(),
                    _ => format!(
                        "the first instruction that the kernel emulates; `{first}` at the entry would be single-stepped"
                    ),
                },
                code: Decoded::runs(image, passed).into(),
            };
        }
        match advance(&instruction, &mut info, demand, &mut arguments, &mut stack_offset) {
            Ok(()) => {}
            Err(why) => return fallback(first, first_len, why),
        }
    }
    fallback(first, first_len, "no emulated instruction near it")
}

/// Lets one instruction pass, or says why no site may be behind it.
fn advance(
    instruction: &Instruction,
    info: &mut InstructionInfoFactory,
    demand: Demand,
    arguments: &mut Arguments,
    stack_offset: &mut u32,
) -> Result<(), &'static str> {
    if instruction.flow_control() != FlowControl::Next || instruction.mnemonic() == Mnemonic::Hlt {
        return Err("control leaves the straight line first");
    }
    let copy = copied(instruction);
    for used in info.info(instruction).used_registers() {
        let written = matches!(
            used.access(),
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        let register = used.register().full_register();
        if written && let Some(index) = ARGUMENTS.iter().position(|argument| *argument == register) {
            arguments.overwrite(index, copy.filter(|(to, _)| *to == index).map(|(_, from)| from));
        }
        if written && register == Register::RSP {
            let moved = -i64::from(instruction.stack_pointer_increment()) + explicit_move(instruction).unwrap_or(0);
            let known = instruction.stack_pointer_increment() != 0 || explicit_move(instruction).is_some();
            let offset = i64::from(*stack_offset) + moved;
            if demand.return_probe || !known || !(0..1 << 16).contains(&offset) {
                return Err("the stack pointer moves first");
            }
            *stack_offset = offset as u32;
        }
    }
    if arguments.is_lost() {
        return Err("an argument register is overwritten first");
    }
    Ok(())
}

/// Bytes by which `sub rsp, n` / `add rsp, n` lets the stack grow.
fn explicit_move(instruction: &Instruction) -> Option<i64> {
    let immediate = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    if instruction.op0_register() != Register::RSP || !immediate {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Sub => Some(instruction.immediate(1) as i64),
        Mnemonic::Add => (instruction.immediate(1) as i64).checked_neg(),
        _ => None,
    }
}

/// `mov argument register, argument register`, all 64 bits: (to, from).
fn copied(instruction: &Instruction) -> Option<(usize, usize)> {
    if !matches!(instruction.code(), Code::Mov_rm64_r64 | Code::Mov_r64_rm64) {
        return None;
    }
    let index = |register| ARGUMENTS.iter().position(|argument| *argument == register);
    Some((index(instruction.op0_register())?, index(instruction.op1_register())?))
}

/// Which argument each argument register holds at a point of the straight line.
struct Arguments {
    holds: [Option<usize>; 6],
    needed: Vec<usize>,
}

impl Arguments {
    fn new(signature: Signature) -> Self {
        let positions = [
            signature.size_argument(),
            signature.count_argument(),
            signature.pointer_argument(),
            signature.out_argument(),
        ];
        let needed = positions
            .iter()
            .filter_map(|position| usize::from(*position).checked_sub(1))
            .collect();
        Self {
            holds: std::array::from_fn(Some),
            needed,
        }
    }

    /// A register is written, with a copy of another or with something else.
    fn overwrite(&mut self, index: usize, from: Option<usize>) {
        self.holds[index] = from.and_then(|from| self.holds[from]);
    }

    /// Position (from 1) of the register that holds an argument: its own if it still does.
    fn position(&self, argument: usize) -> Option<u8> {
        let own = (self.holds.get(argument) == Some(&Some(argument))).then_some(argument);
        let register = own.or_else(|| self.holds.iter().position(|held| *held == Some(argument)))?;
        Some(register as u8 + 1)
    }

    fn is_lost(&self) -> bool {
        self.needed.iter().any(|argument| self.position(*argument).is_none())
    }

    /// The signature with the registers of this point.
    fn signature(&self, signature: Signature) -> Signature {
        let now = |position: u8| {
            usize::from(position)
                .checked_sub(1)
                .and_then(|argument| self.position(argument))
        };
        let mut moved = signature;
        if let Some(position) = now(signature.size_argument()) {
            moved = moved.size(position);
        }
        if let Some(position) = now(signature.count_argument()) {
            moved = moved.count(position);
        }
        if let Some(position) = now(signature.pointer_argument()) {
            moved = moved.pointer(position);
        }
        if let Some(position) = now(signature.out_argument()) {
            moved = moved.out(position);
        }
        moved
    }
}

/// Whether the kernel emulates the instruction instead of running a copy of it.
fn emulated(instruction: &Instruction, bytes: &[u8], long_nops: bool) -> bool {
    match instruction.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Call_rel32_64 => plain_prefix(bytes),
        Code::Push_r64 => matches!(bytes, [0x50..=0x57] | [0x41, 0x50..=0x57]),
        Code::Nopd | Code::Nopw | Code::Nopq if bytes == [0x90] => true,
        _ if instruction.is_jcc_short_or_near() => plain_prefix(bytes),
        _ => long_nops && is_kernel_nop(bytes),
    }
}

/// No prefix but BND: the kernel refuses 0x66 on branches, and segment prefixes (branch hints) on anything.
fn plain_prefix(bytes: &[u8]) -> bool {
    let opcode = bytes.strip_prefix(&[0xf2]).unwrap_or(bytes);
    matches!(opcode.first(), Some(0x70..=0x7f | 0xe8 | 0xe9 | 0xeb)) || matches!(opcode, [0x0f, 0x80..=0x8f, ..])
}

/// The NOPs of two to eight bytes that the kernel itself writes; longer ones have prefixes that uprobes refuse.
fn is_kernel_nop(bytes: &[u8]) -> bool {
    const NOPS: [&[u8]; 7] = [
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x00],
        &[0x0f, 0x1f, 0x40, 0x00],
        &[0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
        &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    ];
    NOPS.contains(&bytes)
}

/// Targets, close behind the entry, of the jumps inside a function. Tables of jumps are not followed: compilers place no
/// case of a switch in front of the switch.
fn jump_targets(image: &ElfImage, entry: ElfAddress) -> HashSet<u64> {
    let mut reader = CodeReader::new(image);
    let mut targets = HashSet::new();
    let mut visited = HashSet::new();
    let mut pending = vec![entry];
    while let Some(start) = pending.pop() {
        let mut at = start;
        while visited.len() < MAX_SEARCH && visited.insert(at) {
            let step = reader.step(at);
            let target = match step.flow {
                Flow::Branch(target) | Flow::Jump(Target::Address(target)) => Some(target),
                Flow::Jump(_) | Flow::Return | Flow::Stop => break,
                Flow::Next | Flow::Call(_) => None,
            };
            if let Some(target) = target {
                if target.0.wrapping_sub(entry.0) < PROLOGUE {
                    targets.insert(target.0);
                }
                pending.push(target);
                if matches!(step.flow, Flow::Jump(_)) {
                    break;
                }
            }
            at = step.next();
            // Running into the next function means that the call before never returns.
            if image.function_starts().binary_search(&at.0).is_ok() {
                break;
            }
        }
    }
    targets
}

/// The instruction as an assembler would write it, as far as that helps a reader.
fn text(instruction: &Instruction) -> String {
    let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let operands: Vec<String> = (0..instruction.op_count())
        .map(|index| match instruction.op_kind(index) {
            OpKind::Register => format!("{:?}", instruction.op_register(index)).to_lowercase(),
            OpKind::NearBranch64 => format!("{:#x}", instruction.near_branch_target()),
            OpKind::Memory => "[…]".into(),
            _ => instruction
                .try_immediate(index)
                .map_or("…".into(), |value| format!("{value:#x}")),
        })
        .collect();
    if operands.is_empty() || mnemonic == "nop" {
        mnemonic
    } else {
        format!("{mnemonic} {}", operands.join(", "))
    }
}
