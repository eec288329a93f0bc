//! ELF files that are put together: one segment over the whole file, and any sections and program headers in it.

/// Address of the file's first byte.
pub(super) const BASE: u64 = 0x40_0000;
/// Bytes of the ELF header and of room for program headers.
const HEAD: usize = 64 + 8 * 56;

/// A file in the making. Its parts lie one behind the other, all in the one readable and executable segment.
pub(super) struct Elf {
    bytes: Vec<u8>,
    /// Words of each section header, from `sh_name` on, its size for tables of entries included.
    headers: Vec<Header>,
    names: Vec<u8>,
    segments: Vec<(u32, u64, u64)>,
}

struct Header {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    entry: u64,
}

impl Elf {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; HEAD],
            headers: Vec::new(),
            names: vec![0],
            segments: Vec::new(),
        }
    }

    /// Address of the next part.
    pub(super) fn next(&self) -> u64 {
        BASE + self.bytes.len().next_multiple_of(16) as u64
    }

    /// Adds bytes; returns their address.
    pub(super) fn add(&mut self, bytes: &[u8]) -> u64 {
        let address = self.next();
        self.bytes.resize((address - BASE) as usize, 0);
        self.bytes.extend_from_slice(bytes);
        address
    }

    /// Describes a part as a section, truthfully or not. Returns its index.
    pub(super) fn describe(&mut self, name: &str, kind: u32, flags: u64, place: (u64, u64), link: u32) -> u32 {
        let entry = match kind {
            2 | 4 | 11 => 24,
            _ => 0,
        };
        self.headers.push(Header {
            name: self.names.len() as u32,
            kind,
            flags,
            offset: place.0.wrapping_sub(BASE),
            size: place.1,
            link,
            entry,
        });
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
        self.headers.len() as u32
    }

    /// Adds bytes as a section. Returns its index.
    pub(super) fn section(&mut self, name: &str, kind: u32, flags: u64, bytes: &[u8], link: u32) -> u32 {
        let address = self.add(bytes);
        self.describe(name, kind, flags, (address, bytes.len() as u64), link)
    }

    /// A program header of a kind for a part. There is room for seven.
    pub(super) fn segment(&mut self, kind: u32, address: u64, size: u64) {
        if self.segments.len() < 7 {
            self.segments.push((kind, address, size));
        }
    }

    /// The file; without section headers if there are none.
    pub(super) fn finish(mut self, entry: u64) -> Vec<u8> {
        let has_sections = !self.headers.is_empty();
        let mut table = 0;
        if has_sections {
            let names = self.names.clone();
            let own = self.names.len() as u32;
            let address = self.add(&[names, b".shstrtab\0".to_vec()].concat());
            let size = self.bytes.len() as u64 - (address - BASE);
            self.headers.push(Header {
                name: own,
                kind: 3,
                flags: 0,
                offset: address - BASE,
                size,
                link: 0,
                entry: 0,
            });
            let mut bytes = vec![0; 64];
            for header in &self.headers {
                let address = if header.flags & 2 != 0 {
                    BASE.wrapping_add(header.offset)
                } else {
                    0
                };
                bytes.extend([header.name, header.kind].map(u32::to_le_bytes).concat());
                let words = [header.flags, address, header.offset, header.size];
                bytes.extend(words.map(u64::to_le_bytes).concat());
                bytes.extend([header.link, 1].map(u32::to_le_bytes).concat());
                bytes.extend([8, header.entry].map(u64::to_le_bytes).concat());
            }
            table = self.add(&bytes) - BASE;
        }
        let mut head = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        head.extend([3u16, 62].map(u16::to_le_bytes).concat());
        head.extend(1u32.to_le_bytes());
        head.extend([entry, 64, table].map(u64::to_le_bytes).concat());
        head.extend(0u32.to_le_bytes());
        let sections = if has_sections { self.headers.len() as u16 + 1 } else { 0 };
        let halves = [
            64,
            56,
            self.segments.len() as u16 + 1,
            64,
            sections,
            sections.saturating_sub(1),
        ];
        head.extend(halves.map(u16::to_le_bytes).concat());
        let length = self.bytes.len() as u64;
        for (kind, address, size) in [(1, BASE, length)].into_iter().chain(self.segments) {
            head.extend([kind, 5u32].map(u32::to_le_bytes).concat());
            let offset = address.wrapping_sub(BASE);
            head.extend([offset, address, address, size, size, 8].map(u64::to_le_bytes).concat());
        }
        self.bytes[..head.len()].copy_from_slice(&head);
        self.bytes
    }
}

/// One entry of a symbol table: name, kind (binding and type), section, value, size.
pub(super) fn symbol(name: u32, kind: u8, section: u16, value: u64, size: u64) -> Vec<u8> {
    let mut bytes = name.to_le_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(section.to_le_bytes());
    bytes.extend([value, size].map(u64::to_le_bytes).concat());
    bytes
}
