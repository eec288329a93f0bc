//! Records on the ring buffer.
//!
//! Each begins with a [`Header`]; its kind fixes the layout behind it. All fields are in the machine's byte order.
//! Reservations in the ring are totally ordered and follow program order: an allocation precedes its free, a stack
//! precedes the first event that names it.

use crate::config::MAX_FRAMES;

/// First 8 bytes of each record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// One of the `KIND_*` constants.
    pub kind: u8,
    /// `FLAG_*` constants of that kind.
    pub flags: u8,
    /// Explicit padding.
    pub pad: u16,
    /// Process id (thread group id).
    pub pid: u32,
}

/// [`Alloc`]: a new block.
pub const KIND_ALLOC: u8 = 1;
/// [`Free`]: a block given back.
pub const KIND_FREE: u8 = 2;
/// [`ReallocBegin`].
pub const KIND_REALLOC_BEGIN: u8 = 3;
/// [`ReallocEnd`].
pub const KIND_REALLOC_END: u8 = 4;
/// [`Stack`].
pub const KIND_STACK: u8 = 5;
/// [`Alloc`] of a whole anonymous mapping made outside an allocator.
pub const KIND_MMAP: u8 = 6;
/// [`Unmap`].
pub const KIND_MUNMAP: u8 = 7;
/// [`Remap`]: the end of an mremap.
pub const KIND_MREMAP: u8 = 8;
/// [`CodeMapped`]: the process mapped code; its mappings have to be read again.
pub const KIND_CODE_MAPPED: u8 = 9;
/// [`Notice`]: the process runs another program now.
pub const KIND_EXEC: u8 = 10;
/// [`Notice`]: the process has a new thread or a child (its id in `subject`).
pub const KIND_FORK: u8 = 11;
/// [`Notice`]: a thread ended (its id in `subject`).
pub const KIND_THREAD_EXIT: u8 = 12;

/// [`Alloc`]: a process that is followed without probes asked for address space; its `address` is 0. With
/// [`FLAG_RESIDENT`]: the page at `address` became resident, and `size` bytes with it.
pub const KIND_GROWTH: u8 = 13;

/// [`RemapBegin`].
pub const KIND_MREMAP_BEGIN: u8 = 14;

/// [`Notice`]: the process has a child (its id in `subject`) that goes on using its memory.
pub const KIND_SHARER: u8 = 15;

/// [`KIND_SHARER`]: there was no room to note it; what it gives back is not seen.
pub const FLAG_SHARER_MISSED: u8 = 1;

/// [`KIND_GROWTH`]: memory became resident.
pub const FLAG_RESIDENT: u8 = 1;

/// [`CodeMapped`]: the code is in anonymous memory, as what a JIT compiler makes.
pub const FLAG_CODE_ANONYMOUS: u8 = 1;
/// [`CodeMapped`]: the memory was there before and became executable; nothing was mapped over.
pub const FLAG_CODE_PROTECTED: u8 = 2;

/// [`ReallocEnd`] and [`Remap`]: the begin record did not fit; the overflow set holds the old block or interval.
pub const FLAG_BEGIN_DEFERRED: u8 = 1;

/// A new block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Alloc {
    /// Kind and process.
    pub header: Header,
    /// Where it lies.
    pub address: u64,
    /// Requested bytes.
    pub size: u64,
    /// Id of the stack that asked for it.
    pub stack: u64,
    /// Thread id.
    pub tid: u32,
    /// Mean bytes between samples when it was taken, in units of 16 bytes; 0: every allocation is taken.
    pub interval: u32,
}

/// A block given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Free {
    /// Kind and process.
    pub header: Header,
    /// The block.
    pub address: u64,
}

/// A thread entered a reallocation: from here on the old address may be handed out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReallocBegin {
    /// Kind and process.
    pub header: Header,
    /// The old block.
    pub old: u64,
    /// Thread id, which pairs it with its end.
    pub tid: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// A thread came back from a reallocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReallocEnd {
    /// The new block; address 0 with a size means that the old one lives on.
    pub new: Alloc,
    /// The old block.
    pub old: u64,
}

/// A stack that later events name by its id.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Stack {
    /// Kind and process.
    pub header: Header,
    /// Its id.
    pub id: u64,
    /// How many frames follow; the record ends behind the last.
    pub depth: u32,
    /// A [`crate::reason::WalkEnd`].
    pub end: u32,
    /// Program counters, innermost first; all but the first (and those that a signal interrupted) are return addresses.
    /// One may be [`crate::config::OMITTED_FRAMES`].
    pub frames: [u64; MAX_FRAMES],
}

impl Stack {
    /// Bytes before the first frame.
    pub const PREFIX: usize = 24;
}

/// Part of the address space given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Unmap {
    /// Kind and process.
    pub header: Header,
    /// First address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// A thread entered an mremap: from here on the old addresses may be handed out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RemapBegin {
    /// Kind and process.
    pub header: Header,
    /// First address.
    pub old: u64,
    /// Bytes.
    pub old_length: u64,
    /// Thread id, which pairs it with its end.
    pub tid: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// A mapping moved or resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Remap {
    /// The new mapping; address 0: the old one stays as it was.
    pub new: Alloc,
    /// Old first address.
    pub old: u64,
    /// Old bytes.
    pub old_length: u64,
}

/// Code came to be at some place. Times are the kernel's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CodeMapped {
    /// Kind, `FLAG_CODE_*` and process.
    pub header: Header,
    /// First address.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// When the call was entered: until then what was there before still is, unless it was unmapped.
    pub begun: u64,
    /// When the call came back: from then on the new code is there.
    pub done: u64,
}

/// Something happened to the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Notice {
    /// Kind and process.
    pub header: Header,
    /// What the kind says, or 0.
    pub subject: u32,
    /// Explicit padding.
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 8);
    assert!(size_of::<Alloc>() == 40);
    assert!(size_of::<Free>() == 16);
    assert!(size_of::<ReallocBegin>() == 24);
    assert!(size_of::<ReallocEnd>() == 48);
    assert!(core::mem::offset_of!(Stack, frames) == Stack::PREFIX);
    assert!(size_of::<Stack>() == Stack::PREFIX + 8 * MAX_FRAMES);
    assert!(size_of::<Unmap>() == 24);
    assert!(size_of::<RemapBegin>() == 32);
    assert!(size_of::<Remap>() == 56);
    assert!(size_of::<CodeMapped>() == 40);
    assert!(size_of::<Notice>() == 16);
};
