//! Records onto the ring, and what happens when they do not fit.
//!
//! The reader is woken by its own timer (`BPF_RB_NO_WAKEUP`): a wake-up per record costs more than the record. Notices
//! that a delay would hurt (new code, exec) wake it at once.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_ringbuf_output};
use leaktrace_common::{
    config::BlockKey,
    event::{
        Alloc, CodeMapped, FLAG_BEGIN_DEFERRED, Free, Header, KIND_CODE_MAPPED, KIND_FREE, KIND_MUNMAP,
        KIND_REALLOC_BEGIN, Notice, ReallocBegin, Stack, Unmap,
    },
    reason::Counter,
};

use crate::{
    maps::{DEFERRED_FREES, EVENTS, count},
    thread::Thread,
};

const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const QUERY_PRODUCER_POSITION: u64 = 3;

/// A record's first 8 bytes.
#[inline(always)]
pub const fn header(kind: u8, flags: u8, pid: u32) -> Header {
    Header {
        kind,
        flags,
        pad: 0,
        pid,
    }
}

/// Puts a record of fixed size onto the ring.
#[inline(always)]
pub fn record<T: 'static>(value: T) -> bool {
    put(value, NO_WAKEUP)
}

/// The same for one that was put together in the thread's record.
#[inline(always)]
pub fn copy<T: Copy + 'static>(value: &T) -> bool {
    match EVENTS.reserve::<T>(0) {
        Some(mut entry) => {
            entry.write(*value);
            entry.submit(NO_WAKEUP);
            true
        }
        None => false,
    }
}

#[inline(always)]
fn put<T: 'static>(value: T, flags: u64) -> bool {
    match EVENTS.reserve::<T>(0) {
        Some(mut entry) => {
            entry.write(value);
            entry.submit(flags);
            true
        }
        None => false,
    }
}

/// Counts an allocation that did not fit.
#[inline(always)]
pub fn lost(alloc: &Alloc) {
    count(Counter::AllocLost, 1);
    count(Counter::AllocBytesLost, alloc.size);
}

/// A free; if it does not fit, its place in the order is kept instead, and it is applied there.
#[inline(always)]
pub fn free(pid: u32, address: u64) {
    if !record(Free {
        header: header(KIND_FREE, 0, pid),
        address,
    }) {
        defer(pid, address, Counter::FreeDeferred);
    }
}

/// The beginning of a reallocation. Returns the flags for the record of its end.
#[inline(never)]
pub fn realloc_begin(pid: u32, tid: u32, old: u64) -> u8 {
    if record(ReallocBegin {
        header: header(KIND_REALLOC_BEGIN, 0, pid),
        old,
        tid,
        pad: 0,
    }) {
        0
    } else {
        defer(pid, old, Counter::ReallocBeginDeferred);
        FLAG_BEGIN_DEFERRED
    }
}

#[inline(never)]
fn defer(pid: u32, address: u64, counter: Counter) -> i32 {
    // The block is still allocated while its release is being entered, so no record of a later allocation at this
    // address can lie before the position read here.
    let position = EVENTS.query(QUERY_PRODUCER_POSITION);
    let stored = DEFERRED_FREES
        .insert(BlockKey { address, pid, pad: 0 }, position, 0)
        .is_ok();
    count(if stored { counter } else { Counter::FreeLost }, 1);
    0
}

/// The old block of a failed reallocation lives on: it is not to be freed after all.
#[inline(never)]
pub fn undo_deferred(pid: u32, address: u64) -> u64 {
    // Userspace may have taken it out and applied it already.
    let _ = DEFERRED_FREES.remove(BlockKey { address, pid, pad: 0 });
    0
}

/// Part of the address space given back.
#[inline(always)]
pub fn unmap(pid: u32, address: u64, length: u64) {
    if !record(Unmap {
        header: header(KIND_MUNMAP, 0, pid),
        address,
        length,
    }) {
        count(Counter::MappingLost, 1);
    }
}

/// A notice about the process, which wakes the reader.
#[inline(always)]
pub fn notice(kind: u8, pid: u32, subject: u32) {
    if !put(
        Notice {
            header: header(kind, 0, pid),
            subject,
            pad: 0,
        },
        FORCE_WAKEUP,
    ) {
        count(Counter::NoticeLost, 1);
    }
}

/// Code that was mapped, which wakes the reader. `begun` is when the call was entered.
#[inline(never)]
pub fn code_mapped(pid: u32, flags: u64, address: u64, length: u64, begun: u64) -> u64 {
    let Some(mut entry) = EVENTS.reserve::<CodeMapped>(0) else {
        count(Counter::NoticeLost, 1);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is memory of this size, written field by field so that no copy of it stands on the stack; the
    // helper takes no argument.
    unsafe {
        (&raw mut (*record).header).write(header(KIND_CODE_MAPPED, flags as u8, pid));
        (&raw mut (*record).address).write(address);
        (&raw mut (*record).length).write(length);
        (&raw mut (*record).begun).write(begun);
        (&raw mut (*record).done).write(bpf_ktime_get_ns());
    }
    entry.submit(FORCE_WAKEUP);
    0
}

/// The stack that was put together in the thread's record.
#[inline(always)]
pub fn stack(thread: &mut Thread) -> bool {
    // SAFETY: plain numbers, in which every bit pattern is valid.
    let record = unsafe { &mut thread.walk.piece.record };
    let depth = record.depth as u64;
    if depth > leaktrace_common::config::MAX_FRAMES as u64 {
        return false;
    }
    let length = Stack::PREFIX as u64 + depth * 8;
    // SAFETY: `length` bytes of the record are initialised map memory.
    unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            (&raw mut *record).cast(),
            length,
            NO_WAKEUP,
        ) == 0
    }
}
