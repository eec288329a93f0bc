//! Numbered causes of loss: what the kernel side could not deliver or follow, one counter each.

/// Index into the per-CPU counter array. Each cause is shown, with its meaning, in every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Counter {
    /// An allocation whose record did not fit into the ring buffer.
    AllocLost = 0,
    /// Requested bytes of those.
    AllocBytesLost,
    /// A free whose record did not fit and that went into the overflow set instead: nothing is lost.
    FreeDeferred,
    /// A free that fitted neither: blocks that it may have been are left out.
    FreeLost,
    /// A reallocation of which only the end arrived; the overflow set stands in for its beginning.
    ReallocBeginDeferred,
    /// A stack that did not fit: its allocation counts as lost, too.
    StackLost,
    /// A call that was not seen: the kernel gave no memory to remember its thread.
    ThreadTableFull,
    /// A sampled allocation beyond the capacity of the sampled-address set.
    SampledSetFull,
    /// An entry whose return probe never came: `longjmp`, or the kernel dropped it. (A function that throws has none.)
    ReturnMissed,
    /// A call inside another hooked call: counted once, as the outer one. Not a loss.
    Nested,
    /// An allocation that the allocator refused. Not a loss.
    AllocFailed,
    /// The address that `posix_memalign` stored could not be read.
    ResultUnreadable,
    /// An mmap, or the end of an mremap, whose record did not fit.
    MappingLost,
    /// A notice of new code, a child or a thread's end that did not fit.
    NoticeLost,
    /// A sample of a process's growth whose record, or stack, did not fit.
    GrowthLost,
    /// Bytes of those, before scaling.
    GrowthBytesLost,
    /// A hash map refused to be changed: a sample that was not taken, or one that was not taken out.
    MapRefused,
    /// An munmap, or the beginning of an mremap, whose record did not fit and that went into the overflow set instead:
    /// nothing is lost.
    UnmapDeferred,
    /// The same of an exec.
    ExecDeferred,
    /// An munmap, or the beginning of an mremap, that fitted neither: mappings that it may have concerned are left out.
    UnmapLost,
    /// An exec that fitted neither: all that its process may have held before is left out.
    ExecLost,
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: usize = Self::ExecLost as usize + 1;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::AllocLost,
        Self::AllocBytesLost,
        Self::FreeDeferred,
        Self::FreeLost,
        Self::ReallocBeginDeferred,
        Self::StackLost,
        Self::ThreadTableFull,
        Self::SampledSetFull,
        Self::ReturnMissed,
        Self::Nested,
        Self::AllocFailed,
        Self::ResultUnreadable,
        Self::MappingLost,
        Self::NoticeLost,
        Self::GrowthLost,
        Self::GrowthBytesLost,
        Self::MapRefused,
        Self::UnmapDeferred,
        Self::ExecDeferred,
        Self::UnmapLost,
        Self::ExecLost,
    ];
}

/// Where a stack walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum WalkEnd {
    /// At the outermost frame.
    Bottom = 0,
    /// At an address that no known executable mapping covers.
    NoMapping = 1,
    /// At code without an unwind rule, or with one that the kernel side cannot follow.
    NoRule = 2,
    /// At a stack slot that could not be read.
    UnreadableStack = 3,
    /// At the greatest depth that is walked.
    TooDeep = 4,
    /// At a frame that does not lie above the one it was called from.
    NotProgressing = 5,
}

impl WalkEnd {
    /// From its number on the wire.
    pub const fn from_wire(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Bottom,
            1 => Self::NoMapping,
            2 => Self::NoRule,
            3 => Self::UnreadableStack,
            4 => Self::TooDeep,
            5 => Self::NotProgressing,
            _ => return None,
        })
    }
}
