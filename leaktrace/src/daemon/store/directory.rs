//! The folder of a store: every system call that touches it.
//!
//! Names are single components below one open directory, and symbolic links are not followed: what lies in the folder
//! cannot lead out of it. Tests let the calls fail one after the other here, as a crash or a full disk would.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::error::StoreError;

/// Begin of the names of files that are being written.
pub(super) const TEMPORARY: &str = ".tmp-";
/// More names than this are not looked at.
const MAX_NAMES: usize = 1 << 20;

/// An open folder.
#[derive(Debug)]
pub(super) struct Directory {
    file: File,
    path: PathBuf,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Directory {
    /// Opens a folder. A link to it is followed: the administrator may have the store on another disk.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io {
            verb: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        })
    }

    /// Opens a folder to write in it. Makes it first where it is missing, and shuts others out who could write to it.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
        let made = !path.exists();
        if made {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| StoreError::Io {
                verb: "make",
                path: path.to_owned(),
                source,
            })?;
        }
        let directory = Self::open(path)?;
        let metadata = directory
            .file
            .metadata()
            .map_err(|source| directory.error("look at", "", source))?;
        let insecure = metadata.mode() & 0o022 != 0;
        let ours = metadata.uid() == geteuid().as_raw();
        if insecure && !ours {
            return Err(StoreError::Insecure {
                path: path.to_owned(),
                owner: metadata.uid(),
            });
        }
        if insecure {
            directory
                .file
                .set_permissions(fs::Permissions::from_mode(0o700))
                .map_err(|source| directory.error("change the permissions of", "", source))?;
        }
        if made && let Some(parent) = path.parent() {
            // The new name reaches the disk with its parent; some file systems cannot sync one.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn error(&self, verb: &'static str, name: &str, source: impl Into<io::Error>) -> StoreError {
        StoreError::Io {
            verb,
            path: if name.is_empty() {
                self.path.clone()
            } else {
                self.path.join(name)
            },
            source: source.into(),
        }
    }

    /// Names in the folder, in no order. Those that are not UTF-8 are not ours and left out.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let entries = fs::read_dir(&self.path).map_err(|source| self.error("list", "", source))?;
        let mut names = Vec::new();
        for entry in entries.take(MAX_NAMES) {
            let entry = entry.map_err(|source| self.error("list", "", source))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Opens a regular file to read it.
    pub(super) fn open_file(&self, name: &str) -> Result<File, StoreError> {
        // A pipe of that name must not hold us up.
        self.open_with(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)
    }

    /// Opens a regular file to read and append, and makes it where it is missing.
    pub(super) fn append_file(&self, name: &str) -> Result<File, StoreError> {
        self.step("open", name)?;
        self.open_with(
            name,
            OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK,
        )
    }

    fn open_with(&self, name: &str, flags: OFlag) -> Result<File, StoreError> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&self.file, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|error| self.error("open", name, error))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|source| self.error("open", name, source))?;
        if metadata.is_file() {
            Ok(file)
        } else {
            Err(self.error("open", name, io::Error::other("not a regular file")))
        }
    }

    /// Size of a regular file; `None` if there is none of that name.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        let stat = fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        (kind == SFlag::S_IFREG).then(|| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Writes a file under a temporary name, syncs it, and gives it its name: there is the old file or the new one.
    /// After an error nothing of it is left, unless removing fails, too.
    pub(super) fn replace(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        let temporary = format!("{TEMPORARY}{name}");
        let result = self
            .write_temporary(&temporary, parts)
            .and_then(|()| self.rename(&temporary, name));
        if result.is_err() {
            let _ = self.remove(&temporary);
            return result;
        }
        self.sync()
    }

    fn write_temporary(&self, name: &str, parts: &[&[u8]]) -> Result<(), StoreError> {
        self.step("write", name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let mut file = match self.open_with(name, flags) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                self.remove(name)?;
                self.open_with(name, flags)?
            }
            other => other?,
        };
        for part in parts {
            self.write(&mut file, name, part)?;
        }
        self.step("sync", name)?;
        file.sync_all().map_err(|source| self.error("sync", name, source))
    }

    /// Writes all of `bytes` to an open file of the folder.
    pub(super) fn write(&self, file: &mut File, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if let Err(error) = self.step("write", name) {
            // What a crash leaves is half of it.
            let _ = file.write_all(&bytes[..bytes.len() / 2]);
            return Err(error);
        }
        file.write_all(bytes)
            .map_err(|source| self.error("write", name, source))
    }

    /// Cuts an open file of the folder.
    pub(super) fn cut(&self, file: &File, name: &str, length: u64) -> Result<(), StoreError> {
        self.step("cut", name)?;
        file.set_len(length).map_err(|source| self.error("cut", name, source))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        self.step("rename", from)?;
        renameat(&self.file, from, &self.file, to).map_err(|error| self.error("rename", from, error))
    }

    /// Removes a file. One that is not there is removed already.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.step("remove", name)?;
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
            Err(error) => Err(self.error("remove", name, error)),
        }
    }

    /// Syncs the folder itself: names that were given or taken. Some file systems cannot do that.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.step("sync", "")?;
        match self.file.sync_all() {
            Err(source) if source.kind() != io::ErrorKind::InvalidInput => Err(self.error("sync", "", source)),
            _ => Ok(()),
        }
    }

    /// Bytes that may still be written to the file system.
    pub(super) fn available(&self) -> Result<u64, StoreError> {
        let space = fstatvfs(&self.file).map_err(|error| self.error("look at the space of", "", error))?;
        Ok(space.blocks_available().saturating_mul(space.fragment_size()))
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests let calls fail here")]
    fn step(&self, _verb: &'static str, _name: &str) -> Result<(), StoreError> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self, verb: &'static str, name: &str) -> Result<(), StoreError> {
        self.faults.step(verb).map_err(|source| self.error(verb, name, source))
    }
}
