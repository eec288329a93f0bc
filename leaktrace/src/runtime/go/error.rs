//! Why the runtime of a process cannot be read.

use super::executable::ElfError;
use super::gc::CollectorError;
use crate::proc::ProcError;
use crate::proc::memory::MemoryError;
use crate::runtime::RuntimeError;

/// What one part of the runtime's state is read with, and fails apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// Heap profile.
    Heap,
    /// Goroutines and channels.
    Goroutines,
    /// Collector and pacer.
    Collector,
    /// Spans and what hangs on their objects.
    Spans,
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Heap, Self::Goroutines, Self::Collector, Self::Spans];
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Heap => "heap profile",
            Self::Goroutines => "goroutines",
            Self::Collector => "garbage collector",
            Self::Spans => "heap spans",
        })
    }
}

/// Why the runtime of a process cannot be read. Every message names the process, what was found and, where there is
/// one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum GoError {
    /// The process itself cannot be reached.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// The program is something else.
    #[error("pid {pid} is not a Go program: `{exe}` {found}; `leaktrace record -p {pid}` traces native memory")]
    NotGo {
        /// The process.
        pid: u32,
        /// Its executable.
        exe: String,
        /// What it has or lacks.
        found: String,
    },
    /// The layout of its runtime is not known.
    #[error(
        "failed to read the {area} of pid {pid}: {version} is not supported: {check} \
         (built-in: Go 1.{oldest} to 1.{newest} on linux/amd64; a binary with DWARF is read in any version)"
    )]
    Unsupported {
        /// The process.
        pid: u32,
        /// What was to be read.
        area: Area,
        /// Its toolchain.
        version: String,
        /// The check that failed, and on what.
        check: String,
        /// First minor release of the built-in table.
        oldest: u32,
        /// Last one.
        newest: u32,
    },
    /// The target's memory cannot be read, or not any more.
    #[error("failed to read memory of pid {pid}: {source}")]
    Memory {
        /// The process.
        pid: u32,
        /// The cause.
        source: MemoryError,
    },
    /// What was read contradicts itself.
    #[error("failed to read the {area} of pid {pid}: {what}")]
    Corrupt {
        /// The process.
        pid: u32,
        /// What was to be read.
        area: Area,
        /// The contradiction.
        what: String,
    },
}

impl GoError {
    /// Sorts a failed read: a process that went away is named as such.
    pub fn memory(pid: u32, source: MemoryError) -> Self {
        match source {
            MemoryError::Process(ProcError::NoSuchProcess { .. }) => Self::Process(ProcError::Exited { pid }),
            MemoryError::Process(error) => Self::Process(error),
            source if !crate::proc::process_exists(pid) => {
                let _ = source;
                Self::Process(ProcError::Exited { pid })
            }
            source => Self::Memory { pid, source },
        }
    }

    /// A failed read of the collector's state.
    pub(super) fn collector(pid: u32, error: CollectorError) -> Self {
        match error {
            CollectorError::NotFound => Self::Corrupt {
                pid,
                area: Area::Collector,
                what: "its state was not found".to_owned(),
            },
            CollectorError::Memory(source) => Self::memory(pid, source),
        }
    }

    pub(super) fn elf(pid: u32, exe: String, source: ElfError) -> Self {
        match source {
            ElfError::Io(source) => Self::Process(ProcError::from_io(pid, format!("/proc/{pid}/exe").as_ref(), source)),
            ElfError::Format(found) => Self::NotGo {
                pid,
                exe,
                found: format!("cannot be read: {found}"),
            },
        }
    }
}

impl From<GoError> for RuntimeError {
    fn from(error: GoError) -> Self {
        match error {
            GoError::Process(error) => Self::Process(error),
            error @ GoError::NotGo { .. } => Self::Foreign(error.into()),
            error @ GoError::Unsupported { .. } => Self::Unsupported(error.into()),
            error @ (GoError::Memory { .. } | GoError::Corrupt { .. }) => Self::Unreadable(error.into()),
        }
    }
}
