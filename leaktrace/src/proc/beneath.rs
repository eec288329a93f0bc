//! Opens a file by the name that it has for a process, whatever that process made of the way there.
//!
//! Invariant: the way never leads out of the process's root, and what is opened for reading is a regular file: anything
//! else (a FIFO, a device) is found out before it could wait or be set in motion.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

use super::{files::open_regular, living, mounts};

/// The kernel gives up where something is renamed on the way meanwhile; so often it is asked again.
const ATTEMPTS: u32 = 4;

/// Opens `path` below the root of a process. Links lead to where they lead for that process; magic links (as those of
/// `/proc/PID/fd`) are not followed, and none where it has a file system that may never answer.
pub fn open_beneath(pid: u32, path: &Path) -> io::Result<File> {
    if mounts::served_on_the_way(pid, path) {
        let why = "its name may lead through a file system that does not answer";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let mut resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    resolve.set(ResolveFlag::RESOLVE_NO_SYMLINKS, mounts::any_served(pid));
    let root = PathBuf::from(format!("/proc/{}/root", living::thread(pid)));
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(&root, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    let mut found: nix::Result<OwnedFd> = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS {
        found = openat2(&root, path, how);
        if !matches!(found, Err(Errno::EAGAIN)) {
            break;
        }
    }
    let found = found?;
    if !File::from(found.try_clone()?).metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(open_regular(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))?.0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{io::Read, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn only_files_and_no_magic_links() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name);
        std::fs::write(name("file"), "text").unwrap();
        symlink(name("file"), name("link")).unwrap();
        symlink("/proc/self/exe", name("magic")).unwrap();
        nix::unistd::mkfifo(&name("fifo"), Mode::S_IRUSR).unwrap();
        let own = std::process::id();
        let mut text = String::new();
        open_beneath(own, &name("link"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "text");
        // A FIFO without a writer would wait for ever.
        for (refused, kind) in [
            ("fifo", io::ErrorKind::InvalidInput),
            (".", io::ErrorKind::InvalidInput),
            ("none", io::ErrorKind::NotFound),
        ] {
            assert_eq!(open_beneath(own, &name(refused)).unwrap_err().kind(), kind, "{refused}");
        }
        let magic = open_beneath(own, &name("magic")).unwrap_err();
        assert_eq!(magic.raw_os_error(), Some(libc::ELOOP));
    }
}
