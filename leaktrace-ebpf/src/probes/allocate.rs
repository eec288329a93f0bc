//! Calls that return a block: from entry to return.
//!
//! The outermost hooked call of a thread owns the event; calls inside it are the allocator's own business. A pending
//! call is known by its stack pointer: an entry further out than the pending one means that the pending one will never
//! return (it threw, or the kernel dropped its return probe). An entry at the same stack pointer is a call that the
//! pending function makes last, by a jump (`reallocarray` → `realloc`): under a return probe the outer one still owns
//! the event; where returns are probed by instruction, which the jump passes by, the inner one does.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    cty::c_void,
    helpers::{bpf_get_attach_cookie, bpf_get_func_ip},
};
use leaktrace_common::{
    config::{BlockKey, PROCESS_ACTIVE, Process},
    event::{FLAG_BEGIN_DEFERRED, KIND_ALLOC, KIND_REALLOC_END, ReallocEnd},
    reason::Counter,
    signature::{Op, Signature},
};

use crate::{
    arch::{LEAST_PAGE, RETURN_ADDRESS_BYTES, Registers, has_returned, read_user},
    emit,
    maps::{self, SAMPLED, count},
    sample, stack,
    thread::{self, Pending, Scratch, Thread},
    unwind::is_known_code,
};

const ALLOC_OUT: u8 = Op::AllocOut as u8;
const REALLOC: u8 = Op::Realloc as u8;
const RESIZE: u8 = Op::Resize as u8;
/// What a map says that is full (`E2BIG`).
const NO_ROOM: i32 = -7;
/// What a map says that has no such key (`ENOENT`),
const NOT_THERE: i32 = -2;
/// and one that has it already (`EEXIST`).
const IS_THERE: i32 = -17;
/// Calls nested in one pending call before it is treated as abandoned, whatever its frame looks like: no allocator nests
/// that deep.
const MAX_NESTED: u64 = 4096;

/// Whether a call at this stack pointer is part of a pending one. Drops a pending call that cannot return any more.
#[inline(always)]
pub fn is_nested(thread: &mut Thread, process: &Process, sp: u64) -> bool {
    thread.pending.sp != 0 && is_inside(thread, process, sp) != 0
}

/// The same where a call is pending. A lost return must not hide the calls after it, so the stack pointer alone does not
/// decide: the pending call's frame has to be there still.
#[inline(never)]
fn is_inside(thread: &mut Thread, process: &Process, sp: u64) -> u64 {
    let pending = &thread.pending;
    let further_in = sp < pending.sp || sp == pending.sp && pending.has_return_probe != 0;
    if further_in && pending.nested < MAX_NESTED && frame_is_there(thread, process) {
        thread.pending.nested += 1;
        return 1;
    }
    if thread.pending.has_return_probe != 0 {
        count(Counter::ReturnMissed, 1);
    }
    thread.pending.sp = 0;
    0
}

/// Whether the slot of the pending call's return address holds what it held during the call: the address itself or,
/// under a return probe, that of the kernel's trampoline, which begins a page and is no code that the process mapped.
/// Whoever is called from the same frame later overwrites it.
#[inline(always)]
fn frame_is_there(thread: &mut Thread, process: &Process) -> bool {
    let Some(held) = read_user(thread.pending.sp) else {
        // Not in memory: nothing is known, and what the stack pointer says stands.
        return true;
    };
    if thread.pending.has_return_probe == 0 {
        return held == thread.pending.return_address;
    }
    if held != thread.trampoline {
        if held & (LEAST_PAGE - 1) != 0 || is_known_code(&mut thread.walk, process, held) {
            return false;
        }
        thread.trampoline = held;
    }
    true
}

/// What the probed function is like, as the probe's cookie tells.
#[inline(always)]
pub fn signature(ctx: *mut c_void) -> Signature {
    // SAFETY: the helper takes the program's own context.
    Signature(unsafe { bpf_get_attach_cookie(ctx) })
}

/// The process in this slot, if it is the thread's. `None` if that is not traced (any more).
#[inline(always)]
fn process_of(thread: &mut Thread, slot: u16) -> Option<&'static Process> {
    maps::process(slot.into(), thread.ids().0)
}

/// An allocation call begins. Returns whether its return is wanted.
#[inline(always)]
pub fn enter(ctx: *mut c_void, has_return_probe: bool) -> bool {
    let Some(thread) = thread::get() else {
        return false;
    };
    let signature = signature(ctx);
    match process_of(thread, signature.process_slot()) {
        Some(process) => begin(thread, process, ctx, signature, has_return_probe),
        None => false,
    }
}

/// The same for a program that serves entry and return. Which of both it is shows in the stack pointer where the calling
/// convention leaves no doubt, else in the instruction pointer: the probed instruction at an entry, the caller's at a
/// return. Its lowest byte tells nearly always, without asking the kernel.
#[inline(always)]
pub fn enter_or_leave(ctx: *mut c_void) -> bool {
    let Some(thread) = thread::get() else {
        return false;
    };
    let regs = Registers::from_context(ctx);
    let (ip, sp) = (regs.ip(), regs.sp());
    let pending = &thread.pending;
    let returned = pending.sp != 0 && has_returned(pending.sp, sp);
    let signature = if returned { Signature(0) } else { signature(ctx) };
    let slot = if returned {
        pending.slot
    } else {
        signature.process_slot()
    };
    let Some(process) = process_of(thread, slot) else {
        return false;
    };
    if !returned {
        let pending = thread.pending.sp != 0;
        // SAFETY: the helper takes the program's own context.
        if ip as u8 == signature.site_byte() && (!pending || unsafe { bpf_get_func_ip(ctx) } == ip) {
            return begin(thread, process, ctx, signature, true);
        }
        if !pending {
            // A return without anything pending has nothing to tell.
            return false;
        }
    }
    if let Some((thread, scratch)) = thread::both() {
        thread.walk.begin_at(ip, sp, regs.frame_pointer());
        end(thread, scratch, process, regs.return_value());
    }
    true
}

#[inline(always)]
fn begin(
    thread: &mut Thread,
    process: &Process,
    ctx: *mut c_void,
    signature: Signature,
    has_return_probe: bool,
) -> bool {
    if process.flags & PROCESS_ACTIVE == 0 {
        return false;
    }
    let regs = Registers::from_context(ctx);
    let sp = regs.sp();
    if is_nested(thread, process, sp) {
        count(Counter::Nested, 1);
        return false;
    }
    note_request(thread, ctx, signature);
    let takes = sample::takes(thread, process, thread.pending.size);
    let old_taken = is_taken(thread, process);
    // A call that is not taken still has to be known while it lasts: what the allocator maps inside it is its own, and so
    // are hooked calls that it makes. In sampled mode that would cost each call its return probe; direct mappings are
    // not followed there instead, and those functions alone pay that do make such calls.
    if !takes && !old_taken && process.sample_interval != 0 && !signature.nests() {
        return false;
    }
    let pending = &mut thread.pending;
    pending.interval = (process.sample_interval >> 4) as u32;
    pending.flags = 0;
    pending.skip_new = !takes as u8;
    pending.has_return_probe = has_return_probe as u8;
    pending.nested = 0;
    pending.return_address = 0;
    if !old_taken {
        pending.old = 0;
    } else if pending.op == REALLOC {
        begin_reallocation(thread, process);
    }
    if !has_return_probe {
        thread.pending.return_address = read_user(sp).unwrap_or(0);
    }
    thread.pending.sp = sp;
    true
}

/// The old block is given back as far as anyone can know: its address may be handed out from here on. So it is no sample
/// any more either; if the reallocation fails, it becomes one again.
#[inline(never)]
fn begin_reallocation(thread: &mut Thread, process: &Process) -> u64 {
    let (old, (_, tid)) = (thread.pending.old, thread.ids());
    forget(process, old);
    thread.pending.flags = emit::realloc_begin(process.pid, tid, old);
    0
}

/// Notes what the call asks for, while none is pending.
#[inline(always)]
fn note_request(thread: &mut Thread, ctx: *mut c_void, signature: Signature) -> u64 {
    let regs = Registers::from_context(ctx);
    let pending = &mut thread.pending;
    pending.op = signature.op();
    pending.slot = signature.process_slot();
    pending.size = regs.argument(signature.size_argument());
    if signature.count_argument() != 0 {
        // An overflowing product makes the call fail; its size is of no interest then.
        pending.size = pending.size.wrapping_mul(regs.argument(signature.count_argument()));
    }
    pending.old = if pending.op == REALLOC || pending.op == RESIZE {
        regs.argument(signature.pointer_argument())
    } else {
        0
    };
    pending.out = if pending.op == ALLOC_OUT {
        regs.argument(signature.out_argument())
    } else {
        0
    };
    0
}

/// Whether the old block of the call that begins is followed.
#[inline(always)]
fn is_taken(thread: &mut Thread, process: &Process) -> bool {
    let old = thread.pending.old;
    old != 0 && (process.sample_interval == 0 || is_sampled(process.pid, old))
}

/// Whether a block was taken as a sample.
#[inline(never)]
pub fn is_sampled(pid: u32, address: u64) -> bool {
    // SAFETY: read-only access to a map value.
    unsafe { SAMPLED.get(BlockKey { address, pid, pad: 0 }) }.is_some()
}

/// An allocation call returned to `ip`, where the stack pointer is `sp`.
#[inline(always)]
pub fn leave(ctx: *mut c_void, ip: u64, sp: u64) {
    if let Some((thread, scratch)) = thread::both()
        && let Some(process) = process_of(thread, signature(ctx).process_slot())
    {
        let regs = Registers::from_context(ctx);
        thread.walk.begin_at(ip, sp, regs.frame_pointer());
        end(thread, scratch, process, regs.return_value());
    }
}

/// A call returned `result`, with the registers that the thread's walk holds.
#[inline(never)]
fn end(thread: &mut Thread, scratch: &mut Scratch, process: &Process, result: u64) -> u64 {
    if thread.pending.sp == 0 || thread.pending.sp.wrapping_add(RETURN_ADDRESS_BYTES) != thread.walk.sp {
        return 0;
    }
    thread.pending.sp = 0;
    match note_result(thread, process, result) {
        NOTHING => return 0,
        TAKEN => {
            let pid = thread.end.new.header.pid;
            match stack::id(thread, scratch, process, pid) {
                Some(stack) => thread.end.new.stack = stack,
                None => return lose(thread, process),
            }
        }
        _ => {}
    }
    let told = if thread.end.new.header.kind == KIND_REALLOC_END {
        emit::copy(&thread.end)
    } else {
        emit::copy(&thread.end.new)
    };
    // A reallocation to nothing leaves nothing to lose: its old block has been taken out at its beginning.
    if !told && thread.end.new.size != 0 {
        return lose(thread, process);
    }
    0
}

/// What a call that returned leaves to do: nothing,
const NOTHING: u64 = 0;
/// the record of a block that is gone,
const GONE: u64 = 1;
/// or that of a new block, which has a stack.
const TAKEN: u64 = 2;

/// Puts together the record of a call that returned `result`, all but its stack.
#[inline(never)]
fn note_result(thread: &mut Thread, process: &Process, result: u64) -> u64 {
    let (pid, (_, tid)) = (process.pid, thread.ids());
    let Pending { op, old, flags, .. } = thread.pending;
    let reallocates = (op == REALLOC || op == RESIZE) && old != 0;
    thread.end.old = old;
    let alloc = &mut thread.end.new;
    let kind = if reallocates { KIND_REALLOC_END } else { KIND_ALLOC };
    alloc.header = emit::header(kind, flags, pid);
    alloc.address = result;
    alloc.size = thread.pending.size;
    alloc.stack = 0;
    alloc.tid = tid;
    alloc.interval = thread.pending.interval;
    if op == ALLOC_OUT {
        if result != 0 {
            count(Counter::AllocFailed, 1);
            return NOTHING;
        }
        alloc.address = match read_user(thread.pending.out) {
            Some(address) => address,
            None => {
                count(Counter::ResultUnreadable, 1);
                emit::lost(alloc);
                return NOTHING;
            }
        };
    } else if op == RESIZE {
        // Returns the size that the block has now, at the same address.
        alloc.size = result;
        alloc.address = old;
    }
    let failed = alloc.address == 0;
    if failed && !(reallocates && alloc.size == 0) {
        count(Counter::AllocFailed, 1);
        if reallocates && !take_back(process, &thread.pending, &mut thread.end) {
            return NOTHING;
        }
    } else if reallocates && op == RESIZE {
        forget(process, old);
    }
    let wanted = !failed && thread.pending.skip_new == 0;
    if wanted && remember(process, thread.pending.slot, thread.end.new.address) {
        return TAKEN;
    }
    if wanted {
        emit::lost(&thread.end.new);
    }
    if !reallocates {
        return NOTHING;
    }
    if !failed {
        // The old block is gone and the new one is not followed: told as a reallocation to nothing.
        thread.end.new.address = 0;
        thread.end.new.size = 0;
    }
    GONE
}

/// The old block of a reallocation that failed lives on: it is a sample again. Returns whether its end is to be told. Where
/// the beginning was deferred it stands, and the block is not followed any more; nor is it where nobody would see its end.
#[inline(never)]
fn take_back(process: &Process, pending: &Pending, end: &mut ReallocEnd) -> bool {
    if pending.flags & FLAG_BEGIN_DEFERRED != 0 {
        count(Counter::AllocLost, 1);
        return false;
    }
    // The record names no new block: for a moment it names the old one.
    end.new.address = end.old;
    let remembered = remember(process, pending.slot, end.new.address);
    end.new.address = 0;
    remembered
}

/// The block of the record that was put together is not followed after all: the new one or, where a reallocation failed,
/// the old one, which lives on.
#[inline(never)]
fn lose(thread: &mut Thread, process: &Process) -> u64 {
    let alloc = &thread.end.new;
    let block = if alloc.address != 0 {
        alloc.address
    } else {
        thread.end.old
    };
    forget(process, block);
    if alloc.address != 0 {
        emit::lost(alloc);
    } else {
        // The size is what could not be had.
        count(Counter::AllocLost, 1);
    }
    0
}

/// Remembers a sampled block, so that its free is told. Every taken block passes here before its record.
#[inline(always)]
fn remember(process: &Process, slot: u16, address: u64) -> bool {
    process.sample_interval == 0 || note_sample(process, slot, address)
}

#[inline(never)]
fn note_sample(process: &Process, slot: u16, address: u64) -> bool {
    if !maps::may_hold(process) {
        count(Counter::SampledSetFull, 1);
        return false;
    }
    match insert_sample(process, slot, address, BPF_NOEXIST) {
        0 => {
            maps::note_held(process, 1);
            return true;
        }
        // Its free was missed.
        IS_THERE if insert_sample(process, slot, address, BPF_ANY) == 0 => return true,
        NO_ROOM => count(Counter::SampledSetFull, 1),
        _ => count(Counter::MapRefused, 1),
    }
    false
}

/// Returns 0, or the map's error.
#[inline(never)]
fn insert_sample(process: &Process, slot: u16, address: u64, flags: u32) -> i32 {
    let key = BlockKey {
        address,
        pid: process.pid,
        pad: 0,
    };
    match SAMPLED.insert(key, maps::execs(slot.into()), flags.into()) {
        Ok(()) => 0,
        Err(error) => error,
    }
}

#[inline(always)]
fn forget(process: &Process, address: u64) {
    if process.sample_interval != 0 {
        unremember(process, address);
    }
}

/// Takes a block out of the samples. False if it is none (any more); where the map refuses, which is counted, nothing is
/// known, and it counts as one.
#[inline(never)]
pub fn unremember(process: &Process, address: u64) -> bool {
    let key = BlockKey {
        address,
        pid: process.pid,
        pad: 0,
    };
    match SAMPLED.remove(key) {
        Ok(()) => {
            maps::note_held(process, -1);
            true
        }
        Err(NOT_THERE) => false,
        Err(_) => {
            count(Counter::MapRefused, 1);
            true
        }
    }
}
