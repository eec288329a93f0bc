//! Tasks of a process with a managed runtime: groups, the runtime's own text, and a profile. The runtime's own tasks are
//! left out.

use std::time::Duration;

use super::clock::wall;
use crate::{
    api,
    report::profile::Profile,
    runtime::{Attached, Place, RuntimeError, TaskGroup, TaskQuery, TaskSnapshot},
};

/// Groups that are told.
const MAX_GROUPS: usize = 1000;
/// Ids that are told of a group.
const MAX_IDS: usize = 20;
/// Longest dump, in bytes.
const MAX_DUMP: usize = 64 << 20;

/// The tasks of a process at one moment.
pub struct Goroutines(Box<dyn TaskSnapshot>);

impl Goroutines {
    /// Reads the tasks of a running process.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(process: &dyn Attached) -> Result<Self, RuntimeError> {
        process.tasks().map(Self)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// In groups, those that wait for at least `min_wait`.
    pub fn groups(&self, min_wait: Duration) -> api::Goroutines {
        let tasks = self.0.groups(&TaskQuery {
            min_wait,
            with_system: false,
            max_groups: MAX_GROUPS,
            max_frames: usize::MAX,
            max_ids: MAX_IDS,
        });
        api::Goroutines {
            total: tasks.total,
            groups: tasks.groups.into_iter().map(told).collect(),
        }
    }

    /// As the runtime would print them; cut at a length that no one reads to its end.
    pub fn dump(&self) -> String {
        self.0.dump(MAX_DUMP)
    }

    /// As a profile in the runtime's own form.
    pub fn profile(&self) -> Profile {
        self.0.profile(wall() as i64)
    }
}

fn told(group: TaskGroup) -> api::GoroutineGroup {
    api::GoroutineGroup {
        count: group.count,
        state: group.state,
        wait_reason: group.is_waiting.then_some(group.doing),
        longest_wait: group.longest_wait,
        stack_bytes: group.stack_bytes,
        channel: match group.channels[..] {
            [channel] => Some(channel),
            // One of several is not what they wait for.
            _ => None,
        },
        stack: group.stack.into_iter().map(frame).collect(),
        created_by: group.created_by.map(frame),
        ids: group.ids,
    }
}

fn frame(place: Place) -> api::Frame {
    api::Frame {
        function: place.function,
        file: place.file,
        line: place.line,
    }
}
