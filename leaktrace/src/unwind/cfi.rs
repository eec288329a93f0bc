//! Compiles the call-frame information of one ELF file into a table.
//!
//! Owns the walk over the entries (FDEs) and what happens where they overlap, are missing or are absurd; executing one
//! is `program`'s work and laying out the rows `compact`'s.
//! Invariant: time and memory are linear in the size of the sections read, whatever they contain.

use std::ops::Range;

use gimli::{CieOrFde, DebugFrame, EhFrame, LittleEndian, Section, UnwindOffset, UnwindSection};
use hashbrown::HashMap;
use leaktrace_common::unwind::{RULE_FRAME_POINTER, Row};
use object::ReadRef;

use super::Machine;
use super::compact::{self, Extent, TableStats, UnwindTable};
use super::derived;
use super::program::{BadProgram, Common, Interpreter, Slice};
use super::rule::{RawRow, Rule};
use super::sections::{FrameSection, Image};
use super::uncovered;
use crate::model::ElfAddress;

/// Most rows of a table.
pub(super) const MAX_ROWS: usize = 64 << 20;
/// Most CIEs that are remembered: .eh_frame has a handful, .debug_frame one per compilation unit.
const MAX_CIES: usize = 1 << 18;
/// Most code of a table, in bytes.
const MAX_SPAN: u64 = 4 << 30;
/// An entry point without call-frame information is taken to be this long: glibc's are 40 to 64 bytes, musl's 22.
const ENTRY_CODE: u64 = 128;

/// Why a file has no table.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// 32-bit, or not ELF.
    #[error("failed to compile unwind table: not a 64-bit ELF file")]
    NotElf64,
    /// Big-endian machines are not supported.
    #[error("failed to compile unwind table: big-endian file")]
    BigEndian,
    /// `e_machine` of an unsupported instruction set.
    #[error("failed to compile unwind table: unsupported machine {0}")]
    Machine(u16),
    /// Not a failure of the file: it has no call-frame information (Go, assembly, `-fno-asynchronous-unwind-tables`).
    #[error("no call-frame information: neither .eh_frame nor .debug_frame describes any code")]
    NoFrames,
    /// The file has no executable segment, or code too far apart for a table.
    #[error("failed to compile unwind table: {0:#x} bytes of code, 1 byte to 4 GiB are supported")]
    CodeSpan(u64),
    /// More rows than a table may have.
    #[error("failed to compile unwind table: more than {MAX_ROWS} rows")]
    TooManyRows,
    /// A section is larger than any that is read.
    #[error("failed to read `{section}`: {size} bytes are more than the limit")]
    TooLarge {
        /// Name of the section or program header.
        section: &'static str,
        /// Claimed size in bytes.
        size: u64,
    },
    /// A section cannot be read or decompressed.
    #[error("failed to read `{section}`: {source}")]
    Section {
        /// Name of the section.
        section: &'static str,
        /// Cause.
        source: object::Error,
    },
    /// A program header points outside the file.
    #[error("failed to read `{section}`: {size} bytes at file offset {offset:#x} are not in the file")]
    Unreadable {
        /// Name of the program header.
        section: &'static str,
        /// Position in the file.
        offset: u64,
        /// Bytes wanted.
        size: u64,
    },
    /// `.eh_frame_hdr` is malformed.
    #[error("failed to parse `{section}`: {source}")]
    Header {
        /// Name of the program header.
        section: &'static str,
        /// Cause.
        source: gimli::Error,
    },
    /// The file cannot be opened.
    #[error("failed to open object file: {0}")]
    Open(#[source] std::io::Error),
    /// The file is no object file.
    #[error("failed to parse object file: {0}")]
    Parse(#[source] object::Error),
}

/// A rule that the caller knows better than the file, for a range of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForcedRule {
    /// Code that keeps frame pointers, and has no call-frame information or, like Go's, some that does not say where
    /// the caller's frame pointer is.
    FramePointer(Range<ElfAddress>),
    /// A function that has no caller.
    End(Range<ElfAddress>),
    /// Any rule: a row of `leaktrace_common`, whose place in its block does not matter.
    Row(Range<ElfAddress>, Row),
}

/// Compiles a file's table. `forced` rules replace what the file says.
///
/// # Errors
/// [`CompileError::NoFrames`] when the file describes no code and nothing is forced; others when it cannot be read or
/// exceeds a limit. Malformed entries are no error: they are skipped and counted in [`UnwindTable::stats`].
pub fn compile<'data, R: ReadRef<'data>>(
    file: &object::File<'data, R>,
    forced: &[ForcedRule],
) -> Result<UnwindTable, CompileError> {
    let image = Image::read(file)?;
    let (Some(first), Some(last)) = (image.text.first(), image.text.last()) else {
        return Err(CompileError::CodeSpan(0));
    };
    let base = compact::align_down(first.start);
    let span = last.end - base;
    if span >= MAX_SPAN {
        return Err(CompileError::CodeSpan(span));
    }

    let mut frames = Frames::new(&image, base);
    if let Some(section) = &image.eh_frame {
        let eh_frame = EhFrame::from(Slice::new(&section.data, LittleEndian));
        frames.read(&eh_frame, section, false)?;
    }
    let mut extents = std::mem::take(&mut frames.extents);
    frames.stats.overlapping += compact::settle(&mut extents);
    if let Some(section) = &image.debug_frame {
        let debug_frame = DebugFrame::from(Slice::new(&section.data, LittleEndian));
        frames.read(&debug_frame, section, true)?;
        let mut more = std::mem::take(&mut frames.extents);
        frames.stats.overlapping += compact::settle(&mut more);
        compact::add_missing(&mut extents, more);
    }
    let covered = extents
        .iter()
        .map(|extent| base + u64::from(extent.start)..base + u64::from(extent.end));
    let uncovered = uncovered::keeping_frame_pointers(file, image.machine, &image.text, covered);
    frames.extents = extents;
    for range in uncovered {
        frames.force(range, Rule::plain(RULE_FRAME_POINTER));
    }
    // What the caller knows of a file (Go) is all of it.
    if image.machine == Machine::X86_64 && forced.is_empty() {
        frames.derive(file);
    }
    frames.mark_entry(&image);
    for rule in forced {
        let (range, rule) = match rule {
            ForcedRule::FramePointer(range) => (range, Rule::plain(RULE_FRAME_POINTER)),
            ForcedRule::End(range) => (range, Rule::END),
            ForcedRule::Row(range, row) => (range, Rule::from(*row)),
        };
        frames.force(range.start.0..range.end.0, rule);
    }
    if frames.extents.is_empty() {
        return Err(CompileError::NoFrames);
    }
    frames.stats.text_bytes = image.text.iter().map(|range| range.end - range.start).sum();
    compact::build(base, &frames.extents, &frames.rows, frames.stats)
}

/// Entries and rows as they are read, before they are laid out. Addresses are relative to `base`.
struct Frames<'i> {
    base: u64,
    machine: Machine,
    text: &'i [Range<u64>],
    extents: Vec<Extent>,
    rows: Vec<RawRow>,
    stats: TableStats,
}

/// A CIE that was parsed, with its state; `None` if it is malformed.
type KnownCie<'a> = Option<(gimli::CommonInformationEntry<Slice<'a>>, Common)>;

impl<'i> Frames<'i> {
    fn new(image: &'i Image<'_>, base: u64) -> Self {
        let stats = TableStats::default();
        Self {
            base,
            machine: image.machine,
            text: &image.text,
            extents: Vec::new(),
            rows: Vec::new(),
            stats,
        }
    }

    fn read<'a, S>(&mut self, section: &S, source: &FrameSection<'_>, tombstones: bool) -> Result<(), CompileError>
    where
        S: UnwindSection<Slice<'a>> + Section<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut interpreter = Interpreter::new(section, self.machine);
        let mut known: HashMap<usize, KnownCie<'a>> = HashMap::new();
        // An entry is read once, but may name a CIE anywhere: their programs together may not exceed the section.
        let mut budget = source.data.len();
        let mut left = source.max_entries;
        // Typical of .eh_frame: 50 bytes and 12 rows an entry.
        self.extents.reserve((source.data.len() / 50).min(1 << 20));
        self.rows.reserve((source.data.len() / 5).min(1 << 22));
        let mut entries = section.entries(&source.bases);
        while left > 0 {
            let partial = match entries.next() {
                Ok(Some(CieOrFde::Fde(partial))) => partial,
                Ok(Some(CieOrFde::Cie(_))) => continue,
                Ok(None) => break,
                Err(_) => {
                    self.stats.malformed += 1;
                    break;
                }
            };
            left -= 1;
            self.stats.entries += 1;
            let offset = UnwindOffset::into(partial.cie_offset());
            if known.len() >= MAX_CIES && !known.contains_key(&offset) {
                self.stats.malformed += 1;
                continue;
            }
            let cie = known
                .entry(offset)
                .or_insert_with(|| parse_cie(section, source, offset, self.machine, &mut interpreter, &mut budget));
            let Some((cie, common)) = cie else {
                self.stats.malformed += 1;
                continue;
            };
            let Ok(entry) = partial.parse(|_, _, _| Ok(cie.clone())) else {
                self.stats.malformed += 1;
                continue;
            };
            let start = entry.initial_address();
            let Some(end) = start.checked_add(entry.len()).filter(|&end| end > start) else {
                self.stats.outside += 1;
                continue;
            };
            // Linkers leave the entries of discarded functions in .debug_frame, at address zero.
            if (tombstones && start == 0) || !self.is_text(start, end) {
                self.stats.outside += 1;
                continue;
            }
            let mut instructions = entry.instructions(section, &source.bases);
            let next = std::iter::from_fn(|| instructions.next().transpose());
            let (base, first) = (self.base, self.rows.len());
            let rows = &mut self.rows;
            let result = interpreter.run(*common, next, (start, end), |address, rule| {
                let at = (address - base) as u32;
                // One more than allowed is enough to fail below.
                if rows.len() <= MAX_ROWS {
                    push(rows, first, RawRow { at, rule });
                }
            });
            if let Err(BadProgram) = result {
                self.stats.malformed += 1;
            }
            if self.rows.len() > MAX_ROWS {
                return Err(CompileError::TooManyRows);
            }
            let (start, end) = ((start - base) as u32, (end - base) as u32);
            self.extents.push(Extent {
                start,
                end,
                first: first as u32,
                count: (self.rows.len() - first) as u32,
            });
        }
        Ok(())
    }

    /// Adds what the code itself shows where nothing is known.
    fn derive<'data, R: ReadRef<'data>>(&mut self, file: &object::File<'data, R>) {
        let base = self.base;
        let covered = self.extents.iter();
        let covered = covered.map(|extent| base + u64::from(extent.start)..base + u64::from(extent.end));
        let rules = derived::rules(file, self.text, covered);
        let mut more = Vec::with_capacity(rules.len());
        let room = MAX_ROWS.saturating_sub(self.rows.len());
        for (range, rule) in rules.into_iter().take(room) {
            let (start, end) = ((range.start - base) as u32, (range.end - base) as u32);
            more.push(Extent {
                start,
                end,
                first: self.rows.len() as u32,
                count: 1,
            });
            self.rows.push(RawRow { at: start, rule });
            self.stats.derived_bytes += range.end - range.start;
        }
        compact::add_missing(&mut self.extents, more);
    }

    /// Whether an entry lies within one executable segment.
    fn is_text(&self, start: u64, end: u64) -> bool {
        let index = self.text.partition_point(|range| range.end <= start);
        self.text
            .get(index)
            .is_some_and(|range| range.start <= start && end <= range.end)
    }

    /// The function at the entry point has no caller; toolchains state that in many ways, or not at all.
    fn mark_entry(&mut self, image: &Image<'_>) {
        let Some(entry) = image
            .entry
            .filter(|&entry| self.is_text(entry, entry.saturating_add(1)))
        else {
            return;
        };
        let at = (entry - self.base) as u32;
        let index = self.extents.partition_point(|extent| extent.end <= at);
        match self.extents.get(index) {
            Some(extent) if extent.start <= at => {
                // The middle of a function is no entry point.
                if image.is_program && extent.start == at {
                    let range = self.base + u64::from(extent.start)..self.base + u64::from(extent.end);
                    self.force(range, Rule::END);
                }
            }
            next => {
                let next = next.map_or(u64::MAX, |extent| self.base + u64::from(extent.start));
                self.force(entry..entry.saturating_add(ENTRY_CODE).min(next), Rule::END);
            }
        }
    }

    /// Replaces what is known of `range`, as far as it is executable.
    fn force(&mut self, range: Range<u64>, rule: Rule) {
        for text in self.text {
            let (start, end) = (range.start.max(text.start), range.end.min(text.end));
            if start < end {
                let (start, end) = ((start - self.base) as u32, (end - self.base) as u32);
                let first = self.rows.len() as u32;
                self.rows.push(RawRow { at: start, rule });
                compact::replace(
                    &mut self.extents,
                    Extent {
                        start,
                        end,
                        first,
                        count: 1,
                    },
                );
            }
        }
    }
}

/// Adds a row of the entry whose rows begin at `first`: equal neighbours merge, the last at an address counts.
fn push(rows: &mut Vec<RawRow>, first: usize, row: RawRow) {
    if rows.len() > first {
        if rows.last().is_some_and(|last| last.at == row.at) {
            rows.pop();
        }
        if rows.len() > first && rows.last().is_some_and(|last| last.rule == row.rule) {
            return;
        }
    }
    rows.push(row);
}

fn parse_cie<'s, 'a: 's, S>(
    section: &'s S,
    source: &FrameSection<'_>,
    offset: usize,
    machine: Machine,
    interpreter: &mut Interpreter<'s, S>,
    budget: &mut usize,
) -> KnownCie<'a>
where
    S: UnwindSection<Slice<'a>>,
{
    let cie = section.cie_from_offset(&source.bases, offset.into()).ok()?;
    *budget = budget.checked_sub(cie.entry_len())?;
    let returns_by = cie.return_address_register().0;
    if returns_by != machine.numbers().ra || cie.address_size() != 8 {
        return None;
    }
    let mut common = Common {
        machine,
        code_alignment: cie.code_alignment_factor(),
        data_alignment: cie.data_alignment_factor(),
        signal: cie.is_signal_trampoline(),
        initial: None,
    };
    let mut instructions = cie.instructions(section, &source.bases);
    let next = std::iter::from_fn(|| instructions.next().transpose());
    common.initial = Some(interpreter.initial(common, next).ok()?);
    Some((cie, common))
}
