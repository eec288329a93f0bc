//! How to read the arguments of a hooked call.
//!
//! A [`Signature`] travels as the attach cookie of a probe, so that one BPF program serves every function of a family:
//! `malloc(size)`, `calloc(n, size)` and `__rust_alloc(size, align)` differ only in which argument registers hold what.

/// What a hooked call does to the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Op {
    /// Returns a new block: `malloc`, `calloc`, `operator new`, `mallocx`, …
    Alloc = 1,
    /// Stores a new block through an out-pointer and returns 0 on success: `posix_memalign`.
    AllocOut = 2,
    /// Takes a block, returns the block that replaces it: `realloc`, `reallocarray`, `rallocx`, `__rust_realloc`.
    Realloc = 3,
    /// Resizes a block in place and returns its real size: `xallocx`.
    Resize = 4,
    /// Gives a block back: `free`, `operator delete`, `sdallocx`, …
    Free = 5,
}

/// Argument positions (1-based; 0 is "none") and operation, packed in 64 bits; in a cookie also the traced process's
/// slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Signature(pub u64);

impl Signature {
    const SIZE: u32 = 0;
    const COUNT: u32 = 8;
    const POINTER: u32 = 16;
    const OUT: u32 = 24;
    const OP: u32 = 32;
    const SITE: u32 = 40;
    const SLOT: u32 = 48;
    /// A bit of the operation's byte.
    const NESTS: u64 = 0x80 << Self::OP;

    /// A call with no arguments of interest.
    pub const fn new(op: Op) -> Self {
        Self((op as u64) << Self::OP)
    }

    const fn with(self, shift: u32, argument: u8) -> Self {
        Self(self.0 & !(0xff << shift) | (argument as u64) << shift)
    }

    /// The argument that holds the requested bytes (or the bytes of one element).
    pub const fn size(self, argument: u8) -> Self {
        self.with(Self::SIZE, argument)
    }

    /// The argument that multiplies the size: `calloc`, `reallocarray`.
    pub const fn count(self, argument: u8) -> Self {
        self.with(Self::COUNT, argument)
    }

    /// The argument that holds the old block: `free`, `realloc`.
    pub const fn pointer(self, argument: u8) -> Self {
        self.with(Self::POINTER, argument)
    }

    /// The argument that points to where the new block's address is stored.
    pub const fn out(self, argument: u8) -> Self {
        self.with(Self::OUT, argument)
    }

    /// The lowest byte of the probed instruction's address, which is the same in file and memory.
    pub const fn site(self, low_byte: u8) -> Self {
        self.with(Self::SITE, low_byte)
    }

    /// The slot of the process that the probe is for.
    pub const fn slot(self, slot: u16) -> Self {
        Self(self.0 & !(0xffff << Self::SLOT) | (slot as u64) << Self::SLOT)
    }

    /// Position of the size argument.
    pub const fn size_argument(self) -> u8 {
        (self.0 >> Self::SIZE) as u8
    }

    /// Position of the count argument.
    pub const fn count_argument(self) -> u8 {
        (self.0 >> Self::COUNT) as u8
    }

    /// Position of the old block's argument.
    pub const fn pointer_argument(self) -> u8 {
        (self.0 >> Self::POINTER) as u8
    }

    /// Position of the out-pointer.
    pub const fn out_argument(self) -> u8 {
        (self.0 >> Self::OUT) as u8
    }

    /// The lowest byte of the probed instruction's address.
    pub const fn site_byte(self) -> u8 {
        (self.0 >> Self::SITE) as u8
    }

    /// The slot of the process.
    pub const fn process_slot(self) -> u16 {
        (self.0 >> Self::SLOT) as u16
    }

    /// The call may make other hooked calls, which are part of it.
    pub const fn nesting(self) -> Self {
        Self(self.0 | Self::NESTS)
    }

    /// Whether it may.
    pub const fn nests(self) -> bool {
        self.0 & Self::NESTS != 0
    }

    /// The operation as a number (see [`Op`]); kept raw because the kernel side matches on it.
    pub const fn op(self) -> u8 {
        (self.0 >> Self::OP) as u8 & 0x7f
    }
}
