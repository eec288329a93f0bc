//! Section headers for the copy of a file that has none, so that its dynamic symbols are found.
//!
//! The symbolization library looks for symbols by section headers alone. Invariant: only the copy is changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use object::elf;

use crate::object::image::{ElfImage, Section};

/// Names of the sections, with the null section's in front.
const NAMES: &[u8] = b"\0.dynsym\0.dynstr\0.shstrtab\0";
/// Where each begins in there.
const DYNSYM: u32 = 1;
const DYNSTR: u32 = 9;
const SHSTRTAB: u32 = 17;
/// Size of a section header.
const HEADER: u16 = 64;

/// Describes the file's symbols, as its dynamic table tells of them, behind the copy's end. Does nothing where it tells
/// of none.
pub(super) fn append(image: &ElfImage, copy: &File) -> io::Result<()> {
    let [symbols, strings, ..] = image.sections() else {
        return Ok(());
    };
    if symbols.kind != elf::SHT_DYNSYM.0 || strings.kind != elf::SHT_STRTAB.0 {
        return Ok(());
    }
    let names = copy.metadata()?.len().next_multiple_of(16);
    let table = (names + NAMES.len() as u64).next_multiple_of(16);
    let mut bytes = vec![0; usize::from(HEADER)];
    // Links by position: the symbols' strings are section 2. `sh_info`: the first symbol that is not local.
    bytes.extend(header(DYNSYM, symbols, 2, 1, 24));
    bytes.extend(header(DYNSTR, strings, 0, 0, 0));
    let own = Section {
        name: String::new(),
        kind: elf::SHT_STRTAB.0,
        allocated: false,
        address: crate::model::ElfAddress(0),
        offset: crate::model::FileOffset(names),
        size: NAMES.len() as u64,
        link: 0,
    };
    bytes.extend(header(SHSTRTAB, &own, 0, 0, 0));
    copy.write_all_at(NAMES, names)?;
    copy.write_all_at(&bytes, table)?;
    // e_shoff; e_shentsize, e_shnum, e_shstrndx.
    copy.write_all_at(&table.to_le_bytes(), 40)?;
    copy.write_all_at(&[HEADER, 4, 3].map(u16::to_le_bytes).concat(), 58)
}

fn header(name: u32, section: &Section, link: u32, info: u32, entry_size: u64) -> Vec<u8> {
    let allocated = u64::from(section.allocated) * elf::SHF_ALLOC.0;
    let mut bytes = [name, section.kind].map(u32::to_le_bytes).concat();
    for word in [allocated, section.address.0, section.offset.0, section.size] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend([link, info].map(u32::to_le_bytes).concat());
    bytes.extend([8, entry_size].map(u64::to_le_bytes).concat());
    bytes
}
