//! Where a process has which code, by its mappings: files' code, and what the program made itself.

use std::{ops::Range, sync::Arc};

use leaktrace_common::config::MAX_MAPPINGS;

use super::{
    address_space::CodeSpan,
    survey::{CodeFile, Survey},
};
use crate::proc::maps::{FileId, Mapping};

/// Runs of memory that a program may have filled with code.
const MAX_MADE: usize = MAX_MAPPINGS as usize / 2;

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
