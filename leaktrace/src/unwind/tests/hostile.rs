//! Damaged and malicious files: every one must compile or fail with a typed error, in bounded time, and what compiles
//! must be a valid table.

use std::time::{Duration, Instant};

use object::{Object, ObjectSection};
use proptest::prelude::*;

use super::{ENTRIES_ALONE, LIBC, LOADER, check_layout, compile_bytes};
use crate::model::ElfAddress;
use crate::unwind::{CompileError, UnwindTable, compile};

/// Compiles and looks at all that a table may be asked.
fn attempt(bytes: &[u8]) -> Option<UnwindTable> {
    let file = object::File::parse(bytes).ok()?;
    let begin = Instant::now();
    let result = compile(&file, &ENTRIES_ALONE);
    assert!(begin.elapsed() < Duration::from_secs(10), "took {:?}", begin.elapsed());
    let table = result.ok()?;
    check_layout(&table);
    for address in (table.base.0..table.end().0).step_by(61) {
        assert!(table.row_at(ElfAddress(address)).is_some(), "no row at {address:#x}");
    }
    assert_eq!(table.row_at(table.end()), None);
    Some(table)
}

fn range_of(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
    let file = object::File::parse(bytes).unwrap();
    let (offset, size) = file.section_by_name(name).unwrap().file_range().unwrap();
    offset as usize..(offset + size) as usize
}

/// The file without section headers, as some packers and `sstrip` leave it.
fn without_sections(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[0x28..0x30].fill(0);
    bytes[0x3a..0x40].fill(0);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_of_frames(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..200)) {
        let mut bytes = std::fs::read(LOADER).unwrap();
        let range = range_of(&bytes, ".eh_frame");
        for (index, value) in changes {
            bytes[range.start + index.index(range.len())] = value;
        }
        attempt(&bytes);
    }

    #[test]
    fn flipped_bytes_of_headers(
        changes in prop::collection::vec((0usize..0x400, any::<u8>()), 1..20),
        sections in any::<bool>(),
    ) {
        let mut bytes = std::fs::read(LOADER).unwrap();
        if sections {
            bytes = without_sections(bytes);
        }
        for (index, value) in changes {
            // What makes it an ELF file of the right class stays, so that the rest is reached.
            if index >= 0x12 + 2 {
                bytes[index] = value;
            }
        }
        attempt(&bytes);
    }

    #[test]
    fn shuffled_blocks(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), length in 1usize..4096) {
        let mut bytes = std::fs::read(LOADER).unwrap();
        let range = range_of(&bytes, ".eh_frame");
        let length = length.min(range.len() / 2);
        let from = range.start + from.index(range.len() - length);
        let to = range.start + to.index(range.len() - length);
        bytes.copy_within(from..from + length, to);
        attempt(&bytes);
    }

    #[test]
    fn truncated_files(length in any::<prop::sample::Index>()) {
        let bytes = std::fs::read(LOADER).unwrap();
        attempt(&bytes[..length.index(bytes.len())]);
    }
}

#[test]
fn section_headers_are_not_needed() {
    for path in [LIBC, LOADER] {
        let bytes = std::fs::read(path).unwrap();
        let expected = compile_bytes(&bytes);
        let stripped = compile_bytes(&without_sections(bytes));
        assert!(
            expected.rows == stripped.rows && expected.blocks == stripped.blocks,
            "{path}"
        );
        assert_eq!((expected.base, expected.stats), (stripped.base, stripped.stats));
    }
}

#[test]
fn a_cie_that_every_entry_reads_anew_does_not_take_quadratic_time() {
    // One CIE of 4 MB of DW_CFA_remember_state-free padding, and entries that name a different place inside it each.
    let mut bytes = std::fs::read(LIBC).unwrap();
    let range = range_of(&bytes, ".eh_frame");
    let (start, length) = (range.start, range.len());
    let half = (length / 2) & !15;
    let section = &mut bytes[range];
    section.fill(0);
    // Overlapping CIEs: each 20 bytes after the other, all reaching to the middle.
    for at in (0..half - 64).step_by(20) {
        section[at..at + 4].copy_from_slice(&((half - at - 4) as u32).to_le_bytes());
        section[at + 8..at + 17].copy_from_slice(&[1, 0, 1, 0x78, 16, 0, 0, 0, 0]);
    }
    for (number, at) in (half..length - 32).step_by(32).enumerate() {
        let cie = (number * 20) % (half - 64) / 20 * 20;
        section[at..at + 4].copy_from_slice(&28u32.to_le_bytes());
        section[at + 4..at + 8].copy_from_slice(&((at + 4 - cie) as u32).to_le_bytes());
        section[at + 8..at + 16].copy_from_slice(&(0x30000 + number as u64 * 16).to_le_bytes());
        section[at + 16..at + 24].copy_from_slice(&16u64.to_le_bytes());
    }
    assert!(start > 0);
    let begin = Instant::now();
    let table = attempt(&bytes).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "took {:?}", begin.elapsed());
    assert!(
        table.stats.entries > 1000 && table.stats.malformed > 1000,
        "{:?}",
        table.stats
    );
}

#[test]
fn absurd_claims_are_typed_errors() {
    let bytes = std::fs::read(LOADER).unwrap();
    let error = |bytes: &[u8]| compile(&object::File::parse(bytes).unwrap(), &[]).unwrap_err();

    let mut machine = bytes.clone();
    machine[0x12] = 8;
    assert!(matches!(error(&machine), CompileError::Machine(8)));

    let mut empty = bytes.clone();
    let range = range_of(&bytes, ".eh_frame");
    empty[range].fill(0);
    // The entry point alone remains, as the one place that is known to have no caller.
    let table = attempt(&empty).unwrap();
    assert_eq!((table.stats.entries, table.rows.len()), (0, 3), "{:?}", table.rows);

    // An executable segment of 2^40 bytes.
    let headers = u64::from_le_bytes(bytes[0x20..0x28].try_into().unwrap()) as usize;
    let mut wide = bytes.clone();
    let count = usize::from(u16::from_le_bytes([bytes[0x38], bytes[0x39]]));
    for header in (0..count).map(|index| headers + index * 56) {
        if wide[header] == 1 && wide[header + 4] & 1 != 0 {
            wide[header + 40..header + 48].copy_from_slice(&(1u64 << 40).to_le_bytes());
        }
    }
    assert!(matches!(error(&wide), CompileError::CodeSpan(_)));
}
