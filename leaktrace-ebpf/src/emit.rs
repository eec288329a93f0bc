//! Records onto the ring, and what happens when they do not fit.
//!
//! Invariant: whatever is given back is told: by a record, else by an entry of [`DEFERRED_RELEASES`], else by a count in
//! [`LOST_RELEASES`], which cannot fail. So no loss leaves memory outstanding that is not.
//!
//! The reader is woken by its own timer (`BPF_RB_NO_WAKEUP`): a wake-up per record costs more than the record. Notices
//! that a delay would hurt (new code, exec) wake it at once.

use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_ringbuf_output};
use leaktrace_common::{
    config::{
        LOST_PROCESSES, RELEASE_BLOCK, RELEASE_INTERVAL, RELEASE_PROGRAM, ReleaseKey, block_bucket, process_bucket,
    },
    event::{
        Alloc, CodeMapped, FLAG_BEGIN_DEFERRED, Free, Header, KIND_CODE_MAPPED, KIND_EXEC, KIND_FREE,
        KIND_MREMAP_BEGIN, KIND_MUNMAP, KIND_REALLOC_BEGIN, KIND_SHARER, Notice, ReallocBegin, RemapBegin, Stack,
        Unmap,
    },
    reason::Counter,
};

use crate::{
    maps::{DEFERRED_RELEASES, EVENTS, LOST_RELEASES, count},
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
        defer(pid, address, 0, Counter::FreeDeferred);
    }
}

/// The beginning of a reallocation. Returns the flags for the record of its end.
///
/// One that is deferred stands, even if the reallocation fails: another release of the same address may be the same entry.
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
        defer(pid, old, 0, Counter::ReallocBeginDeferred);
        FLAG_BEGIN_DEFERRED
    }
}

/// The beginning of an mremap, as [`realloc_begin`].
#[inline(never)]
pub fn remap_begin(pid: u32, tid: u32, old: u64, old_length: u64) -> u8 {
    if record(RemapBegin {
        header: header(KIND_MREMAP_BEGIN, 0, pid),
        old,
        old_length,
        tid,
        pad: 0,
    }) {
        0
    } else {
        defer(pid, old, old_length, Counter::UnmapDeferred);
        FLAG_BEGIN_DEFERRED
    }
}

/// Notes a release whose record did not fit, with its place in the order.
#[inline(never)]
fn defer(pid: u32, address: u64, length: u64, counter: Counter) -> u64 {
    // What is given back is still held while its release is being entered, so no record of a later allocation at this
    // address can lie before the position read here.
    let position = EVENTS.query(QUERY_PRODUCER_POSITION);
    let kind = match counter {
        Counter::UnmapDeferred => RELEASE_INTERVAL,
        Counter::ExecDeferred => RELEASE_PROGRAM,
        _ => RELEASE_BLOCK,
    };
    let key = ReleaseKey {
        address,
        length,
        pid,
        place: ReleaseKey::place(kind, position),
    };
    if DEFERRED_RELEASES.insert(key, position, 0).is_ok() {
        count(counter, 1);
    } else {
        lose(pid, address, kind);
    }
    0
}

/// A release that is told by nothing else makes all doubtful that it may have been. The mark comes first: who sees the
/// counter sees the mark.
#[inline(never)]
fn lose(pid: u32, address: u64, kind: u32) -> u64 {
    let (bucket, counter) = match kind {
        RELEASE_INTERVAL => (process_bucket(pid), Counter::UnmapLost),
        RELEASE_PROGRAM => (LOST_PROCESSES + process_bucket(pid), Counter::ExecLost),
        _ => (block_bucket(pid, address), Counter::FreeLost),
    };
    if let Some(mark) = LOST_RELEASES.get_ptr_mut(bucket) {
        // SAFETY: adds to an aligned map value and touches nothing else.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) mark, in(reg) 1u64) };
    }
    count(counter, 1);
    0
}

/// Part of the address space given back: told at the call's entry, while no one else can have been handed it.
#[inline(always)]
pub fn unmap(pid: u32, address: u64, length: u64) {
    if !record(Unmap {
        header: header(KIND_MUNMAP, 0, pid),
        address,
        length,
    }) {
        defer(pid, address, length, Counter::UnmapDeferred);
    }
}

/// The process runs another program: nothing is left of what it held.
#[inline(always)]
pub fn exec(pid: u32) {
    if !put(
        Notice {
            header: header(KIND_EXEC, 0, pid),
            subject: 0,
            pad: 0,
        },
        FORCE_WAKEUP,
    ) {
        defer(pid, 0, 0, Counter::ExecDeferred);
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

/// A process that goes on using the memory of the traced one, which wakes the reader.
#[inline(always)]
pub fn sharer(pid: u32, sharer: u32, flags: u8) {
    if !put(
        Notice {
            header: header(KIND_SHARER, flags, pid),
            subject: sharer,
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
