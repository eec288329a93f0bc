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
    proc::{files::FileVersion, maps::FileId},
};

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

    /// Writes the process's mappings, and the tables that they need, to the arrays.
    pub fn store(&mut self, survey: &Survey, spans: &[(CodeSpan, Arc<CodeFile>)]) -> Result<Range<u32>, ArrayFull> {
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
        // Code without a file was made by the program itself; such code keeps frame pointers or cannot be followed. The
        // kernel's own page for probes is none of it: return addresses that lead there were put there by a return probe.
        for mapping in survey
            .mappings
            .iter()
            .filter(|mapping| mapping.execute && mapping.file.is_none() && !mapping.is_uprobes())
        {
            mappings.push(CodeMapping {
                start: mapping.start.0,
                end: mapping.end.0,
                flags: MAPPING_FRAME_POINTER,
                ..CodeMapping::default()
            });
        }
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

/// Executable file mappings with their file, in the order of addresses.
pub fn code_spans(survey: &Survey) -> Vec<(CodeSpan, Arc<CodeFile>)> {
    let mut spans = Vec::new();
    for mapping in survey.mappings.iter().filter(|mapping| mapping.execute) {
        let Some(file) = survey.files.iter().find(|file| Some(file.id) == mapping.file) else {
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
