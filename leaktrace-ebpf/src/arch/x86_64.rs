//! x86-64, System V calling convention.

use aya_ebpf::{bindings::pt_regs, cty::c_void};

use super::read_user;

/// The registers that a probe or a system call left.
#[derive(Clone, Copy)]
pub struct Registers(*const pt_regs);

impl Registers {
    /// From a uprobe's context.
    #[inline(always)]
    pub fn from_context(ctx: *mut c_void) -> Self {
        Self(ctx.cast())
    }

    /// From the registers saved at the entry of a system call.
    #[inline(always)]
    pub fn from_task(regs: *const pt_regs) -> Self {
        Self(regs)
    }

    #[inline(always)]
    pub fn ip(&self) -> u64 {
        // SAFETY: verified context or trusted pointer; reads are at constant offsets.
        unsafe { (*self.0).rip }
    }

    #[inline(always)]
    pub fn sp(&self) -> u64 {
        // SAFETY: as for `ip`.
        unsafe { (*self.0).rsp }
    }

    #[inline(always)]
    pub fn frame_pointer(&self) -> u64 {
        // SAFETY: as for `ip`.
        unsafe { (*self.0).rbp }
    }

    /// The value that a function returns.
    #[inline(always)]
    pub fn return_value(&self) -> u64 {
        // SAFETY: as for `ip`.
        unsafe { (*self.0).rax }
    }

    /// Argument by position, from 1; 0 for a position that is not used here.
    ///
    /// All four are read first: left to itself, the compiler would compute the place to read from, which the verifier
    /// does not allow in a context.
    #[inline(always)]
    pub fn argument(&self, position: u8) -> u64 {
        // SAFETY: as for `ip`.
        let values = unsafe {
            [
                (&raw const (*self.0).rdi).read_volatile(),
                (&raw const (*self.0).rsi).read_volatile(),
                (&raw const (*self.0).rdx).read_volatile(),
                (&raw const (*self.0).rcx).read_volatile(),
            ]
        };
        match position {
            1 => values[0],
            2 => values[1],
            3 => values[2],
            4 => values[3],
            _ => 0,
        }
    }
}

/// Stack pointer of the caller while a function stands at its first instructions: `call` pushed the return address.
pub const RETURN_ADDRESS_BYTES: u64 = 8;

/// Whether a call that was entered at `entry_sp` has returned, surely: a function is entered with the stack pointer 8
/// beside a multiple of 16, so that no entry stands where a return does.
#[inline(always)]
pub fn has_returned(entry_sp: u64, sp: u64) -> bool {
    sp == entry_sp.wrapping_add(RETURN_ADDRESS_BYTES) && sp & 15 == 0
}

/// At a `ret`: where it returns to, and the stack pointer behind it.
#[inline(always)]
pub fn caller_at_return_instruction(regs: &Registers) -> Option<(u64, u64)> {
    let sp = regs.sp();
    Some((read_user(sp)?, sp + 8))
}

/// Where the return address of a frame lies, from its CFA.
#[inline(always)]
pub fn return_address_slot(cfa: u64) -> u64 {
    cfa - 8
}

/// Positions of the interrupted registers from the stack pointer in a signal trampoline: `struct ucontext` of
/// `rt_sigframe`, whose `uc_mcontext` begins at 40 (r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip).
pub mod signal_frame {
    pub const FRAME_POINTER: u64 = 40 + 10 * 8;
    pub const STACK_POINTER: u64 = 40 + 15 * 8;
    pub const INSTRUCTION_POINTER: u64 = 40 + 16 * 8;
}
