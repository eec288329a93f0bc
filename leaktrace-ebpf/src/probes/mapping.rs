//! The address space: anonymous memory mapped outside an allocator, and new code.
//!
//! Of a process that is followed without probes, what it asks for is told as growth.
//!
//! Memory is given back at the entry of its call, as for `free`: of munmap, of a mapping over old ones, and of mremap, which
//! has two phases as realloc has.
//!
//! What an allocator maps for itself happens inside a pending call and is not told; giving such memory back is told and
//! ignored by userspace, which does not know it.

use aya_ebpf::{EbpfContext, programs::TracePointContext};
use leaktrace_common::{
    config::{PROCESS_ACTIVE, PROCESS_TRACK_MMAP, Process},
    event::{Alloc, KIND_CODE_MAPPED, KIND_MMAP, KIND_MREMAP, Remap},
    reason::Counter,
};

use crate::{
    emit,
    maps::{self, count},
    probes::{allocate, growth},
    stack,
    thread::{self, PendingMapping, Scratch, Thread},
};

const CALL_MMAP: u64 = 1;
const CALL_MMAP_CODE: u64 = 2;
const CALL_MREMAP: u64 = 3;
const CALL_MMAP_GROWTH: u64 = 4;

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// Replaces whatever is mapped there.
const MAP_FIXED: u64 = 0x10;
const MREMAP_FIXED: u64 = 2;
/// Stacks of threads are no heap.
const MAP_STACK: u64 = 0x2_0000;
/// Advice that gives pages back.
const MADV_DONTNEED: u64 = 4;
const MADV_FREE: u64 = 8;
/// The kernel's greatest error number: results above `-MAX_ERRNO` are errors.
const MAX_ERRNO: u64 = 4095;

/// System call tracepoints: common fields (8 bytes), the call's number (8), then arguments or the result.
const FIRST_FIELD: usize = 16;

#[inline(always)]
fn field(ctx: &TracePointContext, index: usize) -> u64 {
    // SAFETY: the verifier checks that the offset lies inside the tracepoint's record.
    unsafe { ctx.as_ptr().cast::<u64>().add(FIRST_FIELD / 8 + index).read() }
}

/// The traced process that the call belongs to, and its thread unless it is inside an allocator.
#[inline(always)]
fn traced() -> Option<(u32, u32, &'static Process)> {
    let (pid, tid) = thread::current();
    maps::process_by_pid(pid).map(|process| (pid, tid, process))
}

/// The same for a call that begins: while the process is set up or given up, none does.
#[inline(always)]
fn begins() -> Option<(u32, u32, &'static Process)> {
    traced().filter(|(_, _, process)| process.flags & PROCESS_ACTIVE != 0)
}

/// Whether a system call is made inside a pending allocation call, and so is the allocator's own.
#[inline(always)]
fn is_inside_call(thread: &mut Thread, process: &Process) -> bool {
    thread.pending.sp != 0
        && stack::entry_registers().is_none_or(|registers| allocate::is_nested(thread, process, registers.sp()))
}

/// A part of the address space is given back.
#[inline(always)]
fn give_back(pid: u32, process: &Process, address: u64, length: u64) {
    if process.growth_interval == 0
        && (process.flags & PROCESS_TRACK_MMAP == 0
            || thread::known().is_some_and(|thread| is_inside_call(thread, process)))
    {
        return;
    }
    emit::unmap(pid, address, length);
}

pub fn mmap_enter(ctx: &TracePointContext) {
    let Some((pid, _, process)) = begins() else {
        return;
    };
    let (length, protection, flags) = (field(ctx, 1), field(ctx, 2), field(ctx, 3));
    if flags & MAP_FIXED != 0 {
        give_back(pid, process, field(ctx, 0), length);
    }
    let call = if flags & MAP_ANONYMOUS == 0 {
        if protection & PROT_EXEC == 0 {
            return;
        }
        CALL_MMAP_CODE
    } else if protection == 0 || flags & MAP_STACK != 0 {
        // Address space that is only reserved holds no memory.
        return;
    } else if process.growth_interval != 0 {
        CALL_MMAP_GROWTH
    } else if process.flags & PROCESS_TRACK_MMAP == 0 {
        return;
    } else {
        CALL_MMAP
    };
    let Some(thread) = thread::get() else {
        return;
    };
    if call == CALL_MMAP && is_inside_call(thread, process) {
        return;
    }
    thread.mapping = PendingMapping {
        call,
        old: 0,
        old_length: 0,
        length,
        flags: 0,
    };
}

pub fn mmap_leave(ctx: &TracePointContext) {
    let Some((pid, tid, process)) = traced() else {
        return;
    };
    let Some((thread, scratch)) = thread::both() else {
        return;
    };
    let PendingMapping { call, length, .. } = thread.mapping;
    thread.mapping.call = 0;
    let address = field(ctx, 0);
    if address >= MAX_ERRNO.wrapping_neg() {
        return;
    }
    if call == CALL_MMAP_CODE {
        emit::notice(KIND_CODE_MAPPED, pid, 0);
    } else if call == CALL_MMAP_GROWTH {
        // Whatever was there before is gone.
        emit::unmap(pid, address, length);
        growth::asked(thread, scratch, process, pid, length);
    } else if call == CALL_MMAP {
        thread.mapped.new = Alloc {
            header: emit::header(KIND_MMAP, 0, pid),
            address,
            size: length,
            stack: 0,
            tid,
            interval: 0,
        };
        if !with_stack(thread, scratch, process) || !emit::copy(&thread.mapped.new) {
            count(Counter::MappingLost, 1);
        }
    }
}

/// Finds the stack of the record that was put together.
#[inline(always)]
fn with_stack(thread: &mut Thread, scratch: &mut Scratch, process: &Process) -> bool {
    let id = stack::entry_id(thread, scratch, process, thread.mapped.new.header.pid, 0);
    thread.mapped.new.stack = id.unwrap_or(0);
    id.is_some()
}

pub fn brk_leave(ctx: &TracePointContext) {
    growth::moved_break(field(ctx, 0));
}

pub fn madvise_enter(ctx: &TracePointContext) {
    let Some((pid, _, process)) = begins() else {
        return;
    };
    if process.growth_interval != 0 && matches!(field(ctx, 2), MADV_DONTNEED | MADV_FREE) {
        emit::unmap(pid, field(ctx, 0), field(ctx, 1));
    }
}

pub fn munmap_enter(ctx: &TracePointContext) {
    let Some((pid, _, process)) = begins() else {
        return;
    };
    give_back(pid, process, field(ctx, 0), field(ctx, 1));
}

pub fn mremap_enter(ctx: &TracePointContext) {
    let Some((pid, tid, process)) = begins() else {
        return;
    };
    if process.flags & PROCESS_TRACK_MMAP == 0 && process.growth_interval == 0 {
        return;
    }
    let Some(thread) = thread::get() else {
        return;
    };
    if is_inside_call(thread, process) {
        return;
    }
    let (old, old_length, length) = (field(ctx, 0), field(ctx, 1), field(ctx, 2));
    thread.mapping = PendingMapping {
        call: CALL_MREMAP,
        old,
        old_length,
        length,
        flags: 0,
    };
    if process.growth_interval != 0 {
        return;
    }
    if old_length == 0 {
        // The same memory at one more place.
        thread.mapping.call = 0;
        return;
    }
    if field(ctx, 3) & MREMAP_FIXED != 0 {
        emit::unmap(pid, field(ctx, 4), length);
    }
    thread.mapping.flags = emit::remap_begin(pid, tid, old, old_length) as u64;
}

pub fn mremap_leave(ctx: &TracePointContext) {
    let Some((pid, tid, process)) = traced() else {
        return;
    };
    let Some((thread, scratch)) = thread::both() else {
        return;
    };
    let PendingMapping {
        call,
        old,
        old_length,
        length,
        flags,
    } = thread.mapping;
    thread.mapping.call = 0;
    if call != CALL_MREMAP {
        return;
    }
    let address = field(ctx, 0);
    let failed = address >= MAX_ERRNO.wrapping_neg();
    if process.growth_interval != 0 {
        if failed {
            return;
        }
        emit::unmap(pid, old, old_length);
        growth::asked(thread, scratch, process, pid, length.saturating_sub(old_length));
        return;
    }
    thread.mapped = Remap {
        new: Alloc {
            header: emit::header(KIND_MREMAP, flags as u8, pid),
            address: if failed { 0 } else { address },
            size: length,
            stack: 0,
            tid,
            interval: 0,
        },
        old,
        old_length,
    };
    if failed && flags != 0 {
        // The beginning was deferred and stands: the old mapping is not followed any more.
        count(Counter::MappingLost, 1);
        return;
    }
    // Only what it grew by belongs to who asked for it.
    let has_stack = failed || length <= old_length || with_stack(thread, scratch, process);
    if !has_stack || !emit::copy(&thread.mapped) {
        count(Counter::MappingLost, 1);
    }
}
