//! What a runtime schedules by itself: goroutines, threads of a virtual machine, and their like.

use std::time::Duration;

use crate::report::Profile;

/// Which tasks, and how much of them.
#[derive(Clone, Copy, Debug)]
pub struct TaskQuery {
    /// Only those that have waited so long at least.
    pub min_wait: Duration,
    /// The runtime's own tasks as well.
    pub with_system: bool,
    /// Most groups, the largest first.
    pub max_groups: usize,
    /// Most frames of a stack.
    pub max_frames: usize,
    /// Most ids of a group.
    pub max_ids: usize,
}

/// Tasks in groups of those that do the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Tasks in all groups, also in those that were left out.
    pub total: u64,
    /// The largest first.
    pub groups: Vec<TaskGroup>,
}

/// Tasks that do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskGroup {
    /// How many.
    pub count: u64,
    /// The scheduler's word for what they do, such as `waiting`.
    pub state: String,
    /// What they wait for, or do, in the runtime's words, such as `chan receive`.
    pub doing: String,
    /// They wait for something.
    pub is_waiting: bool,
    /// Longest wait that is known, in nanoseconds.
    pub longest_wait: Option<u64>,
    /// Stack memory of all, in bytes.
    pub stack_bytes: u64,
    /// Addresses of the channels that they wait on, the one with most of them first.
    pub channels: Vec<u64>,
    /// Frames, innermost first.
    pub stack: Vec<Place>,
    /// Where they were created.
    pub created_by: Option<Place>,
    /// Some of their ids.
    pub ids: Vec<u64>,
}

/// A place in a program's source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Function, as the runtime's own dumps show it.
    pub function: String,
    /// Source file, where known.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u64>,
}

/// All tasks of a process at one moment.
pub trait TaskSnapshot: Send {
    /// How many there are, the runtime's own included.
    fn count(&self) -> usize;

    /// In groups.
    fn groups(&self, query: &TaskQuery) -> Tasks;

    /// As the runtime would print them, without its own; cut behind `limit` bytes.
    fn dump(&self, limit: usize) -> String;

    /// As a profile, without the runtime's own: one sample for each stack. `time_nanos` is when they were read, since 1970.
    fn profile(&self, time_nanos: i64) -> Profile;
}
