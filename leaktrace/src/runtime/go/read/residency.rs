//! What the kernel says is resident of a process: per mapping (`smaps`) and per page (`pagemap`).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::model::page_size;
use crate::proc::{ProcError, living};
use crate::runtime::go::census::ResidentMapping;

/// Most of `smaps` that is read: about 200,000 mappings.
const MAX_SMAPS: u64 = 256 << 20;
/// Entries of `pagemap` in one read.
const ENTRIES: usize = 1 << 16;
/// Bits of an entry: in memory.
const PRESENT: u64 = 1 << 63;

/// All mappings with their resident bytes.
pub fn read_mappings(pid: u32) -> Result<Vec<ResidentMapping>, ProcError> {
    let path = PathBuf::from(format!("/proc/{}/smaps", living::thread(pid)));
    let file = File::open(&path).map_err(|source| ProcError::from_io(pid, &path, source))?;
    let mut mappings: Vec<ResidentMapping> = Vec::new();
    let mut lines = BufReader::new(file.take(MAX_SMAPS));
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(mappings),
            Ok(_) => parse_line(&String::from_utf8_lossy(&line), &mut mappings),
            Err(source) => return Err(ProcError::from_io(pid, &path, source)),
        }
    }
}

fn parse_line(line: &str, mappings: &mut Vec<ResidentMapping>) {
    if let Some(amount) = line.strip_prefix("Rss:") {
        let kilobytes: u64 = amount.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0);
        if let Some(mapping) = mappings.last_mut() {
            mapping.resident = kilobytes.saturating_mul(1024);
        }
        return;
    }
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next().and_then(|range| range.split_once('-'));
    let Some((Ok(start), Ok(end))) = range.map(|(a, b)| (u64::from_str_radix(a, 16), u64::from_str_radix(b, 16)))
    else {
        return;
    };
    // Permissions, offset, device, inode, and a path that may hold blanks.
    let inode = fields.nth(3).unwrap_or("0");
    let name = fields.collect::<Vec<_>>().join(" ");
    mappings.push(ResidentMapping {
        start,
        end,
        name,
        file: inode != "0",
        resident: 0,
    });
}

/// Residency by page.
#[derive(Debug)]
pub struct PageMap {
    file: File,
}

impl PageMap {
    /// Opens `/proc/PID/pagemap`.
    pub fn open(pid: u32) -> Result<Self, ProcError> {
        let path = PathBuf::from(format!("/proc/{}/pagemap", living::thread(pid)));
        let file = File::open(&path).map_err(|source| ProcError::from_io(pid, &path, source))?;
        Ok(Self { file })
    }

    /// Resident bytes of a range; 0 for what cannot be read.
    pub fn resident(&self, start: u64, end: u64) -> u64 {
        let (mut page, last) = (start / page_size(), end.div_ceil(page_size()));
        let mut buffer = vec![0u8; ENTRIES.min(last.saturating_sub(page) as usize) * 8];
        let mut resident = 0;
        while page < last {
            let want = (last - page).min(ENTRIES as u64) as usize;
            let Some(buffer) = buffer.get_mut(..want * 8) else {
                break;
            };
            let Ok(got) = self.file.read_at(buffer, page * 8) else {
                break;
            };
            let entries = got / 8;
            if entries == 0 {
                break;
            }
            resident += buffer[..entries * 8]
                .chunks_exact(8)
                .filter(|entry| super::memory::word(entry, 0) & PRESENT != 0)
                .count() as u64
                * page_size();
            page += entries as u64;
        }
        resident
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn smaps_lines() {
        let mut mappings = Vec::new();
        for line in [
            "c000000000-c000400000 rw-p 00000000 00:00 0                  [anon: Go: heap]\n",
            "Size:               4096 kB\n",
            "Rss:                1024 kB\n",
            "VmFlags: rd wr mr mw me ac\n",
            "7f00-8f00 r-xp 00001000 fd:01 77 /opt/a b/lib.so (deleted)\n",
            "Rss:                   8 kB\n",
        ] {
            parse_line(line, &mut mappings);
        }
        assert_eq!(mappings.len(), 2);
        assert_eq!(
            (mappings[0].name.as_str(), mappings[0].file, mappings[0].resident),
            ("[anon: Go: heap]", false, 1 << 20)
        );
        assert_eq!(
            (mappings[1].name.as_str(), mappings[1].file),
            ("/opt/a b/lib.so (deleted)", true)
        );
    }

    #[test]
    fn pages_that_were_touched_are_resident() {
        let memory = vec![1u8; 64 * page_size() as usize];
        let start = memory.as_ptr() as u64;
        let map = PageMap::open(std::process::id()).unwrap();
        let resident = map.resident(start, start + memory.len() as u64);
        assert!(resident >= 64 * page_size(), "{resident}");
        assert_eq!(map.resident(0x1000, 0x2000), 0);
    }
}
