//! AMD64's part of unwinding: DWARF register numbers, where a return address lies, the layout of a signal frame.
//!
//! Source: System V ABI for AMD64, figure 3.36 (register numbers); `struct rt_sigframe` and `struct sigcontext_64` of
//! Linux for the signal frame.

use super::program::{RegisterNumbers, Saved};
use super::rule::UnknownReason;

pub(super) const REGISTERS: RegisterNumbers = RegisterNumbers { sp: 7, bp: 6, ra: 16 };

/// `push rbp; mov rbp, rsp`, as compilers and assemblers encode it.
pub(super) const PROLOGUE: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];

/// `rsp` points at `struct ucontext` while the trampoline runs: 40 bytes, then `uc_mcontext`, whose 8-byte registers are
/// r8…r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
pub(super) const SIGNAL_BP: u64 = 40 + 10 * 8;
/// Offset of the interrupted stack pointer from the trampoline's.
pub(super) const SIGNAL_SP: u64 = 40 + 15 * 8;
/// Offset of the interrupted program counter from the trampoline's stack pointer.
pub(super) const SIGNAL_PC: u64 = 40 + 16 * 8;

/// `call` has pushed the return address just below the CFA; the kernel side reads it there and nowhere else.
pub(super) fn check_return_address(ra: Saved) -> Result<(), UnknownReason> {
    if ra == Saved::AtCfa(-8) {
        Ok(())
    } else {
        Err(UnknownReason::ReturnAddress)
    }
}
