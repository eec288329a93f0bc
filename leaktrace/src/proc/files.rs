//! Opens the file behind a mapping of another process, whatever mount namespace that lives in.
//!
//! Invariant: a file that is returned is the one that is mapped: reached through the mapping itself, or proven by device and inode.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::proc::maps::Mapping;
use crate::proc::{ProcError, living, process_exists};

/// An open file and the path by which other tools can open it too.
#[derive(Debug)]
pub struct MappedFile {
    /// Open for reading. A regular file, always.
    pub file: File,
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
    match open_regular(&through_mapping) {
        Ok((file, _)) => {
            return Ok(MappedFile {
                file,
                access_path: through_mapping,
            });
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(ProcError::Io {
                pid,
                object: through_mapping,
                source: error,
            });
        }
        // map_files wants CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and the mapping may be gone: try the name.
        Err(_) => {}
    }
    let by_name = below_root(pid, &mapping.path);
    match open_regular(&by_name) {
        Ok((file, (device, inode))) if mapping.file.is_some_and(|id| id.device == device && id.inode == inode) => {
            Ok(MappedFile {
                file,
                access_path: by_name,
            })
        }
        // overlayfs and btrfs show another device in stat than in maps: such a file counts only through map_files.
        Ok(_) => Err(ProcError::Io {
            pid,
            object: by_name,
            source: io::Error::new(
                io::ErrorKind::NotFound,
                "the file of this name is not provably the mapped one",
            ),
        }),
        Err(_) if !process_exists(pid) => Err(ProcError::Exited { pid }),
        Err(source) => Err(ProcError::from_io(pid, &by_name, source)),
    }
}

/// A path of the process as it can be opened from here.
pub fn below_root(pid: u32, path: &Path) -> PathBuf {
    let mut root = PathBuf::from(format!("/proc/{}/root", living::thread(pid)));
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
