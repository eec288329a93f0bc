//! A runtime's heap at one moment, and what a later one is compared with.

use hashbrown::HashMap;

use crate::report::{Losses, MappingId, NumericLabel, Profile, ProfileBuilder};

/// What a heap had counted at some moment: what a later one of the same run is told since.
#[derive(Clone, Debug, Default)]
pub struct HeapMarks {
    /// Objects allocated so far, by the runtime's own number of their stack and size. Empty for a runtime that does not
    /// count allocations.
    pub allocated: HashMap<u64, u64>,
    /// Collections that had ended.
    pub collections: u64,
    /// Nanoseconds for which the program had stood still for them.
    pub pauses: u64,
}

impl HeapMarks {
    /// Bytes of memory that it takes, roughly.
    pub fn memory(&self) -> usize {
        self.allocated.capacity() * size_of::<(u64, u64)>()
    }
}

/// A heap as it was read at one moment. The process may have ended since.
pub trait Heap: Send {
    /// What it had counted.
    fn marks(&self) -> HeapMarks;

    /// Adds its samples: what is in use now, and what was allocated since some moment of the same run, or since the program
    /// began. `mapping` finds the mapping of an address of the program, `numbers` are labels of each sample.
    fn add_samples(
        &self,
        builder: &mut ProfileBuilder,
        mapping: &dyn Fn(u64) -> Option<MappingId>,
        since: Option<&HeapMarks>,
        numbers: &[NumericLabel],
    );

    /// A line about it for the profile: how it was sampled, and what the collector did since some moment.
    fn facts(&self, since: Option<&HeapMarks>) -> String;

    /// What it missed.
    fn losses(&self) -> Losses;

    /// A whole profile of it. `time_nanos` is when it was read, since 1970.
    fn profile(&self, time_nanos: i64) -> Profile;

    /// Bytes of memory that it takes, roughly, with what its names come from.
    fn memory(&self) -> usize;
}
