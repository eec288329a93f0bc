//! Finds the call-frame information of an ELF file: `.eh_frame` and `.debug_frame` by their section headers, or
//! `.eh_frame` by the `PT_GNU_EH_FRAME` program header, which survives the removal of section headers.
//!
//! It does not parse entries.
//! Invariant: no more than [`MAX_SECTION`] bytes are read for a section, whatever the headers claim.

use std::borrow::Cow;
use std::ops::Range;

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian, Pointer};
use object::elf::{
    DF_1_PIE, DT_FLAGS_1, EM_AARCH64, EM_X86_64, ET_EXEC, PF_X, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_INTERP, PT_LOAD,
    ProgramHeader64,
};
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ReadRef};

use super::Machine;
use super::cfi::CompileError;

/// Largest section that is read. libLLVM's is 7 MB, a browser's 30 MB.
pub(super) const MAX_SECTION: u64 = 96 << 20;
/// Most program headers that are looked at.
pub(super) const MAX_SEGMENTS: usize = 256;

/// What compilation needs of a file.
pub(super) struct Image<'data> {
    pub machine: Machine,
    pub eh_frame: Option<FrameSection<'data>>,
    pub debug_frame: Option<FrameSection<'data>>,
    /// Executable segments by address, not overlapping.
    pub text: Vec<Range<u64>>,
    /// Where the kernel enters the file, if it states so.
    pub entry: Option<u64>,
    /// Whether the entry point is one for certain: linkers once put the start of `.text` there in libraries.
    pub is_program: bool,
}

/// One section of call-frame information.
pub(super) struct FrameSection<'data> {
    pub data: Cow<'data, [u8]>,
    pub bases: BaseAddresses,
    /// Entries after this many are not part of it: its end is not known when there are no section headers.
    pub max_entries: usize,
}

impl<'data> Image<'data> {
    pub fn read<R: ReadRef<'data>>(file: &object::File<'data, R>) -> Result<Self, CompileError> {
        let object::File::Elf64(elf) = file else {
            return Err(CompileError::NotElf64);
        };
        let endian = elf.endian();
        if endian != Endianness::Little {
            return Err(CompileError::BigEndian);
        }
        let machine = match elf.elf_header().e_machine(endian) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            other => return Err(CompileError::Machine(other.0)),
        };
        let headers = elf.elf_program_headers();
        let headers = headers.get(..headers.len().min(MAX_SEGMENTS)).unwrap_or_default();
        let has = |wanted| headers.iter().any(|header| header.p_type(endian) == wanted);
        let is_program = elf.elf_header().e_type(endian) == ET_EXEC
            || has(PT_INTERP)
            || is_position_independent_program(elf, headers);

        let mut eh_frame = section(elf, ".eh_frame")?;
        if eh_frame.is_none() {
            eh_frame = eh_frame_by_header(elf, headers)?;
        }
        Ok(Self {
            machine,
            eh_frame,
            debug_frame: section(elf, ".debug_frame")?,
            text: executable_ranges(headers, endian),
            entry: Some(elf.elf_header().e_entry(endian)).filter(|&entry| entry != 0),
            is_program,
        })
    }
}

fn executable_ranges(headers: &[ProgramHeader64<Endianness>], endian: Endianness) -> Vec<Range<u64>> {
    let mut text: Vec<_> = headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian) & PF_X == PF_X)
        .map(|header| header.p_vaddr(endian)..header.p_vaddr(endian).saturating_add(header.p_memsz(endian)))
        .filter(|range| !range.is_empty())
        .collect();
    text.sort_unstable_by_key(|range| range.start);
    text.dedup_by(|next, kept| {
        let overlaps = next.start <= kept.end;
        if overlaps {
            kept.end = kept.end.max(next.end);
        }
        overlaps
    });
    text
}

fn is_position_independent_program<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    headers: &[ProgramHeader64<Endianness>],
) -> bool {
    let endian = elf.endian();
    headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_DYNAMIC)
        .any(|header| {
            let entries = header.dynamic(endian, elf.data()).ok().flatten().unwrap_or_default();
            let mut flags = entries.iter().filter(|entry| entry.d_tag(endian) == DT_FLAGS_1);
            flags.any(|entry| entry.d_val(endian) & DF_1_PIE.0 != 0)
        })
}

fn section<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    name: &'static str,
) -> Result<Option<FrameSection<'data>>, CompileError> {
    let Some(section) = elf.section_by_name(name) else {
        return Ok(None);
    };
    let failed = |source| CompileError::Section { section: name, source };
    if section.size() > MAX_SECTION {
        return Err(CompileError::TooLarge {
            section: name,
            size: section.size(),
        });
    }
    let compressed = section.compressed_data().map_err(failed)?;
    if compressed.uncompressed_size > MAX_SECTION {
        return Err(CompileError::TooLarge {
            section: name,
            size: compressed.uncompressed_size,
        });
    }
    let data = compressed.decompress().map_err(failed)?;
    // Separate debug files keep the header and drop the content.
    if data.is_empty() {
        return Ok(None);
    }
    let address = |name| elf.section_by_name(name).map(|section| section.address());
    let mut bases = BaseAddresses::default().set_eh_frame(section.address());
    if let Some(text) = address(".text") {
        bases = bases.set_text(text);
    }
    if let Some(got) = address(".got") {
        bases = bases.set_got(got);
    }
    Ok(Some(FrameSection {
        data,
        bases,
        max_entries: usize::MAX,
    }))
}

/// `.eh_frame` from where `.eh_frame_hdr` says to the end of the segment; the header's count bounds it.
fn eh_frame_by_header<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    headers: &[ProgramHeader64<Endianness>],
) -> Result<Option<FrameSection<'data>>, CompileError> {
    const NAME: &str = "PT_GNU_EH_FRAME";
    let endian = elf.endian();
    let Some(header) = headers.iter().find(|header| header.p_type(endian) == PT_GNU_EH_FRAME) else {
        return Ok(None);
    };
    let read = |offset, size| {
        elf.data()
            .read_bytes_at(offset, size)
            .map_err(|()| CompileError::Unreadable {
                section: NAME,
                offset,
                size,
            })
    };
    let size = header.p_filesz(endian);
    if size > MAX_SECTION {
        return Err(CompileError::TooLarge { section: NAME, size });
    }
    let data = read(header.p_offset(endian), size)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr(endian));
    let parsed = EhFrameHdr::new(data, LittleEndian)
        .parse(&bases, 8)
        .map_err(|source| CompileError::Header { section: NAME, source })?;
    let Pointer::Direct(address) = parsed.eh_frame_ptr() else {
        return Ok(None);
    };
    // Version, three encodings, a 4-byte pointer, a 4-byte count: the form that every linker writes.
    let count = match data {
        [1, _, 0x03, 0x3b, _, _, _, _, a, b, c, d, ..] => Some(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    };
    let segment = headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD)
        .find_map(|header| {
            let skipped = address.checked_sub(header.p_vaddr(endian))?;
            let left = header.p_filesz(endian).checked_sub(skipped).filter(|&left| left > 0)?;
            Some((header.p_offset(endian).checked_add(skipped)?, left.min(MAX_SECTION)))
        });
    let Some((offset, left)) = segment else { return Ok(None) };
    Ok(Some(FrameSection {
        data: Cow::Borrowed(read(offset, left)?),
        bases: BaseAddresses::default().set_eh_frame(address),
        max_entries: count.map_or(usize::MAX, |count| count as usize),
    }))
}
