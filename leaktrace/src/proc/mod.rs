//! Processes as `/proc` shows them: mappings, identity, the files behind the mappings, memory.
//!
//! Does not know what is in those files (see `object`). Whatever is read here comes from the target and is bounded.

pub mod beneath;
pub mod cgroup;
pub mod copy;
pub mod files;
pub mod find;
pub mod footprint;
pub mod identity;
pub mod living;
pub mod maps;
pub mod memory;
pub mod mounts;
pub mod pagemap;
pub mod release;
pub mod sharing;
pub mod smaps;
pub mod users;
pub mod yama;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why a process could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// There is no such process.
    #[error("no process has pid {pid}")]
    NoSuchProcess {
        /// The pid asked for.
        pid: u32,
    },
    /// The process went away while it was being inspected.
    #[error("the process with pid {pid} exited while it was being inspected")]
    Exited {
        /// Its pid.
        pid: u32,
    },
    /// The pid belongs to a kernel thread, which has no memory of its own.
    #[error("pid {pid} is a kernel thread ({comm}); it has no heap to trace")]
    KernelThread {
        /// Its pid.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// The number is a thread's.
    #[error("no process has pid {tid}: it is a thread of process {process}; name that one")]
    Thread {
        /// The number asked for.
        tid: u32,
        /// The process that the thread belongs to.
        process: u32,
    },
    /// A privilege is missing.
    #[error("failed to read `{object}` for pid {pid}: permission denied; run as root or with {capability}")]
    Permission {
        /// The pid asked for.
        pid: u32,
        /// What could not be read.
        object: PathBuf,
        /// The capability that allows it.
        capability: &'static str,
    },
    /// The kernel's text is not in the expected form, or beyond a limit.
    #[error("failed to parse `{object}` for pid {pid}: {reason}")]
    Malformed {
        /// The pid asked for.
        pid: u32,
        /// What was parsed.
        object: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Any other failure of a read.
    #[error("failed to read `{object}` for pid {pid}: {source}")]
    Io {
        /// The pid asked for.
        pid: u32,
        /// What could not be read.
        object: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What EMFILE means.
const TOO_MANY_FILES: &str = "leaktrace has as many files open as it may; raise the limit (ulimit -n)";

impl ProcError {
    /// Sorts an I/O error on a file below `/proc/PID` into the cases that a user can act on.
    pub(crate) fn from_io(pid: u32, object: &Path, source: io::Error) -> Self {
        match source.raw_os_error() {
            // A reader that holds a file of a process that died meanwhile gets ESRCH; an opener gets ENOENT.
            Some(libc::ESRCH) => Self::Exited { pid },
            Some(libc::ENOENT) if !process_exists(pid) => Self::NoSuchProcess { pid },
            Some(libc::EACCES | libc::EPERM) => Self::Permission {
                pid,
                object: object.to_path_buf(),
                capability: "CAP_SYS_PTRACE",
            },
            Some(libc::EMFILE) => Self::Io {
                pid,
                object: object.to_path_buf(),
                source: io::Error::new(source.kind(), TOO_MANY_FILES),
            },
            _ => Self::Io {
                pid,
                object: object.to_path_buf(),
                source,
            },
        }
    }

    /// Whether it is for want of descriptors, so that any other file would fail, too.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if files::is_shortage(source) || source.to_string() == TOO_MANY_FILES)
    }
}

/// Whether `/proc` lists the pid.
pub fn process_exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/stat")).exists()
}

/// Reads `/proc/PID/NAME`, at most `limit` bytes of it (an error beyond that: such files state no size).
pub(crate) fn read_bounded(pid: u32, name: &str, limit: u64) -> Result<Vec<u8>, ProcError> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| ProcError::from_io(pid, &path, source))?;
    if bytes.len() as u64 > limit {
        return Err(ProcError::Malformed {
            pid,
            object: path,
            reason: format!("longer than {limit} bytes"),
        });
    }
    Ok(bytes)
}
