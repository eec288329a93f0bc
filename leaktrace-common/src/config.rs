//! Map values that userspace writes and the kernel side reads, and the limits that both agree on.

/// Most frames of a stack.
pub const MAX_FRAMES: usize = 127;
/// Most executable mappings of one process.
pub const MAX_MAPPINGS: u32 = 4096;
/// Entries of the table of exponential variates; a power of two.
pub const EXPONENTIAL_TABLE: u32 = 4096;
/// Fixed-point one of the table of exponential variates.
pub const EXPONENTIAL_ONE: u64 = 1 << 16;

/// How one process is traced, and where its mappings stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// `PROCESS_*` flags.
    pub flags: u32,
    /// First of its records in the mapping array.
    pub mapping_first: u32,
    /// How many there are; sorted by start address, not overlapping.
    pub mapping_count: u32,
    /// Mean bytes between samples; 0: every allocation is taken.
    pub sample_interval: u64,
    /// Allocations below this many bytes are not taken.
    pub min_size: u64,
    /// Mean bytes of growth between two records of it; 0: growth is not told.
    pub growth_interval: u64,
    /// Seed of its stack ids, so that no two programs share one.
    pub stack_seed: u64,
    /// Changes with each new set of mappings: remembered walks do not outlive it. Never 0.
    pub generation: u64,
}

const _: () = assert!(size_of::<Process>() == 56 && align_of::<Process>() == 8);

/// The place of a traced process, which the cookies of its probes name.
///
/// Userspace writes the version that is not current and then makes it current with one store; the next change waits for
/// programs that are in the middle of the old one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessSlot {
    /// Which version is current: 0 or 1.
    pub current: u64,
    /// How often the process has run another program since it was entered here. The kernel side counts.
    pub execs: u64,
    /// The versions.
    pub versions: [Process; 2],
}

const _: () = assert!(size_of::<ProcessSlot>() == 128 && align_of::<ProcessSlot>() == 8);

/// What is remembered of the process in a slot to see its growth. The kernel side writes it, userspace resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GrowthState {
    /// Process; 0: nothing is known yet.
    pub pid: u32,
    /// Explicit padding.
    pub pad: u32,
    /// Its anonymous pages as last seen, about.
    pub pages: u64,
    /// End of the heap that `brk` moves; 0: not known yet.
    pub program_break: u64,
}

const _: () = assert!(size_of::<GrowthState>() == 24);

/// Most processes traced at once.
pub const MAX_PROCESSES: u32 = 4096;

/// Anonymous mappings outside the allocator are tracked.
pub const PROCESS_TRACK_MMAP: u32 = 1;
/// Calls that begin are told. Off while probes are attached and detached one by one, so that tracing begins and ends for
/// all of them at one moment; a call that had begun may still end.
pub const PROCESS_ACTIVE: u32 = 2;

/// Where what is remembered of threads may be: in task-local storage alone,
pub const HOME_STORAGE: u32 = 0;
/// there or, where the kernel refuses it at times, in a hash map by thread id,
pub const HOME_STORAGE_OR_BY_ID: u32 = 1;
/// or in the hash map alone.
pub const HOME_BY_ID: u32 = 2;

/// One executable mapping of a process and the table for its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CodeMapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Subtract from an address to get its offset from the table's base.
    pub delta: u64,
    /// Where the table's block index begins in the block array.
    pub block_first: u32,
    /// Number of blocks of the table (its index has one entry more).
    pub block_count: u32,
    /// `MAPPING_*` flags.
    pub flags: u32,
    /// Explicit padding.
    pub pad: u32,
}

const _: () = assert!(size_of::<CodeMapping>() == 40 && align_of::<CodeMapping>() == 8);

/// Code without a table that keeps frame pointers (Go, JIT): followed by them.
pub const MAPPING_FRAME_POINTER: u32 = 1;

/// Key of sets of addresses: a block of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct BlockKey {
    /// Address of the block.
    pub address: u64,
    /// Its process.
    pub pid: u32,
    /// Explicit padding, always 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<BlockKey>() == 16);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers only, no implicit padding (asserted by size), every bit pattern valid.
    unsafe impl aya::Pod for super::ProcessSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CodeMapping {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GrowthState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::unwind::Row {}
}
