//! Where the figures come from: what the views may ask, and how an answer can fail.
//!
//! `daemon` asks the daemon over its socket, `local` looks at single processes itself. Both speak the words of the
//! daemon's API. A source may wait (within its time-outs) and is therefore only asked by `worker`.

use std::{io, path::PathBuf};

use crate::{
    api, bpf::features::FeatureError, proc::ProcError, runtime::RuntimeError, session::recording::RecordError,
};

/// Most processes that are asked for.
pub const MAX_PROCESSES: usize = 5_000;
/// Most functions of a table that are asked for.
pub const MAX_ROWS: usize = 500;

/// Which heap of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heap {
    /// What `malloc` and its kin gave.
    Native,
    /// What Go's allocator gave.
    Go,
    /// All of it.
    #[default]
    Both,
}

impl Heap {
    /// The word of the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Go => "go",
            Self::Both => "all",
        }
    }

    /// The next one, round and round.
    pub fn next(self) -> Self {
        match self {
            Self::Both => Self::Native,
            Self::Native => Self::Go,
            Self::Go => Self::Both,
        }
    }
}

/// Which values of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Which heap.
    pub heap: Heap,
    /// What was allocated since tracing began rather than what is in use.
    pub allocated: bool,
    /// Sort by cumulative rather than flat weight.
    pub cumulative: bool,
    /// Functions whose name contains this.
    pub filter: String,
}

impl Query {
    /// The sample type asked for.
    pub fn sample_type(&self) -> &'static str {
        if self.allocated { "alloc_space" } else { "inuse_space" }
    }
}

/// Which processes, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The API's word for the figure to sort by.
    pub sort: &'static str,
    /// Smallest first.
    pub ascending: bool,
    /// Processes that contain this.
    pub filter: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nobody listens.
    #[error(
        "failed to connect to the daemon at `{}`: {source}; start it with `leaktrace daemon` as root, name its socket \
         with --socket, or look at single processes with `leaktrace top -p PID`", socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The socket is there, and not for this user.
    #[error("failed to connect to the daemon at `{}`: permission denied; run as root", socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// It was there and did not answer.
    #[error("failed to get an answer from the daemon at `{}`: {cause}", socket.display())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        cause: String,
    },
    /// It answered something else than was asked.
    #[error(
        "failed to understand the answer of `{}` to {path}: {cause}; is it a leaktrace daemon of this version?",
        socket.display()
    )]
    Foreign {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        path: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// It answered that it cannot.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Stand-alone: there is nothing of the kind asked for.
    #[error("{0}")]
    Nothing(String),
    /// Stand-alone: a process could not be looked at.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// Stand-alone: this kernel or these privileges do not allow tracing.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// Stand-alone: it could not be traced.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Stand-alone: its runtime could not be read.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A thread or its runtime could not be made.
    #[error("failed to start a thread: {0}")]
    Thread(io::Error),
}

impl SourceError {
    /// The daemon cannot be reached: all other questions would fail the same way.
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            Self::NotRunning { .. } | Self::Denied { .. } | Self::Silent { .. }
        )
    }
}

/// Where the figures come from.
pub trait Source {
    /// What to call it in the title.
    fn title(&self) -> String;

    /// Does what has to be done in between; called every 100 ms at least, but for the time that answers take.
    fn tend(&mut self) {}

    /// How it does.
    ///
    /// # Errors
    /// When it cannot be reached.
    fn status(&mut self) -> Result<api::Status, SourceError>;

    /// Processes.
    ///
    /// # Errors
    /// When it cannot be reached.
    fn processes(&mut self, order: &Order) -> Result<api::Processes, SourceError>;

    /// One process.
    ///
    /// # Errors
    /// Also when it is gone.
    fn details(&mut self, pid: u32) -> Result<api::Details, SourceError>;

    /// The course of its memory.
    ///
    /// # Errors
    /// Also when it is gone.
    fn timeline(&mut self, pid: u32) -> Result<api::Timeline, SourceError>;

    /// Functions by what they hold.
    ///
    /// # Errors
    /// Also when nothing is known of its heap.
    fn top(&mut self, pid: u32, query: &Query) -> Result<api::Top, SourceError>;

    /// Stacks by what they hold.
    ///
    /// # Errors
    /// Also when nothing is known of its heap.
    fn stacks(&mut self, pid: u32, query: &Query) -> Result<api::Stacks, SourceError>;

    /// Groups of goroutines.
    ///
    /// # Errors
    /// Also when it is no Go process.
    fn goroutines(&mut self, pid: u32) -> Result<api::Goroutines, SourceError>;

    /// Begins or ends tracing.
    ///
    /// # Errors
    /// When that is not possible.
    fn trace(&mut self, pid: u32, on: bool) -> Result<api::Tracing, SourceError>;
}
