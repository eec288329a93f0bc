//! Growth by stack, of processes that are followed without probes: memory that becomes resident, and address space that
//! is asked for.
//!
//! *Resident*: a thread meets a missing page (`exceptions:page_fault_*`), and the kernel changes the process's number of
//! anonymous pages (`kmem:rss_stat`): the page is there now, and was not before. Sampling points lie on each thread's
//! stream of such bytes, as for allocations. What the process gives back is told, too (`mapping.rs`), and userspace looks
//! from time to time which of the sampled pages are still there. Before 6.2 threads count for themselves, and the process's
//! number changes every 64 faults, at a page that has nothing to do with the others; there the fault's end is looked at
//! (the software event `page-faults-min`), and how many pages came in between.
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
    thread::{self, Scratch, Thread, ThreadPages},
};

/// Where `mm_struct` keeps the number of anonymous pages. Set by userspace from the kernel's type information.
#[unsafe(no_mangle)]
static ANON_PAGES_OFFSET: u32 = 0;
/// Where `task_struct` keeps its `mm_struct`. Set by userspace from the kernel's type information.
#[unsafe(no_mangle)]
static TASK_MEMORY_OFFSET: u32 = 0;
/// Where `task_struct` keeps a thread's own number of anonymous pages; 0 where threads have none (6.2). Set likewise.
#[unsafe(no_mangle)]
static THREAD_PAGES_OFFSET: u32 = 0;
/// Binary logarithm of the page size. Set by userspace.
#[unsafe(no_mangle)]
static PAGE_SHIFT: u32 = 12;

/// `MM_ANONPAGES`.
const ANONYMOUS: u32 = 1;
/// A huge page goes past the batches in which the kernel counts (32 pages, or twice the number of CPUs; before 6.2, 64
/// faults) at once; by so many pages no small ones do.
const HUGE: u64 = 256;
/// More is no number of pages.
const MAX_PAGES: u64 = 1 << 40;

/// The current process, if its growth is followed: its slot, its pid, and how.
#[inline(always)]
fn followed() -> Option<(u32, u32, &'static Process)> {
    let (pid, _) = thread::current();
    let slot = maps::slot_by_pid(pid)?;
    let process = maps::process(slot, pid).filter(|process| process.growth_interval != 0)?;
    Some((slot, process.pid, process))
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
    // Memory that is given back, or another process's (a debugger's write), is no growth.
    if page == 0 || own_memory() != memory {
        return;
    }
    let pages = new_pages(slot, pid, memory);
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
    if is_known && pages <= MAX_PAGES && jump >= HUGE && jump <= MAX_PAGES {
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
        if given(&raw const THREAD_PAGES_OFFSET) != 0 {
            thread.pages_before = pages_of_thread();
        }
    }
}

/// The last fault is over, where threads count for themselves.
#[inline(always)]
pub fn settled() {
    let Some((_, pid, process)) = followed() else {
        return;
    };
    let Some((thread, scratch)) = thread::both() else {
        return;
    };
    let page = core::mem::replace(&mut thread.fault, 0);
    if page == 0 {
        return;
    }
    let bytes = came(thread.pages_before, pages_of_thread()) << (given(&raw const PAGE_SHIFT) & 31);
    if sample::passes(&mut thread.resident, process.growth_interval, bytes) {
        tell(thread, scratch, process, pid, page, bytes, FLAG_RESIDENT);
    }
}

/// How many pages came between two looks at both numbers. Their sum tells, except when other threads changed the process's
/// number meanwhile.
#[inline(always)]
fn came(before: ThreadPages, now: ThreadPages) -> u64 {
    let grown = now.process.wrapping_sub(before.process);
    if grown >= HUGE && grown <= MAX_PAGES {
        return grown;
    }
    let own = now.own.wrapping_sub(before.own);
    match grown.wrapping_add(own) {
        sum @ 0..=1 => sum,
        _ => (own == 1) as u64,
    }
}

/// The current thread's anonymous pages: its own number, and that of its process.
#[inline(always)]
fn pages_of_thread() -> ThreadPages {
    // SAFETY: the helper takes no argument and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    // The kernel's is an `int`, and below 0 after pages were given back.
    let own = read_kernel(task.wrapping_add(given(&raw const THREAD_PAGES_OFFSET))) as i32;
    ThreadPages {
        own: own as u64,
        process: read_kernel(own_memory().wrapping_add(given(&raw const ANON_PAGES_OFFSET))),
    }
}

/// The current thread's `mm_struct`.
#[inline(always)]
fn own_memory() -> u64 {
    // SAFETY: the helper takes no argument and cannot fail.
    let task = unsafe { bpf_get_current_task() };
    read_kernel(task.wrapping_add(given(&raw const TASK_MEMORY_OFFSET)))
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
