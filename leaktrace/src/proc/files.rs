//! Opens the file behind a mapping of another process, whatever mount namespace that lives in.
//!
//! Invariants: a file that is returned is the one that is mapped: reached through the mapping itself, or proven by device
//! and inode; and reading it ends: what is on a file system that may never answer is a copy (see [`copy`](super::copy)).
//! What is learned of a file is kept by its [`FileVersion`], never by what the file says of itself.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proc::copy::{self, Charge};
use crate::proc::maps::Mapping;
use crate::proc::mounts::{self, FileSystem, Pinned};
use crate::proc::{ProcError, living, process_exists};

/// One state of one file, as the kernel states it: what was learned of a file holds for exactly this. A build ID does not
/// do, because whoever writes the file chooses it. The time of the last change of the inode is part of it: unlike the time
/// of the last modification, the owner of the file cannot set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileVersion {
    /// Device number, as `stat` shows it: on overlayfs and btrfs another one than in `/proc/PID/maps`.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the inode: seconds and nanoseconds.
    pub changed: (i64, i64),
}

impl FileVersion {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }
}

impl From<&Metadata> for FileVersion {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// An open file and the path by which other tools can open it too.
#[derive(Debug)]
pub struct MappedFile {
    /// Open for reading. A regular file, always.
    pub file: File,
    /// As it was when it was opened, or its copy's.
    pub version: FileVersion,
    /// The file is a copy, since a process serves the real one: no probe can be placed in it. To be held as long as
    /// `file` is.
    pub copied: Option<Arc<Charge>>,
    /// `/proc/PID/map_files/…` or `/proc/PID/root/…`: valid while the process and the mapping live.
    pub access_path: PathBuf,
}

/// Opens the file of a mapping: through `map_files` (which also serves deleted files), else by name below the process' root.
///
/// # Errors
/// [`ProcError::Permission`] names the capability; [`ProcError::Io`] with `ErrorKind::NotFound` when the file cannot be
/// reached or is not the mapped one any more.
pub fn open_mapped(pid: u32, mapping: &Mapping) -> Result<MappedFile, ProcError> {
    let thread = living::thread(pid);
    let through_mapping = PathBuf::from(format!(
        "/proc/{thread}/map_files/{:x}-{:x}",
        mapping.start.0, mapping.end.0
    ));
    match Pinned::open(&through_mapping) {
        Ok(pinned) => return open_pinned(pid, &pinned, mapping, through_mapping),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput || is_shortage(&error) => {
            return Err(ProcError::from_io(pid, &through_mapping, error));
        }
        // map_files wants CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and the mapping may be gone: try the name.
        Err(_) => {}
    }
    let by_name = below_root(pid, &mapping.path);
    let failed = |kind, why| ProcError::Io {
        pid,
        object: by_name.clone(),
        source: io::Error::new(kind, why),
    };
    if mounts::served_on_the_way(pid, &mapping.path) {
        return Err(failed(
            io::ErrorKind::Unsupported,
            "its name may lead through a file system that does not answer; CAP_CHECKPOINT_RESTORE opens it without",
        ));
    }
    match Pinned::open(&by_name) {
        Ok(pinned)
            if mapping
                .file
                .is_some_and(|id| id.device == pinned.device && id.inode == pinned.inode) =>
        {
            open_pinned(pid, &pinned, mapping, by_name)
        }
        // overlayfs and btrfs show another device in stat than in maps: such a file counts only through map_files.
        Ok(_) => Err(failed(
            io::ErrorKind::NotFound,
            "the file of this name is not provably the mapped one",
        )),
        Err(_) if !process_exists(pid) => Err(ProcError::Exited { pid }),
        Err(source) => Err(ProcError::from_io(pid, &by_name, source)),
    }
}

fn open_pinned(pid: u32, pinned: &Pinned, mapping: &Mapping, access_path: PathBuf) -> Result<MappedFile, ProcError> {
    match read_pinned(pid, pinned) {
        Ok((file, version, copied)) => Ok(MappedFile {
            file,
            version,
            copied,
            access_path,
        }),
        // The name is what a user knows it by.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(ProcError::from_io(pid, &mapping.path, error)),
        Err(error) => Err(ProcError::from_io(pid, &access_path, error)),
    }
}

/// Opens a file that is held, or copies it.
fn read_pinned(pid: u32, pinned: &Pinned) -> io::Result<(File, FileVersion, Option<Arc<Charge>>)> {
    match pinned.file_system(pid) {
        FileSystem::Local => {}
        FileSystem::Network => copy::probe(pinned)?,
        FileSystem::Served => {
            let copied = copy::copy(pinned)?;
            // Of the copy, which is made once.
            let version = FileVersion::of(&copied.file)?;
            return Ok((copied.file, version, Some(copied.charge)));
        }
    }
    let (file, version) = open_regular(format!("/proc/self/fd/{}", pinned.file.as_raw_fd()).as_ref())?;
    Ok((file, version, None))
}

/// Opens the executable of a process.
///
/// # Errors
/// As [`open_mapped`].
pub fn open_executable(pid: u32) -> Result<File, ProcError> {
    let link = PathBuf::from(format!("/proc/{}/exe", living::thread(pid)));
    let open = || read_pinned(pid, &Pinned::open(&link)?);
    open()
        .map(|(file, ..)| file)
        .map_err(|error| ProcError::from_io(pid, &link, error))
}

/// Whether this process has no more descriptors, or the machine no more files: then no other file opens either.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// A path of the process as it can be opened from here.
pub fn below_root(pid: u32, path: &Path) -> PathBuf {
    let mut root = PathBuf::from(format!("/proc/{}/root", living::thread(pid)));
    root.extend(path.strip_prefix("/"));
    root
}

/// Opens a regular file without waiting: a FIFO or a device of that name must not block or be set in motion.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, FileVersion)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, FileVersion::from(&metadata)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::proc::maps::{FileId, read_maps};

    #[test]
    fn opens_every_mapped_file_of_this_process() {
        let pid = std::process::id();
        let mut opened = 0;
        for mapping in read_maps(pid)
            .unwrap()
            .iter()
            .filter(|mapping| mapping.is_file() && mapping.execute)
        {
            let mapped = open_mapped(pid, mapping).unwrap();
            assert_eq!(mapped.file.metadata().unwrap().ino(), mapping.file.unwrap().inode);
            opened += 1;
        }
        assert!(opened >= 2, "the test binary and libc at least");
    }

    #[test]
    fn refuses_a_name_that_now_belongs_to_another_file() {
        let mut mapping = read_maps(std::process::id())
            .unwrap()
            .into_iter()
            .find(Mapping::is_file)
            .unwrap();
        mapping.start.0 = 0x1000; // not a mapping, so that the name decides
        mapping.end.0 = 0x2000;
        mapping.file = Some(FileId { device: 1, inode: 1 });
        assert!(matches!(
            open_mapped(std::process::id(), &mapping),
            Err(ProcError::Io { .. })
        ));
    }

    #[test]
    fn a_version_ends_with_any_change_and_is_not_restored_by_its_owner() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"old").unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let old = FileVersion::of(&file).unwrap();
        assert_eq!(FileVersion::of(&file.try_clone().unwrap()).unwrap(), old);
        // Longer than the coarsest tick that kernels stamp files with.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_all_at(b"new", 0).unwrap();
        file.set_modified(modified).unwrap();
        let new = FileVersion::of(&file).unwrap();
        assert_eq!((new.device, new.inode, new.size), (old.device, old.inode, old.size));
        assert_ne!(new, old);
    }

    #[test]
    fn never_opens_a_device() {
        assert_eq!(
            open_regular(Path::new("/dev/zero")).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
