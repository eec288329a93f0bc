//! Which kind of file system a file is on, found out without asking that file system anything.
//!
//! A file system that is served by a process (FUSE) or by another machine may never answer, and whoever asked a FUSE
//! server then waits in the kernel where no signal reaches it, SIGKILL included. Invariant: nothing here makes a request
//! of a file system: files are held with `O_PATH`, attributes are taken as the kernel has them, and what is mounted is
//! read from `/proc`. What overlays lie on is told by [`layers`].

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, statx};

use super::{living, maps::Mapping};
use layers::Machine;

mod layers;

/// Most bytes of a list of mounts that are read.
const MAX_MOUNTS: u64 = 16 << 20;

/// How far a file system can be trusted to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    /// By the kernel alone, or with a disk.
    Local,
    /// By another machine: it may not answer, but a waiting process can be ended.
    Network,
    /// By a process (FUSE), or not known.
    Served,
}

/// File systems that another machine serves.
const NETWORK: [&[u8]; 11] = [
    b"nfs",
    b"nfs4",
    b"cifs",
    b"smb3",
    b"smbfs",
    b"ceph",
    b"9p",
    b"afs",
    b"coda",
    b"lustre",
    b"orangefs",
];

impl FileSystem {
    /// By the name in the list of mounts, other than overlayfs.
    fn named(name: &[u8]) -> Self {
        // virtiofs is served by the hypervisor, as a virtual disk is.
        if name == b"fuse" || name == b"fuseblk" || name.starts_with(b"fuse.") {
            Self::Served
        } else if NETWORK.contains(&name) {
            Self::Network
        } else {
            Self::Local
        }
    }
}

/// A file that is held but not opened, with what the kernel knows of it.
#[derive(Debug)]
pub struct Pinned {
    /// The hold: an `O_PATH` descriptor.
    pub file: File,
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its length, as it was known last.
    pub size: u64,
    /// Time of its last modification.
    pub modified: (i64, i64),
    /// Time of the last change of its inode.
    pub changed: (i64, i64),
    mount: u64,
}

impl Pinned {
    /// Takes hold of a regular file. The path must lead through file systems that answer, as links below `/proc/PID` do.
    ///
    /// # Errors
    /// `InvalidInput` if it is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path)?;
        Self::of(file)
    }

    /// Takes over an `O_PATH` descriptor.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(file: File) -> io::Result<Self> {
        let known = attributes(&file)?;
        if FileType::from_raw_mode(known.stx_mode.into()) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self {
            device: libc::makedev(known.stx_dev_major, known.stx_dev_minor),
            inode: known.stx_ino,
            size: known.stx_size,
            modified: (known.stx_mtime.tv_sec, known.stx_mtime.tv_nsec.into()),
            changed: (known.stx_ctime.tv_sec, known.stx_ctime.tv_nsec.into()),
            mount: known.stx_mnt_id,
            file,
        })
    }

    /// What the file is on. `pid` is a process in whose mount namespace it is, most likely.
    pub fn file_system(&self, pid: u32) -> FileSystem {
        // A block device: nobody but the administrator mounts these, and their driver waits for hardware alone.
        if libc::major(self.device) != 0 || Some(self.device) == internal_device() {
            return FileSystem::Local;
        }
        let owners = [pid.to_string(), "self".to_owned()];
        let machine = Machine::new();
        let find = |owner: &String| by_mount(&read(owner).ok()?, self.mount, &machine);
        owners.iter().find_map(find).unwrap_or(FileSystem::Served)
    }
}

/// The attributes that the kernel has at hand.
fn attributes(file: &File) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(
        file.as_fd(),
        c"",
        flags,
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )?)
}

/// The device of files that the kernel makes for itself: shared anonymous memory, memfds.
fn internal_device() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let file = File::from(memfd_create(c"leaktrace-device", MFdFlags::MFD_CLOEXEC).ok()?);
        let known = attributes(&file).ok()?;
        Some(libc::makedev(known.stx_dev_major, known.stx_dev_minor))
    })
}

fn read(owner: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{owner}/mountinfo"))?
        .take(MAX_MOUNTS)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One line of a list of mounts:
/// `36 35 98:0 /root /mountpoint options [optional fields] - type source options`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mount<'m> {
    number: u64,
    device: u64,
    /// As it is written: see [`unescaped`].
    point: &'m [u8],
    /// What it is.
    name: &'m [u8],
    /// Options of the file system, as they are written.
    options: &'m [u8],
}

impl<'m> Mount<'m> {
    fn parse(line: &'m [u8]) -> Option<Self> {
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok();
        let mut fields = line.split(|byte| *byte == b' ');
        let mount = number(fields.next()?)?;
        let device = fields.nth(1)?;
        let colon = device.iter().position(|byte| *byte == b':')?;
        let part = |bytes: &[u8]| number(bytes).and_then(|part| u32::try_from(part).ok());
        let device = libc::makedev(part(&device[..colon])?, part(&device[colon + 1..])?);
        let point = fields.nth(1)?;
        // Spaces in names are escaped, so the dash cannot be part of one; the options come before it at least.
        let mut fields = fields.skip(1).skip_while(|field| *field != b"-").skip(1);
        let name = fields.next()?;
        Some(Self {
            number: mount,
            device,
            point,
            name,
            options: fields.nth(1).unwrap_or_default(),
        })
    }

    /// All of a list that are understood.
    fn all(mounts: &'m [u8]) -> impl Iterator<Item = Self> {
        mounts.split(|byte| *byte == b'\n').filter_map(Self::parse)
    }

    fn kind(&self, machine: &Machine) -> FileSystem {
        match self.name {
            b"overlay" => machine.overlay(self.device),
            name => FileSystem::named(name),
        }
    }
}

fn by_mount(mounts: &[u8], wanted: u64, machine: &Machine) -> Option<FileSystem> {
    let found = Mount::all(mounts).find(|mount| mount.number == wanted);
    found.map(|mount| mount.kind(machine))
}

/// Devices of the file systems in memory that a process has mounted.
pub fn in_memory(pid: u32) -> BTreeSet<u64> {
    let mounts = read(&living::thread(pid).to_string()).unwrap_or_default();
    let in_memory = |mount: &Mount<'_>| matches!(mount.name, b"tmpfs" | b"devtmpfs" | b"ramfs");
    Mount::all(&mounts)
        .filter(in_memory)
        .map(|mount| mount.device)
        .collect()
}

/// Whether a name of a process may lead through a file system that does not answer. `true` if that is not known.
pub fn any_served(pid: u32) -> bool {
    let Ok(mounts) = read(&living::thread(pid).to_string()) else {
        return true;
    };
    let machine = Machine::new();
    Mount::all(&mounts).any(|mount| mount.kind(&machine) != FileSystem::Local)
}

/// Whether a path, without links in it, leads over a mount that does not answer for sure. `true` if that is not known.
pub fn served_on_the_way(pid: u32, path: &Path) -> bool {
    let Ok(mounts) = read(&living::thread(pid).to_string()) else {
        return true;
    };
    let machine = Machine::new();
    mounts.split(|byte| *byte == b'\n').any(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4).map(unescaped);
        let over = point.is_some_and(|point| path.starts_with(OsStr::from_bytes(&point)));
        over && Mount::parse(line).is_none_or(|mount| mount.kind(&machine) != FileSystem::Local)
    })
}

/// A name as it is: spaces, tabs, newlines and backslashes are three octal digits in the list.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, more @ ..] = rest {
        let digits = more.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        result.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    result
}

/// The first mapping whose memory may be on a file system that a process serves. Whoever reads such memory waits for
/// that process.
pub fn served_mapping(pid: u32, mappings: &[Mapping]) -> Option<&Mapping> {
    let unnamed = |device: u64| libc::major(device) == 0 && Some(device) != internal_device();
    let mut unsure = mappings
        .iter()
        .filter(|mapping| mapping.file.is_some_and(|file| unnamed(file.device)))
        .peekable();
    unsure.peek()?;
    let mounts = [read(&living::thread(pid).to_string()), read("self")].map(Result::unwrap_or_default);
    let machine = Machine::new();
    let wanted: std::collections::HashSet<u64> = mappings
        .iter()
        .filter_map(|mapping| mapping.file.map(|file| file.device))
        .collect();
    let known: std::collections::HashMap<u64, FileSystem> = mounts
        .iter()
        .flat_map(|mounts| Mount::all(mounts))
        .filter(|mount| wanted.contains(&mount.device))
        .map(|mount| (mount.device, mount.kind(&machine)))
        .collect();
    unsure.find(|mapping| {
        let kind = mapping.file.and_then(|file| known.get(&file.device).copied());
        kind.unwrap_or(FileSystem::Served) == FileSystem::Served
    })
}

/// For `fuzzing`: any bytes as a list of mounts.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_any(mounts: &[u8]) {
    let machine = Machine::of(mounts.to_vec());
    for mount in Mount::all(mounts) {
        assert!(by_mount(mounts, mount.number, &machine).is_some());
        assert!(unescaped(mount.point).len() <= mount.point.len());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::proc::maps::read_maps;

    #[test]
    fn mounts_are_told_apart() {
        let text = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:52 / /mnt/a\\040-\\040b rw,nosuid - fuse.sshfs host: rw,user_id=1000,group_id=1000\n\
            31 22 0:53 / /data rw shared:7 master:3 - nfs4 host:/data rw\n\
            32 22 0:54 / /host rw - virtiofs tag rw\nrubbish\n\n";
        let machine = Machine::of(Vec::new());
        let kind = |mount| by_mount(text, mount, &machine);
        assert_eq!(kind(22), Some(FileSystem::Local));
        assert_eq!(kind(30), Some(FileSystem::Served));
        assert_eq!(kind(31), Some(FileSystem::Network));
        assert_eq!(kind(32), Some(FileSystem::Local));
        assert_eq!(kind(33), None);
        let first = Mount::parse(&text[..62]).unwrap();
        assert_eq!((first.device, first.point), (libc::makedev(8, 1), &b"/"[..]));
        assert_eq!(Mount::parse(b"1 2 3:4 / / rw -"), None);
    }

    #[test]
    fn names_in_the_list_are_escaped() {
        assert_eq!(unescaped(b"/a\\040b\\134\\011"), b"/a b\\\t");
        assert_eq!(unescaped(b"/a\\04"), b"/a\\04");
        assert!(!served_on_the_way(std::process::id(), "/proc/self/exe".as_ref()));
    }

    #[test]
    fn own_files_are_local() {
        let pid = std::process::id();
        for mapping in read_maps(pid).unwrap().iter().filter(|mapping| mapping.is_file()) {
            let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
            if let Ok(pinned) = Pinned::open(link.as_ref()) {
                assert_eq!(pinned.file_system(pid), FileSystem::Local, "{mapping:?}");
                assert_eq!(Some(pinned.inode), mapping.file.map(|file| file.inode));
            }
        }
        assert_eq!(served_mapping(pid, &read_maps(pid).unwrap()), None);
    }

    #[test]
    fn a_memfd_is_local_and_a_device_is_no_file() {
        let file = File::from(memfd_create(c"a", MFdFlags::MFD_CLOEXEC).unwrap());
        let pinned = Pinned::of(file).unwrap();
        assert_eq!(pinned.file_system(std::process::id()), FileSystem::Local);
        let error = Pinned::open("/dev/zero".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
