//! Growth by stack, of processes that are followed without probes: memory that becomes resident, and address space that
//! is asked for.
//!
//! *Resident*: a thread meets a missing page (`exceptions:page_fault_*`), and the kernel changes the process's number of
//! anonymous pages (`kmem:rss_stat`): the page is there now, and was not before. Sampling points lie on each thread's
//! stream of such bytes, as for allocations. What the process gives back is told, too (`mapping.rs`), and userspace looks
//! from time to time which of the sampled pages are still there.
//!
//! *Asked for*: `brk`, `mmap` and `mremap`, by sampling points on the stream of bytes, as for allocations.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use leaktrace_common::{
    config::Process,
    event::{Alloc, FLAG_RESIDENT, KIND_GROWTH},
    reason::Counter,
};

use crate::{
    emit,
    maps::{self, GROWTH, count},
    sample, stack,
    thread::{self, Scratch, Thread},
};

/// Where `mm_struct` keeps the number of anonymous pages. Set by userspace from the kernel's type information.
#[unsafe(no_mangle)]
static ANON_PAGES_OFFSET: u32 = 0;
/// Where `task_struct` keeps its `mm_struct`. Set by userspace from the kernel's type information.
#[unsafe(no_mangle)]
static TASK_MEMORY_OFFSET: u32 = 0;
/// A difference of the number of anonymous pages from which on it is how many came. Set by userspace: it depends on how the
/// kernel counts.
#[unsafe(no_mangle)]
static LEAST_JUMP: u32 = 256;
/// Binary logarithm of the page size. Set by userspace.
#[unsafe(no_mangle)]
static PAGE_SHIFT: u32 = 12;

/// `MM_ANONPAGES`.
const ANONYMOUS: u32 = 1;
/// More is no number of pages.
const MAX_PAGES: u64 = 1 << 40;

/// The current process, if its growth is followed: its slot, its pid, and how.
#[inline(always)]
fn followed() -> Option<(u32, u32, &'static Process)> {
    let (pid, _) = thread::current();
    let slot = maps::slot_by_pid(pid)?;
    let process = maps::process(slot, pid).filter(|process| process.growth_interval != 0)?;
    Some((slot, pid, process))
}

/// A counter of `memory` (an `mm_struct`) changed.
#[inline(always)]
pub fn resident(memory: u64, kind: u32) {
    if kind != ANONYMOUS {
        return;
    }
    let Some((slot, pid, process)) = followed() else {
        return;
    };
    let Some((thread, scratch)) = thread::both() else {
        return;
    };
    let page = core::mem::replace(&mut thread.fault, 0);
    // SAFETY: the helper takes no argument and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    if read_kernel(task.wrapping_add(given(&raw const TASK_MEMORY_OFFSET))) != memory {
        // Another process's (a debugger's write).
        return;
    }
    let pages = new_pages(slot, pid, memory);
    if page == 0 {
        // Memory that is given back is no growth.
        return;
    }
    let bytes = pages << (given(&raw const PAGE_SHIFT) & 31);
    if sample::passes(&mut thread.resident, process.growth_interval, bytes) {
        tell(thread, scratch, process, pid, page, bytes, FLAG_RESIDENT);
    }
}

/// How many pages came with the one that was missing: one, or as many as the kernel's count jumped by.
#[inline(always)]
fn new_pages(slot: u32, pid: u32, memory: u64) -> u64 {
    let pages = read_kernel(memory.wrapping_add(given(&raw const ANON_PAGES_OFFSET)));
    let Some(state) = GROWTH.get_ptr_mut(slot) else {
        return 1;
    };
    // SAFETY: an aligned map value; threads that come here at once may each see the other's jump, or none.
    let state = unsafe { &mut *state };
    let (before, is_known) = (state.pages, state.pid == pid);
    state.pages = pages;
    state.pid = pid;
    let jump = pages.wrapping_sub(before);
    if is_known && pages <= MAX_PAGES && jump >= given(&raw const LEAST_JUMP) && jump <= MAX_PAGES {
        jump
    } else {
        1
    }
}

/// A page is missing at `address`.
#[inline(always)]
pub fn fault(address: u64) {
    if followed().is_some()
        && let Some(thread) = thread::get()
        && thread.is_walking == 0
    {
        thread.fault = address;
    }
}

/// A constant that userspace replaces at load.
#[inline(always)]
fn given(constant: *const u32) -> u64 {
    // SAFETY: one of the statics above.
    unsafe { constant.read_volatile() as u64 }
}

/// Address space was asked for.
#[inline(always)]
pub fn asked(thread: &mut Thread, scratch: &mut Scratch, process: &Process, pid: u32, bytes: u64) {
    if sample::passes(&mut thread.asked, process.growth_interval, bytes) {
        tell(thread, scratch, process, pid, 0, bytes, 0);
    }
}

/// `brk` returned the end of the heap.
#[inline(always)]
pub fn moved_break(end: u64) {
    let Some((slot, pid, process)) = followed() else {
        return;
    };
    let Some(state) = GROWTH.get_ptr_mut(slot) else {
        return;
    };
    // SAFETY: a map value; calls of `brk` exclude each other in the kernel, and a torn order costs one of them.
    let before = unsafe { core::mem::replace(&mut (*state).program_break, end) };
    if before == 0 {
        return;
    }
    if end < before {
        emit::unmap(pid, end, before - end);
    } else if end > before
        && thread::get().is_some()
        && let Some((thread, scratch)) = thread::both()
    {
        asked(thread, scratch, process, pid, end - before);
    }
}

/// The process runs another program: nothing is known of its memory.
#[inline(always)]
pub fn forget(pid: u32) {
    if let Some(slot) = maps::slot_by_pid(pid)
        && let Some(state) = GROWTH.get_ptr_mut(slot)
    {
        // SAFETY: an aligned map value; the only thread that is left writes it.
        unsafe {
            (*state).pid = 0;
            (*state).program_break = 0;
        }
    }
}

#[inline(always)]
fn tell(thread: &mut Thread, scratch: &mut Scratch, process: &Process, pid: u32, page: u64, bytes: u64, flags: u8) {
    let behind = (flags & FLAG_RESIDENT) as u64;
    let stack = stack::entry_id(thread, scratch, process, pid, behind);
    let told = stack.is_some_and(|stack| {
        emit::record(Alloc {
            header: emit::header(KIND_GROWTH, flags, pid),
            address: page,
            size: bytes,
            stack,
            tid: 0,
            interval: (process.growth_interval >> 4) as u32,
        })
    });
    if !told {
        count(Counter::GrowthLost, 1);
        count(Counter::GrowthBytesLost, bytes);
    }
}

/// 8 bytes of the kernel; 0 if they cannot be read.
#[inline(always)]
fn read_kernel(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
}
