//! Lays rules out as the rows and blocks of [`leaktrace_common::unwind`], and searches them as the kernel side does.
//!
//! It does not know where rules come from.
//! Invariant: `blocks` has one more element than there are blocks and never decreases; rows are sorted by address; the
//! first row lies at `base`.

use leaktrace_common::unwind::{BLOCK_SHIFT, BLOCK_SIZE, RULE_UNKNOWN, Row};

use super::cfi::{CompileError, MAX_ROWS};
use super::rule::{RawRow, Rule, UnknownReason};
use crate::model::ElfAddress;

/// Functions begin at multiples of this; a shorter gap before one is padding that never runs.
const ALIGNMENT: u32 = 16;

/// The rules of one ELF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// Address of the first block: that of the first described byte, rounded down to a block.
    pub base: ElfAddress,
    /// `blocks[b]..blocks[b + 1]` index the rows that begin in block `b`; one element more than blocks.
    pub blocks: Vec<u32>,
    /// Rows by address.
    pub rows: Vec<Row>,
    /// What the table was made from.
    pub stats: TableStats,
}

/// What a table was made from, and what it cannot follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Entries (FDEs) read.
    pub entries: usize,
    /// Entries that are malformed, wholly or from some instruction on.
    pub malformed: usize,
    /// Entries for no code, or for code outside the executable segments.
    pub outside: usize,
    /// Entries cut short or dropped because another one begins inside them.
    pub overlapping: usize,
    /// Bytes of the executable segments.
    pub text_bytes: u64,
    /// Bytes that entries describe.
    pub covered_bytes: u64,
    /// Bytes among these whose rules were derived from the code, for want of entries.
    pub derived_bytes: u64,
    /// Bytes among these without a usable rule, by [`UnknownReason`]. `NoTable` counts the gaps between entries.
    pub unknown_bytes: [u64; UnknownReason::COUNT],
}

/// Code that one entry describes, relative to the image, and its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub start: u32,
    pub end: u32,
    pub first: u32,
    pub count: u32,
}

impl UnwindTable {
    /// First address behind the table.
    pub fn end(&self) -> ElfAddress {
        let blocks = self.blocks.len().saturating_sub(1) as u64;
        ElfAddress(self.base.0.saturating_add(blocks << BLOCK_SHIFT))
    }

    /// The row in effect at an address; `None` outside the table.
    pub fn row_at(&self, address: ElfAddress) -> Option<Row> {
        let offset = address.0.checked_sub(self.base.0)?;
        let block = usize::try_from(offset >> BLOCK_SHIFT).ok()?;
        let low = (offset & (BLOCK_SIZE - 1)) as u8;
        let (&first, &end) = (self.blocks.get(block)?, self.blocks.get(block.checked_add(1)?)?);
        let rows = self.rows.get(first as usize..end as usize)?;
        let behind = first as usize + rows.partition_point(|row| row.low <= low);
        self.rows.get(behind.checked_sub(1)?).copied()
    }

    /// Bytes that the table takes in memory and in the kernel's maps.
    pub fn bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>() + self.blocks.len() * size_of::<u32>()
    }
}

impl TableStats {
    /// Share of the described code without a usable rule, 0 to 1.
    pub fn unknown_share(&self) -> f64 {
        let gaps = self.unknown_bytes[UnknownReason::NoTable as usize];
        let unknown: u64 = self.unknown_bytes.iter().sum::<u64>() - gaps;
        if self.covered_bytes == 0 {
            0.0
        } else {
            unknown as f64 / self.covered_bytes as f64
        }
    }
}

/// The start of the block that an address is in.
pub(super) const fn align_down(address: u64) -> u64 {
    address & !(BLOCK_SIZE - 1)
}

/// Sorts entries and ends each where the next begins, as unwinders that search by start address see them. Of several
/// with one start the first counts. Returns how many were cut or dropped.
pub(super) fn settle(extents: &mut Vec<Extent>) -> usize {
    // `first` grows in the order of reading.
    extents.sort_unstable_by_key(|extent| (extent.start, extent.first));
    let mut changed = 0;
    extents.dedup_by(|next, kept| {
        if next.start == kept.start {
            changed += 1;
            return true;
        }
        if kept.end > next.start {
            kept.end = next.start;
            changed += 1;
        }
        false
    });
    changed
}

/// Adds those of `more` that overlap none of `extents`. Both are settled, and so is the result.
pub(super) fn add_missing(extents: &mut Vec<Extent>, more: Vec<Extent>) {
    let known = extents.len();
    for extent in more {
        let known = extents.get(..known).unwrap_or_default();
        let index = known.partition_point(|other| other.end <= extent.start);
        if known.get(index).is_none_or(|other| other.start >= extent.end) {
            extents.push(extent);
        }
    }
    extents.sort_unstable_by_key(|extent| extent.start);
}

/// Puts an extent in the place of what it overlaps.
pub(super) fn replace(extents: &mut Vec<Extent>, new: Extent) {
    let first = extents.partition_point(|extent| extent.end <= new.start);
    let end = extents.partition_point(|extent| extent.start < new.end);
    let before = extents.get(first).filter(|old| old.start < new.start);
    let after = end
        .checked_sub(1)
        .and_then(|last| extents.get(last))
        .filter(|old| old.end > new.end);
    let before = before.map(|old| Extent { end: new.start, ..*old });
    let after = after.map(|old| Extent { start: new.end, ..*old });
    extents.splice(first..end.max(first), before.into_iter().chain([new]).chain(after));
}

/// Lays out the rows of settled extents. `base` is the image's address, a multiple of the block size.
pub(super) fn build(
    base: u64,
    extents: &[Extent],
    rows: &[RawRow],
    stats: TableStats,
) -> Result<UnwindTable, CompileError> {
    let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
        return Err(CompileError::NoFrames);
    };
    let start = align_down(first.start.into()) as u32;
    let mut layout = Layout {
        start,
        blocks: Vec::with_capacity(((last.end - start) >> BLOCK_SHIFT) as usize + 2),
        rows: Vec::with_capacity(rows.len()),
        last: None,
    };
    let mut stats = stats;
    let mut cursor = start;
    for extent in extents {
        let gap = extent.start - cursor;
        let padding = gap < ALIGNMENT && extent.start.is_multiple_of(ALIGNMENT) && layout.last.is_some();
        if gap > 0 && !padding {
            layout.push(cursor, Rule::unknown(UnknownReason::NoTable));
            stats.unknown_bytes[UnknownReason::NoTable as usize] += u64::from(gap);
        }
        let (first, count) = (extent.first as usize, extent.count as usize);
        let own = rows.get(first..first + count).unwrap_or_default();
        // Only an extent whose beginning was replaced starts behind its first row.
        let skipped = own
            .iter()
            .take_while(|row| row.at <= extent.start)
            .count()
            .saturating_sub(1);
        let own = own.get(skipped..).unwrap_or_default();
        for (index, row) in own.iter().enumerate() {
            let at = row.at.max(extent.start);
            if at >= extent.end {
                break;
            }
            layout.push(at, row.rule);
            if row.rule.kind == RULE_UNKNOWN {
                let end = own.get(index + 1).map_or(extent.end, |next| next.at.min(extent.end));
                stats.unknown_bytes[row.rule.cfa as usize] += u64::from(end - at);
            }
        }
        stats.covered_bytes += u64::from(extent.end - extent.start);
        cursor = extent.end;
    }
    if !u64::from(cursor).is_multiple_of(BLOCK_SIZE) {
        layout.push(cursor, Rule::unknown(UnknownReason::NoTable));
    }
    if layout.rows.len() > MAX_ROWS {
        return Err(CompileError::TooManyRows);
    }
    Ok(layout.finish(base, cursor, stats))
}

struct Layout {
    start: u32,
    blocks: Vec<u32>,
    rows: Vec<Row>,
    last: Option<Rule>,
}

impl Layout {
    fn push(&mut self, at: u32, rule: Rule) {
        if self.last == Some(rule) {
            return;
        }
        self.last = Some(rule);
        let offset = at - self.start;
        let block = (offset >> BLOCK_SHIFT) as usize;
        if self.blocks.len() <= block {
            self.blocks.resize(block + 1, self.rows.len() as u32);
        }
        self.rows.push(Row {
            low: offset as u8,
            rule: rule.kind,
            bp_offset: rule.bp_offset,
            cfa: rule.cfa,
        });
    }

    fn finish(mut self, base: u64, end: u32, stats: TableStats) -> UnwindTable {
        let blocks = u64::from(end - self.start).div_ceil(BLOCK_SIZE) as usize;
        self.blocks.resize(blocks + 1, self.rows.len() as u32);
        self.rows.shrink_to_fit();
        UnwindTable {
            base: ElfAddress(base + u64::from(self.start)),
            blocks: self.blocks,
            rows: self.rows,
            stats,
        }
    }
}
