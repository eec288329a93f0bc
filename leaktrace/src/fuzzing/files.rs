//! ELF files: headers, sections, symbols, relocations, the dynamic table, debug information.

use std::fs::File;
use std::io::Write as _;

use super::elf::{BASE, Elf, symbol};
use super::input::Input;
use crate::allocator::inspect::InspectedFile;
use crate::model::{ElfAddress, FileOffset};
use crate::object::image::ElfImage;
use crate::object::symbols;
use crate::symbolize::{Addresses, SymbolSource, Symbolizer};

/// Most addresses of a file that are asked for.
const ADDRESSES: usize = 64;

/// Names that something is done about.
const NAMES: &[&str] = &[
    ".symtab",
    ".dynsym",
    ".strtab",
    ".rela.plt",
    ".gnu_debugdata",
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_str",
    ".debug_ranges",
    ".zdebug_info",
    ".gnu_debuglink",
    ".gnu_debugaltlink",
    ".note.gnu.build-id",
    ".eh_frame",
    ".eh_frame_hdr",
    ".debug_frame",
    ".text",
    ".gopclntab",
    ".go.buildinfo",
];

/// A file in memory.
pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .expect("the kernel makes memory files");
    file.write_all(bytes).expect("memory can be written");
    file
}

/// Everything that is asked of an image.
pub(super) fn ask(image: ElfImage) {
    let mut addresses: Vec<u64> = vec![image.entry().0, 0, u64::MAX];
    symbols::for_each_symbol(&image, |_, symbol| {
        if addresses.len() < ADDRESSES {
            addresses.extend([symbol.address.0, symbol.address.0.wrapping_add(symbol.size)]);
        }
    });
    symbols::for_each_object(&image, |symbol| {
        if addresses.len() < ADDRESSES {
            addresses.push(symbol.address.0);
        }
    });
    symbols::find_definition(&image, b"malloc");
    for segment in image.segments() {
        addresses.push(segment.address.0.wrapping_add(segment.file_size / 2));
    }
    assert!(image.function_starts().is_sorted());
    for address in addresses.into_iter().map(ElfAddress) {
        image.slot_target(address);
        let bytes = image.bytes_at(address, 4096);
        if let Some(offset) = image.file_offset(address) {
            image.elf_address(offset);
            image.mapping_address(FileOffset(offset.0 & !0xfff));
            assert!(bytes.len() as u64 <= image.file_len().saturating_sub(offset.0));
        }
    }
    InspectedFile::new(image);
}

/// Any bytes as a file.
pub(super) fn elf_image(data: &[u8]) {
    if let Ok(image) = ElfImage::new(Box::new(data.to_vec())) {
        ask(image);
    }
}

/// A whole file with sections that say what the input says: kind, place and size may be of any other part.
pub(super) fn elf_sections(data: &[u8]) {
    if let Ok(image) = ElfImage::new(Box::new(with_sections(data))) {
        ask(image);
    }
}

/// The names of the same file.
pub(super) fn debug_snapshot(data: &[u8]) {
    let whole = data.starts_with(b"\x7fELF");
    let file = file(&if whole { data.to_vec() } else { with_sections(data) });
    let source = SymbolSource::File {
        file: &file,
        path: "/fuzz",
    };
    // No debug files of this machine.
    let symbolizer = Symbolizer::with_debug_directories(Vec::new());
    let addresses: Vec<u64> = (0..ADDRESSES as u64).map(|step| BASE + step * 40).collect();
    let frames = symbolizer.symbolize(&source, Addresses::Elf(&addresses));
    assert!(frames.iter().all(|frames| !frames.is_empty()));
}

fn with_sections(data: &[u8]) -> Vec<u8> {
    let mut input = Input::new(data);
    let mut elf = Elf::new();
    let text = elf.section(".text", 1, 6, &[0xc3; 256], 0);
    let strings = elf.section(".strtab", 3, 0, b"\0malloc\0free\0main\0__libc_start_main\0", 0);
    let mut table = symbol(0, 0, 0, 0, 0);
    for _ in 0..input.below(8) {
        let (name, value, size) = (input.byte(), input.number(), input.number());
        table.extend(symbol(name.into(), 0x12, text as u16, BASE.wrapping_add(value), size));
    }
    elf.section(".symtab", 2, 0, &table, strings);
    let mut parts = Vec::new();
    for _ in 0..=input.below(24) {
        let (name, kind, traits) = (input.byte(), input.byte(), input.byte());
        let name = NAMES[usize::from(name) % NAMES.len()];
        let kind = match kind % 12 {
            0 => input.number() as u32,
            kind => kind.into(),
        };
        // Allocated; compressed.
        let flags = u64::from(traits & 1) << 1 | u64::from(traits & 2) << 10;
        let part = if traits & 4 != 0 && !parts.is_empty() {
            parts[input.below(parts.len() as u64) as usize]
        } else {
            let bytes = input.block();
            (elf.add(bytes), bytes.len() as u64)
        };
        parts.push(part);
        let place = match traits & 0x18 {
            0x08 => (part.0, input.number()),
            0x10 => (input.number(), part.1),
            _ => part,
        };
        let link = input.byte();
        elf.describe(name, kind, flags, place, link.into());
    }
    let note = [4u32, 8, 3].map(u32::to_le_bytes).concat();
    let note = [note, b"GNU\0abcdefgh".to_vec()].concat();
    elf.section(".note", 7, 2, &note, 0);
    elf.finish(BASE + 512)
}

/// A file without sections, whose dynamic table says what the input says.
pub(super) fn elf_dynamic(data: &[u8]) {
    /// `DT_HASH`, `DT_STRTAB`, `DT_SYMTAB`, `DT_RELA`, `DT_RELASZ`, `DT_STRSZ`, `DT_PLTREL`, `DT_JMPREL`, `DT_PLTRELSZ`,
    /// `DT_GNU_HASH`.
    const TAGS: [u64; 10] = [4, 5, 6, 7, 8, 10, 20, 23, 2, 0x6fff_fef5];
    let mut input = Input::new(data);
    let mut elf = Elf::new();
    let mut parts = Vec::new();
    for _ in 0..=input.below(8) {
        let bytes = input.block();
        parts.push((elf.add(bytes), bytes.len() as u64));
    }
    let mut table = Vec::new();
    for _ in 0..input.below(32) {
        let tag = input.byte();
        let tag = TAGS
            .get(usize::from(tag))
            .copied()
            .unwrap_or_else(|| TAGS[usize::from(tag) % TAGS.len()]);
        let (address, size) = parts[input.below(parts.len() as u64) as usize];
        let value = match input.byte() & 3 {
            0 => address,
            1 => size,
            2 => address.wrapping_add(input.number()),
            _ => input.number(),
        };
        table.extend([tag, value].map(u64::to_le_bytes).concat());
    }
    let address = elf.add(&table);
    elf.segment(2, address, table.len() as u64);
    if let Some((address, size)) = parts.last() {
        elf.segment(0x6474_e550, *address, *size);
        elf.segment(4, *address, *size);
    }
    let bytes = elf.finish(BASE);
    let file = file(&bytes);
    if let Ok(image) = ElfImage::new(Box::new(bytes)) {
        ask(image);
    }
    let source = SymbolSource::File {
        file: &file,
        path: "/fuzz",
    };
    Symbolizer::with_debug_directories(Vec::new()).symbolize(&source, Addresses::Elf(&[BASE, BASE + 600]));
}
