//! Finds the pclntab, the moduledata that points to it, and the version of a Go binary.
//!
//! Sections name the table where there are sections; else its header is searched for. The header's own text address is
//! of no use (PIE, Go 1.26), so the moduledata of the live process is what places the text. Invariant: a [`Module`] has
//! a table whose function count and name table agree with the moduledata in the target.

use std::sync::Arc;

use super::buildinfo::{self, BuildInfo};
use super::executable::{Executable, FileInlineData};
use super::pclntab::{self, PclnTable};
use crate::proc::memory::{MemoryError, MemoryReader};
use crate::runtime::go::memory::{Target, word};

/// Largest table that is read. Kubernetes' are about 40 MB.
const MAX_TABLE: u64 = 512 << 20;
/// Most writable memory that is searched for the moduledata.
const MAX_SEARCH: u64 = 256 << 20;
const CHUNK: u64 = 1 << 20;
/// Bytes of a moduledata that are looked at; it is longer than this in no release.
const MODULE_LEN: usize = 640;
/// Headers that may turn out to be none (the magic also occurs in code that reads such tables).
const MAX_CANDIDATES: usize = 64;

/// The Go module of an executable, as loaded.
#[derive(Clone, Debug)]
pub struct Module {
    /// The table, with process addresses.
    pub table: PclnTable,
    /// Address of `runtime.firstmoduledata`.
    pub address: u64,
    /// First bytes of it.
    pub data: Vec<u8>,
    /// What to add to the file's addresses.
    pub bias: u64,
}

/// Version and module path from the file; `None` where the linker's blob is missing.
pub fn build_info(executable: &Executable) -> Option<BuildInfo> {
    let section = executable.section(".go.buildinfo");
    if let Some(info) = section
        .and_then(|section| executable.file_bytes(section.offset, section.len.min(1 << 20)))
        .and_then(|bytes| buildinfo::parse(&bytes))
    {
        return Some(info);
    }
    // The blob is 16-byte aligned at the begin of a data segment.
    executable
        .segments
        .iter()
        .filter(|segment| segment.write)
        .find_map(|segment| {
            let bytes = executable.file_bytes(segment.offset, segment.file_len.min(MAX_SEARCH))?;
            let at = bytes.chunks(16).position(|chunk| chunk.starts_with(buildinfo::MAGIC))?;
            buildinfo::parse(&bytes[at * 16..])
        })
}

/// Tables that the file may hold: file address and bytes.
pub(in crate::runtime::go) fn candidates(executable: &Executable) -> Vec<(u64, Vec<u8>)> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some(section) = executable.section(name)
            && let Some(bytes) = executable.file_bytes(section.offset, section.len.min(MAX_TABLE))
        {
            return vec![(section.address, bytes)];
        }
    }
    let mut found = Vec::new();
    for segment in &executable.segments {
        let Some(bytes) = executable.file_bytes(segment.offset, segment.file_len.min(MAX_TABLE)) else {
            continue;
        };
        let mut from = 0;
        while let Some(at) = pclntab::find_header(&bytes, from) {
            if pclntab::is_table(&bytes[at..]) {
                found.push((segment.address + at as u64, bytes[at..].to_vec()));
            }
            from = at + 8;
            if found.len() >= MAX_CANDIDATES {
                return found;
            }
        }
    }
    found
}

/// Finds the module of a process. `Ok(None)`: this is no Go program (of a known table format).
pub fn find<M: MemoryReader>(executable: &Executable, bias: u64, memory: &M) -> Result<Option<Module>, MemoryError> {
    for (address, bytes) in candidates(executable) {
        let Ok(table) = PclnTable::new(bytes, 0) else { continue };
        let header = address.wrapping_add(bias);
        for segment in executable.segments.iter().filter(|segment| segment.write) {
            let start = segment.address.wrapping_add(bias);
            if let Some((at, data)) = search(memory, start, segment.file_len.min(MAX_SEARCH), header, &table)? {
                let text = word(&data, 176);
                return Ok(Some(Module {
                    table: table.with_text(text),
                    address: at,
                    data,
                    bias,
                }));
            }
        }
    }
    Ok(None)
}

/// Searches writable memory for the moduledata that points to the table's header.
fn search<M: MemoryReader>(
    memory: &M,
    start: u64,
    len: u64,
    header: u64,
    table: &PclnTable,
) -> Result<Option<(u64, Vec<u8>)>, MemoryError> {
    let mut at = 0;
    while at < len {
        let want = CHUNK.min(len - at) as usize;
        let bytes = match memory.bytes_at(start + at, want) {
            Ok(bytes) => bytes,
            Err(MemoryError::Unmapped { .. }) => {
                at += CHUNK;
                continue;
            }
            Err(error) => return Err(error),
        };
        for (index, found) in bytes.chunks_exact(8).enumerate() {
            if word(found, 0) != header {
                continue;
            }
            let address = start + at + index as u64 * 8;
            // It may run over the chunk's end.
            let Some(data) = read_module(memory, address) else {
                continue;
            };
            if word(&data, 8) == header.wrapping_add(table.names_offset()) && word(&data, 136) == table.len() as u64 + 1
            {
                return Ok(Some((address, data)));
            }
        }
        at += CHUNK;
    }
    Ok(None)
}

fn read_module<M: MemoryReader>(memory: &M, address: u64) -> Option<Vec<u8>> {
    // At the very end of a mapping there may be less than the maximum.
    [MODULE_LEN, 400]
        .into_iter()
        .find_map(|len| memory.bytes_at(address, len).ok())
}

impl Module {
    /// Attaches the inline trees, whose place the layout knows.
    pub fn load_inline_trees(&mut self, executable: &Executable, gofunc_at: usize) {
        let gofunc = word(&self.data, gofunc_at).wrapping_sub(self.bias);
        if let Some(inline) = FileInlineData::new(executable, gofunc) {
            self.table = self.table.clone().with_inline_data(Arc::new(inline));
        }
    }

    /// Code of a function, from the file.
    pub fn code(&self, executable: &Executable, entry: u64, end: u64) -> Option<Vec<u8>> {
        executable.bytes_at(entry.wrapping_sub(self.bias), end.checked_sub(entry)?)
    }
}
