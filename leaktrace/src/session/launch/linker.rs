//! Tells from outside whether a held command is still in its dynamic linker.
//!
//! glibc's linker is a file of its own: a system call from elsewhere means that it has handed over. musl's is libc itself,
//! and every system call comes from there; but it fills in what debuggers read (`r_debug`, which the program's `DT_DEBUG`
//! entry leads to) as its last act. Invariant: everything here is read, each time anew, and may lie; a lie makes start-up
//! seem longer or shorter, no more.

use crate::model::ProcessAddress;
use crate::object::image::ElfImage;
use crate::object::symbols::find_definition;
use crate::proc::files::open_mapped;
use crate::proc::maps::{self, Mapping};
use crate::proc::memory::{AT_BASE, AT_PHDR, AT_PHNUM, AuxVector, MemoryReader, ProcessMemory};

const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;
const DT_DEBUG: u64 = 21;
/// Size of a program header.
const HEADER: u64 = 56;
/// Most program headers that are looked at.
const MAX_HEADERS: u64 = 256;
/// Most entries of a dynamic table.
const MAX_ENTRIES: u64 = 4096;
/// Only libc has it.
const LIBC_ONLY: &[u8] = b"__libc_start_main";

/// The dynamic linker of a held command.
pub(super) struct Linker {
    pid: u32,
    start: u64,
    end: u64,
    /// Where the program's `DT_DEBUG` entry keeps its value, if the linker is libc, too.
    debug_entry: Option<u64>,
}

impl Linker {
    /// `None` for a static program, or one that has not begun.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let vector = AuxVector::read(pid).ok()?;
        let base = vector.get(AT_BASE).filter(|base| *base != 0)?;
        let maps = maps::read_maps(pid).ok()?;
        let first = maps.iter().find(|mapping| mapping.start.0 == base)?;
        let end = maps
            .iter()
            .filter(|mapping| mapping.file == first.file)
            .map(|mapping| mapping.end.0)
            .max()?;
        let memory = ProcessMemory::new(pid);
        Some(Self {
            pid,
            start: base,
            end,
            debug_entry: is_libc(pid, first).then(|| debug_entry(&memory, &vector)).flatten(),
        })
    }

    /// Whether a system call from `pc` is part of the start-up.
    pub(super) fn is_at_work(&self, pc: u64) -> bool {
        (self.start..self.end).contains(&pc)
            && !self
                .debug_entry
                .is_some_and(|entry| is_loaded(&ProcessMemory::new(self.pid), entry))
    }
}

fn is_libc(pid: u32, mapping: &Mapping) -> bool {
    let image = open_mapped(pid, mapping)
        .ok()
        .and_then(|opened| ElfImage::open(opened.file).ok());
    image.is_some_and(|image| find_definition(&image, LIBC_ONLY).is_some())
}

/// From the program headers in memory to the dynamic table, and in it to the value of `DT_DEBUG`.
fn debug_entry(memory: &impl MemoryReader, vector: &AuxVector) -> Option<u64> {
    let headers = vector.get(AT_PHDR)?;
    let word = |address: u64| memory.read_u64(ProcessAddress(address)).ok();
    let (mut shift, mut table) = (0, None);
    for index in 0..vector.get(AT_PHNUM)?.min(MAX_HEADERS) {
        let header = headers.checked_add(index * HEADER)?;
        // Type in the lower half; the address is the third word.
        let (kind, address) = (word(header)? as u32, word(header.checked_add(16)?)?);
        match kind {
            PT_PHDR => shift = headers.wrapping_sub(address),
            PT_DYNAMIC => table = Some(address),
            _ => {}
        }
    }
    let table = table?.wrapping_add(shift);
    for index in 0..MAX_ENTRIES {
        let entry = table.checked_add(index * 16)?;
        match word(entry)? {
            0 => return None,
            DT_DEBUG => return entry.checked_add(8),
            _ => {}
        }
    }
    None
}

/// Whether `r_debug` has been filled in (`r_version`) and nothing is being added or taken away (`r_state`, the fourth word).
fn is_loaded(memory: &impl MemoryReader, debug_entry: u64) -> bool {
    let word = |address: u64| memory.read_u64(ProcessAddress(address)).ok();
    let state = || {
        let debug = word(debug_entry).filter(|address| *address != 0)?;
        Some((word(debug)? as u32, word(debug.checked_add(24)?)? as u32))
    };
    state().is_some_and(|(version, state)| version != 0 && state == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::memory::MemoryError;

    /// Words at addresses from 0x1000 on.
    struct Words(Vec<u64>);

    impl MemoryReader for Words {
        fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
            let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
            let start = address.0.wrapping_sub(0x1000) as usize;
            let found = bytes.get(start..start.wrapping_add(buffer.len()));
            buffer.copy_from_slice(found.ok_or(MemoryError::Unmapped {
                pid: 1,
                address,
                len: buffer.len(),
            })?);
            Ok(())
        }
    }

    /// Two program headers that state addresses 0x800 too low, then a dynamic table, then `r_debug`.
    fn program() -> Words {
        let mut words = vec![0; 32];
        words[0] = PT_PHDR.into();
        words[2] = 0x800;
        words[7] = PT_DYNAMIC.into();
        words[9] = 0x800 + 14 * 8;
        words[14] = 5;
        words[16] = DT_DEBUG;
        words[17] = 0x1000 + 20 * 8;
        Words(words)
    }

    fn vector(headers: u64) -> AuxVector {
        let pairs = [AT_PHDR, headers, AT_PHNUM, 2, 0, 0];
        AuxVector::parse(&pairs.map(u64::to_le_bytes).concat())
    }

    #[test]
    fn the_linker_says_when_it_is_done() {
        let mut memory = program();
        let entry = debug_entry(&memory, &vector(0x1000)).expect("it has one");
        assert_eq!(entry, 0x1000 + 17 * 8);
        assert!(!is_loaded(&memory, entry), "not filled in yet");
        memory.0[20] = 1;
        assert!(is_loaded(&memory, entry));
        memory.0[23] = 1;
        assert!(!is_loaded(&memory, entry), "something is being added");
        memory.0[17] = 0;
        assert!(!is_loaded(&memory, entry), "nobody has set it");
    }

    #[test]
    fn lies_lead_nowhere() {
        assert_eq!(debug_entry(&program(), &vector(0x5000)), None, "not mapped");
        assert_eq!(
            debug_entry(&program(), &vector(u64::MAX - 8)),
            None,
            "at the end of memory"
        );
        let mut memory = program();
        memory.0[16] = 7;
        assert_eq!(debug_entry(&memory, &vector(0x1000)), None, "no such entry");
        memory.0[9] = u64::MAX;
        assert_eq!(debug_entry(&memory, &vector(0x1000)), None, "a table nowhere");
    }
}
