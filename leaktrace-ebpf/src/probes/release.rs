//! Calls that give a block back: told at their entry, while no one else can have been handed the address.

use aya_ebpf::{cty::c_void, helpers::bpf_get_attach_cookie};
use leaktrace_common::{config::BlockKey, signature::Signature};

use crate::{
    arch::Registers,
    emit,
    maps::{PROCESSES, SAMPLED},
    probes::allocate,
    thread,
};

/// A block is given back.
#[inline(always)]
pub fn enter(ctx: *mut c_void, regs: &Registers) {
    let (pid, tid) = thread::current();
    // SAFETY: the helper takes the program's own context.
    let signature = Signature(unsafe { bpf_get_attach_cookie(ctx) });
    let address = regs.argument(signature.pointer_argument());
    if address == 0 {
        return;
    }
    // SAFETY: read-only access to a map value.
    let Some(process) = (unsafe { PROCESSES.get(pid) }) else {
        return;
    };
    if let Some(thread) = thread::known(tid)
        && allocate::is_nested(thread, regs.sp())
    {
        return;
    }
    if process.sample_interval != 0 && SAMPLED.remove(BlockKey { address, pid, pad: 0 }).is_err() {
        return;
    }
    emit::free(pid, address);
}
