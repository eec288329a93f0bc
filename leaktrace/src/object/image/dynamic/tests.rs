//! The same file with and without its section headers, and dynamic tables that lie.

use std::collections::BTreeSet;

use object::LittleEndian as LE;
use object::elf;
use proptest::prelude::*;

use crate::model::ElfAddress;
use crate::object::image::{ElfImage, SlotTarget};
use crate::object::symbols::{Table, find_definition, for_each_symbol};

/// A library with thousands of symbols, if it is where Debian has it; else a program with a few.
fn original() -> Vec<u8> {
    std::fs::read("/usr/lib/x86_64-linux-gnu/libc.so.6").unwrap_or_else(|_| std::fs::read("/bin/true").unwrap())
}

/// Takes the section headers away, as `sstrip` does.
fn without_headers(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[40..48].fill(0); // e_shoff
    bytes[60..64].fill(0); // e_shnum, e_shstrndx
    bytes
}

/// Position and size of the dynamic table.
fn table(bytes: &[u8]) -> (usize, usize) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let header = (0..count)
        .map(|index| word(32) + index * 56)
        .find(|at| bytes[*at..*at + 4] == elf::PT_DYNAMIC.0.to_le_bytes())
        .unwrap();
    (word(header + 8), word(header + 32))
}

/// Overwrites the tags of these entries with one that means nothing.
fn without_entries(mut bytes: Vec<u8>, tags: &[elf::DynamicTag]) -> Vec<u8> {
    let (start, size) = table(&bytes);
    for at in (start..start + size).step_by(16) {
        if tags.iter().any(|tag| bytes[at..at + 8] == tag.0.to_le_bytes()) {
            bytes[at..at + 8].copy_from_slice(&21u64.to_le_bytes()); // DT_DEBUG
        }
    }
    bytes
}

fn open(bytes: Vec<u8>) -> ElfImage {
    ElfImage::new(Box::new(bytes)).unwrap()
}

type Symbols = BTreeSet<(Vec<u8>, u64, u64, bool)>;

fn dynamic_symbols(image: &ElfImage) -> Symbols {
    let mut symbols = Symbols::new();
    let complaints = for_each_symbol(image, |table, symbol| {
        if table == Table::Dynamic {
            symbols.insert((symbol.name.to_vec(), symbol.address.0, symbol.size, symbol.indirect));
        }
    });
    assert_eq!(complaints, [""; 0]);
    symbols
}

#[test]
fn symbols_are_found_by_each_hash_table_and_by_none() {
    let with = dynamic_symbols(&open(original()));
    assert!(with.len() > 20);
    let variants: [&[elf::DynamicTag]; 4] = [
        &[],
        &[elf::DT_HASH],
        &[elf::DT_GNU_HASH],
        &[elf::DT_HASH, elf::DT_GNU_HASH],
    ];
    for gone in variants {
        let image = open(without_entries(without_headers(original()), gone));
        assert_eq!(dynamic_symbols(&image), with, "without {gone:?}");
    }
}

#[test]
fn definitions_and_slots_are_those_of_the_headers() {
    let (with, without) = (open(original()), open(without_headers(original())));
    assert_eq!(find_definition(&without, b"malloc"), find_definition(&with, b"malloc"));
    let relocations = with
        .sections()
        .iter()
        .filter(|section| section.kind == elf::SHT_RELA.0 && section.allocated);
    let mut named = 0;
    for section in relocations {
        let bytes = with.section_bytes(section, 1 << 26).unwrap();
        for entry in bytes.chunks_exact(24) {
            let slot = ElfAddress(u64::from_le_bytes(entry[..8].try_into().unwrap()));
            assert_eq!(without.slot_target(slot), with.slot_target(slot), "{slot:?}");
            named += usize::from(matches!(with.slot_target(slot), SlotTarget::Symbol(_)));
        }
    }
    assert!(named > 3, "{named}");
}

#[test]
fn section_headers_win() {
    let image = open(without_entries(
        original(),
        &[elf::DT_SYMTAB, elf::DT_STRTAB, elf::DT_HASH, elf::DT_GNU_HASH],
    ));
    assert!(dynamic_symbols(&image).len() > 20);
}

#[test]
fn what_is_not_there_is_no_section() {
    for gone in [elf::DT_SYMTAB, elf::DT_STRTAB] {
        let image = open(without_entries(without_headers(original()), &[gone]));
        assert!(image.sections().is_empty(), "without {gone:?}");
    }
}

/// Every value of the table as large as it can be, one after the other.
#[test]
fn huge_values_are_survived() {
    let bytes = without_headers(original());
    let (start, size) = table(&bytes);
    for at in (start..start + size).step_by(16) {
        for value in [u64::MAX, 1 << 63, 1 << 40, bytes.len() as u64] {
            let mut damaged = bytes.clone();
            damaged[at + 8..at + 16].copy_from_slice(&value.to_le_bytes());
            exercise(damaged);
        }
    }
}

fn exercise(bytes: Vec<u8>) {
    let Ok(image) = ElfImage::new(Box::new(bytes)) else {
        return;
    };
    for section in image.sections() {
        let bytes = image.section_bytes(section, 1 << 26);
        assert!(bytes.is_ok(), "{section:?} is not in the file");
        image.slot_target(section.address);
    }
    for_each_symbol(&image, |_, _| {});
}

/// A library with nothing but a dynamic table and what it refers to.
fn small(buckets: u32, first_hashed: u32, bucket: u32, chain: &[u32]) -> Vec<u8> {
    let mut file = without_headers(vec![0; 0x400]);
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    file[16..20].copy_from_slice(&[3, 0, 62, 0]); // ET_DYN, EM_X86_64
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..58].copy_from_slice(&[56, 0, 2, 0]);
    let mut header = |index: usize, kind: u32, offset: u64, size: u64| {
        let at = 64 + index * 56;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 4..at + 8].copy_from_slice(&5u32.to_le_bytes());
        for (word, value) in [offset, offset, offset, size, size].into_iter().enumerate() {
            let at = at + 8 + word * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    };
    header(0, elf::PT_LOAD.0, 0, 0x400);
    header(1, elf::PT_DYNAMIC.0, 0x100, 0x60);
    let entries = [
        (elf::DT_SYMTAB, 0x200u64),
        (elf::DT_STRTAB, 0x300),
        (elf::DT_STRSZ, 0x10),
        (elf::DT_GNU_HASH, 0x180),
    ];
    for (index, (tag, value)) in entries.into_iter().enumerate() {
        let at = 0x100 + index * 16;
        file[at..at + 8].copy_from_slice(&tag.0.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&value.to_le_bytes());
    }
    let words = [buckets, first_hashed, 0, 0, bucket]
        .into_iter()
        .chain(chain.iter().copied());
    for (index, word) in words.enumerate() {
        let at = 0x180 + index * 4;
        file[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    file
}

fn symbol_count(bytes: Vec<u8>) -> Option<u64> {
    let image = open(bytes);
    let section = image.sections().first()?;
    Some(section.size / size_of::<elf::Sym64<LE>>() as u64)
}

#[test]
fn the_gnu_hash_table_is_followed_to_the_end_of_its_last_chain() {
    assert_eq!(
        symbol_count(small(1, 1, 2, &[4, 4, 5])),
        Some(4),
        "symbols 1 and 2 and 3"
    );
    assert_eq!(symbol_count(small(1, 3, 0, &[])), Some(3), "nothing but imports");
    // The distance to the strings is 256 bytes: ten symbols.
    assert_eq!(
        symbol_count(small(u32::MAX, 1, 2, &[])),
        Some(10),
        "more buckets than bytes"
    );
    assert_eq!(
        symbol_count(small(1, 1, u32::MAX, &[])),
        Some(10),
        "a bucket that leads nowhere"
    );
    assert_eq!(
        symbol_count(small(1, 1, 1, &[2; 0x9a])),
        Some(10),
        "a chain without an end"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damaged_tables_never_panic(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30)) {
        let mut bytes = without_headers(std::fs::read("/bin/true").unwrap());
        let (start, size) = table(&bytes);
        for (index, value) in damage {
            let at = start + index.index(size);
            bytes[at] = value;
        }
        exercise(bytes);
    }
}
