//! Why a process's runtime cannot be read, whichever it is.
//!
//! Each runtime has errors of its own, whose messages name process, finding and remedy. Here they are sorted by what can be
//! done about them.

use crate::proc::ProcError;

/// An error of some runtime.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why the runtime of a process cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The process itself cannot be reached.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// It runs something else.
    #[error(transparent)]
    Foreign(Cause),
    /// It has a release that is not known.
    #[error(transparent)]
    Unsupported(Cause),
    /// Its memory cannot be read, or contradicts itself.
    #[error(transparent)]
    Unreadable(Cause),
}
