//! Jump tables, in the forms that compilers make of a `switch`.
//!
//! Invariant: a table counts only if a comparison before the jump bounds its index, and all its entries lead into code.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::walk::Bytes;

/// Most entries of a table.
const MAX_ENTRIES: u64 = 1024;

/// Where the last of these instructions, a computed jump, leads to. The others come straight before it.
pub(super) fn targets(recent: &[Instruction], bytes: &impl Bytes) -> Option<Vec<u64>> {
    let (jump, before) = recent.split_last()?;
    let (table, index, size) = match jump.op0_kind() {
        OpKind::Memory => absolute(jump)?,
        OpKind::Register => loaded(jump.op0_register(), before)?,
        _ => return None,
    };
    let count = bound(index, before)?;
    let entries = bytes.data(table, usize::try_from(count.checked_mul(size)?).ok()?)?;
    let mut targets: Vec<u64> = entries
        .chunks_exact(size as usize)
        .map(|entry| match *entry {
            [a, b, c, d] => table.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d]))),
            _ => entry.try_into().map_or(0, u64::from_le_bytes),
        })
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets
        .iter()
        .all(|target| !bytes.code(*target, 1).is_empty())
        .then_some(targets)
}

/// `jmp [table + index * 8]`, or a load of that form.
fn absolute(instruction: &Instruction) -> Option<(u64, Register, u64)> {
    let fits = instruction.memory_base() == Register::None
        && instruction.memory_index_scale() == 8
        && instruction.segment_prefix() == Register::None;
    fits.then(|| (instruction.memory_displacement64(), instruction.memory_index(), 8))
}

/// `lea base, [table]; movsxd x, [base + index * 4]; add x, base; jmp x`.
fn loaded(target: Register, before: &[Instruction]) -> Option<(u64, Register, u64)> {
    let mut backwards = before.iter().rev();
    let add = backwards.find(|instruction| writes(instruction, target))?;
    if add.mnemonic() == Mnemonic::Mov && add.op1_kind() == OpKind::Memory {
        return absolute(add);
    }
    if add.mnemonic() != Mnemonic::Add || add.op1_kind() != OpKind::Register {
        return None;
    }
    // The sum is the same either way round.
    let other = add.op1_register();
    let load = backwards.find(|instruction| writes(instruction, target) || writes(instruction, other))?;
    if load.mnemonic() != Mnemonic::Movsxd || load.memory_index_scale() != 4 || load.memory_displacement64() != 0 {
        return None;
    }
    let base = load.memory_base();
    let sums = [target, other];
    if !sums.contains(&base) && !sums.contains(&load.op0_register()) {
        return None;
    }
    // Once the loaded entry has taken the place of one, the base is in the other.
    let lea = backwards.find(|instruction| writes(instruction, base))?;
    if lea.mnemonic() != Mnemonic::Lea || !lea.is_ip_rel_memory_operand() {
        return None;
    }
    let entry = load.op0_register();
    let adds_base = (entry == target && base == other) || (entry == other && base == target);
    adds_base.then(|| (lea.ip_rel_memory_address(), load.memory_index(), 4))
}

/// Entries that an index can choose among: `cmp index, last; ja elsewhere`.
fn bound(index: Register, before: &[Instruction]) -> Option<u64> {
    let mut index = index.full_register();
    let mut branch = false;
    for instruction in before.iter().rev() {
        match instruction.mnemonic() {
            Mnemonic::Ja => branch = true,
            Mnemonic::Cmp if branch => {
                let compares = instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register().full_register() == index
                    && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
                return compares
                    .then(|| instruction.immediate(1).wrapping_add(1))
                    .filter(|count| (1..=MAX_ENTRIES).contains(count));
            }
            Mnemonic::Mov | Mnemonic::Movzx if writes(instruction, index) => {
                if instruction.op1_kind() != OpKind::Register {
                    return None;
                }
                index = instruction.op1_register().full_register();
            }
            _ if writes(instruction, index) => return None,
            _ => {}
        }
    }
    None
}

/// Whether the first operand is this register, in any width, and not only read.
fn writes(instruction: &Instruction, register: Register) -> bool {
    let reads = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
    !reads
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().full_register() == register.full_register()
}
