//! A garbage collector that is looked at again and again.

use super::RuntimeError;
use crate::model::ProcessKey;

/// A collector's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CollectorState {
    /// Collections that ended.
    pub collections: u64,
    /// Bytes that the collector takes for live.
    pub live: u64,
    /// Heap size at which the next collection shall have ended, in bytes; the largest number if there is to be none.
    pub goal: u64,
    /// Bytes of the heap in use, free room between objects included.
    pub in_use: u64,
    /// Share of the program's CPU time since its start that collections took.
    pub cpu_fraction: f64,
    /// How much the heap may grow between two collections, in percent; negative: collections are off.
    pub growth_percent: i32,
    /// Bytes that the program may use, if that is limited.
    pub memory_limit: Option<u64>,
}

/// A collection that ended. What the runtime had overwritten already is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    /// Its number.
    pub number: u64,
    /// When it ended, in nanoseconds since 1970.
    pub end: Option<u64>,
    /// Nanoseconds for which the program stood still.
    pub pause: Option<u64>,
    /// Heap at its begin, in bytes.
    pub before: Option<u64>,
    /// Heap at its end.
    pub after: Option<u64>,
    /// What it found live.
    pub live: Option<u64>,
    /// The goal that it was started for.
    pub goal: Option<u64>,
}

/// The collector of a process.
pub trait Collector: Send {
    /// Which process.
    fn key(&self) -> ProcessKey;

    /// Its state now, and the collections that ended since the last call; none at the first.
    ///
    /// # Errors
    /// The process is gone, or runs another program.
    fn follow(&mut self) -> Result<(CollectorState, Vec<Collection>), RuntimeError>;
}
