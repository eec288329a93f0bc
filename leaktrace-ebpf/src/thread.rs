//! What is remembered of each thread between its probes.
//!
//! A thread runs one probe at a time, so nothing here needs a lock; what a page fault runs in the middle of a probe's
//! read of the thread's memory writes nothing but [`Thread::fault`], and that not while [`Thread::is_walking`].
//!
//! A record has two halves, because the kernel gives no more than 8 KiB in one piece (see `task_storage.rs`). The kernel
//! may refuse to *make* one while another thread is preempted in the middle of looking for its own, so a thread whose
//! halves cannot both be made gets an entry of the hash map [`THREADS_BY_ID`] and keeps it: each thread has one home as
//! long as it lives. Before 6.2 the kernel may even refuse to *find* one; there all threads live in the hash map. Where
//! threads may live userspace knows ([`HOMES`]): the verifier follows a walk once for each home.

use core::ptr;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_current_pid_tgid};
use leaktrace_common::{
    config::{HOME_BY_ID, HOME_STORAGE, HOME_STORAGE_OR_BY_ID, MAX_FRAMES},
    event::{ReallocEnd, Remap, Stack},
    reason::Counter,
    unwind::Row,
};

use crate::maps::{NEW_THREAD, SCRATCHES, THREADS, THREADS_BY_ID, count};

/// Where threads may live: one of the `HOME_*` constants. Set by userspace.
#[unsafe(no_mangle)]
static HOMES: u32 = HOME_STORAGE_OR_BY_ID;
/// How many records were ever made in [`THREADS_BY_ID`]: while there are none, nothing is looked up there.
static mut MADE_BY_ID: u64 = 0;

/// Places for frames: a power of two, so that a masked index is a safe one.
pub const FRAME_SLOTS: usize = 128;
/// Mask of an index into them.
pub const FRAME_MASK: u32 = FRAME_SLOTS as u32 - 1;
/// 8-byte words of stack that are read at once.
pub const WINDOW_WORDS: usize = 256;
/// Places for remembered rows: a power of two. A program that allocates from a few dozen places passes through some
/// hundred call sites; two that share a place only search more often.
pub const ROW_SLOTS: usize = 128;

const _: () = assert!(MAX_FRAMES < FRAME_SLOTS);

/// An allocation call that was entered and has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pending {
    /// Stack pointer at the entry; 0 when nothing is pending.
    pub sp: u64,
    /// Requested bytes.
    pub size: u64,
    /// Old block of a reallocation.
    pub old: u64,
    /// Where the callee stores its result, or 0.
    pub out: u64,
    /// See [`leaktrace_common::event::Alloc::interval`].
    pub interval: u32,
    /// The process's slot.
    pub slot: u16,
    /// The operation ([`leaktrace_common::signature::Op`]).
    pub op: u8,
    /// Flags for the record of the end.
    pub flags: u8,
    /// The new block is not taken (not sampled, too small): only the end of the old one is told.
    pub skip_new: u8,
    /// A return probe waits for it, which a call that it makes last (a jump) does not take away.
    pub has_return_probe: u8,
    /// Hooked calls seen inside this one.
    pub nested: u64,
    /// The return address at the entry, where return instructions are probed; else 0.
    pub return_address: u64,
}

/// A system call that was entered and has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PendingMapping {
    /// 0 when nothing is pending, else a `MAPPING_CALL_*` number.
    pub call: u64,
    /// When a call that maps code was entered, in nanoseconds; 0 for all others.
    pub begun: u64,
    /// Whether the memory that code is mapped in is anonymous.
    pub anonymous: u64,
    /// Old address (mremap), or the address (mprotect).
    pub old: u64,
    /// Old bytes (mremap).
    pub old_length: u64,
    /// New bytes.
    pub length: u64,
    /// Flags for the record of the end (mremap).
    pub flags: u64,
}

/// A stream of bytes with sampling points on it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Stream {
    /// Bytes until the next point.
    pub until: i64,
    /// Interval that `until` was drawn with; 0: not drawn.
    pub interval: u64,
}

/// Numbers of anonymous pages; what a thread counted for itself is not in its process's yet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ThreadPages {
    pub own: u64,
    pub process: u64,
}

/// One step of a walk: the registers in a frame, and where the next frame's came from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frame {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    /// Stack slot that the caller's frame pointer was read from; 0: unchanged; 1: cannot be verified by one read.
    pub bp_slot: u64,
    /// Hash over this frame and all that are further out.
    pub hash: u64,
}

/// A [`Frame`] that is not remembered yet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct FreshFrame {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    pub bp_slot: u64,
}

/// The row that a search found for a code address.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct FoundRow {
    pub pc: u64,
    /// The process's generation at that time, which changes with its mappings.
    pub generation: u64,
    pub row: Row,
}

/// Memory that serves a walk and, when it has ended, the record of its stack.
#[repr(C)]
pub union Piece {
    /// Copy of a piece of the stack.
    pub window: [u64; WINDOW_WORDS],
    /// Where a stack record is put together.
    pub record: Stack,
}

const _: () = assert!(size_of::<Stack>() <= WINDOW_WORDS * 8);

/// State of the walk in progress and memory of the last one.
#[repr(C)]
pub struct Walk {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    /// Run of the process's mappings.
    pub mapping_first: u32,
    pub mapping_count: u32,
    /// The mapping of the last frame: most frames share it with their neighbour.
    pub map_start: u64,
    pub map_end: u64,
    pub map_delta: u64,
    pub map_block_first: u32,
    pub map_block_count: u32,
    pub map_flags: u32,
    /// The instruction pointer is exact (a signal interrupted it), not a return address.
    pub exact: u32,
    /// A stack slot could not be read.
    pub unreadable: u32,
    /// Frames found in this walk.
    pub depth: u32,
    /// A [`leaktrace_common::reason::WalkEnd`].
    pub end: u32,
    /// Remembered frames further out than the current one: candidates for the rest of the walk.
    pub cursor: u32,
    /// Remembered frames still to be verified.
    pub verify: u32,
    /// Set when the walk reached a remembered state.
    pub matched: u32,
    pub pad: u32,
    /// Where a binary search stands.
    pub range: [u32; 2],
    /// Frames of the remembered walk, and what it was made with.
    pub kept: u32,
    pub kept_end: u32,
    pub kept_generation: u64,
    pub kept_seed: u64,
    pub hash: u64,
    /// Copy of a piece of the stack.
    pub window_base: u64,
    pub window_bytes: u64,
    /// Where a piece that could not be read would have crossed into another page, or 0.
    pub wall: u64,
    pub piece: Piece,
    /// The last walk, outermost first: its outer part stays in place when only the inner part changes.
    pub memo: [Frame; FRAME_SLOTS],
}

impl Walk {
    /// The registers to begin with.
    #[inline(always)]
    pub fn begin_at(&mut self, ip: u64, sp: u64, bp: u64) {
        self.ip = ip;
        self.sp = sp;
        self.bp = bp;
    }
}

/// The half of a thread's record that only walks need.
#[repr(C)]
pub struct Scratch {
    /// Rows found recently, by a hash of the address: the same few call sites lead to most allocations.
    pub rows: [FoundRow; ROW_SLOTS],
    /// Frames found in this walk, innermost first.
    pub fresh: [FreshFrame; FRAME_SLOTS],
}

/// Both halves, of a thread whose home is [`THREADS_BY_ID`].
#[repr(C)]
pub struct ThreadById {
    pub thread: Thread,
    pub scratch: Scratch,
}

/// The half of a thread's record that every call needs.
#[repr(C)]
pub struct Thread {
    /// What `bpf_get_current_pid_tgid` said, or 0: finding it here costs less than asking again.
    ids: u64,
    /// Its home is [`THREADS_BY_ID`], although this half could be made.
    is_elsewhere: u64,
    pub pending: Pending,
    pub mapping: PendingMapping,
    /// Where the next sample of allocated bytes is.
    pub allocated: Stream,
    /// Where the next sample of address space that was asked for is.
    pub asked: Stream,
    /// Where the next sample of memory that became resident is.
    pub resident: Stream,
    /// Address of the last page fault that has not made memory resident yet, or 0.
    pub fault: u64,
    /// Pages when that fault began, where threads count for themselves.
    pub pages_before: ThreadPages,
    /// Its stack is being walked: a page that is missing then is the walk's.
    pub is_walking: u64,
    /// Where the return probes of this process lead, once one was seen.
    pub trampoline: u64,
    /// Where the record of a call's end is put together: programs keep next to nothing on their own stack (see
    /// `main.rs`).
    pub end: ReallocEnd,
    /// The same of a system call's end.
    pub mapped: Remap,
    pub walk: Walk,
}

impl Thread {
    /// Its process and its own id: `(pid, tid)`.
    #[inline(always)]
    pub fn ids(&mut self) -> (u32, u32) {
        if self.ids == 0 {
            self.ids = bpf_get_current_pid_tgid();
        }
        split(self.ids)
    }

    /// The thread runs another program: no call of the last one will return, and a thread that was not its process's
    /// first has taken the first one's id.
    #[inline(always)]
    pub fn exec(&mut self) {
        self.ids = 0;
        self.pending.sp = 0;
        self.mapping.call = 0;
    }
}

/// The current thread and process: `(pid, tid)`.
#[inline(always)]
pub fn current() -> (u32, u32) {
    split(bpf_get_current_pid_tgid())
}

#[inline(always)]
fn split(ids: u64) -> (u32, u32) {
    ((ids >> 32) as u32, ids as u32)
}

/// A constant that userspace replaces at load.
#[inline(always)]
fn homes() -> u32 {
    // SAFETY: the static above.
    unsafe { (&raw const HOMES).read_volatile() }
}

/// Whether a thread may live in [`THREADS_BY_ID`].
#[inline(always)]
fn some_by_id() -> bool {
    // SAFETY: the static above; an aligned load.
    homes() == HOME_BY_ID || homes() != HOME_STORAGE && unsafe { (&raw const MADE_BY_ID).read_volatile() != 0 }
}

/// The current thread's entry of [`THREADS_BY_ID`], if that is its home.
#[inline(never)]
fn find_by_id() -> *mut ThreadById {
    let ids = bpf_get_current_pid_tgid();
    let Some(record) = THREADS_BY_ID.get_ptr_mut(ids as u32) else {
        return ptr::null_mut();
    };
    // SAFETY: a live map value that belongs to the current thread.
    let thread = unsafe { &mut (*record).thread };
    if thread.ids != ids {
        // Of a thread that had the same id before: nothing of it is pending any more.
        thread.exec();
        thread.walk.kept_generation = 0;
        thread.ids = ids;
    }
    record
}

/// The same, made if need be; null (counted) where there is no room for one.
#[inline(never)]
fn make_by_id() -> *mut ThreadById {
    let record = find_by_id();
    if !record.is_null() {
        return record;
    }
    let Some(empty) = NEW_THREAD.get(0) else {
        return ptr::null_mut();
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    let made = THREADS_BY_ID.insert(tid, empty, BPF_NOEXIST.into());
    // SAFETY: an aligned word of a map value.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) &raw mut MADE_BY_ID, in(reg) 1u64) };
    if made.is_err() {
        count(Counter::ThreadTableFull, 1);
        return ptr::null_mut();
    }
    find_by_id()
}

/// The first half of the current thread's record, if its home is task-local storage.
#[inline(always)]
fn find_in_storage() -> *mut Thread {
    if homes() == HOME_BY_ID {
        return ptr::null_mut();
    }
    let thread = THREADS.current();
    // SAFETY: a map value that belongs to its thread, which runs one program at a time.
    if !thread.is_null() && unsafe { (*thread).is_elsewhere } != 0 {
        return ptr::null_mut();
    }
    thread
}

/// What is remembered of the current thread, if it was seen before.
#[inline(always)]
pub fn known() -> Option<&'static mut Thread> {
    let thread = find_in_storage();
    if !thread.is_null() {
        // SAFETY: as in `find_in_storage`.
        return unsafe { thread.as_mut() };
    }
    if !some_by_id() {
        return None;
    }
    // SAFETY: as in `find_in_storage`.
    unsafe { find_by_id().as_mut() }.map(|record| &mut record.thread)
}

/// What is remembered of the current thread; begins to remember it if need be. `None` (counted) without memory for it.
#[inline(always)]
pub fn get() -> Option<&'static mut Thread> {
    if let Some(thread) = known() {
        return Some(thread);
    }
    if homes() != HOME_BY_ID {
        let thread = make_in_storage();
        if !thread.is_null() {
            // SAFETY: as in `find_in_storage`.
            return unsafe { thread.as_mut() };
        }
    }
    if homes() == HOME_STORAGE {
        count(Counter::ThreadTableFull, 1);
        return None;
    }
    // SAFETY: as in `find_in_storage`.
    unsafe { make_by_id().as_mut() }.map(|record| &mut record.thread)
}

/// Makes both halves in task-local storage; null without memory for both.
#[inline(never)]
fn make_in_storage() -> *mut Thread {
    let thread = THREADS.current_or_new();
    if thread.is_null() {
        return thread;
    }
    if SCRATCHES.current_or_new().is_null() {
        // SAFETY: as in `find_in_storage`.
        unsafe { (*thread).is_elsewhere = (homes() != HOME_STORAGE) as u64 };
        return ptr::null_mut();
    }
    thread
}

/// Both halves of what is remembered of the current thread, if it was seen before. Found at one place, so that the verifier
/// knows that they are of one home.
#[inline(always)]
pub fn both() -> Option<(&'static mut Thread, &'static mut Scratch)> {
    let thread = find_in_storage();
    if !thread.is_null() {
        // SAFETY: as in `find_in_storage`.
        return unsafe { Some((thread.as_mut()?, SCRATCHES.current().as_mut()?)) };
    }
    if !some_by_id() {
        return None;
    }
    // SAFETY: as in `find_in_storage`.
    unsafe { find_by_id().as_mut() }.map(|record| (&mut record.thread, &mut record.scratch))
}

/// The thread with this id is gone.
#[inline(always)]
pub fn forget(tid: u32) {
    if some_by_id() {
        let _ = THREADS_BY_ID.remove(tid);
    }
}
