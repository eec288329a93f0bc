//! The unwind tables as the kernel side sees them: three arrays that are written through shared memory.
//!
//! A program in the kernel may be reading while userspace writes, so nothing that a traced process refers to is ever
//! changed: new runs are written to free places, then the process is switched over, and old runs are given up later.
//!
//! Tables take whole pages of their arrays, and a table that fits nowhere in one run is stored in pieces: what is free can
//! be used, however it is scattered.

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

/// Entries of a page of rows: what a block has at most, and the row in effect before it, fit into one.
const ROW_PAGE: u32 = 512;
/// Entries of a page of blocks: 31 blocks, 8 KiB of code, and the end of the last one.
const BLOCK_PAGE: u32 = 32;

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

    /// The same, of which runs take whole pages of `page` entries.
    fn paged(mut self, page: u32) -> Self {
        self.free = FreeRuns::paged(self.free.entries, page);
        self
    }

    /// An array that no kernel knows.
    #[cfg(test)]
    pub(crate) fn detached(name: &'static str, entries: u32) -> Self {
        let bytes = entries as usize * Self::STRIDE;
        let memory = memmap2::MmapMut::map_anon(bytes).expect("some memory");
        Self {
            name,
            memory: memory.into(),
            free: FreeRuns::new(entries),
            element: PhantomData,
        }
    }

    /// Writes `values` to a free run and returns its place.
    pub fn store(&mut self, values: impl ExactSizeIterator<Item = T>) -> Result<Range<u32>, ArrayFull> {
        self.store_within(values, 0..self.free.entries)
    }

    /// The same in a part of the array.
    pub fn store_within(
        &mut self,
        values: impl ExactSizeIterator<Item = T>,
        part: Range<u32>,
    ) -> Result<Range<u32>, ArrayFull> {
        let wanted = values.len() as u32;
        let first = self.free.take(wanted, part);
        let first = first.ok_or(ArrayFull {
            array: self.name,
            wanted,
            free: self.free.total(),
        })?;
        self.write(first, values.take(wanted as usize));
        Ok(first..first + wanted)
    }

    /// Writes to a run that was taken.
    fn write(&mut self, first: u32, values: impl Iterator<Item = T>) {
        for (offset, value) in values.enumerate() {
            let at = (first as usize + offset) * Self::STRIDE;
            // SAFETY: `take` gave a run inside the map's entries, so `at` is inside the mapping and aligned to 8; programs
            // that might read it concurrently do not refer to a free run.
            unsafe { self.memory.as_mut_ptr().add(at).cast::<T>().write_volatile(value) };
        }
    }

    /// What stands in a run that was taken and that no program in the kernel writes.
    pub fn read(&self, run: Range<u32>) -> Vec<T> {
        // SAFETY: a whole element, in which every bit pattern is valid (`Pod`).
        run.map(|index| self.look(index, |entry| unsafe { entry.read_volatile() }))
            .collect()
    }

    /// How many entries runs of `wanted` take.
    pub fn cost(&self, wanted: u32) -> u32 {
        self.free.rounded(wanted)
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
    blocks: MappedArray<u32>,
    /// Rows.
    rows: MappedArray<Row>,
    /// Waits for programs that may be reading a run.
    pub grace: Arc<GracePeriod>,
}

/// Where a file's table stands: one piece, or several where what is free is scattered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TablePlace {
    /// In the order of addresses, none missing between them.
    pub pieces: Vec<TablePiece>,
}

/// Some blocks of a table, with their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePiece {
    /// Number of the first block in the table.
    pub first: u32,
    /// In the block array; one entry more than there are blocks.
    pub blocks: Range<u32>,
    /// In the row array.
    rows: Range<u32>,
}

impl TablePiece {
    /// One without rows.
    #[cfg(test)]
    pub(crate) fn of(first: u32, blocks: Range<u32>) -> Self {
        Self {
            first,
            blocks,
            rows: 0..0,
        }
    }

    /// How many blocks it has.
    pub fn count(&self) -> u32 {
        (self.blocks.end - self.blocks.start).saturating_sub(1)
    }
}

/// What a table takes of the arrays, as entries of whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCost {
    /// Of the block array.
    pub blocks: u32,
    /// Of the row array.
    pub rows: u32,
}

impl TableCost {
    /// Of the array with this name.
    pub fn of(&self, array: &str) -> u64 {
        u64::from(if array == BLOCKS { self.blocks } else { self.rows })
    }
}

const BLOCKS: &str = "BLOCKS";

impl UnwindArrays {
    /// Takes over the arrays.
    pub fn new(
        mappings: MappedArray<CodeMapping>,
        blocks: MappedArray<u32>,
        rows: MappedArray<Row>,
        grace: Arc<GracePeriod>,
    ) -> Self {
        Self {
            mappings,
            blocks: blocks.paged(BLOCK_PAGE),
            rows: rows.paged(ROW_PAGE),
            grace,
        }
    }

    /// What a table takes.
    pub fn cost(&self, blocks: &[u32], rows: &[Row]) -> TableCost {
        TableCost {
            blocks: self.blocks.cost(blocks.len() as u32),
            rows: self.rows.cost(rows.len() as u32),
        }
    }

    /// What a stored one takes.
    pub fn place_cost(&self, place: &TablePlace) -> TableCost {
        let pieces = place.pieces.iter();
        pieces.fold(TableCost::default(), |sum, piece| TableCost {
            blocks: sum.blocks + self.blocks.cost(piece.blocks.end - piece.blocks.start),
            rows: sum.rows + self.rows.cost(piece.rows.end - piece.rows.start),
        })
    }

    /// Stores a table, whose `blocks` are positions in its `rows`. All of it or nothing.
    pub fn store_table(&mut self, blocks: &[u32], rows: &[Row]) -> Result<TablePlace, ArrayFull> {
        let mut place = TablePlace::default();
        let mut first = 0;
        while first + 1 < blocks.len() {
            match self.store_piece(blocks, rows, first) {
                Ok(piece) => {
                    first += piece.count() as usize;
                    place.pieces.push(piece);
                }
                Err(full) => {
                    self.release_table(place);
                    return Err(full);
                }
            }
        }
        Ok(place)
    }

    /// Stores as many blocks from `first` on as there is room for in one run.
    fn store_piece(&mut self, blocks: &[u32], rows: &[Row], first: usize) -> Result<TablePiece, ArrayFull> {
        // The row in effect where a block begins may be the last one of the block before.
        let low = blocks[first].saturating_sub(u32::from(first > 0));
        let rest = &blocks[first + 1..];
        let end = rest.last().map_or(low, |end| *end);
        let row_run = self.rows.free.best(end.saturating_sub(low));
        let block_run = self.blocks.free.best(rest.len() as u32 + 1);
        let fitting = rest.partition_point(|end| end.saturating_sub(low) <= row_run.end - row_run.start);
        let count = fitting.min((block_run.end - block_run.start).saturating_sub(1) as usize);
        if count == 0 {
            return Err(if fitting == 0 {
                self.rows.full(end.saturating_sub(low))
            } else {
                self.blocks.full(rest.len() as u32 + 1)
            });
        }
        let high = rest[count - 1];
        let own = rows.get(low as usize..high as usize).unwrap_or_default();
        let row_run = self.rows.store_within(own.iter().copied(), row_run)?;
        let positions = blocks[first..=first + count].iter();
        let positions = positions.map(|position| position.wrapping_sub(low).wrapping_add(row_run.start));
        match self.blocks.store_within(positions, block_run) {
            Ok(blocks) => Ok(TablePiece {
                first: first as u32,
                blocks,
                rows: row_run,
            }),
            Err(full) => {
                self.rows.release(row_run);
                Err(full)
            }
        }
    }

    /// Gives a table up.
    pub fn release_table(&mut self, place: TablePlace) {
        for piece in place.pieces {
            self.blocks.release(piece.blocks);
            self.rows.release(piece.rows);
        }
    }
}

impl<T: Pod> MappedArray<T> {
    fn full(&self, wanted: u32) -> ArrayFull {
        ArrayFull {
            array: self.name,
            wanted,
            free: self.free.total(),
        }
    }
}

/// Free runs of an array, first fit, neighbours merged.
struct FreeRuns {
    entries: u32,
    /// Runs are taken in multiples of this.
    page: u32,
    /// First entry → length.
    runs: BTreeMap<u32, u32>,
}

impl FreeRuns {
    fn new(entries: u32) -> Self {
        Self::paged(entries, 1)
    }

    fn paged(entries: u32, page: u32) -> Self {
        Self {
            entries,
            page,
            runs: BTreeMap::from([(0, entries / page * page)]),
        }
    }

    fn total(&self) -> u32 {
        self.runs.values().sum()
    }

    fn rounded(&self, entries: u32) -> u32 {
        entries.div_ceil(self.page).saturating_mul(self.page)
    }

    /// The first run that is long enough, else the longest.
    fn best(&self, wanted: u32) -> Range<u32> {
        let fitting = self.runs.iter().find(|(_, length)| **length >= wanted);
        let longest = || self.runs.iter().max_by_key(|(_, length)| **length);
        let run = fitting.or_else(longest);
        run.map_or(0..0, |(first, length)| *first..*first + *length)
    }

    /// Takes a run that lies in `part`.
    fn take(&mut self, wanted: u32, part: Range<u32>) -> Option<u32> {
        let taken = self.rounded(wanted);
        if taken == 0 {
            return Some(part.start);
        }
        let common = |first: u32, length: u32| first.max(part.start)..(first + length).min(part.end);
        let fits = |first: u32, length: u32| common(first, length).len() >= taken as usize;
        let (&first, &length) = self.runs.iter().find(|(first, length)| fits(**first, **length))?;
        let start = common(first, length).start;
        self.runs.remove(&first);
        if start > first {
            self.runs.insert(first, start - first);
        }
        if first + length > start + taken {
            self.runs.insert(start + taken, first + length - start - taken);
        }
        Some(start)
    }

    fn give(&mut self, run: Range<u32>) {
        if run.is_empty() {
            return;
        }
        let (mut first, mut end) = (run.start, run.start + self.rounded(run.end - run.start));
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
impl UnwindArrays {
    /// Arrays that no kernel knows.
    pub(crate) fn detached(mappings: u32, blocks: u32, rows: u32) -> Self {
        Self::new(
            MappedArray::detached("MAPPINGS", mappings),
            MappedArray::detached(BLOCKS, blocks),
            MappedArray::detached("ROWS", rows),
            Arc::new(GracePeriod::new()),
        )
    }

    /// The row in effect in a block of a table, as the kernel side finds it.
    pub(crate) fn row_at(&self, place: &TablePlace, block: u32, low: u8) -> Option<Row> {
        let piece = place.pieces.iter().rfind(|piece| piece.first <= block)?;
        let index = piece.blocks.start + (block - piece.first);
        let bounds = self.blocks.read(index..index + 2);
        let rows = self.rows.read(bounds[0]..bounds[1]);
        let behind = bounds[0] + rows.partition_point(|row| row.low <= low) as u32;
        self.rows.read(behind - 1..behind).pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_taken_first_fit_and_merged_again() {
        let mut free = FreeRuns::new(100);
        let all = 0..100;
        assert_eq!(free.take(40, all.clone()), Some(0));
        assert_eq!(free.take(30, all.clone()), Some(40));
        assert_eq!(free.take(40, all.clone()), None);
        assert_eq!(free.take(30, all.clone()), Some(70));
        free.give(40..70);
        free.give(0..40);
        assert_eq!(free.runs, BTreeMap::from([(0, 70)]));
        free.give(70..100);
        assert_eq!(free.runs, BTreeMap::from([(0, 100)]));
        assert_eq!(free.take(100, all), Some(0));
        assert_eq!(free.total(), 0);
    }

    #[test]
    fn parts_and_pages() {
        let mut free = FreeRuns::new(100);
        assert_eq!(free.take(20, 50..100), Some(50));
        assert_eq!(free.runs, BTreeMap::from([(0, 50), (70, 30)]));
        assert_eq!(free.take(31, 50..100), None);
        assert_eq!((free.best(40), free.best(60)), (0..50, 0..50));
        let mut free = FreeRuns::paged(100, 8);
        assert_eq!(free.take(9, 0..100), Some(0));
        assert_eq!(free.runs, BTreeMap::from([(16, 80)]));
        free.give(0..9);
        assert_eq!(free.runs, BTreeMap::from([(0, 96)]));
    }

    /// A table with a few rows in some blocks and none in others.
    fn table(blocks: u32, salt: u32) -> (Vec<u32>, Vec<Row>) {
        let mut positions = Vec::new();
        let mut rows = Vec::new();
        for block in 0..blocks {
            positions.push(rows.len() as u32);
            // A block may have a row for each byte.
            let count = match (block + salt) % 7 {
                0 if block > 0 => 0,
                1 => 256,
                rest => rest * 9,
            };
            rows.extend((0..count.max(u32::from(block == 0))).map(|row| Row {
                low: (row * 256 / count.max(1)) as u8,
                rule: 1,
                bp_offset: 0,
                cfa: (block * 300 + row) as i32,
            }));
        }
        positions.push(rows.len() as u32);
        (positions, rows)
    }

    fn expected(blocks: &[u32], rows: &[Row], block: u32, low: u8) -> Option<Row> {
        let (first, end) = (blocks[block as usize], blocks[block as usize + 1]);
        let own = &rows[first as usize..end as usize];
        let behind = first as usize + own.partition_point(|row| row.low <= low);
        rows.get(behind.checked_sub(1)?).copied()
    }

    proptest! {
        /// However scattered it is, twice the room of a table, and a page a piece, is enough for it; in pieces it says the
        /// same.
        #[test]
        fn what_is_free_can_be_used(
            taken in prop::collection::vec((1_u32..90, any::<bool>()), 1..40),
            blocks in 1_u32..400,
        ) {
            let mut arrays = UnwindArrays::detached(1, 200 * BLOCK_PAGE, 150 * ROW_PAGE);
            let mut kept = Vec::new();
            let mut gone = Vec::new();
            for (index, (blocks, stays)) in taken.into_iter().enumerate() {
                let (positions, rows) = table(blocks, index as u32);
                if let Ok(place) = arrays.store_table(&positions, &rows) {
                    if stays { kept.push(place) } else { gone.push(place) }
                }
            }
            gone.into_iter().for_each(|place| arrays.release_table(place));
            let before = (arrays.blocks.free.runs.clone(), arrays.rows.free.runs.clone());
            let (positions, rows) = table(blocks, 3);
            let cost = arrays.cost(&positions, &rows);
            let pieces = cost.blocks / (BLOCK_PAGE - 1) + 2 * cost.rows / ROW_PAGE + 1;
            let suffices = arrays.blocks.free.total() >= 2 * cost.blocks + pieces * BLOCK_PAGE
                && arrays.rows.free.total() >= 2 * cost.rows + pieces * ROW_PAGE;
            match arrays.store_table(&positions, &rows) {
                Ok(place) => {
                    for block in 0..blocks {
                        for low in [0, 100, 255] {
                            prop_assert_eq!(arrays.row_at(&place, block, low), expected(&positions, &rows, block, low));
                        }
                    }
                    arrays.release_table(place);
                }
                Err(full) => prop_assert!(!suffices, "{full}"),
            }
            prop_assert_eq!(before, (arrays.blocks.free.runs.clone(), arrays.rows.free.runs.clone()));
        }
    }
}
