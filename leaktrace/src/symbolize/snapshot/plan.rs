//! Which parts of an ELF file a [`Snapshot`](super::Snapshot) needs, from its section headers.
//!
//! Reads headers and small sections only. Invariant: nothing here believes a size that the file states without a bound.

use std::io::{self, Read};

use object::elf;
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endianness, ReadRef};

use crate::object::mini;

/// Most sections of a file.
const MAX_SECTIONS: u32 = 65_536;
/// Largest note section that is searched for a build ID.
const MAX_NOTES: u64 = 1 << 20;
/// Most note sections that are searched.
const MAX_NOTE_SECTIONS: u32 = 64;
/// Debug information may be so many times as large as its compressed form, and [`EXPANSION_FREE`] larger.
const MAX_EXPANSION: u64 = 20;
/// What debug information may grow by in any case.
const EXPANSION_FREE: u64 = 64 << 20;
/// Most compressed sections; DWARF has about twenty.
const MAX_COMPRESSED: usize = 64;
/// Sections that name another file. The library would open whatever path they hold.
const LINKS: [&[u8]; 3] = [b".gnu_debuglink", b".gnu_debugaltlink", b".debug_sup"];

/// What to copy, and how to change it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Positions and sizes of headers, symbol tables and the like.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Positions and sizes of debug information.
    pub(super) debug_ranges: Vec<(u64, u64)>,
    /// Sections to decompress.
    pub(super) compressed: Vec<Compressed>,
    /// Bytes to change in the copy.
    pub(super) patches: Vec<(u64, Vec<u8>)>,
    /// Build ID.
    pub(super) build_id: Option<Box<[u8]>>,
    /// Name and checksum of the debug file.
    pub(super) debug_link: Option<(Box<[u8]>, u32)>,
    /// Compressed debug sections that were too many.
    pub(super) left_out: u32,
    /// Note sections that were searched.
    notes: u32,
}

/// A compressed section.
#[derive(Debug)]
pub(super) struct Compressed {
    /// Position of its section header.
    header: u64,
    name: Box<[u8]>,
    flags: elf::SectionFlags,
    endian: Endianness,
    kind: elf::CompressionType,
    /// Position of its data in the file.
    pub(super) start: u64,
    /// Size of that.
    pub(super) size: u64,
    /// Size after decompression, as the file states it.
    pub(super) decompressed: u64,
}

impl Plan {
    /// `None` where the section headers are not understood.
    pub(super) fn new<'d>(data: impl ReadRef<'d>) -> Option<Self> {
        let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        if header.shnum(endian, data).ok()? > MAX_SECTIONS {
            return None;
        }
        let sections = header
            .sections(endian, data)
            .ok()
            .filter(|sections| !sections.is_empty())?;
        let table = |offset: u64, size: u16, count: u64| (offset, u64::from(size).saturating_mul(count));
        let (programs, headers) = (header.e_phoff(endian), header.e_shoff(endian));
        let mut plan = Self::default();
        plan.ranges.push((0, 4096));
        plan.ranges.push(table(
            programs,
            header.e_phentsize(endian),
            header.e_phnum(endian).into(),
        ));
        plan.ranges
            .push(table(headers, header.e_shentsize(endian), sections.len() as u64));
        for (index, section) in (0u64..).zip(sections.iter()) {
            let name = sections.section_name(endian, section).unwrap_or_default();
            let position = headers.checked_add(index.checked_mul(header.e_shentsize(endian).into())?)?;
            plan.add(section, name, position, endian, data);
        }
        Some(plan)
    }

    /// Bytes of all decompressed sections together.
    ///
    /// # Errors
    /// Why that is out of proportion: compressed input is not counted twice where sections overlap, and a file cannot
    /// state more than it holds.
    pub(super) fn expanded(&self, length: u64) -> Result<u64, String> {
        let sum = |of: fn(&Compressed) -> u64| self.compressed.iter().map(of).fold(0, u64::saturating_add);
        let (input, output) = (sum(|section| section.size), sum(|section| section.decompressed));
        let limit = input.saturating_mul(MAX_EXPANSION).saturating_add(EXPANSION_FREE);
        if input > length {
            return Err(format!(
                "compressed sections of {input} bytes in a file of {length} bytes"
            ));
        }
        if output > limit {
            return Err(format!(
                "compressed sections of {input} bytes state {output} bytes, more than {limit}"
            ));
        }
        Ok(output)
    }

    fn add<'d>(
        &mut self,
        section: &elf::SectionHeader64<Endianness>,
        name: &[u8],
        position: u64,
        endian: Endianness,
        data: impl ReadRef<'d>,
    ) {
        let (kind, flags, size) = (
            section.sh_type(endian),
            section.sh_flags(endian),
            section.sh_size(endian),
        );
        // The library takes memory for as much as a compressed section states, whatever it is and wherever its bytes come
        // from: what is not decompressed here is empty.
        if flags.contains(elf::SHF_COMPRESSED) {
            self.patches.extend(plain(position, flags, endian, None));
        }
        let is_content = kind == elf::SHT_PROGBITS && flags.contains(elf::SHF_ALLOC);
        if kind == elf::SHT_NOBITS || is_content {
            return;
        }
        if kind == elf::SHT_NOTE {
            self.notes += 1;
        }
        if self.build_id.is_none()
            && size <= MAX_NOTES
            && self.notes <= MAX_NOTE_SECTIONS
            && let Ok(Some(mut notes)) = section.notes(endian, data)
        {
            self.build_id = std::iter::from_fn(|| notes.next().ok().flatten())
                .take(64)
                .find(|note| note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID)
                .map(|note| note.desc().into());
        }
        if LINKS.contains(&name) {
            if name == LINKS[0] && size < 4096 && self.debug_link.is_none() {
                self.debug_link = section
                    .data(endian, data)
                    .ok()
                    .and_then(|link| debug_link(link, endian));
            }
            // Without its name the section is not found.
            self.patches.push((position, vec![0; 4]));
            return;
        }
        if name == mini::SECTION.as_bytes() {
            // Unpacked apart.
            self.patches.push((position, vec![0; 4]));
            return;
        }
        if flags.contains(elf::SHF_COMPRESSED) {
            // The library reads the first section of a name.
            let known = self.compressed.iter().any(|section| *section.name == *name);
            if known || !name.starts_with(b".debug_") {
                return;
            }
            if self.compressed.len() == MAX_COMPRESSED {
                self.left_out += 1;
            } else if let Ok(Some((header, start, size))) = section.compression(endian, data) {
                let (kind, decompressed) = (header.ch_type.get(endian), header.ch_size.get(endian));
                self.compressed.push(Compressed {
                    header: position,
                    name: name.into(),
                    flags,
                    endian,
                    kind,
                    start,
                    size,
                    decompressed,
                });
            }
            return;
        }
        let ranges = if name.starts_with(b".debug_") {
            &mut self.debug_ranges
        } else {
            &mut self.ranges
        };
        ranges.push((section.sh_offset(endian), size));
    }
}

impl Compressed {
    /// Its name, as text.
    pub(super) fn name(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// The decompressed data, no more of it than stated.
    pub(super) fn decompress<'r>(&self, compressed: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        let compressed = io::BufReader::with_capacity(1 << 18, compressed);
        Ok(match self.kind {
            elf::ELFCOMPRESS_ZLIB => Box::new(flate2::bufread::ZlibDecoder::new(compressed).take(self.decompressed)),
            elf::ELFCOMPRESS_ZSTD => Box::new(zstd::Decoder::with_buffer(compressed)?.take(self.decompressed)),
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        })
    }

    /// Changes to the section header for data that is `size` bytes at `start`, not compressed any more.
    pub(super) fn patches(&self, start: u64, size: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
        plain(self.header, self.flags, self.endian, Some((start, size)))
    }
}

/// Changes to a section header at a position: its data is not compressed but at this place, of this size; or nothing.
fn plain(
    header: u64,
    flags: elf::SectionFlags,
    endian: Endianness,
    place: Option<(u64, u64)>,
) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let bytes = move |value: u64| match endian {
        Endianness::Little => value.to_le_bytes().to_vec(),
        Endianness::Big => value.to_be_bytes().to_vec(),
    };
    let flags = flags.0 & !elf::SHF_COMPRESSED.0;
    let (start, size) = place.unwrap_or_default();
    // Offsets of sh_flags, sh_offset and sh_size in a 64-bit section header.
    [(8, flags), (24, start), (32, size)]
        .into_iter()
        .map(move |(at, value)| (header + at, bytes(value)))
}

/// A file name with its final zero, padding to a multiple of 4, and a checksum.
fn debug_link(section: &[u8], endian: Endianness) -> Option<(Box<[u8]>, u32)> {
    let length = section.iter().position(|byte| *byte == 0)?;
    let checksum = *section.get((length + 1).next_multiple_of(4)..)?.first_chunk()?;
    let checksum = match endian {
        Endianness::Little => u32::from_le_bytes(checksum),
        Endianness::Big => u32::from_be_bytes(checksum),
    };
    Some((section[..length].into(), checksum))
}
