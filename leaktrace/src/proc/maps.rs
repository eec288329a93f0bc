//! `/proc/PID/maps`: what a process has mapped where.
//!
//! The parser is pure; names come from the target and may hold anything but a newline.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::model::{FileOffset, ProcessAddress};
use crate::proc::{ProcError, living, read_bounded};

/// Which file is mapped: device and inode, the identity that uprobes go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number as `makedev` packs it.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: ProcessAddress,
    /// First address behind it.
    pub end: ProcessAddress,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Shared (`s`) rather than private (`p`).
    pub shared: bool,
    /// Position in the file where the mapping begins.
    pub offset: FileOffset,
    /// The mapped file; `None` for anonymous memory.
    pub file: Option<FileId>,
    /// Path as the target sees it (with ` (deleted)` cut off), or a name in brackets such as `[heap]`; empty if none.
    pub path: PathBuf,
    /// The file has no name any more.
    pub deleted: bool,
}

impl Mapping {
    /// Bytes it spans.
    pub fn len(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Never true of what the parser returns: the kernel has no empty mappings.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// The position in the file of an address inside this mapping.
    pub fn file_offset(&self, address: ProcessAddress) -> Option<FileOffset> {
        let inside = self.file.is_some() && (self.start..self.end).contains(&address);
        inside.then(|| self.offset.0.checked_add(address.0 - self.start.0).map(FileOffset))?
    }

    /// The address at which a position of the file is mapped, if this mapping covers it.
    pub fn address(&self, offset: FileOffset) -> Option<ProcessAddress> {
        let distance = offset
            .0
            .checked_sub(self.offset.0)
            .filter(|distance| *distance < self.len())?;
        self.file.map(|_| ProcessAddress(self.start.0 + distance))
    }

    /// Whether this is the kernel's page of displaced instructions and the trampoline of return probes.
    pub fn is_uprobes(&self) -> bool {
        self.file.is_none() && self.path.as_os_str() == UPROBES
    }

    /// Whether this is the kernel's code that probed NOPs are replaced by calls of.
    pub fn is_trampoline(&self) -> bool {
        self.file.is_none() && self.path.as_os_str() == TRAMPOLINE
    }

    /// Whether this is memory of a real file (not anonymous, not `/dev/zero`-like shared anonymous memory).
    pub fn is_file(&self) -> bool {
        self.file.is_some() && self.path.as_os_str().as_bytes().first() == Some(&b'/')
    }
}

/// How the kernel names its own page for probes. No process can give such a name (`prctl` names get `anon:` before them).
const UPROBES: &str = "[uprobes]";
/// The same of another page, from Linux 6.18 on.
const TRAMPOLINE: &str = "[uprobes-trampoline]";

/// Most mappings that are read: the kernel's default `vm.max_map_count` is 65,530, and it can be raised.
pub const MAX_MAPPINGS: usize = 1 << 20;

/// Most bytes of `/proc/PID/maps` that are read.
pub const MAX_BYTES: u64 = 256 << 20;

/// What is wrong with a maps file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapsError {
    /// A line does not have the kernel's form.
    #[error("line {line} is not a mapping")]
    Line {
        /// Its number, from 1.
        line: usize,
    },
    /// More lines than [`MAX_MAPPINGS`].
    #[error("more than {MAX_MAPPINGS} mappings")]
    TooMany,
}

/// Parses the content of `/proc/PID/maps`. Names are taken as bytes; a newline in a name is written `\012` by the kernel.
pub fn parse_maps(bytes: &[u8]) -> Result<Vec<Mapping>, MapsError> {
    let mut mappings = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        if mappings.len() == MAX_MAPPINGS {
            return Err(MapsError::TooMany);
        }
        mappings.push(parse_line(line).ok_or(MapsError::Line { line: index + 1 })?);
    }
    Ok(mappings)
}

/// Reads the mappings of a process. Empty for a kernel thread and for one whose threads have all ended.
pub fn read_maps(pid: u32) -> Result<Vec<Mapping>, ProcError> {
    let mut bytes = read_bounded(pid, "maps", MAX_BYTES)?;
    // Of a first thread that has ended, or is about to, they are empty.
    if bytes.is_empty()
        && let Some(thread) = living::successor(pid)
    {
        bytes = read_bounded(thread, "maps", MAX_BYTES)?;
    }
    parse_maps(&bytes).map_err(|error| ProcError::Malformed {
        pid,
        object: format!("/proc/{pid}/maps").into(),
        reason: error.to_string(),
    })
}

/// `START-END PERM OFFSET MAJOR:MINOR INODE [spaces PATH]`
pub(super) fn parse_line(line: &[u8]) -> Option<Mapping> {
    let (range, rest) = split_field(line)?;
    let (permissions, rest) = split_field(rest)?;
    let (offset, rest) = split_field(rest)?;
    let (device, rest) = split_field(rest)?;
    // The inode is the last field that must be there; the name begins at the first non-space behind it.
    let (inode, rest) = split_field(rest).unwrap_or((rest, &[]));
    let name = rest
        .iter()
        .position(|byte| *byte != b' ')
        .map_or(&[][..], |start| &rest[start..]);

    let dash = range.iter().position(|byte| *byte == b'-')?;
    let (start, end) = (hex(&range[..dash])?, hex(&range[dash + 1..])?);
    let colon = device.iter().position(|byte| *byte == b':')?;
    let (major, minor) = (hex(&device[..colon])?, hex(&device[colon + 1..])?);
    let device = libc::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let inode: u64 = std::str::from_utf8(inode).ok()?.parse().ok()?;
    let &[read, write, execute, shared] = permissions else {
        return None;
    };
    if start >= end {
        return None;
    }
    let (name, deleted) = match name.strip_suffix(b" (deleted)") {
        Some(name) if name.first() == Some(&b'/') => (name, true),
        _ => (name, false),
    };
    Some(Mapping {
        start: ProcessAddress(start),
        end: ProcessAddress(end),
        read: read == b'r',
        write: write == b'w',
        execute: execute == b'x',
        shared: shared == b's',
        offset: FileOffset(hex(offset)?),
        file: (inode != 0).then_some(FileId { device, inode }),
        path: OsString::from_vec(unescape(name)).into(),
        deleted,
    })
}

/// Splits at the first space.
fn split_field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

/// Hexadecimal digits only: `from_str_radix` alone would take a sign.
fn hex(bytes: &[u8]) -> Option<u64> {
    if !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok()
}

/// Undoes `\012`. Only a newline is escaped, so any other backslash is the name's own.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            bytes.push(b'\n');
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_kernels_lines() {
        let text = b"55d0c0a00000-55d0c0a02000 r-xp 00001000 fe:01 1234                       /usr/bin/a b (x)\n\
            7f0000000000-7f0000001000 rw-s 00000000 00:01 99   /memfd:x\\012y (deleted) (deleted)\n\
            7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n";
        let maps = parse_maps(text).unwrap();
        assert_eq!(maps.len(), 4);
        assert_eq!(maps[0].path.to_str(), Some("/usr/bin/a b (x)"));
        assert_eq!(
            maps[0].file,
            Some(FileId {
                device: libc::makedev(0xfe, 1),
                inode: 1234
            })
        );
        assert!(maps[0].execute && maps[0].read && !maps[0].write && !maps[0].shared);
        assert_eq!(
            maps[0].file_offset(ProcessAddress(0x55d0_c0a0_0010)),
            Some(FileOffset(0x1010))
        );
        assert_eq!(
            maps[0].address(FileOffset(0x1010)),
            Some(ProcessAddress(0x55d0_c0a0_0010))
        );
        assert_eq!(maps[0].address(FileOffset(0x10)), None);
        assert_eq!(maps[1].path.to_str(), Some("/memfd:x\ny (deleted)"));
        assert!(maps[1].deleted && maps[1].shared);
        assert_eq!((maps[2].path.to_str(), maps[2].file), (Some(""), None));
        assert_eq!(maps[3].path.to_str(), Some("[stack]"));
    }

    #[test]
    fn rejects_what_the_kernel_never_writes() {
        for text in [
            "x",
            "1-2 r-xp 0 0:0",
            "2-1 r-xp 0 0:0 0",
            "+1-2 r-xp 0 0:0 0",
            "1-2 r-x 0 0:0 0",
        ] {
            assert_eq!(parse_maps(text.as_bytes()), Err(MapsError::Line { line: 1 }), "{text}");
        }
    }

    #[test]
    fn reads_its_own_process() {
        let maps = read_maps(std::process::id()).unwrap();
        let here = ProcessAddress(reads_its_own_process as *const () as u64);
        assert!(
            maps.iter()
                .any(|map| map.execute && map.is_file() && map.file_offset(here).is_some())
        );
        assert!(matches!(read_maps(u32::MAX >> 1), Err(ProcError::NoSuchProcess { .. })));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_maps(&bytes);
        }

        #[test]
        fn keeps_any_name(name in "/[^\n]{0,40}") {
            let line = format!("1000-2000 r-xp 00000000 00:01 7    {name}");
            let map = &parse_maps(line.as_bytes()).unwrap()[0];
            let shown = format!("{}{}", map.path.display(), if map.deleted { " (deleted)" } else { "" });
            prop_assert_eq!(shown, name.replace("\\012", "\n"));
        }
    }
}
