//! The unwind tables as the kernel side sees them: three arrays that are written through shared memory.
//!
//! A program in the kernel may be reading while userspace writes, so nothing that a traced process refers to is ever
//! changed: new runs are written to free places, then the process is switched over, and old runs are given up later.

use std::{
    collections::BTreeMap,
    io,
    marker::PhantomData,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use aya::Pod;
use leaktrace_common::{config::CodeMapping, unwind::Row};
use memmap2::{MmapOptions, MmapRaw};

use super::{grace::GracePeriod, kernel::LoadError};

/// An array is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("BPF array `{array}` is full: {wanted} more entries wanted, {free} free")]
pub struct ArrayFull {
    /// Which.
    pub array: &'static str,
    /// How many entries were wanted in one run.
    pub wanted: u32,
    /// How many are free, perhaps not in one run.
    pub free: u32,
}

/// A BPF array of `T`, mapped into memory, given out in runs.
pub struct MappedArray<T> {
    name: &'static str,
    memory: MmapRaw,
    free: FreeRuns,
    element: PhantomData<T>,
}

impl<T: Pod> MappedArray<T> {
    /// The kernel aligns elements to 8 bytes.
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    pub(super) fn new(name: &'static str, map: &OwnedFd, entries: u32) -> Result<Self, LoadError> {
        let bytes = entries as usize * Self::STRIDE;
        let memory = MmapOptions::new().len(bytes).map_raw(map.as_raw_fd());
        let memory = memory.map_err(|cause: io::Error| LoadError::Mmap { name, cause })?;
        Ok(Self {
            name,
            memory,
            free: FreeRuns::new(entries),
            element: PhantomData,
        })
    }

    /// Writes `values` to a free run and returns its place.
    pub fn store(&mut self, values: impl ExactSizeIterator<Item = T>) -> Result<Range<u32>, ArrayFull> {
        let wanted = values.len() as u32;
        let first = self.free.take(wanted);
        let first = first.ok_or(ArrayFull {
            array: self.name,
            wanted,
            free: self.free.total(),
        })?;
        for (offset, value) in values.take(wanted as usize).enumerate() {
            let at = (first as usize + offset) * Self::STRIDE;
            // SAFETY: `take` gave a run inside the map's entries, so `at` is inside the mapping and aligned to 8; programs
            // that might read it concurrently do not refer to a free run.
            unsafe { self.memory.as_mut_ptr().add(at).cast::<T>().write_volatile(value) };
        }
        Ok(first..first + wanted)
    }

    /// Changes one entry of a run that was taken, in place. `change` gets a pointer to it, because programs in the kernel
    /// may be reading it: only single stores are seen whole.
    pub(super) fn change(&mut self, index: u32, change: impl FnOnce(*mut T)) {
        assert!(index < self.free.entries, "an entry of this array");
        // SAFETY: the entry lies inside the mapping and is aligned to 8.
        change(unsafe { self.memory.as_mut_ptr().add(index as usize * Self::STRIDE) }.cast());
    }

    /// Looks at one entry of a run that was taken, which programs in the kernel may be changing: only single loads are whole.
    pub(super) fn look<R>(&self, index: u32, look: impl FnOnce(*const T) -> R) -> R {
        assert!(index < self.free.entries, "an entry of this array");
        // SAFETY: the entry lies inside the mapping and is aligned to 8.
        look(unsafe { self.memory.as_ptr().add(index as usize * Self::STRIDE) }.cast())
    }

    /// Gives a run up. The caller makes sure that no traced process refers to it any more.
    pub fn release(&mut self, run: Range<u32>) {
        self.free.give(run);
    }

    /// Entries in use and in all.
    pub fn usage(&self) -> (u32, u32) {
        (self.free.entries - self.free.total(), self.free.entries)
    }
}

/// The arrays that stack walks read.
pub struct UnwindArrays {
    /// Executable mappings, a sorted run for each process.
    pub mappings: MappedArray<CodeMapping>,
    /// Block indices: positions in `rows`.
    pub blocks: MappedArray<u32>,
    /// Rows.
    pub rows: MappedArray<Row>,
    /// Waits for programs that may be reading a run.
    pub grace: Arc<GracePeriod>,
}

/// Where a file's table stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlace {
    /// In the block array; one entry more than there are blocks.
    pub blocks: Range<u32>,
    /// In the row array.
    pub rows: Range<u32>,
}

impl UnwindArrays {
    /// Stores a table, whose `blocks` are positions in its `rows`.
    pub fn store_table(&mut self, blocks: &[u32], rows: &[Row]) -> Result<TablePlace, ArrayFull> {
        let rows = self.rows.store(rows.iter().copied())?;
        match self.blocks.store(blocks.iter().map(|block| block + rows.start)) {
            Ok(blocks) => Ok(TablePlace { blocks, rows }),
            Err(full) => {
                self.rows.release(rows);
                Err(full)
            }
        }
    }

    /// Gives a table up.
    pub fn release_table(&mut self, place: TablePlace) {
        self.blocks.release(place.blocks);
        self.rows.release(place.rows);
    }
}

/// Free runs of an array, first fit, neighbours merged.
struct FreeRuns {
    entries: u32,
    /// First entry → length.
    runs: BTreeMap<u32, u32>,
}

impl FreeRuns {
    fn new(entries: u32) -> Self {
        Self {
            entries,
            runs: BTreeMap::from([(0, entries)]),
        }
    }

    fn total(&self) -> u32 {
        self.runs.values().sum()
    }

    fn take(&mut self, wanted: u32) -> Option<u32> {
        if wanted == 0 {
            return Some(0);
        }
        let (&first, &length) = self.runs.iter().find(|(_, length)| **length >= wanted)?;
        self.runs.remove(&first);
        if length > wanted {
            self.runs.insert(first + wanted, length - wanted);
        }
        Some(first)
    }

    fn give(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        let (mut first, mut end) = (run.start, run.end);
        if let Some((&before, &length)) = self.runs.range(..first).next_back()
            && before + length == first
        {
            self.runs.remove(&before);
            first = before;
        }
        if let Some(length) = self.runs.remove(&end) {
            end += length;
        }
        self.runs.insert(first, end - first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_first_fit_and_merged_again() {
        let mut free = FreeRuns::new(100);
        assert_eq!(free.take(40), Some(0));
        assert_eq!(free.take(30), Some(40));
        assert_eq!(free.take(40), None);
        assert_eq!(free.take(30), Some(70));
        free.give(40..70);
        free.give(0..40);
        assert_eq!(free.runs, BTreeMap::from([(0, 70)]));
        free.give(70..100);
        assert_eq!(free.runs, BTreeMap::from([(0, 100)]));
        assert_eq!(free.take(100), Some(0));
        assert_eq!(free.total(), 0);
    }
}
