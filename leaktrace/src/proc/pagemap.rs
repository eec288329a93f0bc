//! Which pages of a process are there, and which are still those of their file.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::living;
use crate::model::{ProcessAddress, page_size};

/// Bytes of an entry of `/proc/PID/pagemap`.
const ENTRY: u64 = 8;
/// The page is in memory, or in swap.
const PRESENT_OR_SWAPPED: u64 = 3 << 62;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page belongs to a file: a private mapping's page that was written to does not.
const OF_FILE: u64 = 1 << 61;

/// Those of `pages` that are neither in memory nor in swap.
///
/// # Errors
/// When the process is gone or cannot be read.
pub fn gone(pid: u32, pages: &[ProcessAddress]) -> io::Result<Vec<ProcessAddress>> {
    let map = File::open(format!("/proc/{}/pagemap", living::thread(pid)))?;
    let size = page_size();
    let mut result = Vec::new();
    for page in pages {
        let mut entry = [0; ENTRY as usize];
        let read = map.read_at(&mut entry, page.0 / size * ENTRY)?;
        // Behind the end of the address space there is nothing to read.
        if read < entry.len() || u64::from_ne_bytes(entry) & PRESENT_OR_SWAPPED == 0 {
            result.push(*page);
        }
    }
    Ok(result)
}

/// Whether no page of a private mapping from `start` on was written to, so that all hold what the file does.
///
/// # Errors
/// When the process is gone or cannot be read.
pub fn is_unwritten(pid: u32, start: ProcessAddress, len: usize) -> io::Result<bool> {
    let map = File::open(format!("/proc/{pid}/pagemap"))?;
    let size = page_size();
    let end = start.0.saturating_add(len as u64).div_ceil(size);
    for page in start.0 / size..end {
        let mut entry = [0; ENTRY as usize];
        map.read_exact_at(&mut entry, page.saturating_mul(ENTRY))?;
        let entry = u64::from_ne_bytes(entry);
        // What was never touched is read from the file.
        if entry & PRESENT_OR_SWAPPED != 0 && entry & (PRESENT | OF_FILE) != PRESENT | OF_FILE {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::read_maps;

    #[test]
    fn what_was_written_to_is_not_the_files() {
        let own = std::process::id();
        let code = ProcessAddress(what_was_written_to_is_not_the_files as *const () as u64);
        assert!(is_unwritten(own, code, 16).expect("our own"));
        let maps = read_maps(own).expect("our own");
        // The C library's own data, at least.
        let mut data = maps.iter().filter(|map| map.is_file() && map.write && !map.shared);
        assert!(data.any(|map| !is_unwritten(own, map.start, map.len() as usize).expect("our own")));
        assert!(is_unwritten(u32::MAX, code, 1).is_err());
    }

    #[test]
    fn a_page_is_there_once_it_was_touched() {
        // So large that an allocator maps it by itself.
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        let begin = (memory.as_ptr() as u64).next_multiple_of(page_size());
        let first = ProcessAddress(begin + 16 * page_size());
        // Farther away than a huge page reaches.
        let second = ProcessAddress(first.0 + (8 << 20));
        let offset = (first.0 - memory.as_ptr() as u64) as usize;
        memory.spare_capacity_mut()[offset].write(1);
        let beyond = ProcessAddress(u64::MAX / 2);
        let own = std::process::id();
        assert_eq!(gone(own, &[first, second, beyond]).expect("our own"), [second, beyond]);
        drop(memory);
        assert_eq!(gone(own, &[first]).expect("our own"), [first]);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(gone(u32::MAX, &[]).is_err());
    }
}
