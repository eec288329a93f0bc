//! aarch64, AAPCS64. Compiles; nothing here has run on such a machine yet.
//!
//! A frame record is (frame pointer, link register), so the return address lies right behind the saved frame pointer;
//! compiled rows state the CFA such that the record ends at it.

use aya_ebpf::{bindings::pt_regs, cty::c_void};

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
        unsafe { (*self.0.cast::<aya_ebpf::bindings::user_pt_regs>()).pc }
    }

    #[inline(always)]
    pub fn sp(&self) -> u64 {
        // SAFETY: as for `ip`.
        unsafe { (*self.0.cast::<aya_ebpf::bindings::user_pt_regs>()).sp }
    }

    #[inline(always)]
    fn general(&self, number: usize) -> u64 {
        // SAFETY: as for `ip`.
        unsafe { (*self.0.cast::<aya_ebpf::bindings::user_pt_regs>()).regs[number] }
    }

    #[inline(always)]
    pub fn frame_pointer(&self) -> u64 {
        self.general(29)
    }

    /// The value that a function returns.
    #[inline(always)]
    pub fn return_value(&self) -> u64 {
        self.general(0)
    }

    /// Argument by position, from 1; 0 for a position that is not used here. All four are read first (see x86-64).
    #[inline(always)]
    pub fn argument(&self, position: u8) -> u64 {
        // SAFETY: as for `ip`.
        let values = unsafe {
            (&raw const (*self.0.cast::<aya_ebpf::bindings::user_pt_regs>()).regs)
                .cast::<[u64; 4]>()
                .read_volatile()
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

/// `bl` pushes nothing.
pub const RETURN_ADDRESS_BYTES: u64 = 0;

/// Whether a call that was entered at `entry_sp` has returned, surely: the stack pointer is the same at both, so it never
/// tells.
#[inline(always)]
pub fn has_returned(_entry_sp: u64, _sp: u64) -> bool {
    false
}

/// At a `ret`: where it returns to, and the stack pointer behind it.
#[inline(always)]
pub fn caller_at_return_instruction(regs: &Registers) -> Option<(u64, u64)> {
    Some((regs.general(30), regs.sp()))
}

/// Where the return address of a frame lies, from its CFA.
#[inline(always)]
pub fn return_address_slot(cfa: u64) -> u64 {
    cfa - 8
}

/// Positions of the interrupted registers from the stack pointer in a signal trampoline (`struct rt_sigframe`:
/// siginfo of 128 bytes, then `ucontext`, whose `uc_mcontext` begins at 176 with the fault address).
pub mod signal_frame {
    pub const FRAME_POINTER: u64 = 128 + 176 + 8 + 29 * 8;
    pub const STACK_POINTER: u64 = 128 + 176 + 8 + 31 * 8;
    pub const INSTRUCTION_POINTER: u64 = 128 + 176 + 8 + 32 * 8;
}
