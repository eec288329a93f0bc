//! Calls that give a block back: told at their entry, while no one else can have been handed the address.

use aya_ebpf::cty::c_void;
use leaktrace_common::{config::PROCESS_ACTIVE, reason::Counter};

use crate::{
    arch::Registers,
    emit,
    maps::{self, count},
    probes::allocate,
    thread,
};

/// A block is given back.
#[inline(always)]
pub fn enter(ctx: *mut c_void, regs: &Registers) {
    let signature = allocate::signature(ctx);
    let Some(process) = maps::process_in(signature.process_slot().into()) else {
        return;
    };
    let address = regs.argument(signature.pointer_argument());
    if address == 0 || process.flags & PROCESS_ACTIVE == 0 {
        return;
    }
    // In sampled mode most blocks are no samples, and the thread has nothing to say to them.
    let sampled = process.sample_interval != 0;
    let mut thread = if sampled { None } else { thread::known() };
    let (pid, _) = match &mut thread {
        Some(thread) => thread.ids(),
        None => thread::current(),
    };
    let owner = process.pid;
    if owner != pid && maps::is_sharer(pid, signature.process_slot().into(), owner) == 0 {
        return;
    }
    if sampled && !allocate::is_sampled(owner, address) {
        return;
    }
    if sampled {
        thread = thread::known();
    }
    if let Some(thread) = thread
        && allocate::is_nested(thread, process, regs.sp())
    {
        count(Counter::Nested, 1);
        return;
    }
    // Of two threads that give the same block back, a bug of theirs, one is told.
    if sampled && !allocate::unremember(process, address) {
        return;
    }
    emit::free(owner, address);
}
