//! Calls that return a block: from entry to return.
//!
//! The outermost hooked call of a thread owns the event; calls inside it are the allocator's own business. A pending
//! call is known by its stack pointer: an entry further out than the pending one means that the pending one will never
//! return (it threw, or the kernel dropped its return probe). An entry at the same stack pointer is a call that the
//! pending function makes last, by a jump (`reallocarray` → `realloc`): under a return probe the outer one still owns
//! the event; where returns are probed by instruction, which the jump passes by, the inner one does.

use aya_ebpf::{
    bindings::BPF_ANY,
    cty::c_void,
    helpers::{bpf_get_attach_cookie, bpf_get_func_ip},
};
use leaktrace_common::{
    config::{BlockKey, PROCESS_ACTIVE, Process},
    event::{Alloc, FLAG_BEGIN_DEFERRED, KIND_ALLOC, KIND_REALLOC_END, ReallocEnd},
    reason::Counter,
    signature::{Op, Signature},
};

use crate::{
    arch::{RETURN_ADDRESS_BYTES, Registers, has_returned, read_user},
    emit,
    maps::{self, SAMPLED, count},
    sample, stack,
    thread::{self, Thread},
};

const ALLOC_OUT: u8 = Op::AllocOut as u8;
const REALLOC: u8 = Op::Realloc as u8;
const RESIZE: u8 = Op::Resize as u8;
/// Calls nested in one pending call before it is held to be abandoned: no allocator nests that deep.
const MAX_NESTED: u64 = 4096;

/// Whether a call at this stack pointer is part of a pending one. Drops a pending call that cannot return any more.
#[inline(always)]
pub fn is_nested(thread: &mut Thread, sp: u64) -> bool {
    let pending = &mut thread.pending;
    if pending.sp == 0 {
        return false;
    }
    let inside = sp < pending.sp || sp == pending.sp && pending.returns_surely != 0;
    if inside && pending.nested < MAX_NESTED {
        pending.nested += 1;
        count(Counter::Nested, 1);
        return true;
    }
    pending.sp = 0;
    if pending.returns_surely != 0 {
        count(Counter::ReturnMissed, 1);
    }
    false
}

/// What the probed function is like, as the probe's cookie tells.
#[inline(always)]
pub fn signature(ctx: *mut c_void) -> Signature {
    // SAFETY: the helper takes the program's own context.
    Signature(unsafe { bpf_get_attach_cookie(ctx) })
}

/// What both ends of a call need.
struct Call {
    pid: u32,
    tid: u32,
    slot: u16,
    process: &'static Process,
}

impl Call {
    /// In the process in this slot. `None` if the thread's process is not traced (any more).
    #[inline(always)]
    fn of(thread: &mut Thread, slot: u16) -> Option<Self> {
        let (pid, tid) = thread.ids();
        let process = maps::process(slot.into(), pid)?;
        Some(Self {
            pid,
            tid,
            slot,
            process,
        })
    }
}

/// An allocation call begins. Returns whether its return is wanted.
#[inline(always)]
pub fn enter(ctx: *mut c_void, regs: &Registers, returns_surely: bool) -> bool {
    let Some(thread) = thread::get() else {
        return false;
    };
    let signature = signature(ctx);
    match Call::of(thread, signature.process_slot()) {
        Some(call) => begin(&call, thread, signature, regs, returns_surely),
        None => false,
    }
}

/// The same for a program that serves entry and return. Which of both it is shows in the stack pointer where the calling
/// convention leaves no doubt, else in the instruction pointer: the probed instruction at an entry, the caller's at a
/// return. Its lowest byte tells nearly always, without asking the kernel.
#[inline(always)]
pub fn enter_or_leave(ctx: *mut c_void, regs: &Registers) -> bool {
    let Some(thread) = thread::get() else {
        return false;
    };
    let (ip, sp) = (regs.ip(), regs.sp());
    let pending = &thread.pending;
    let returned = pending.sp != 0 && has_returned(pending.sp, sp);
    let signature = if returned { Signature(0) } else { signature(ctx) };
    let slot = if returned {
        pending.slot
    } else {
        signature.process_slot()
    };
    let Some(call) = Call::of(thread, slot) else {
        return false;
    };
    if !returned {
        let pending = thread.pending.sp != 0;
        // SAFETY: the helper takes the program's own context.
        if ip as u8 == signature.site_byte() && (!pending || unsafe { bpf_get_func_ip(ctx) } == ip) {
            return begin(&call, thread, signature, regs, true);
        }
        if !pending {
            // A return without anything pending has nothing to tell.
            return false;
        }
    }
    end(&call, thread, regs, ip, sp);
    true
}

#[inline(always)]
fn begin(call: &Call, thread: &mut Thread, signature: Signature, regs: &Registers, returns_surely: bool) -> bool {
    let Call { pid, tid, process, .. } = *call;
    if process.flags & PROCESS_ACTIVE == 0 {
        return false;
    }
    let sp = regs.sp();
    if is_nested(thread, sp) {
        return false;
    }
    let op = signature.op();
    let mut size = regs.argument(signature.size_argument());
    let count_argument = signature.count_argument();
    if count_argument != 0 {
        let count = regs.argument(count_argument);
        // An overflowing product makes the call fail; its size is of no interest then.
        size = size.wrapping_mul(count);
    }
    let old = if op == REALLOC || op == RESIZE {
        regs.argument(signature.pointer_argument())
    } else {
        0
    };
    let takes = sample::takes(thread, process, size);
    let old_taken = old != 0 && (process.sample_interval == 0 || is_sampled(pid, old));
    // A call that is not taken still has to be known while it lasts: what the allocator maps inside it is its own, and so
    // are hooked calls that it makes. In sampled mode that would cost each call its return probe; direct mappings are
    // not followed there instead, and those functions alone pay that do make such calls.
    if !takes && !old_taken && process.sample_interval != 0 && !signature.nests() {
        return false;
    }
    let mut flags = 0;
    if op == REALLOC && old_taken {
        flags = emit::realloc_begin(pid, tid, old);
    }
    let pending = &mut thread.pending;
    pending.size = size;
    pending.old = if old_taken { old } else { 0 };
    pending.out = if op == ALLOC_OUT {
        regs.argument(signature.out_argument())
    } else {
        0
    };
    pending.interval = (process.sample_interval >> 4) as u32;
    pending.slot = call.slot;
    pending.op = op;
    pending.flags = flags;
    pending.skip_new = !takes as u8;
    pending.returns_surely = returns_surely as u8;
    pending.nested = 0;
    pending.sp = sp;
    true
}

/// Whether a block was taken as a sample.
#[inline(always)]
pub fn is_sampled(pid: u32, address: u64) -> bool {
    // SAFETY: read-only access to a map value.
    unsafe { SAMPLED.get(BlockKey { address, pid, pad: 0 }) }.is_some()
}

/// An allocation call returned to `ip`, where the stack pointer is `sp`.
#[inline(always)]
pub fn leave(ctx: *mut c_void, regs: &Registers, ip: u64, sp: u64) {
    if let Some(thread) = thread::known()
        && let Some(call) = Call::of(thread, signature(ctx).process_slot())
    {
        end(&call, thread, regs, ip, sp);
    }
}

#[inline(always)]
fn end(call: &Call, thread: &mut Thread, regs: &Registers, ip: u64, sp: u64) {
    let Call { pid, tid, .. } = *call;
    if thread.pending.sp == 0 || thread.pending.sp.wrapping_add(RETURN_ADDRESS_BYTES) != sp {
        return;
    }
    thread.pending.sp = 0;
    let (op, old, flags) = (thread.pending.op, thread.pending.old, thread.pending.flags);
    let mut alloc = Alloc {
        header: emit::header(KIND_ALLOC, flags, pid),
        address: regs.return_value(),
        size: thread.pending.size,
        stack: 0,
        tid,
        interval: thread.pending.interval,
    };
    if op == ALLOC_OUT {
        if alloc.address != 0 {
            count(Counter::AllocFailed, 1);
            return;
        }
        match read_user(thread.pending.out) {
            Some(address) => alloc.address = address,
            None => {
                count(Counter::ResultUnreadable, 1);
                emit::lost(&alloc);
                return;
            }
        }
    } else if op == RESIZE {
        // Returns the size that the block has now, at the same address.
        alloc.size = alloc.address;
        alloc.address = old;
    }
    let process = call.process;
    let reallocates = (op == REALLOC || op == RESIZE) && old != 0;
    let failed = alloc.address == 0;
    if failed && !(reallocates && alloc.size == 0) {
        count(Counter::AllocFailed, 1);
        if reallocates && flags & FLAG_BEGIN_DEFERRED != 0 {
            emit::undo_deferred(pid, old);
        }
    } else if reallocates {
        forget(process, pid, old);
    }
    let wanted = !failed && thread.pending.skip_new == 0;
    if !wanted && !reallocates {
        return;
    }
    let taken = wanted && remember(call, &alloc);
    if taken {
        match stack::id(thread, process, pid, ip, sp, regs.frame_pointer()) {
            Some(stack) => alloc.stack = stack,
            None => {
                forget(process, pid, alloc.address);
                emit::lost(&alloc);
                return;
            }
        }
    } else if !reallocates {
        emit::lost(&alloc);
        return;
    } else if !failed {
        // The old block is gone and the new one is not followed: told as a reallocation to nothing.
        alloc.address = 0;
        alloc.size = 0;
    }
    let told = if reallocates {
        alloc.header.kind = KIND_REALLOC_END;
        emit::record(ReallocEnd { new: alloc, old })
    } else {
        emit::record(alloc)
    };
    if !told && taken {
        forget(process, pid, alloc.address);
        emit::lost(&alloc);
    }
}

/// Remembers a sampled block, so that its free is told. Every taken block passes here before its record.
#[inline(always)]
fn remember(call: &Call, alloc: &Alloc) -> bool {
    let process = call.process;
    if process.sample_interval == 0 {
        return true;
    }
    let key = BlockKey {
        address: alloc.address,
        pid: alloc.header.pid,
        pad: 0,
    };
    let execs = maps::execs(call.slot.into());
    if SAMPLED.insert(key, execs, BPF_ANY.into()).is_ok() {
        return true;
    }
    count(Counter::SampledSetFull, 1);
    false
}

#[inline(always)]
fn forget(process: &Process, pid: u32, address: u64) {
    if process.sample_interval != 0 {
        let _ = SAMPLED.remove(BlockKey { address, pid, pad: 0 });
    }
}
