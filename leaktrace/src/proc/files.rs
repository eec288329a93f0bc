//! Opens the file behind a mapping of another process, whatever mount namespace that lives in.
//!
//! Invariants: a file that is returned is the one that is mapped: reached through the mapping itself, or proven by device
//! and inode; and reading it ends: what is on a file system that may never answer is a copy (see [`copy`](super::copy)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proc::copy::{self, Charge};
use crate::proc::maps::Mapping;
use crate::proc::mounts::{self, FileSystem, Pinned};
use crate::proc::{ProcError, process_exists};

/// An open file and the path by which other tools can open it too.
#[derive(Debug)]
pub struct MappedFile {
    /// Open for reading. A regular file, always.
    pub file: File,
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
    let through_mapping = PathBuf::from(format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
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
        Ok((file, copied)) => Ok(MappedFile {
            file,
            copied,
            access_path,
        }),
        // The name is what a user knows it by.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(ProcError::from_io(pid, &mapping.path, error)),
        Err(error) => Err(ProcError::from_io(pid, &access_path, error)),
    }
}

/// Opens a file that is held, or copies it.
fn read_pinned(pid: u32, pinned: &Pinned) -> io::Result<(File, Option<Arc<Charge>>)> {
    match pinned.file_system(pid) {
        FileSystem::Local => {}
        FileSystem::Network => copy::probe(pinned)?,
        FileSystem::Served => {
            let copied = copy::copy(pinned)?;
            return Ok((copied.file, Some(copied.charge)));
        }
    }
    let (file, _) = open_regular(format!("/proc/self/fd/{}", pinned.file.as_raw_fd()).as_ref())?;
    Ok((file, None))
}

/// Opens the executable of a process.
///
/// # Errors
/// As [`open_mapped`].
pub fn open_executable(pid: u32) -> Result<File, ProcError> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let open = || read_pinned(pid, &Pinned::open(&link)?);
    open()
        .map(|(file, _)| file)
        .map_err(|error| ProcError::from_io(pid, &link, error))
}

/// Opens a file by the name that a process knows it by, at most `limit` bytes of it where that leads through a file
/// system which may not answer.
///
/// # Errors
/// The file's own; `TimedOut`.
pub fn open_named(pid: u32, path: &Path, limit: u64) -> io::Result<File> {
    let below = below_root(pid, path);
    if mounts::any_served(pid) {
        return copy::read_named(&below, limit).map(|copied| copied.file);
    }
    open_regular(&below).map(|(file, _)| file)
}

/// Whether this process has no more descriptors, or the machine no more files: then no other file opens either.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// A path of the process as it can be opened from here.
pub fn below_root(pid: u32, path: &Path) -> PathBuf {
    let mut root = PathBuf::from(format!("/proc/{pid}/root"));
    root.extend(path.strip_prefix("/"));
    root
}

/// Opens a regular file without waiting: a FIFO or a device of that name must not block or be set in motion.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, (u64, u64))> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, (metadata.dev(), metadata.ino())))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
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
    fn never_opens_a_device() {
        assert_eq!(
            open_regular(Path::new("/dev/zero")).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
