//! The code of traced processes in the arrays that the kernel side walks stacks by: which mappings a process has, and the
//! unwind table of each file, once for all processes.
//!
//! Invariant: a run of an array is given to somebody else only when no program in the kernel can be reading it any more.

use std::{
    collections::HashMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use leaktrace_common::config::{CodeMapping, MAPPING_FRAME_POINTER, MAX_MAPPINGS};

use super::{
    address_space::CodeSpan,
    survey::{CodeFile, Survey},
};
use crate::{
    bpf::tables::{ArrayFull, TablePlace, UnwindArrays},
    proc::{
        files::FileVersion,
        maps::{FileId, Mapping},
    },
};

/// Runs of memory that a program may have filled with code.
const MAX_MADE: usize = MAX_MAPPINGS as usize / 2;

/// How long a run that was replaced is kept at least, so that one wait for the programs that may be reading it serves many.
const RETIREMENT: Duration = Duration::from_secs(1);

/// Runs of arrays that a program in the kernel may still be reading.
enum Retired {
    Mappings(Range<u32>),
    Table(TablePlace),
}

/// What is stored.
pub struct CodeTables {
    arrays: UnwindArrays,
    places: HashMap<(FileId, FileVersion), (Arc<CodeFile>, TablePlace)>,
    retired: Vec<(Instant, Retired)>,
}

impl CodeTables {
    /// Nothing is stored yet.
    pub fn new(arrays: UnwindArrays) -> Self {
        Self {
            arrays,
            places: HashMap::new(),
            retired: Vec::new(),
        }
    }

    /// Writes the process's code, and the tables that it needs, to the arrays. `made` is code that it made itself.
    pub fn store(&mut self, spans: &[(CodeSpan, Arc<CodeFile>)], made: &[Range<u64>]) -> Result<Range<u32>, ArrayFull> {
        self.release_retired();
        let mut mappings = Vec::new();
        for (span, file) in spans {
            let mut mapping = CodeMapping {
                start: span.start,
                end: span.end,
                ..CodeMapping::default()
            };
            if let Some(Ok(table)) = &file.table {
                let place = self.table_place(file)?;
                mapping.delta = span.start.wrapping_sub(span.elf_start.wrapping_sub(table.base.0));
                mapping.block_first = place.blocks.start;
                mapping.block_count = (place.blocks.end - place.blocks.start).saturating_sub(1);
            }
            mappings.push(mapping);
        }
        // Such code keeps frame pointers or cannot be followed.
        mappings.extend(made.iter().map(|range| CodeMapping {
            start: range.start,
            end: range.end,
            flags: MAPPING_FRAME_POINTER,
            ..CodeMapping::default()
        }));
        mappings.sort_by_key(|mapping| mapping.start);
        mappings.truncate(MAX_MAPPINGS as usize);
        self.arrays.mappings.store(mappings.into_iter())
    }

    /// A run of mappings that was replaced, or whose process is not traced any more.
    pub fn retire(&mut self, run: Range<u32>) {
        self.retired.push((Instant::now(), Retired::Mappings(run)));
    }

    /// Gives up the unwind tables of files that no traced process maps any more.
    pub fn drop_unused(&mut self) {
        self.release_retired();
        // Besides a process's own, one reference is here and one is the surveyor's.
        let unused: Vec<(FileId, FileVersion)> = self
            .places
            .iter()
            .filter(|(_, (file, _))| Arc::strong_count(file) <= 2)
            .map(|(key, _)| *key)
            .collect();
        for key in unused {
            if let Some((_, place)) = self.places.remove(&key) {
                self.retired.push((Instant::now(), Retired::Table(place)));
            }
        }
    }

    fn table_place(&mut self, file: &Arc<CodeFile>) -> Result<TablePlace, ArrayFull> {
        let key = (file.id, file.version);
        if let Some((_, place)) = self.places.get(&key) {
            return Ok(place.clone());
        }
        let Some(Ok(table)) = &file.table else {
            return Ok(TablePlace {
                blocks: 0..0,
                rows: 0..0,
            });
        };
        let place = self.arrays.store_table(&table.blocks, &table.rows)?;
        self.places.insert(key, (Arc::clone(file), place.clone()));
        Ok(place)
    }

    fn release_retired(&mut self) {
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|(since, _)| since.elapsed() >= RETIREMENT);
        self.retired = kept;
        if let Some(youngest) = due.iter().map(|(since, _)| *since).max() {
            self.arrays.grace.wait_for_programs_of(youngest);
        }
        for (_, what) in due {
            match what {
                Retired::Mappings(run) => self.arrays.mappings.release(run),
                Retired::Table(place) => self.arrays.release_table(place),
            }
        }
    }
}

/// Memory that the program fills with code itself, in the order of addresses: what is executable and has no file, and what
/// was so before (`known`) and still is there. Compilers take the permission away from memory that they write to. The
/// kernel's own page for probes is none of it: return addresses that lead there were put there by a return probe.
pub fn made_code(mappings: &[Mapping], files: &[Arc<CodeFile>], known: &[Range<u64>]) -> Vec<Range<u64>> {
    let has_no_file = |mapping: &Mapping| {
        mapping
            .file
            .is_none_or(|id| files.iter().any(|file| file.id == id && file.is_made()))
            && !mapping.is_uprobes()
    };
    let was_code = |mapping: &Mapping| {
        let overlapping = known
            .iter()
            .filter(|range| range.start < mapping.end.0 && mapping.start.0 < range.end);
        let pieces = overlapping.map(|range| range.start.max(mapping.start.0)..range.end.min(mapping.end.0));
        pieces.collect::<Vec<_>>()
    };
    let mut made: Vec<Range<u64>> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| has_no_file(mapping)) {
        let pieces = if mapping.execute {
            std::iter::once(mapping.start.0..mapping.end.0).collect()
        } else {
            was_code(mapping)
        };
        for piece in pieces {
            match made.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => made.push(piece),
            }
        }
    }
    made.truncate(MAX_MADE);
    made
}

/// Whether the program makes code: what it has of such memory is not just the kernel's (`[vdso]`).
pub fn makes_code(mappings: &[Mapping], files: &[Arc<CodeFile>]) -> bool {
    let of_kernel = ["[vdso]", "[vsyscall]", "[uprobes]"];
    mappings.iter().any(|mapping| {
        let is_of_file = mapping
            .file
            .is_some_and(|id| !files.iter().any(|file| file.id == id && file.is_made()));
        mapping.execute && !is_of_file && !of_kernel.iter().any(|name| mapping.path.as_os_str() == *name)
    })
}

/// What decides which file's code is where.
pub fn file_code(mappings: &[Mapping]) -> impl Iterator<Item = (u64, u64, u64, FileId)> {
    let code = mappings.iter().filter(|mapping| mapping.execute);
    code.filter_map(|mapping| Some((mapping.start.0, mapping.end.0, mapping.offset.0, mapping.file?)))
}

/// Executable file mappings with their file, in the order of addresses.
pub fn code_spans(survey: &Survey) -> Vec<(CodeSpan, Arc<CodeFile>)> {
    let mut spans = Vec::new();
    for mapping in survey.mappings.iter().filter(|mapping| mapping.execute) {
        let file = survey.files.iter().find(|file| Some(file.id) == mapping.file);
        let Some(file) = file.filter(|file| !file.is_made()) else {
            continue;
        };
        let elf_start = file
            .mapping_address(mapping.offset)
            .map_or(mapping.offset.0, |address| address.0);
        let span = CodeSpan {
            start: mapping.start.0,
            end: mapping.end.0,
            offset: mapping.offset.0,
            file: 0,
            elf_start,
        };
        spans.push((span, Arc::clone(file)));
    }
    spans
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::proc::maps::parse_maps;

    #[test]
    fn code_that_is_written_to_for_a_moment_stays_code() {
        let maps = |text: &[u8]| parse_maps(text).unwrap();
        let first = maps(
            b"1000-2000 r-xp 0 fe:01 7 /bin/x\n\
              4000-5000 r-xp 0 00:00 0 \n\
              5000-6000 rwxp 0 00:00 0 \n\
              8000-9000 rw-p 0 00:00 0 \n\
              a000-b000 --xp 0 00:00 0 [uprobes]\n",
        );
        let made = made_code(&first, &[], &[]);
        let both = 0x4000..0x6000;
        assert_eq!(made, [both]);
        // Half of it is being written to, a part is gone, and a file has come in its place.
        let second = maps(
            b"4000-4800 rw-p 0 00:00 0 \n\
              4800-5000 r--p 0 fe:01 8 /lib/y\n\
              5000-5800 r-xp 0 00:00 0 \n",
        );
        assert_eq!(made_code(&second, &[], &made), [0x4000..0x4800, 0x5000..0x5800]);
        assert_eq!(file_code(&first).count(), 1);
        assert_eq!(file_code(&second).count(), 0);
    }
}
