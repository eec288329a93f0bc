//! Whole, truncated and damaged ELF files.

use super::*;
use crate::object::symbols::for_each_symbol;
use proptest::prelude::*;

fn own() -> Vec<u8> {
    // /bin/true is small; every machine has it.
    std::fs::read("/bin/true").unwrap()
}

/// Uses everything that an image offers.
fn exercise(bytes: Vec<u8>) -> Result<(), ImageError> {
    let image = ElfImage::new(Box::new(bytes))?;
    for_each_symbol(&image, |_, _| {});
    for start in image.function_starts().iter().take(50) {
        let address = ElfAddress(*start);
        image.bytes_at(address, 64);
        assert!(
            image
                .file_offset(address)
                .is_none_or(|offset| image.elf_address(offset).is_some())
        );
    }
    for section in image.sections() {
        let _ = image.section_bytes(section, 1 << 16);
        image.slot_target(section.address);
    }
    image.bytes_at(image.entry(), 64);
    Ok(())
}

#[test]
fn reads_a_system_binary() {
    let bytes = own();
    let image = ElfImage::new(Box::new(bytes.clone())).unwrap();
    assert!(image.is_code(image.entry()));
    let offset = image.file_offset(image.entry()).unwrap();
    assert_eq!(image.elf_address(offset), Some(image.entry()));
    assert!(image.build_id().is_some());
    assert!(image.function_starts().len() > 3);
    assert!(image.section(".dynsym").is_some());
    exercise(bytes).unwrap();
}

#[test]
fn tells_what_it_is_not() {
    let open = |bytes: &[u8]| ElfImage::new(Box::new(bytes.to_vec())).unwrap_err();
    assert!(matches!(open(b""), ImageError::NotElf));
    assert!(matches!(open(b"#!/bin/sh\n"), ImageError::NotElf));
    assert!(matches!(open(b"\x7fELF\x02\x01"), ImageError::Truncated { .. }));
    let mut bytes = own();
    bytes[4] = 1;
    assert!(matches!(open(&bytes), ImageError::WrongClass));
    bytes[4] = 2;
    bytes[18] = 8;
    assert!(matches!(open(&bytes), ImageError::WrongMachine { machine: 8 }));
}

#[test]
fn a_truncated_file_is_an_error() {
    let bytes = own();
    for len in (0..bytes.len()).step_by(bytes.len() / 97) {
        assert!(
            exercise(bytes[..len].to_vec()).is_err(),
            "cut at {len}: the section headers are at the end"
        );
    }
}

#[test]
fn huge_claims_are_refused_before_memory_is_taken() {
    let mut bytes = own();
    bytes[60..62].fill(0); // e_shnum: extended, so that section 0 tells
    let table = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    bytes[table + 32..table + 40].copy_from_slice(&(1u64 << 58).to_le_bytes());
    let error = ElfImage::new(Box::new(bytes)).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Limit {
                what: "number of sections",
                ..
            }
        ),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_files_never_panic(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40), head in any::<bool>()) {
        let mut bytes = own();
        // Half of the damage goes where the headers and tables are.
        let range = if head { 4096.min(bytes.len()) } else { bytes.len() };
        for (index, value) in damage {
            let at = index.index(range);
            bytes[at] = value;
        }
        let _ = exercise(bytes);
    }
}

/// `count` symbols of functions with the same name at the begin of the strings.
fn symbols(count: usize) -> Vec<u8> {
    let mut one = 1u32.to_le_bytes().to_vec();
    one.extend([2, 0, 1, 0]);
    one.extend([0x1000u64, 16].map(u64::to_le_bytes).concat());
    one.repeat(count)
}

#[test]
fn one_symbol_table_of_a_kind_is_read() {
    let mut bytes = symbols(100);
    let size = bytes.len() as u64;
    bytes.extend(b"\0malloc\0");
    let mut sections = vec![(".strtab", 3, 0, size, 8, 0)];
    sections.extend([(".symtab", 2, 0, 0, size, 1); 2000]);
    let image = ElfImage::new(Box::new(crate::object::fixture::with_sections(&sections, &bytes))).unwrap();
    let mut visited = 0;
    let complaints = for_each_symbol(&image, |_, symbol| {
        assert_eq!(symbol.name, b"malloc");
        visited += 1;
    });
    assert_eq!(visited, 100);
    assert_eq!(complaints, [".symtab: 1999 more tables of its kind are not read"]);
}

#[test]
fn names_without_an_end_in_sight_are_cut_and_their_bytes_counted() {
    let mut bytes = symbols(40_000);
    let size = bytes.len() as u64;
    bytes.push(0);
    bytes.resize(bytes.len() + (1 << 20), b'a');
    let strings = bytes.len() as u64 - size;
    let sections = [(".strtab", 3, 0, size, strings, 0), (".symtab", 2, 0, 0, size, 1)];
    let image = ElfImage::new(Box::new(crate::object::fixture::with_sections(&sections, &bytes))).unwrap();
    let complaints = for_each_symbol(&image, |_, symbol| panic!("{} bytes", symbol.name.len()));
    assert!(complaints[0].contains("the rest is not searched"), "{complaints:?}");
}

#[test]
fn relocations_have_one_budget() {
    let bytes = vec![0; 20 << 20];
    let section = (".rela.dyn", 4, 2, 0, bytes.len() as u64, 0);
    let file = crate::object::fixture::with_sections(&[section; 50], &bytes);
    let image = ElfImage::new(Box::new(file)).unwrap();
    assert!(image.read_relocations().len() <= (MAX_RELOCATIONS / 24) as usize);
    let told = image.left_out();
    assert!(
        told.len() == 1 && told[0].starts_with("relocations of 1048576000 bytes"),
        "{told:?}"
    );
    let file = crate::object::fixture::with_sections(&[section], &bytes);
    assert!(ElfImage::new(Box::new(file)).unwrap().left_out().is_empty());
}
