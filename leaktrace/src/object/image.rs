//! One ELF file: its segments, sections, build ID and relocations, read piece by piece.
//!
//! Files are read with `pread`, never mapped: a target can truncate its file at any time, and a mapping would then raise
//! SIGBUS here. Invariant: nothing is allocated by a size that a file states without checking it against a limit first.

mod dynamic;
mod parse;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use object::LittleEndian as LE;
use object::elf::{self, FileHeader64, Rela64, Sym64};
use object::pod::{from_bytes, slice_from_bytes};

use self::dynamic::Dynamic;
use self::parse::{malformed, parse_build_id, read_exact, read_program_headers, read_sections};
use crate::model::{BuildId, ElfAddress, FileOffset};

/// Largest note section or segment that is searched for a build ID.
const MAX_NOTES: u64 = 1 << 20;
/// Largest relocation sections, together (about 1.4 million entries; a browser has a third of that).
const MAX_RELOCATIONS: u64 = 32 << 20;
/// Largest string table that is read whole.
pub(super) const MAX_STRINGS: u64 = 128 << 20;
/// Largest `.eh_frame_hdr` (about 2 million functions).
const MAX_FUNCTION_TABLE: u64 = 16 << 20;

/// Why a file cannot be used as an ELF image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No ELF magic.
    #[error("not an ELF file")]
    NotElf,
    /// A 32-bit (or big-endian) file.
    #[error("not a 64-bit little-endian ELF file")]
    WrongClass,
    /// Code for an architecture that leaktrace does not know.
    #[error("ELF file for machine {machine}, which is not supported (x86-64 and AArch64 are)")]
    WrongMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// Something lies beyond the end of the file.
    #[error("truncated ELF file: {what} lies beyond its end")]
    Truncated {
        /// Which part.
        what: &'static str,
    },
    /// A part is larger than what is accepted.
    #[error("{what} of {size} is beyond the limit of {limit}")]
    Limit {
        /// Which part.
        what: &'static str,
        /// What the file states.
        size: u64,
        /// What is accepted.
        limit: u64,
    },
    /// A structure contradicts the format.
    #[error("malformed ELF file: {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
    /// The read failed.
    #[error("failed to read the ELF file: {0}")]
    Io(#[from] io::Error),
}

/// Where an image's bytes come from.
pub trait Source: Send + Sync {
    /// Reads at a position; short only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Its length now.
    fn total(&self) -> io::Result<u64>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn total(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.get(offset..))
            .unwrap_or(&[]);
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn total(&self) -> io::Result<u64> {
        Ok(self.as_slice().len() as u64)
    }
}

/// Architecture of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Loaded at the addresses that it states (`ET_EXEC`).
    Fixed,
    /// Loaded anywhere: a shared library or a position-independent executable (`ET_DYN`).
    Relocatable,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub address: ElfAddress,
    /// Where its bytes begin in the file.
    pub offset: FileOffset,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    /// Holds code.
    pub executable: bool,
    /// Is writable.
    pub writable: bool,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, lossy UTF-8.
    pub name: String,
    /// Raw `sh_type`.
    pub kind: u32,
    /// Loaded at run time.
    pub allocated: bool,
    /// Address at run time, 0 if not loaded.
    pub address: ElfAddress,
    /// Where its bytes are.
    pub offset: FileOffset,
    /// How many.
    pub size: u64,
    /// Index of the section that it refers to (a symbol table's strings).
    pub link: u32,
}

/// What the dynamic loader stores in a slot that code calls through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotTarget {
    /// The address of whichever definition of this symbol wins.
    Symbol(Vec<u8>),
    /// An address in this file.
    Local(ElfAddress),
    /// Decided at run time (an indirect function), or unknown.
    Unknown,
}

/// An ELF file that has been checked.
pub struct ElfImage {
    source: Box<dyn Source>,
    len: u64,
    machine: Machine,
    kind: Kind,
    entry: ElfAddress,
    segments: Vec<Segment>,
    sections: Vec<Section>,
    build_id: Option<BuildId>,
    function_table: Option<(FileOffset, u64, ElfAddress)>,
    relocations: OnceLock<Vec<Relocation>>,
    functions: OnceLock<Vec<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Relocation {
    slot: u64,
    kind: u32,
    symbol: u32,
    /// Section index of the symbol table.
    table: u32,
    addend: i64,
}

impl fmt::Debug for ElfImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElfImage")
            .field("machine", &self.machine)
            .field("kind", &self.kind)
            .field("build_id", &self.build_id)
            .finish_non_exhaustive()
    }
}

impl ElfImage {
    /// Checks an open file.
    pub fn open(file: File) -> Result<Self, ImageError> {
        Self::new(Box::new(file))
    }

    /// Checks an image from any source.
    pub fn new(source: Box<dyn Source>) -> Result<Self, ImageError> {
        let len = source.total()?;
        let mut ident = [0; 16];
        let read = source.read_at(&mut ident, 0)?;
        if read < 4 || ident[..4] != elf::ELFMAG {
            return Err(ImageError::NotElf);
        }
        if read < 16 {
            return Err(ImageError::Truncated { what: "the ELF header" });
        }
        // EI_CLASS and EI_DATA: 64-bit, little-endian.
        if ident[4] != 2 || ident[5] != 1 {
            return Err(ImageError::WrongClass);
        }
        let bytes = read_exact(
            &*source,
            len,
            0,
            size_of::<FileHeader64<LE>>() as u64,
            u64::MAX,
            "the ELF header",
        )?;
        let (header, _) = from_bytes::<FileHeader64<LE>>(&bytes).map_err(|()| malformed("the ELF header"))?;
        let machine = match header.e_machine.get(LE) {
            elf::EM_X86_64 => Machine::X86_64,
            elf::EM_AARCH64 => Machine::Aarch64,
            other => return Err(ImageError::WrongMachine { machine: other.0 }),
        };
        let kind = match header.e_type.get(LE) {
            elf::ET_EXEC => Kind::Fixed,
            elf::ET_DYN => Kind::Relocatable,
            // Separate debug files keep the type of their program, so others are objects and core dumps.
            _ => return Err(malformed("neither an executable nor a shared library")),
        };
        let headers = read_program_headers(&*source, len, header)?;
        let mut sections = read_sections(&*source, len, header)?;
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        let mut function_table = None;
        let mut dynamic_table = None;
        for header in &headers {
            let offset = header.p_offset.get(LE);
            let (file_size, memory_size) = (header.p_filesz.get(LE), header.p_memsz.get(LE));
            let address = header.p_vaddr.get(LE);
            match header.p_type.get(LE) {
                elf::PT_LOAD => {
                    let fits = address.checked_add(memory_size).is_some() && offset.checked_add(file_size).is_some();
                    if !fits || file_size > memory_size {
                        return Err(malformed("a segment's size"));
                    }
                    let flags = header.p_flags.get(LE).0;
                    segments.push(Segment {
                        address: ElfAddress(address),
                        offset: FileOffset(offset),
                        file_size,
                        memory_size,
                        executable: flags & 1 != 0,
                        writable: flags & 2 != 0,
                    });
                }
                elf::PT_DYNAMIC => dynamic_table = Some((offset, file_size)),
                elf::PT_NOTE => notes.push((offset, file_size)),
                elf::PT_GNU_EH_FRAME => function_table = Some((FileOffset(offset), file_size, ElfAddress(address))),
                _ => {}
            }
        }
        if let Some((offset, size)) = dynamic_table.filter(|_| sections.is_empty()) {
            let table = Dynamic {
                source: &*source,
                len,
                segments: &segments,
            };
            sections = table.sections(offset, size);
        }
        notes.extend(
            sections
                .iter()
                .filter(|s| s.kind == elf::SHT_NOTE.0)
                .map(|s| (s.offset.0, s.size)),
        );
        let build_id = notes.iter().take(64).find_map(|&(offset, size)| {
            parse_build_id(&read_exact(&*source, len, offset, size, MAX_NOTES, "a note").ok()?)
        });
        Ok(Self {
            source,
            len,
            machine,
            kind,
            entry: ElfAddress(header.e_entry.get(LE)),
            segments,
            sections,
            build_id,
            function_table,
            relocations: OnceLock::new(),
            functions: OnceLock::new(),
        })
    }

    /// Architecture of the code.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Fixed or relocatable.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Entry point.
    pub fn entry(&self) -> ElfAddress {
        self.entry
    }

    /// `NT_GNU_BUILD_ID`, if it has one.
    pub fn build_id(&self) -> Option<&BuildId> {
        self.build_id.as_ref()
    }

    /// Loadable segments, in file order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Sections; in a file without section headers those few that its dynamic table tells of.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Length of the file when it was opened.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// First section of a name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// A section's bytes as they are in the file (not decompressed).
    pub fn section_bytes(&self, section: &Section, limit: u64) -> Result<Vec<u8>, ImageError> {
        if section.kind == elf::SHT_NOBITS.0 {
            return Ok(Vec::new());
        }
        self.read(section.offset, section.size, limit, "a section")
    }

    /// Parts that are larger than what is read of them: which, and what is not known for want of them. By headers alone.
    pub fn left_out(&self) -> Vec<String> {
        let relocations = self.relocation_sections().map(|section| section.size);
        let relocations = relocations.fold(0, u64::saturating_add);
        let table = self.function_table.map_or(0, |(_, size, _)| size);
        let mut left_out = Vec::new();
        if relocations > MAX_RELOCATIONS {
            left_out.push(format!(
                "relocations of {relocations} bytes, {MAX_RELOCATIONS} are read: where some of its calls into other files \
                 lead is not known"
            ));
        }
        if table > MAX_FUNCTION_TABLE {
            left_out.push(format!(
                ".eh_frame_hdr of {table} bytes, {MAX_FUNCTION_TABLE} would be read: where its functions begin is not known"
            ));
        }
        left_out
    }

    /// Relocations of the dynamic loader.
    fn relocation_sections(&self) -> impl Iterator<Item = &Section> {
        let sections = self.sections.iter();
        sections.filter(|section| section.kind == elf::SHT_RELA.0 && section.allocated)
    }

    /// `size` bytes at a position of the file.
    ///
    /// # Errors
    /// [`ImageError::Limit`] before anything is allocated, [`ImageError::Truncated`] when the file ends before.
    pub fn read(&self, offset: FileOffset, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, ImageError> {
        read_exact(&*self.source, self.len, offset.0, size, limit, what)
    }

    /// Fills a part of `buffer`, as much as the file holds at `offset`.
    pub(super) fn read_some(&self, buffer: &mut [u8], offset: u64) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            match self.source.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    }

    /// The segment that holds an address and has file bytes for it.
    fn segment_at(&self, address: ElfAddress) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|s| address.0.checked_sub(s.address.0).is_some_and(|d| d < s.file_size))
    }

    /// Where the byte at an address is in the file.
    pub fn file_offset(&self, address: ElfAddress) -> Option<FileOffset> {
        self.segment_at(address)
            .map(|s| FileOffset(s.offset.0 + (address.0 - s.address.0)))
    }

    /// At which address a byte of the file is loaded. Where segments overlap in the file, the executable one is meant.
    pub fn elf_address(&self, offset: FileOffset) -> Option<ElfAddress> {
        let holds = |s: &&Segment| offset.0.checked_sub(s.offset.0).is_some_and(|d| d < s.file_size);
        let executable = self.segments.iter().filter(|s| s.executable).find(holds);
        let segment = executable.or_else(|| self.segments.iter().find(holds))?;
        Some(ElfAddress(segment.address.0 + (offset.0 - segment.offset.0)))
    }

    /// The address of the first byte of an executable mapping that begins at this position of the file. Mappings begin at
    /// a page, which may lie before the first byte of their segment.
    pub fn mapping_address(&self, offset: FileOffset) -> Option<ElfAddress> {
        let begins =
            |s: &&Segment| s.executable && s.offset.0 & !0xfff <= offset.0 && offset.0 < s.offset.0 + s.file_size;
        let segment = self.segments.iter().find(begins)?;
        Some(ElfAddress(
            segment.address.0.wrapping_add(offset.0).wrapping_sub(segment.offset.0),
        ))
    }

    /// Whether an address lies in code.
    pub fn is_code(&self, address: ElfAddress) -> bool {
        self.segment_at(address).is_some_and(|segment| segment.executable)
    }

    /// Up to `max` bytes from an address on, fewer at the end of its segment; empty outside of any.
    pub fn bytes_at(&self, address: ElfAddress, max: usize) -> Vec<u8> {
        let Some(segment) = self.segment_at(address) else {
            return Vec::new();
        };
        let distance = address.0 - segment.address.0;
        let len = usize::try_from(segment.file_size - distance)
            .unwrap_or(usize::MAX)
            .min(max)
            .min(1 << 20);
        let mut bytes = vec![0; len];
        let read = self.read_some(&mut bytes, segment.offset.0 + distance);
        bytes.truncate(read);
        bytes
    }

    /// What a slot (`.got`, `.got.plt`) will hold at run time.
    pub fn slot_target(&self, slot: ElfAddress) -> SlotTarget {
        let relocations = self.relocations.get_or_init(|| self.read_relocations());
        let Ok(index) = relocations.binary_search_by_key(&slot.0, |relocation| relocation.slot) else {
            // No relocation: a fixed-address file has the value itself, and so has a packed relative one (`.relr.dyn`).
            return match self.bytes_at(slot, 8).try_into().map(u64::from_le_bytes) {
                Ok(value) if self.is_code(ElfAddress(value)) => SlotTarget::Local(ElfAddress(value)),
                _ => SlotTarget::Unknown,
            };
        };
        let relocation = relocations[index];
        if relocation.symbol != 0 {
            return self
                .symbol_name(relocation)
                .map_or(SlotTarget::Unknown, SlotTarget::Symbol);
        }
        // R_X86_64_RELATIVE 8, R_AARCH64_RELATIVE 1027: the file's own address.
        match (self.machine, relocation.kind) {
            (Machine::X86_64, 8) | (Machine::Aarch64, 1027) => SlotTarget::Local(ElfAddress(relocation.addend as u64)),
            _ => SlotTarget::Unknown,
        }
    }

    /// Addresses at which functions (or their split-off cold parts) begin, ascending, from the unwind table's index.
    /// Empty without one.
    pub fn function_starts(&self) -> &[u64] {
        self.functions
            .get_or_init(|| self.read_function_starts().unwrap_or_default())
    }

    /// Relocations of the dynamic loader, by slot. What cannot be read is left out: a missing one only means "unknown".
    fn read_relocations(&self) -> Vec<Relocation> {
        let mut all = Vec::new();
        let mut left = MAX_RELOCATIONS;
        for section in self.relocation_sections() {
            let Ok(bytes) = self.section_bytes(section, left) else {
                continue;
            };
            left -= bytes.len() as u64;
            let count = bytes.len() / size_of::<Rela64<LE>>();
            let Ok((entries, _)) = slice_from_bytes::<Rela64<LE>>(&bytes, count) else {
                continue;
            };
            all.extend(entries.iter().map(|entry| Relocation {
                slot: entry.r_offset.get(LE),
                kind: entry.r_type(LE, false).0,
                symbol: entry.r_sym(LE, false),
                table: section.link,
                addend: entry.r_addend.get(LE),
            }));
        }
        all.sort_by_key(|relocation| relocation.slot);
        all
    }

    fn symbol_name(&self, relocation: Relocation) -> Option<Vec<u8>> {
        let table = self.sections.get(relocation.table as usize)?;
        let strings = self.sections.get(table.link as usize)?;
        let size = size_of::<Sym64<LE>>() as u64;
        let at = u64::from(relocation.symbol).checked_mul(size)?;
        if at.checked_add(size)? > table.size {
            return None;
        }
        let bytes = self
            .read(FileOffset(table.offset.0.checked_add(at)?), size, size, "a symbol")
            .ok()?;
        let (symbol, _) = from_bytes::<Sym64<LE>>(&bytes).ok()?;
        let name = u64::from(symbol.st_name.get(LE));
        // Names of interest are short: 512 bytes are enough, a longer one is cut and then matches nothing.
        let len = strings.size.checked_sub(name)?.min(512);
        let bytes = self
            .read(FileOffset(strings.offset.0.checked_add(name)?), len, 512, "a name")
            .ok()?;
        Some(bytes.split(|byte| *byte == 0).next()?.to_vec())
    }

    /// The binary search table of `.eh_frame_hdr`, in the one encoding that linkers write.
    fn read_function_starts(&self) -> Option<Vec<u64>> {
        let (offset, size, address) = self.function_table?;
        let bytes = self.read(offset, size, MAX_FUNCTION_TABLE, ".eh_frame_hdr").ok()?;
        // version 1; pointer sdata4 pc-relative; count udata4; table sdata4, relative to the section.
        if bytes.get(..4)? != [1, 0x1b, 0x03, 0x3b] {
            return None;
        }
        let count = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize;
        let table = bytes.get(12..)?;
        let entries = table.chunks_exact(8).take(count);
        let mut starts: Vec<u64> = entries
            .filter_map(|entry| Some(i32::from_le_bytes(entry[..4].try_into().ok()?)))
            .map(|distance| address.0.wrapping_add_signed(i64::from(distance)))
            .collect();
        starts.sort_unstable();
        Some(starts)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
