//! A private copy of the parts of an ELF file that symbolization reads.
//!
//! The symbolization library maps its files into memory, and whoever can truncate a mapped file kills the process that
//! mapped it (SIGBUS). A target's files are not to be trusted with that, so their headers, symbol tables and debug
//! information are copied, by reads, into an anonymous file; code and data are left out as holes. The copy is also
//! where hostile contents are taken out: links to other files, and sections that decompress to more than they state, or
//! to far more than they are.
//! Invariant: the copy holds at most [`MAX_COPIED`] bytes, reading it opens no file that the target names, and no section of it
//! is compressed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use object::{ReadCache, elf};

mod headers;
mod plan;

use plan::Plan;

use crate::object::image::ElfImage;
use crate::object::mini;

/// Larger files are refused.
pub const MAX_FILE: u64 = 64 << 30;
/// At most so many bytes of a file are held; where it takes more, the debug information is left out.
pub const MAX_COPIED: u64 = 2 << 30;

/// What a 64-bit ELF file begins with.
const ELF64: [u8; 5] = [0x7f, b'E', b'L', b'F', 2];

/// A file whose section headers are not understood is copied up to here.
const MAX_PLAIN: u64 = 128 << 20;

/// The copy. It lives in memory and is gone when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    memory: File,
    /// The copy has debug information that may be read. Otherwise only symbol tables may.
    pub debug_info: bool,
    /// Build ID, if the file has one.
    pub build_id: Option<Box<[u8]>>,
    /// Name and checksum of the file that holds the debug information, if the file names one.
    pub debug_link: Option<(Box<[u8]>, u32)>,
    /// The mini symbol table of a stripped file.
    pub mini: Option<Box<Snapshot>>,
    /// Parts that it lacks for being too large, or damaged: which, why, and what is not known for want of them.
    pub left_out: Vec<String>,
}

impl Snapshot {
    /// Copies what is needed from a file.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut magic = [0; ELF64.len()];
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if length > MAX_FILE {
            return refuse(too_large(length));
        }
        if file.read_exact_at(&mut magic, 0).is_err() || magic[..] != ELF64 {
            return refuse("not a 64-bit ELF file".to_owned());
        }
        let memory = memory(length)?;
        let Some(mut plan) = Plan::new(&ReadCache::new(Positioned { file, position: 0 })) else {
            copy(Positioned { file, position: 0 }.take(MAX_PLAIN), &memory, 0)?;
            without_sections(&memory)?;
            let image = ElfImage::open(file.try_clone()?).ok();
            if let Some(image) = &image {
                headers::append(image, &memory)?;
            }
            return Ok(Self {
                memory,
                debug_info: false,
                build_id: image.and_then(|image| image.build_id().map(|id| id.as_bytes().into())),
                debug_link: None,
                mini: None,
                left_out: beyond_plain(length),
            });
        };
        let Choice {
            ranges,
            debug_info,
            mut left_out,
        } = Choice::of(&plan, length);
        let mut left = MAX_COPIED;
        for (start, size) in ranges {
            let range = Positioned { file, position: start }.take(size.min(left));
            copy(range, &memory, start)?;
            left = left.saturating_sub(size);
        }
        if debug_info {
            let mut end = length.next_multiple_of(16);
            for section in &plan.compressed {
                let compressed = Positioned {
                    file,
                    position: section.start,
                }
                .take(section.size);
                // What does not decompress stays a hole, and the library refuses it.
                let size = match section.decompress(compressed).and_then(|data| copy(data, &memory, end)) {
                    Ok(size) => size,
                    Err(error) => {
                        left_out.push(format!("{}: failed to decompress: {error}; {NO_LINES}", section.name()));
                        continue;
                    }
                };
                plan.patches.extend(section.patches(end, size));
                end = (end + size).next_multiple_of(16);
            }
            memory.set_len(end)?;
        }
        for (position, bytes) in &plan.patches {
            memory.write_all_at(bytes, *position)?;
        }
        Ok(Self {
            memory,
            debug_info,
            build_id: plan.build_id,
            debug_link: plan.debug_link,
            mini: mini(file),
            left_out,
        })
    }

    /// Keeps an image that is in memory already. Of such only symbol tables are read.
    pub fn of_image(bytes: &[u8]) -> io::Result<Self> {
        if !bytes.starts_with(&ELF64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a 64-bit ELF file"));
        }
        let memory = memory(bytes.len() as u64)?;
        memory.write_all_at(bytes, 0)?;
        match Plan::new(bytes) {
            Some(plan) => {
                for (position, bytes) in &plan.patches {
                    memory.write_all_at(bytes, *position)?;
                }
            }
            None => without_sections(&memory)?,
        }
        Ok(Self {
            memory,
            debug_info: false,
            build_id: None,
            debug_link: None,
            mini: None,
            left_out: Vec::new(),
        })
    }

    /// A path under which the copy can be opened in this process.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.memory.as_raw_fd()).into()
    }
}

/// What is not known without debug information.
const NO_LINES: &str = "source files, lines and inlined functions are not known";

/// What a snapshot of a file lacks for being too large, as far as its headers tell. Copies nothing.
///
/// # Errors
/// The file cannot be read.
pub fn left_out(file: &File) -> io::Result<Vec<String>> {
    let length = file.metadata()?.len();
    if length > MAX_FILE {
        return Ok(vec![too_large(length)]);
    }
    Ok(match Plan::new(&ReadCache::new(Positioned { file, position: 0 })) {
        Some(plan) => Choice::of(&plan, length).left_out,
        None => beyond_plain(length),
    })
}

fn too_large(length: u64) -> String {
    format!("a file of {length} bytes, more than {MAX_FILE}; names of its functions are not known")
}

fn beyond_plain(length: u64) -> Vec<String> {
    let complaint = || {
        format!("it has no section headers, and of its {length} bytes {MAX_PLAIN} are searched for names of functions")
    };
    (length > MAX_PLAIN).then(complaint).into_iter().collect()
}

/// What of a file is copied.
struct Choice {
    /// Positions and sizes.
    ranges: Vec<(u64, u64)>,
    debug_info: bool,
    left_out: Vec<String>,
}

impl Choice {
    fn of(plan: &Plan, length: u64) -> Self {
        let size = |ranges: &[(u64, u64)]| ranges.iter().map(|(_, size)| size).sum::<u64>();
        let needed = merged(plan.ranges.clone(), length);
        let all = merged([plan.ranges.as_slice(), &plan.debug_ranges].concat(), length);
        let mut left_out = Vec::new();
        let debug_info = match plan.expanded(length) {
            Ok(expanded) => {
                let bytes = size(&all).saturating_add(expanded);
                if bytes > MAX_COPIED {
                    left_out.push(format!(
                        "symbols and debug information of {bytes} bytes, more than {MAX_COPIED}; {NO_LINES}"
                    ));
                }
                bytes <= MAX_COPIED
            }
            Err(why) => {
                left_out.push(format!("debug information: {why}; {NO_LINES}"));
                false
            }
        };
        if plan.left_out > 0 {
            left_out.push(format!("{} compressed sections too many; {NO_LINES}", plan.left_out));
        }
        let symbols = size(&needed);
        if symbols > MAX_COPIED {
            left_out.push(format!(
                "symbol tables of {symbols} bytes, {MAX_COPIED} are read; names of some functions are not known"
            ));
        }
        Self {
            ranges: if debug_info { all } else { needed },
            debug_info,
            left_out,
        }
    }
}

/// The image in `.gnu_debugdata`, unless it is beyond a limit: whoever looks for symbols in the file tells that.
fn mini(file: &File) -> Option<Box<Snapshot>> {
    let image = ElfImage::open(file.try_clone().ok()?).ok()?;
    let bytes = mini::unpack(&image)?
        .inspect_err(|error| tracing::debug!("failed to read {}: {error}", mini::SECTION))
        .ok()?;
    let plain = bytes.get(..4)? == elf::ELFMAG;
    plain.then(|| Snapshot::of_image(&bytes).ok()).flatten().map(Box::new)
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

/// Takes out section headers that are not understood: the library may understand them.
fn without_sections(copy: &File) -> io::Result<()> {
    // e_shoff; e_shnum, e_shstrndx. A file that is shorter has no header.
    copy.write_all_at(&[0; 8], 40)?;
    copy.write_all_at(&[0; 4], 60)
}

fn memory(length: u64) -> io::Result<File> {
    let memory: OwnedFd = memfd_create(c"leaktrace-symbols", MFdFlags::MFD_CLOEXEC)?;
    let memory = File::from(memory);
    memory.set_len(length)?;
    Ok(memory)
}

/// Copies all of the input to a position; returns its size. Zeros stay holes, so that a sparse file does not become a
/// dense one in memory; what a file that became shorter meanwhile does not have stays a hole too.
fn copy(mut from: impl Read, to: &File, start: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(done),
            Ok(read) => {
                if buffer[..read].iter().any(|byte| *byte != 0) {
                    to.write_all_at(&buffer[..read], start + done)?;
                }
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn ranges_are_merged_and_cut_to_the_file() {
        let ranges = vec![(50, 10), (0, 20), (10, 20), (u64::MAX, 9), (90, u64::MAX)];
        assert_eq!(merged(ranges, 100), [(0, 20), (20, 10), (50, 10), (90, 10)]);
    }

    #[test]
    fn the_copy_holds_symbols_but_no_code() {
        let file = File::open("/proc/self/exe").expect("opens");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        let (copy, whole) = (
            std::fs::metadata(snapshot.path()).expect("exists"),
            file.metadata().expect("exists"),
        );
        assert!(copy.len() >= whole.len());
        assert!(copy.blocks() * 512 < copy.len(), "code is left out");
        assert!(snapshot.build_id.is_some_and(|id| id.len() >= 8));
    }

    #[test]
    fn without_section_headers_all_is_copied() {
        let mut file = tempfile::tempfile().expect("temporary file");
        let whole = [&ELF64[..], &[7; 100]].concat();
        io::Write::write_all(&mut file, &whole).expect("writes");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        assert!(!snapshot.debug_info);
        let copy = std::fs::read(snapshot.path()).expect("reads");
        assert_eq!((&copy[..40], &copy[64..]), (&whole[..40], &whole[64..]));
        assert_eq!((&copy[40..48], &copy[60..64]), (&[0; 8][..], &[0; 4][..]));
        file.set_len(MAX_FILE + 1).expect("grows");
        assert!(Snapshot::of_file(&file).is_err(), "far too large");
        assert!(
            Snapshot::of_file(&File::open("/proc/self/comm").expect("opens")).is_err(),
            "another format"
        );
    }

    #[test]
    fn compressed_input_is_counted_once_and_so_is_what_it_becomes() {
        let debug_info = |compressed: &[u8], stated: u64, sections: usize| {
            let mut bytes = [1u32, 0].map(u32::to_le_bytes).concat();
            bytes.extend([stated, 1].map(u64::to_le_bytes).concat());
            bytes.extend(compressed);
            let names: Vec<String> = (0..sections).map(|number| format!(".debug_{number}")).collect();
            let sections: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), 1, 0x800, 0, bytes.len() as u64, 0))
                .collect();
            let mut file = tempfile::tempfile().expect("temporary file");
            io::Write::write_all(&mut file, &crate::object::fixture::with_sections(&sections, &bytes)).expect("writes");
            let snapshot = Snapshot::of_file(&file).expect("copies");
            // Headers alone do not show what is damaged.
            let told = left_out(&file).expect("reads");
            assert!(snapshot.left_out.starts_with(&told));
            assert_eq!(snapshot.debug_info, told.is_empty());
            assert!(!snapshot.left_out.is_empty());
            snapshot.debug_info
        };
        let empty_blocks = [&[0x78, 1][..], &b"\0\0\0\xff\xff".repeat(100_000)].concat();
        assert!(debug_info(&empty_blocks, 1, 1));
        assert!(!debug_info(&empty_blocks, 1, 200), "the same input again and again");
        assert!(!debug_info(&empty_blocks, 1 << 40, 1), "out of proportion");
    }

    /// The library would take 1 EiB for it.
    #[test]
    fn no_section_of_the_copy_is_compressed() {
        let mut bytes = [1u32, 0].map(u32::to_le_bytes).concat();
        bytes.extend([1u64 << 60, 1].map(u64::to_le_bytes).concat());
        let size = bytes.len() as u64;
        // Other sections over the same bytes have them copied.
        let sections = [
            (".symtab", 2, 0x800, 0, size, 0),
            (".debug_info", 1, 0x802, 0, size, 0),
            (".debug_info", 1, 0x800, 0, size, 0),
            (".gnu_debuglink", 1, 0x800, 0, size, 0),
            (".other", 1, 0, 0, size, 0),
        ];
        let image = crate::object::fixture::with_sections(&sections, &bytes);
        let mut file = tempfile::tempfile().expect("temporary file");
        io::Write::write_all(&mut file, &image).expect("writes");
        let snapshots = [Snapshot::of_file(&file), Snapshot::of_image(&image)];
        for snapshot in snapshots.map(|snapshot| snapshot.expect("copies")) {
            let copy = std::fs::read(snapshot.path()).expect("reads");
            let copy = ElfImage::new(Box::new(copy)).expect("is an ELF file");
            let sizes: Vec<u64> = copy.sections().iter().map(|section| section.size).collect();
            assert_eq!(sizes[..6], [0, 0, 0, 0, 0, size]);
        }
    }

    #[test]
    fn huge_sparse_files_take_no_memory() {
        let mut file = tempfile::tempfile().expect("temporary file");
        io::Write::write_all(&mut file, b"\x7fELF\x02 hello").expect("writes");
        file.set_len(256 << 20).expect("grows");
        let snapshot = Snapshot::of_file(&file).expect("copies");
        assert!(std::fs::metadata(snapshot.path()).expect("exists").blocks() <= 4096);
    }
}
