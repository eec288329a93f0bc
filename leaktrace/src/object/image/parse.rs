//! The tables at the head of an ELF file: program headers, section headers, notes.
//!
//! Invariant: each table's size is checked against a limit and the file's length before memory is taken for it.

use std::io;

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::pod::{Pod, slice_from_bytes};

use super::{ImageError, Section, Source};
use crate::model::{BuildId, ElfAddress, FileOffset};

/// Most program headers.
const MAX_SEGMENTS: u16 = 1024;
/// Most sections (files with `-ffunction-sections` that are linked have few; only objects have more).
const MAX_SECTIONS: u64 = 65_536;
/// Largest section-name table.
const MAX_SECTION_NAMES: u64 = 4 << 20;

pub(super) fn malformed(what: &'static str) -> ImageError {
    ImageError::Malformed { what }
}

/// Reads exactly `size` bytes. Checks the limit and the file's length before it allocates.
pub(super) fn read_exact(
    source: &dyn Source,
    len: u64,
    offset: u64,
    size: u64,
    limit: u64,
    what: &'static str,
) -> Result<Vec<u8>, ImageError> {
    if size > limit {
        return Err(ImageError::Limit { what, size, limit });
    }
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(ImageError::Truncated { what });
    }
    let mut bytes = vec![0; size as usize];
    let mut done = 0;
    while done < bytes.len() {
        match source.read_at(&mut bytes[done..], offset + done as u64) {
            // Truncated since it was opened.
            Ok(0) => return Err(ImageError::Truncated { what }),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

pub(super) fn read_program_headers(
    source: &dyn Source,
    len: u64,
    header: &FileHeader64<LE>,
) -> Result<Vec<ProgramHeader64<LE>>, ImageError> {
    let count = header.e_phnum.get(LE);
    if count > MAX_SEGMENTS {
        return Err(ImageError::Limit {
            what: "number of program headers",
            size: count.into(),
            limit: MAX_SEGMENTS.into(),
        });
    }
    if count > 0 && usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
        return Err(malformed("the size of a program header"));
    }
    read_table(source, len, header.e_phoff.get(LE), count.into(), "the program headers")
}

pub(super) fn read_sections(
    source: &dyn Source,
    len: u64,
    header: &FileHeader64<LE>,
) -> Result<Vec<Section>, ImageError> {
    let offset = header.e_shoff.get(LE);
    if offset == 0 {
        return Ok(Vec::new());
    }
    if usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader64<LE>>() {
        return Err(malformed("the size of a section header"));
    }
    let mut count = u64::from(header.e_shnum.get(LE));
    let mut names_index = u32::from(header.e_shstrndx.get(LE).0);
    if count == 0 || names_index == 0xffff {
        // Extended numbering: the true values are in section 0.
        let first: Vec<SectionHeader64<LE>> = read_table(source, len, offset, 1, "the section headers")?;
        let first = first.first().ok_or(malformed("the section headers"))?;
        count = if count == 0 { first.sh_size.get(LE) } else { count };
        names_index = if names_index == 0xffff {
            first.sh_link.get(LE)
        } else {
            names_index
        };
    }
    if count > MAX_SECTIONS {
        return Err(ImageError::Limit {
            what: "number of sections",
            size: count,
            limit: MAX_SECTIONS,
        });
    }
    let headers: Vec<SectionHeader64<LE>> = read_table(source, len, offset, count, "the section headers")?;
    let names = match headers.get(names_index as usize) {
        Some(section) if section.sh_type.get(LE) != elf::SHT_NOBITS => {
            let (offset, size) = (section.sh_offset.get(LE), section.sh_size.get(LE));
            read_exact(source, len, offset, size, MAX_SECTION_NAMES, "the section names")?
        }
        _ => Vec::new(),
    };
    let name = |at: u32| {
        let rest = names.get(at as usize..).unwrap_or(&[]);
        let end = rest.iter().take(256).position(|byte| *byte == 0).unwrap_or(0);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    let section = |header: &SectionHeader64<LE>| Section {
        name: name(header.sh_name.get(LE)),
        kind: header.sh_type.get(LE).0,
        allocated: header.sh_flags.get(LE).0 & 2 != 0,
        address: ElfAddress(header.sh_addr.get(LE)),
        offset: FileOffset(header.sh_offset.get(LE)),
        size: header.sh_size.get(LE),
        link: header.sh_link.get(LE),
    };
    Ok(headers.iter().map(section).collect())
}

/// `count` entries of a table; the caller has limited `count`.
pub(super) fn read_table<T: Pod + Clone>(
    source: &dyn Source,
    len: u64,
    offset: u64,
    count: u64,
    what: &'static str,
) -> Result<Vec<T>, ImageError> {
    let bytes = read_exact(source, len, offset, count * size_of::<T>() as u64, u64::MAX, what)?;
    let (entries, _) = slice_from_bytes::<T>(&bytes, count as usize).map_err(|()| malformed(what))?;
    Ok(entries.to_vec())
}

/// Finds `NT_GNU_BUILD_ID` (type 3, name `GNU`) among notes.
pub(super) fn parse_build_id(mut notes: &[u8]) -> Option<BuildId> {
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    // Each round takes at least 12 bytes.
    loop {
        let (name_len, len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let start = 12 + name_len.checked_next_multiple_of(4)?;
        let description = notes.get(start..start.checked_add(len)?)?;
        if kind == 3 && name == b"GNU\0" {
            return BuildId::new(description);
        }
        notes = notes.get(start + len.checked_next_multiple_of(4)?..)?;
    }
}
