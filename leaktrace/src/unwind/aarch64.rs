//! ARM64's part of unwinding: DWARF register numbers and where a return address lies.
//!
//! A function that calls others stores the pair x29, x30 side by side, so the return address is found 8 bytes above the
//! saved frame pointer; in a leaf it is still in x30, which only the innermost frame of a walk may use.
//! Source: DWARF for the Arm 64-bit Architecture (register numbers), AAPCS64 (frame records).

use super::program::{RegisterNumbers, Saved};
use super::rule::UnknownReason;

pub(super) const REGISTERS: RegisterNumbers = RegisterNumbers { sp: 31, bp: 29, ra: 30 };

/// `mov x29, sp`, which follows the storing of the pair.
pub(super) const PROLOGUE: [u8; 4] = [0xfd, 0x03, 0x00, 0x91];

/// `struct rt_sigframe`: 128 bytes of siginfo, then the ucontext, whose `regs` begin at byte 184 (16-byte alignment).
const SIGNAL_REGISTERS: u64 = 128 + 184;
/// Offset of the interrupted x29 from the trampoline's stack pointer.
pub(super) const SIGNAL_BP: u64 = SIGNAL_REGISTERS + 29 * 8;
/// Offset of the interrupted stack pointer from the trampoline's.
pub(super) const SIGNAL_SP: u64 = SIGNAL_REGISTERS + 31 * 8;
/// Offset of the interrupted program counter from the trampoline's stack pointer.
pub(super) const SIGNAL_PC: u64 = SIGNAL_REGISTERS + 32 * 8;

/// The return address must be stored right above the frame pointer, or both must still be in their registers.
pub(super) fn check_return_address(bp: Saved, ra: Saved) -> Result<(), UnknownReason> {
    match (bp, ra) {
        (Saved::AtCfa(bp), Saved::AtCfa(ra)) if bp.checked_add(8) == Some(ra) => Ok(()),
        (Saved::Unspecified | Saved::Same, Saved::Unspecified | Saved::Same) => Ok(()),
        _ => Err(UnknownReason::ReturnAddress),
    }
}
