//! The executable file of a Go process: the few parts of ELF that finding the runtime's tables takes.
//!
//! Reads by position, never maps. Every count and length of the file is bounded before it is believed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hashbrown::HashMap;

use super::pclntab::InlineData;
use crate::runtime::go::memory::word;

const MAX_SECTIONS: usize = 4096;
const MAX_NAMES: u64 = 1 << 20;
/// Most of a symbol table or its names that is searched.
const MAX_SYMBOLS: u64 = 512 << 20;
const SYMBOL_LEN: usize = 24;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PF_WRITE: u32 = 2;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const RELA_LEN: usize = 24;
const R_X86_64_RELATIVE: u64 = 8;
/// Most of a relocation table that is read.
const MAX_RELOCATIONS: u64 = 256 << 20;

/// Why a file cannot be read as a 64-bit little-endian ELF executable.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file could not be read.
    #[error("failed to read the executable: {0}")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("the executable is not x86-64 ELF: {0}")]
    Format(&'static str),
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address, as the file states it.
    pub address: u64,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many of them.
    pub file_len: u64,
    /// Bytes in memory; the rest is zero.
    pub memory_len: u64,
    /// Writable at run time.
    pub write: bool,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, such as `.gopclntab`.
    pub name: String,
    /// First address, as the file states it; 0 if not loaded.
    pub address: u64,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many of them.
    pub len: u64,
    /// Compressed (`SHF_COMPRESSED`).
    pub compressed: bool,
    link: u32,
}

/// An open executable.
#[derive(Clone, Debug)]
pub struct Executable {
    file: Arc<File>,
    /// Length of the file.
    pub len: u64,
    /// Entry point, as the file states it.
    pub entry: u64,
    /// Loadable segments.
    pub segments: Vec<Segment>,
    /// Sections; empty where the headers were stripped off.
    pub sections: Vec<Section>,
    /// Where the dynamic section is in the file, and its length.
    dynamic: Option<(u64, u64)>,
}

fn half(data: &[u8], at: usize) -> u64 {
    word(data, at) & 0xffff
}

fn int(data: &[u8], at: usize) -> u32 {
    word(data, at) as u32
}

impl Executable {
    /// Parses the headers.
    pub fn new(file: File) -> Result<Self, ElfError> {
        let len = file.metadata()?.len();
        let mut header = [0; 72];
        let got = file.read_at(&mut header[..64], 0)?;
        if got < 64 || !header.starts_with(b"\x7fELF") {
            return Err(ElfError::Format("it has no ELF header"));
        }
        if header[4] != 2 || header[5] != 1 || half(&header, 18) != 62 {
            return Err(ElfError::Format("it is for another machine"));
        }
        let mut elf = Self {
            file: Arc::new(file),
            len,
            entry: word(&header, 24),
            segments: Vec::new(),
            sections: Vec::new(),
            dynamic: None,
        };
        let (count, size) = (half(&header, 56) as usize, half(&header, 54) as usize);
        if size < 56 {
            return Err(ElfError::Format("it has no program headers"));
        }
        let table = elf
            .file_bytes(word(&header, 32), (count * size) as u64)
            .unwrap_or_default();
        for entry in table.chunks_exact(size) {
            match int(entry, 0) {
                PT_LOAD => {}
                PT_DYNAMIC => {
                    elf.dynamic = Some((word(entry, 8), word(entry, 32)));
                    continue;
                }
                _ => continue,
            }
            elf.segments.push(Segment {
                address: word(entry, 16),
                offset: word(entry, 8),
                file_len: word(entry, 32),
                memory_len: word(entry, 40),
                write: int(entry, 4) & PF_WRITE != 0,
            });
        }
        if elf.segments.is_empty() {
            return Err(ElfError::Format("it has no loadable segments"));
        }
        elf.read_sections(&header);
        Ok(elf)
    }

    fn read_sections(&mut self, header: &[u8]) {
        let (count, size) = (half(header, 60) as usize, half(header, 58) as usize);
        if size < 64 || count > MAX_SECTIONS {
            return;
        }
        let Some(table) = self.file_bytes(word(header, 40), (count * size) as u64) else {
            return;
        };
        let entries: Vec<&[u8]> = table.chunks_exact(size).collect();
        let Some(names) = entries.get(half(header, 62) as usize) else {
            return;
        };
        let Some(names) = self.file_bytes(word(names, 24), word(names, 32).min(MAX_NAMES)) else {
            return;
        };
        for entry in &entries {
            let name = names.get(int(entry, 0) as usize..).unwrap_or_default();
            let name = &name[..name.iter().position(|&byte| byte == 0).unwrap_or(0)];
            self.sections.push(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                address: word(entry, 16),
                offset: word(entry, 24),
                len: word(entry, 32),
                compressed: word(entry, 8) & 0x800 != 0,
                link: int(entry, 40),
            });
        }
    }

    /// A section by name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Bytes of the file; `None` where it is shorter.
    pub fn file_bytes(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Position in the file of what is loaded at an address, and how many bytes follow in the same segment.
    pub fn file_position(&self, address: u64) -> Option<(u64, u64)> {
        self.segments.iter().find_map(|segment| {
            let into = address
                .checked_sub(segment.address)
                .filter(|&into| into < segment.file_len)?;
            Some((segment.offset.checked_add(into)?, segment.file_len - into))
        })
    }

    /// The address at which a position of the file is loaded.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = offset
                .checked_sub(segment.offset)
                .filter(|&into| into < segment.file_len)?;
            segment.address.checked_add(into)
        })
    }

    /// Bytes as they are loaded at an address, before relocation.
    pub fn bytes_at(&self, address: u64, len: u64) -> Option<Vec<u8>> {
        let (offset, available) = self.file_position(address)?;
        self.file_bytes(offset, (len <= available).then_some(len)?)
    }

    /// Relocations that make a place hold an address of this file: place and address, in the table's order. Empty for
    /// files that are loaded where they say.
    pub fn relative_relocations(&self) -> Vec<(u64, u64)> {
        let table = || {
            let (offset, len) = self.dynamic.filter(|&(_, len)| len <= 1 << 16)?;
            let dynamic = self.file_bytes(offset, len)?;
            let entry = |tag| {
                let entry = dynamic.chunks_exact(16).find(|entry| word(entry, 0) == tag)?;
                Some(word(entry, 8))
            };
            let len = entry(DT_RELASZ).filter(|&len| len <= MAX_RELOCATIONS)?;
            self.bytes_at(entry(DT_RELA)?, len)
        };
        table()
            .unwrap_or_default()
            .chunks_exact(RELA_LEN)
            .filter(|entry| word(entry, 8) == R_X86_64_RELATIVE)
            .map(|entry| (word(entry, 0), word(entry, 16)))
            .collect()
    }

    /// Addresses of symbols by exact name; those that the symbol table lacks are missing.
    pub fn symbols<'n>(&self, wanted: &[&'n str]) -> HashMap<&'n str, u64> {
        let mut found = HashMap::new();
        let Some(symbols) = self.section(".symtab") else {
            return found;
        };
        let Some(names) = self.sections.get(symbols.link as usize) else {
            return found;
        };
        if symbols.len > MAX_SYMBOLS || names.len > MAX_SYMBOLS {
            return found;
        }
        let Some(names) = self.file_bytes(names.offset, names.len) else {
            return found;
        };
        let Some(symbols) = self.file_bytes(symbols.offset, symbols.len) else {
            return found;
        };
        for symbol in symbols.chunks_exact(SYMBOL_LEN) {
            let Some(name) = names.get(int(symbol, 0) as usize..) else {
                continue;
            };
            let matches = |wanted: &&&str| name.get(wanted.len()) == Some(&0) && name.starts_with(wanted.as_bytes());
            if let Some(wanted) = wanted.iter().find(matches) {
                found.insert(*wanted, word(symbol, 8));
            }
        }
        found
    }

    /// The GNU build ID in lower-case hexadecimal digits; empty if there is none.
    pub fn build_id(&self) -> String {
        let note = || {
            let section = self
                .section(".note.gnu.build-id")
                .filter(|section| section.len <= 4096)?;
            let bytes = self.file_bytes(section.offset, section.len)?;
            let (name, description) = (int(&bytes, 0) as usize, int(&bytes, 4) as usize);
            let start = 12 + name.checked_add(3)? / 4 * 4;
            Some(
                bytes
                    .get(start..start.checked_add(description)?)?
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            )
        };
        note().unwrap_or_default()
    }
}

/// Inline trees in the file, from the address of moduledata's `gofunc` on. A block read last is kept.
#[derive(Debug)]
pub struct FileInlineData {
    executable: Executable,
    offset: u64,
    available: u64,
    block: std::sync::Mutex<(u64, Vec<u8>)>,
}

impl FileInlineData {
    const BLOCK: u64 = 64 << 10;

    /// `gofunc` is an address as the file states it; `None` if the file has nothing there.
    pub fn new(executable: &Executable, gofunc: u64) -> Option<Self> {
        let (offset, available) = executable.file_position(gofunc)?;
        let available = available.min(executable.len.saturating_sub(offset));
        Some(Self {
            executable: executable.clone(),
            offset,
            available,
            block: std::sync::Mutex::default(),
        })
    }
}

impl InlineData for FileInlineData {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let wanted = buffer.len() as u64;
        if offset.checked_add(wanted).is_none_or(|end| end > self.available) {
            return false;
        }
        let Ok(mut block) = self.block.lock() else { return false };
        let begin = offset / Self::BLOCK * Self::BLOCK;
        if block.0 != begin || block.1.is_empty() {
            // An entry may run over the block's end, so a block is a little longer than its step.
            let len = (Self::BLOCK + 64).min(self.available - begin);
            let Some(bytes) = self.executable.file_bytes(self.offset + begin, len) else {
                return false;
            };
            *block = (begin, bytes);
        }
        let at = (offset - begin) as usize;
        match block.1.get(at..at + buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }
}
