//! Tasks of a process as the daemon tells them: groups, the runtime's own text, and a profile.

use std::time::Duration;

use super::{api, backend::Failure, moment};
use crate::{
    report::profile::Profile,
    runtime::{self, Place, RuntimeError, TaskGroup, TaskQuery, TaskSnapshot},
};

/// Groups that are told.
const MAX_GROUPS: usize = 1000;
/// Ids that are told of a group.
const MAX_IDS: usize = 20;
/// Longest dump, in bytes.
const MAX_DUMP: usize = 64 << 20;

/// One look at the tasks of a process.
pub struct Look(Box<dyn TaskSnapshot>);

fn failure(error: &RuntimeError) -> Failure {
    match error {
        RuntimeError::Foreign(_) => Failure::Nothing(error.to_string()),
        error => Failure::Failed(error.to_string()),
    }
}

impl Look {
    /// Reads the tasks of a running process.
    ///
    /// # Errors
    /// [`Failure::Nothing`] for a program without a managed runtime.
    pub fn at(pid: u32) -> Result<Self, Failure> {
        let tasks = runtime::attach(pid).and_then(|process| process.tasks());
        tasks.map(Self).map_err(|error| failure(&error))
    }

    /// In groups.
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
        self.0.profile(moment::wall() as i64)
    }
}

fn told(group: TaskGroup) -> api::GoroutineGroup {
    api::GoroutineGroup {
        count: group.count,
        state: group.state,
        wait_reason: group.is_waiting.then_some(group.doing),
        longest_wait: group.longest_wait,
        stack_bytes: group.stack_bytes,
        channel: group.channels.first().copied(),
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
