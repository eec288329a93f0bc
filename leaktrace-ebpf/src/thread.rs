//! What is remembered of each thread between its probes.
//!
//! A thread runs one probe at a time, so nothing here needs a lock.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use leaktrace_common::{config::MAX_FRAMES, event::Stack, reason::Counter, unwind::Row};

use crate::maps::{THREADS, count};

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
    pub returns_surely: u8,
    /// Hooked calls seen inside this one.
    pub nested: u64,
}

/// A system call that was entered and has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PendingMapping {
    /// 0 when nothing is pending, else a `MAPPING_CALL_*` number.
    pub call: u64,
    /// Old address (mremap).
    pub old: u64,
    /// Old bytes (mremap).
    pub old_length: u64,
    /// New bytes.
    pub length: u64,
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

/// One step of a walk: the registers in a frame, and where the next frame's came from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Frame {
    pub ip: u64,
    pub sp: u64,
    pub bp: u64,
    /// Stack slot that the caller's frame pointer was read from; 0: unchanged; 1: cannot be verified by one read.
    pub bp_slot: u64,
    /// Hash over this frame and all that are further out (used in the remembered walk only).
    pub hash: u64,
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
    pub window: [u64; WINDOW_WORDS],
    /// Rows found lately, by a hash of the address: the same few call sites lead to most allocations.
    pub rows: [FoundRow; ROW_SLOTS],
    /// Frames found in this walk, innermost first.
    pub fresh: [Frame; FRAME_SLOTS],
    /// The last walk, outermost first: its outer part stays in place when only the inner part changes.
    pub memo: [Frame; FRAME_SLOTS],
}

/// Everything remembered of a thread.
#[repr(C)]
pub struct Thread {
    /// What `bpf_get_current_pid_tgid` said, or 0: finding it here costs less than asking again.
    ids: u64,
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
    pub walk: Walk,
    /// Where a stack record is put together.
    pub record: Stack,
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

/// What is remembered of the current thread, if it was seen before.
#[inline(always)]
pub fn known() -> Option<&'static mut Thread> {
    // SAFETY: a map value that belongs to its thread, which runs one program at a time.
    unsafe { THREADS.current().as_mut() }
}

/// What is remembered of the current thread; begins to remember it if need be. `None` (counted) without memory for it.
#[inline(always)]
pub fn get() -> Option<&'static mut Thread> {
    // SAFETY: as in `known`.
    let thread = unsafe { THREADS.current_or_new().as_mut() };
    if thread.is_none() {
        count(Counter::ThreadTableFull, 1);
    }
    thread
}
