//! Walks a stack in userspace by exactly the steps of the kernel side: mapping, block, row, rule.
//!
//! It reads memory and registers through its arguments alone, so that it works on a stopped process and on a recorded
//! stack alike. Invariant: a walk ends within [`MAX_WALK`] frames and keeps at most [`MAX_FRAMES`] of them, the innermost and
//! the outermost; and a walk that did not reach the outermost frame says why.

use std::sync::Arc;

use leaktrace_common::config::INNER_FRAMES;
pub use leaktrace_common::config::{MAX_FRAMES, MAX_WALK, OMITTED_FRAMES};
use leaktrace_common::unwind::{
    BP_VIA_BP, GO_STACK_HI, RULE_BP, RULE_BP_DEREF, RULE_END, RULE_FRAME_POINTER, RULE_GO_CGOCALL, RULE_PLT,
    RULE_SIGNAL, RULE_SP, RULE_SP_DEREF, Row, deref_addend, deref_offset,
};

use super::{Machine, UnknownReason, UnwindTable, aarch64, x86_64};
use crate::model::{ElfAddress, ProcessAddress};

/// The registers that a walk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer: `rbp`, x29.
    pub bp: u64,
    /// Link register, on machines that have one.
    pub lr: Option<u64>,
}

/// What the first program counter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPc {
    /// The next instruction to run: its own rule counts.
    Exact,
    /// A return address: the rule of the call before it counts.
    ReturnAddress,
}

/// A mapped range of code.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address.
    pub start: ProcessAddress,
    /// First address behind it.
    pub end: ProcessAddress,
    /// Address in the process minus address in the file's headers, wrapping.
    pub delta: u64,
    /// How the code is walked.
    pub code: Code,
}

/// How the code of a mapping is walked.
#[derive(Clone, Debug)]
pub enum Code {
    /// By the rows of a table.
    Table(Arc<UnwindTable>),
    /// By the chain of frame pointers.
    FramePointer,
}

/// A finished walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Program counters, innermost first: the first as given, return addresses, and interrupted instructions behind
    /// signal trampolines. Where there are too many, [`OMITTED_FRAMES`] stands for those in the middle.
    pub frames: Vec<u64>,
    /// How it ended.
    pub end: WalkEnd,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkEnd {
    /// At the outermost frame.
    Bottom,
    /// Before it.
    Truncated(Truncation),
}

/// Why a walk ended before the outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// No mapping holds the last program counter.
    NoMapping,
    /// The last program counter has no usable rule.
    NoRule(UnknownReason),
    /// The stack could not be read at this address.
    UnreadableStack(u64),
    /// The stack is deeper than [`MAX_WALK`].
    TooDeep,
    /// The caller's frame would not lie above its callee's.
    NotProgressing,
}

/// One step's result: the caller's registers and whether its pc is an interrupted instruction.
pub(super) struct Caller {
    pub registers: Registers,
    pub interrupted: bool,
}

/// Why there is no next frame.
pub(super) type Stop = WalkEnd;

/// Walks a stack. `mappings` are sorted by address and do not overlap; `read` gives the 8 bytes at an address.
pub fn replay(
    machine: Machine,
    mappings: &[Mapping],
    registers: Registers,
    first: FirstPc,
    read: impl Fn(u64) -> Option<u64>,
) -> Walk {
    let mut registers = registers;
    let mut exact = first == FirstPc::Exact;
    let mut frames = Vec::new();
    let end = loop {
        if frames.len() == MAX_WALK {
            break WalkEnd::Truncated(Truncation::TooDeep);
        }
        frames.push(registers.pc);
        // A call that does not return may be the last instruction of its function: the return address is then the
        // next function's.
        let lookup = registers.pc.wrapping_sub(u64::from(!exact));
        match step(machine, mappings, registers, lookup, &read) {
            Ok(caller) => {
                registers = caller.registers;
                exact = caller.interrupted;
            }
            Err(stop) => break stop,
        }
    };
    if frames.len() > MAX_FRAMES {
        let outer = frames.split_off(frames.len() - (MAX_FRAMES - INNER_FRAMES - 1));
        frames.truncate(INNER_FRAMES);
        if end != WalkEnd::Truncated(Truncation::TooDeep) {
            frames.push(OMITTED_FRAMES);
            frames.extend(outer);
        }
    }
    Walk { frames, end }
}

fn step(
    machine: Machine,
    mappings: &[Mapping],
    registers: Registers,
    lookup: u64,
    read: &impl Fn(u64) -> Option<u64>,
) -> Result<Caller, Stop> {
    let index = mappings.partition_point(|mapping| mapping.end.0 <= lookup);
    let mapping = mappings.get(index).filter(|mapping| mapping.start.0 <= lookup);
    let mapping = mapping.ok_or(WalkEnd::Truncated(Truncation::NoMapping))?;
    let row = match &mapping.code {
        Code::FramePointer => Row {
            rule: RULE_FRAME_POINTER,
            ..Row::default()
        },
        Code::Table(table) => {
            let row = table.row_at(ElfAddress(lookup.wrapping_sub(mapping.delta)));
            row.ok_or(WalkEnd::Truncated(Truncation::NoRule(UnknownReason::NoTable)))?
        }
    };
    apply(machine, row, registers, read)
}

pub(super) fn apply(
    machine: Machine,
    row: Row,
    registers: Registers,
    read: &impl Fn(u64) -> Option<u64>,
) -> Result<Caller, Stop> {
    let Registers { sp, bp, .. } = registers;
    let load = |address: u64| read(address).ok_or(WalkEnd::Truncated(Truncation::UnreadableStack(address)));
    let deref = |base: u64| {
        let pointer = load(base.wrapping_add_signed(deref_offset(row.cfa).into()))?;
        Ok(pointer.wrapping_add_signed(deref_addend(row.cfa).into()))
    };
    let cfa = match row.rule & !BP_VIA_BP {
        RULE_SP => sp.wrapping_add_signed(row.cfa.into()),
        RULE_BP => bp.wrapping_add_signed(row.cfa.into()),
        RULE_SP_DEREF => deref(sp)?,
        RULE_BP_DEREF => deref(bp)?,
        RULE_PLT => {
            let pushed = (registers.pc & 15) as i64 >= i64::from(row.cfa);
            sp.wrapping_add(if pushed { 16 } else { 8 })
        }
        RULE_END => return Err(WalkEnd::Bottom),
        RULE_SIGNAL => {
            let (pc_at, sp_at, bp_at) = match machine {
                Machine::X86_64 => (x86_64::SIGNAL_PC, x86_64::SIGNAL_SP, x86_64::SIGNAL_BP),
                Machine::Aarch64 => (aarch64::SIGNAL_PC, aarch64::SIGNAL_SP, aarch64::SIGNAL_BP),
            };
            let at = |offset| load(sp.wrapping_add(offset));
            // The interrupted stack may be another one, above or below: no order can be asked for.
            let registers = Registers {
                pc: at(pc_at)?,
                sp: at(sp_at)?,
                bp: at(bp_at)?,
                lr: None,
            };
            return Ok(Caller {
                registers,
                interrupted: true,
            });
        }
        RULE_FRAME_POINTER => return frame_pointer(registers, load),
        RULE_GO_CGOCALL => return cgocall(row, registers, load),
        _ => {
            let reason = UnknownReason::from_row(row).unwrap_or(UnknownReason::NoTable);
            return Err(WalkEnd::Truncated(Truncation::NoRule(reason)));
        }
    };
    let in_link_register = machine == Machine::Aarch64 && row.bp_offset == 0;
    // A leaf that keeps its return address in a register may have no frame at all.
    if cfa < sp || (cfa == sp && !in_link_register) {
        return Err(WalkEnd::Truncated(Truncation::NotProgressing));
    }
    let saved_bp_at = if row.rule & BP_VIA_BP != 0 {
        Some(bp.wrapping_add_signed(row.bp_offset.into()))
    } else {
        (row.bp_offset != 0).then(|| cfa.wrapping_add_signed(row.bp_offset.into()))
    };
    let pc = match machine {
        Machine::X86_64 => load(cfa.wrapping_sub(8))?,
        Machine::Aarch64 => match saved_bp_at {
            Some(address) => load(address.wrapping_add(8))?,
            None => registers.lr.ok_or(WalkEnd::Truncated(Truncation::NotProgressing))?,
        },
    };
    let bp = saved_bp_at.map_or(Ok(bp), load)?;
    // Hand-written entry points push a zero where a caller would have left its address.
    if pc == 0 {
        return Err(WalkEnd::Bottom);
    }
    Ok(Caller {
        registers: Registers {
            pc,
            sp: cfa,
            bp,
            lr: None,
        },
        interrupted: false,
    })
}

/// The chain of frame pointers may change stacks: from C on a thread's stack it goes on to a goroutine's, which lies
/// lower. It is only bounded in length.
fn frame_pointer(registers: Registers, load: impl Fn(u64) -> Result<u64, Stop>) -> Result<Caller, Stop> {
    let Registers { bp, .. } = registers;
    if bp == 0 {
        return Err(WalkEnd::Bottom);
    }
    let pc = load(bp.wrapping_add(8))?;
    let caller_bp = load(bp)?;
    if pc == 0 {
        return Err(WalkEnd::Bottom);
    }
    if caller_bp == bp {
        return Err(WalkEnd::Truncated(Truncation::NotProgressing));
    }
    let registers = Registers {
        pc,
        sp: bp.wrapping_add(16),
        bp: caller_bp,
        lr: None,
    };
    Ok(Caller {
        registers,
        interrupted: false,
    })
}

/// From C back to the goroutine that called it, whose stack may have moved since.
fn cgocall(row: Row, registers: Registers, load: impl Fn(u64) -> Result<u64, Stop>) -> Result<Caller, Stop> {
    let Registers { sp, bp, .. } = registers;
    let goroutine = load(sp.wrapping_add_signed(deref_offset(row.cfa).into()))?;
    let depth = load(sp.wrapping_add_signed(deref_addend(row.cfa).into()))?;
    let own = match goroutine {
        0 => depth,
        _ => load(goroutine.wrapping_add(GO_STACK_HI))?.wrapping_sub(depth),
    };
    let returns_at = own.wrapping_add_signed(row.bp_offset.into());
    let pc = load(returns_at)?;
    let bp = match row.bp_offset {
        0 => bp,
        _ => load(returns_at.wrapping_sub(8))?,
    };
    if pc == 0 {
        return Err(WalkEnd::Bottom);
    }
    let registers = Registers {
        pc,
        sp: returns_at.wrapping_add(8),
        bp,
        lr: None,
    };
    Ok(Caller {
        registers,
        interrupted: false,
    })
}
