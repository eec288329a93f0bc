//! A private copy of the parts of an ELF file that symbolization reads.
//!
//! The symbolization library maps its files into memory, and whoever can truncate a mapped file kills the process that
//! mapped it (SIGBUS). A target's files are not to be trusted with that, so their headers, symbol tables and debug
//! information are copied, by reads, into an anonymous file; code and data are left out as holes.
//! Invariant: the copy has the layout of the file, and its size is bounded by [`MAX_COPIED`].

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endian, Endianness, ReadCache, ReadRef};

/// Larger files are refused.
pub const MAX_FILE: u64 = 64 << 30;
/// At most so many bytes of a file are copied; where it takes more, the debug information is left out.
pub const MAX_COPIED: u64 = 2 << 30;
/// Most sections of a file.
pub const MAX_SECTIONS: u64 = 1 << 20;
/// Largest note section that is searched for a build ID.
pub const MAX_NOTES: u64 = 1 << 20;
/// Largest section after decompression. Compressed sections that claim more are left out.
pub const MAX_DECOMPRESSED: u64 = 2 << 30;
/// Largest `.gnu_debugdata` after decompression.
pub const MAX_MINI_SYMBOLS: u64 = 256 << 20;

/// The copy. It lives in memory and is gone when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    memory: File,
    /// Build ID, if the file has one.
    pub build_id: Option<Box<[u8]>>,
    /// Name and checksum of the file that holds the debug information, if the file names one.
    pub debug_link: Option<(Box<[u8]>, u32)>,
}

impl Snapshot {
    /// Copies what is needed from a file.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut magic = [0; 4];
        if length > MAX_FILE || file.read_exact_at(&mut magic, 0).is_err() || magic != elf::ELFMAG {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not an ELF file, or far too large for one",
            ));
        }
        let mut snapshot = Self {
            memory: memory(length)?,
            build_id: None,
            debug_link: None,
        };
        let cache = ReadCache::new(Positioned { file, position: 0 });
        let ranges = snapshot.ranges(&cache, length).unwrap_or_else(|| vec![(0, length)]);
        let mut left = MAX_COPIED;
        for (start, size) in ranges {
            let size = size.min(left);
            copy(file, &snapshot.memory, start, size)?;
            left -= size;
        }
        Ok(snapshot)
    }

    /// Keeps an image that is in memory already.
    pub fn of_image(bytes: &[u8]) -> io::Result<Self> {
        let memory = memory(bytes.len() as u64)?;
        memory.write_all_at(bytes, 0)?;
        Ok(Self {
            memory,
            build_id: None,
            debug_link: None,
        })
    }

    /// A path under which the copy can be opened in this process.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.memory.as_raw_fd()).into()
    }

    /// What to copy, as positions and sizes. `None` if the section headers are not understood.
    fn ranges<'d>(&mut self, data: impl ReadRef<'d>, length: u64) -> Option<Vec<(u64, u64)>> {
        let header = elf::FileHeader64::<Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        if header
            .shnum(endian, data)
            .is_ok_and(|count| count as u64 > MAX_SECTIONS)
        {
            return None;
        }
        let sections = header.sections(endian, data).ok()?;
        if sections.is_empty() {
            return None;
        }
        let mut debug_ranges = Vec::new();
        let table = |offset: u64, size: u16, count: u64| (offset, u64::from(size).saturating_mul(count));
        let mut ranges = vec![
            (0, 4096),
            table(
                header.e_phoff(endian),
                header.e_phentsize(endian),
                header.e_phnum(endian).into(),
            ),
            table(
                header.e_shoff(endian),
                header.e_shentsize(endian),
                sections.len() as u64,
            ),
        ];
        for section in sections.iter() {
            let (kind, flags) = (section.sh_type(endian), section.sh_flags(endian));
            if kind == elf::SHT_NOBITS || (kind == elf::SHT_PROGBITS && flags.contains(elf::SHF_ALLOC)) {
                continue;
            }
            let size = section.sh_size(endian);
            if self.build_id.is_none()
                && size <= MAX_NOTES
                && let Ok(Some(mut notes)) = section.notes(endian, data)
            {
                self.build_id = std::iter::from_fn(|| notes.next().ok().flatten())
                    .take(64)
                    .find(|note| note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID)
                    .map(|note| note.desc().into());
            }
            let name = sections.section_name(endian, section).unwrap_or_default();
            if name == b".gnu_debuglink" && size < 4096 {
                self.debug_link = section
                    .data(endian, data)
                    .ok()
                    .and_then(|link| debug_link(link, endian));
            }
            if flags.contains(elf::SHF_COMPRESSED)
                && !section.compression(endian, data).is_ok_and(|header| {
                    header.is_some_and(|(header, ..)| header.ch_size.get(endian) <= MAX_DECOMPRESSED)
                })
            {
                continue;
            }
            if name == b".gnu_debugdata"
                && !(size <= MAX_MINI_SYMBOLS && section.data(endian, data).is_ok_and(mini_symbols_fit))
            {
                continue;
            }
            let is_debug = name.starts_with(b".debug_") || name.starts_with(b".zdebug_");
            if is_debug { &mut debug_ranges } else { &mut ranges }.push((section.sh_offset(endian), size));
        }
        let whole = merged([ranges.clone(), debug_ranges].concat(), length);
        let fits = whole.iter().map(|(_, size)| size).sum::<u64>() <= MAX_COPIED;
        Some(if fits { whole } else { merged(ranges, length) })
    }
}

/// A file name with its final zero, padding to a multiple of 4, and a checksum.
fn debug_link(section: &[u8], endian: Endianness) -> Option<(Box<[u8]>, u32)> {
    let length = section.iter().position(|byte| *byte == 0)?;
    let checksum = *section.get((length + 1).next_multiple_of(4)..)?.first_chunk()?;
    let checksum = if endian.is_big_endian() {
        u32::from_be_bytes(checksum)
    } else {
        u32::from_le_bytes(checksum)
    };
    Some((section[..length].into(), checksum))
}

/// Sorted, without overlaps, inside the file.
fn merged(mut ranges: Vec<(u64, u64)>, length: u64) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut result: Vec<(u64, u64)> = Vec::new();
    let mut covered = 0;
    for (start, size) in ranges {
        let end = start.saturating_add(size).min(length);
        let start = start.max(covered);
        if start < end {
            result.push((start, end - start));
            covered = end;
        }
    }
    result
}

fn mini_symbols_fit(compressed: &[u8]) -> bool {
    let mut decoder = xz2::read::XzDecoder::new(compressed).take(MAX_MINI_SYMBOLS + 1);
    io::copy(&mut decoder, &mut io::sink()).is_ok_and(|size| size <= MAX_MINI_SYMBOLS)
}

fn memory(length: u64) -> io::Result<File> {
    let memory: OwnedFd = memfd_create(c"leaktrace-symbols", MFdFlags::MFD_CLOEXEC)?;
    let memory = File::from(memory);
    memory.set_len(length)?;
    Ok(memory)
}

/// Zeros stay holes. A file that became shorter meanwhile leaves them too.
fn copy(from: &File, to: &File, start: u64, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(size.min(1 << 20)).unwrap_or(1 << 20)];
    let mut done = 0;
    while done < size {
        let wanted = usize::try_from(size - done).unwrap_or(usize::MAX).min(buffer.len());
        let read = match from.read_at(&mut buffer[..wanted], start + done) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // A sparse file must not become a dense one in memory.
        if buffer[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..read], start + done)?;
        }
        done += read as u64;
    }
    Ok(())
}

/// Reads a shared file without moving its position, which others may use.
struct Positioned<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl io::Seek for Positioned<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let position = match to {
            io::SeekFrom::Start(position) => Some(position),
            io::SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            io::SeekFrom::End(distance) => self.file.metadata()?.len().checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_cut_to_the_file() {
        assert_eq!(
            merged(vec![(50, 10), (0, 20), (10, 20), (u64::MAX, 9), (90, u64::MAX)], 100),
            [(0, 20), (20, 10), (50, 10), (90, 10)]
        );
    }

    #[test]
    fn the_copy_holds_symbols_but_no_code() {
        let file = File::open("/proc/self/exe").expect("opens");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        let copy = std::fs::metadata(snapshot.path()).expect("exists");
        assert_eq!(copy.len(), file.metadata().expect("exists").len());
        use std::os::unix::fs::MetadataExt;
        assert!(copy.blocks() * 512 < copy.len(), "code is left out");
        assert!(snapshot.build_id.is_some_and(|id| id.len() >= 8));
    }

    #[test]
    fn without_section_headers_all_is_copied() {
        let mut file = tempfile::tempfile().expect("temporary file");
        io::Write::write_all(&mut file, b"\x7fELF hello").expect("writes");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        assert_eq!(std::fs::read(snapshot.path()).expect("reads"), b"\x7fELF hello");
        file.set_len(MAX_FILE + 1).expect("grows");
        assert!(Snapshot::of_file(&file).is_err(), "far too large");
        assert!(
            Snapshot::of_file(&File::open("/proc/self/comm").expect("opens")).is_err(),
            "another format"
        );
    }

    #[test]
    fn huge_sparse_files_take_no_memory() {
        use std::os::unix::fs::MetadataExt;
        let mut file = tempfile::tempfile().expect("temporary file");
        io::Write::write_all(&mut file, b"\x7fELF hello").expect("writes");
        file.set_len(256 << 20).expect("grows");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        assert!(std::fs::metadata(snapshot.path()).expect("exists").blocks() <= 4096);
    }
}
