//! Calls that give a block back: told at their entry, while no one else can have been handed the address.

use aya_ebpf::cty::c_void;
use leaktrace_common::config::{BlockKey, PROCESS_ACTIVE};

use crate::{
    arch::Registers,
    emit,
    maps::SAMPLED,
    probes::allocate::{self, Call},
    thread,
};

/// A block is given back.
#[inline(always)]
pub fn enter(ctx: *mut c_void, regs: &Registers) {
    let Some(Call {
        pid,
        signature,
        process,
        ..
    }) = Call::current(ctx)
    else {
        return;
    };
    let address = regs.argument(signature.pointer_argument());
    if address == 0 || process.flags & PROCESS_ACTIVE == 0 {
        return;
    }
    let sampled = process.sample_interval != 0;
    if sampled && !allocate::is_sampled(pid, address) {
        return;
    }
    if let Some(thread) = thread::known()
        && allocate::is_nested(thread, regs.sp())
    {
        return;
    }
    // Of two threads that give the same block back, a bug of theirs, one is told.
    if sampled && SAMPLED.remove(BlockKey { address, pid, pad: 0 }).is_err() {
        return;
    }
    emit::free(pid, address);
}
