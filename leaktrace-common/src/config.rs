//! Map values that userspace writes and the kernel side reads, and the limits that both agree on.

/// Most frames of a stack that are told, what stands for those left out included.
pub const MAX_FRAMES: usize = 127;
/// Innermost frames that are kept of a stack with more than [`MAX_FRAMES`]; the rest of the room is for the outermost.
pub const INNER_FRAMES: usize = 64;
/// Frames of a stack that are walked at most. The callers of a deeper one are not known.
pub const MAX_WALK: usize = 4096;
/// Stands for the frames between the innermost and the outermost ones: no program counter that leads on is 0.
pub const OMITTED_FRAMES: u64 = 0;

const _: () = assert!(INNER_FRAMES == 64 && MAX_FRAMES == 2 * INNER_FRAMES - 1);
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
    /// Which counter says how many samples are held of it,
    pub held: u32,
    /// and which how many of all processes of its user.
    pub held_of_user: u32,
}

const _: () = assert!(size_of::<Process>() == 64 && align_of::<Process>() == 8);

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

const _: () = assert!(size_of::<ProcessSlot>() == 144 && align_of::<ProcessSlot>() == 8);

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

/// Most processes that share the memory of traced ones.
pub const MAX_SHARERS: u32 = 4096;

/// A process that uses a traced one's memory, by its pid: what it calls is the traced one's doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sharer {
    /// The traced one's slot.
    pub slot: u32,
    /// Its pid.
    pub owner: u32,
    /// How many programs that had run before: with the next one it has other memory.
    pub execs: u32,
    /// Its parent waits until it runs another program, or ends (`vfork`).
    pub is_waited_for: u32,
}

const _: () = assert!(size_of::<Sharer>() == 16);

/// Samples that the kernel side can hold, over all processes.
pub const MAX_SAMPLES: u32 = 1 << 20;
/// How often what is left to a user fits into what one of its processes may hold.
pub const SAMPLE_SHARE: u64 = 4;
/// Counters of held samples: of all, of each slot, of each user.
pub const HELD_SAMPLES: u32 = 1 + 2 * MAX_PROCESSES;

/// The counter of a slot.
pub const fn held_of_slot(slot: u32) -> u32 {
    1 + slot
}

/// The counter of a user, by the number that it has among those that are traced.
pub const fn held_of_user(number: u32) -> u32 {
    1 + MAX_PROCESSES + number
}

/// Whether there is room for one more sample, of how many are held of all, of a user and of a process. A user may hold as
/// many as are free, and a process [`SAMPLE_SHARE`] times as many as its user may hold beyond what it holds: whoever takes all
/// that it can get leaves half of it to the next user.
#[inline(always)]
pub const fn may_hold_sample(all: u64, of_user: u64, own: u64) -> bool {
    let free = (MAX_SAMPLES as u64).saturating_sub(all);
    of_user < free && own < (free - of_user) * SAMPLE_SHARE
}

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

/// Key of the overflow set: something that was given back while the ring buffer was full.
///
/// The place in the stream is part of it. So two releases of one address are two entries, and neither hides the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ReleaseKey {
    /// Address of the block, or first address of the interval.
    pub address: u64,
    /// Bytes of the interval.
    pub length: u64,
    /// Its process.
    pub pid: u32,
    /// See [`ReleaseKey::place`].
    pub place: u32,
}

/// A block of an allocator.
pub const RELEASE_BLOCK: u32 = 0;
/// An interval of the address space.
pub const RELEASE_INTERVAL: u32 = 1;
/// All that the process holds: it runs another program.
pub const RELEASE_PROGRAM: u32 = 2;

impl ReleaseKey {
    /// What was given back (a `RELEASE_*` constant) and the low bits of the position, which is a multiple of 8.
    #[inline(always)]
    pub const fn place(kind: u32, position: u64) -> u32 {
        ((position >> 1) as u32 & !3) | kind
    }

    /// What was given back.
    pub const fn kind(&self) -> u32 {
        self.place & 3
    }
}

const _: () = assert!(size_of::<ReleaseKey>() == 24);

/// Processes that are told apart where a release is lost for good, by [`process_bucket`].
pub const LOST_PROCESSES: u32 = 1 << 12;
/// Blocks that are told apart there, by [`block_bucket`].
pub const LOST_BLOCKS: u32 = 1 << 16;
/// Entries of the array that counts lost releases: intervals by process, programs by process, blocks.
pub const LOST_RELEASES: u32 = 2 * LOST_PROCESSES + LOST_BLOCKS;

/// Which entry counts the lost releases of a process's intervals; [`LOST_PROCESSES`] further that of its programs.
#[inline(always)]
pub const fn process_bucket(pid: u32) -> u32 {
    pid & (LOST_PROCESSES - 1)
}

/// Which entry counts the lost releases of a block and of those that share it.
#[inline(always)]
pub const fn block_bucket(pid: u32, address: u64) -> u32 {
    let mixed = ((address >> 4) ^ (pid as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    2 * LOST_PROCESSES + ((mixed >> 40) as u32 & (LOST_BLOCKS - 1))
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers only, no implicit padding (asserted by size), every bit pattern valid.
    unsafe impl aya::Pod for super::ProcessSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CodeMapping {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::GrowthState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sharer {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ReleaseKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::unwind::Row {}
}
