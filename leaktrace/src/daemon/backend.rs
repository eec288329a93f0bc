//! What the HTTP side may ask of the daemon, and how the answer can fail.
//!
//! Answers are quick unless the documentation says that they read from a process; those are called from threads that
//! may wait. Nothing here is asynchronous.

use std::{sync::Arc, time::Duration};

use crate::api;
use crate::report::profile::Profile;

/// Which profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileKind {
    /// What is outstanding, and what was allocated since tracing (or, for Go, the program) began. Sample types
    /// `alloc_objects`, `alloc_space`, `inuse_objects`, `inuse_space`; label `heap` says `native`, `mmap` or `go`.
    Heap,
    /// Stacks of goroutines, in Go's own form.
    Goroutines,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No such process, or one that is not watched.
    #[error("pid {0} is not known: no such process, or a kernel thread")]
    UnknownProcess(u32),
    /// It is watched, and has nothing of the kind asked for.
    #[error("{0}")]
    Nothing(String),
    /// Not with this process or configuration.
    #[error("{0}")]
    Refused(String),
    /// No such profile in the store.
    #[error("no profile `{0}` in the store")]
    UnknownProfile(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
}

/// The daemon, as the HTTP side sees it.
pub trait Backend: Send + Sync + 'static {
    /// All processes as of the last look, in no order.
    fn processes(&self) -> Arc<Snapshot>;

    /// What was decided about a process, newest first; `None`: about any.
    fn decisions(&self, pid: Option<u32>) -> Vec<api::Decision>;

    /// The course of a process's memory between two moments (nanoseconds since 1970).
    ///
    /// # Errors
    /// [`Failure::UnknownProcess`].
    fn timeline(&self, pid: u32, since: u64, until: u64) -> Result<api::Timeline, Failure>;

    /// A profile as of now. Reads from the process and its files, and may take a second.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::Nothing`] for a process that is neither traced nor Go.
    fn profile(&self, pid: u32, kind: ProfileKind) -> Result<Profile, Failure>;

    /// Goroutines in groups, those that wait for at least `min_wait`. Reads from the process.
    ///
    /// # Errors
    /// Any [`Failure`]; [`Failure::Nothing`] for a process that is not Go.
    fn goroutines(&self, pid: u32, min_wait: Duration) -> Result<api::Goroutines, Failure>;

    /// The text dump of all goroutines as the runtime itself would print it. Reads from the process.
    ///
    /// # Errors
    /// As [`goroutines`](Self::goroutines).
    fn goroutine_dump(&self, pid: u32) -> Result<String, Failure>;

    /// Go's collector.
    ///
    /// # Errors
    /// As [`goroutines`](Self::goroutines).
    fn gc(&self, pid: u32) -> Result<api::Gc, Failure>;

    /// Profiles in the store of a process, newest first; `None`: of any.
    ///
    /// # Errors
    /// [`Failure::Failed`] when the store cannot be read.
    fn stored(&self, pid: Option<u32>) -> Result<Vec<api::StoredProfile>, Failure>;

    /// A profile out of the store, as gzipped pprof.
    ///
    /// # Errors
    /// [`Failure::UnknownProfile`], or [`Failure::Failed`] when it cannot be read.
    fn stored_profile(&self, id: &str) -> Result<Vec<u8>, Failure>;

    /// Begins to trace a process by hand, with a mean of `interval` bytes between samples if given. It stays traced
    /// until [`stop_trace`](Self::stop_trace), its end, or the budget. May take seconds.
    ///
    /// # Errors
    /// Any [`Failure`].
    fn start_trace(&self, pid: u32, interval: Option<u64>) -> Result<api::Tracing, Failure>;

    /// Ends that, and any other reason to trace it, until asked again.
    ///
    /// # Errors
    /// [`Failure::UnknownProcess`]; [`Failure::Nothing`] when it is not traced.
    fn stop_trace(&self, pid: u32) -> Result<api::Tracing, Failure>;

    /// Which part of the daemon does not do its work any more, if one does not.
    fn stuck(&self) -> Option<String> {
        None
    }

    /// How the daemon itself does.
    fn status(&self) -> api::Status;
}

/// All processes at one look.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// The processes, by pid.
    pub processes: Vec<api::Process>,
}
