//! The architecture seam: registers, calling convention, frame layout. One file each.

#[cfg(bpf_target_arch = "aarch64")]
mod aarch64;
#[cfg(bpf_target_arch = "x86_64")]
mod x86_64;

#[cfg(bpf_target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(bpf_target_arch = "x86_64")]
pub use x86_64::*;

/// No page of memory is smaller.
pub const LEAST_PAGE: u64 = 4096;

/// Reads 8 bytes of the current process.
#[inline(always)]
pub fn read_user(address: u64) -> Option<u64> {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { aya_ebpf::helpers::bpf_probe_read_user(address as *const u64) }.ok()
}

/// Keeps the kernel from giving the program a stack per CPU, which two threads in the same program would share. Programs
/// that make tail calls never have one; the verifier finds that out before it removes code that cannot be reached, as
/// the call here. One instruction is left of it.
#[inline(always)]
pub fn rule_out_private_stack() {
    // SAFETY: jumps over the call; changes its one operand.
    unsafe {
        core::arch::asm!(
            "r0 = 0",
            "if r0 == 0 goto +1",
            "call {tail_call}",
            tail_call = const aya_ebpf::bindings::bpf_func_id::BPF_FUNC_tail_call,
            out("r0") _,
        )
    };
}
