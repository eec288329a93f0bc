//! Tasks of a process, in the words of the API.

use std::time::Duration;

use super::super::source::SourceError;
use crate::{
    daemon::api,
    runtime::{Attached, Place, TaskGroup, TaskQuery},
};

/// Most groups; the smallest are left out.
const MAX_GROUPS: usize = 2_000;
/// Most frames of a stack.
const MAX_FRAMES: usize = 100;
/// Most ids of a group.
const MAX_IDS: usize = 32;

/// Reads them. The largest group comes first.
///
/// # Errors
/// When they cannot be read.
pub fn read(process: &dyn Attached) -> Result<api::Goroutines, SourceError> {
    let tasks = process.tasks()?.groups(&TaskQuery {
        min_wait: Duration::ZERO,
        with_system: true,
        max_groups: MAX_GROUPS,
        max_frames: MAX_FRAMES,
        max_ids: MAX_IDS,
    });
    Ok(api::Goroutines {
        total: tasks.total,
        groups: tasks.groups.into_iter().map(group).collect(),
    })
}

fn group(group: TaskGroup) -> api::GoroutineGroup {
    api::GoroutineGroup {
        count: group.count,
        state: group.state,
        wait_reason: Some(group.doing).filter(|text| !text.is_empty()),
        longest_wait: group.longest_wait,
        stack_bytes: group.stack_bytes,
        channel: match group.channels[..] {
            [channel] => Some(channel),
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
