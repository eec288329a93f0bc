//! Goroutines behind the seam of all runtimes: groups, the runtime's own text, and a profile.

use std::collections::HashMap;
use std::sync::Arc;

use super::dump;
use super::groups::{Group, group};
use super::profile;
use super::stacks::Symbolizer;
use crate::report::Profile;
use crate::runtime::go::goroutines::{Goroutine, GoroutineSnapshot};
use crate::runtime::go::pclntab::Frame;
use crate::runtime::go::process::GoProcess;
use crate::runtime::{Place, TaskGroup, TaskQuery, TaskSnapshot, Tasks};

/// The goroutines of a process at one moment.
pub struct Goroutines {
    process: Arc<GoProcess>,
    snapshot: GoroutineSnapshot,
    /// When they were read, by the monotonic clock.
    now: u64,
}

impl Goroutines {
    /// Of what was read of a process; `now` is the monotonic clock.
    pub fn new(process: Arc<GoProcess>, snapshot: GoroutineSnapshot, now: u64) -> Self {
        Self { process, snapshot, now }
    }

    fn symbolizer(&self) -> Symbolizer<'_> {
        Symbolizer::new(self.process.table(), &self.process.version)
    }

    /// By the function that a goroutine started with: whether that is the program's, and not the runtime's own.
    fn is_program(&self, symbolizer: &Symbolizer<'_>) -> HashMap<u64, bool> {
        let mut known = HashMap::new();
        for goroutine in &self.snapshot.goroutines {
            known
                .entry(goroutine.start_pc)
                .or_insert_with(|| !dump::is_system(symbolizer, goroutine));
        }
        known
    }

    fn task_group(&self, group: &Group<'_>, query: &TaskQuery, symbolizer: &mut Symbolizer<'_>) -> Option<TaskGroup> {
        let first = group.goroutines.first()?;
        Some(TaskGroup {
            count: group.goroutines.len() as u64,
            state: group.key.status.name().to_owned(),
            doing: self.process.wait_text(first).to_owned(),
            is_waiting: group.key.wait_reason != 0,
            longest_wait: group.waits(self.now).map(|(longest, _)| longest),
            stack_bytes: group.stack_bytes(),
            channels: group.channels().iter().map(|(channel, _)| *channel).collect(),
            stack: places(symbolizer, &group.key.stack, query.max_frames),
            created_by: match group.key.creator_pc {
                0 => None,
                creator => places(symbolizer, &[creator], 1).pop(),
            },
            ids: group
                .goroutines
                .iter()
                .take(query.max_ids)
                .map(|goroutine| goroutine.id)
                .collect(),
        })
    }
}

impl TaskSnapshot for Goroutines {
    fn count(&self) -> usize {
        self.snapshot.goroutines.len()
    }

    fn groups(&self, query: &TaskQuery) -> Tasks {
        let mut symbolizer = self.symbolizer();
        let program = self.is_program(&symbolizer);
        let waits = |goroutine: &Goroutine| {
            query.min_wait.is_zero()
                || goroutine.wait_since != 0
                    && u128::from(self.now.saturating_sub(goroutine.wait_since)) >= query.min_wait.as_nanos()
        };
        let groups = group(&self.snapshot, |goroutine| {
            waits(goroutine) && (query.with_system || program[&goroutine.start_pc])
        });
        Tasks {
            total: groups.iter().map(|group| group.goroutines.len() as u64).sum(),
            groups: groups
                .iter()
                .take(query.max_groups)
                .filter_map(|group| self.task_group(group, query, &mut symbolizer))
                .collect(),
        }
    }

    fn dump(&self, limit: usize) -> String {
        let mut symbolizer = self.symbolizer();
        let program = self.is_program(&symbolizer);
        let mut text = String::new();
        for goroutine in &self.snapshot.goroutines {
            if !program[&goroutine.start_pc] {
                continue;
            }
            if text.len() > limit {
                text.push_str("...further goroutines left out...\n");
                break;
            }
            dump::write(&mut text, &self.process, &mut symbolizer, goroutine, self.now);
        }
        text
    }

    fn profile(&self, time_nanos: i64) -> Profile {
        let program = self.is_program(&self.symbolizer());
        profile::goroutine_profile(&self.process, &self.snapshot, time_nanos, |goroutine| {
            program[&goroutine.start_pc]
        })
    }
}

/// The source-level frames of a stack, innermost first, without `runtime.goexit`, which is below each.
fn places(symbolizer: &mut Symbolizer<'_>, stack: &[u64], limit: usize) -> Vec<Place> {
    let stack = symbolizer.goroutine_stack(stack);
    let frames = stack.iter().flat_map(|place| place.frames.iter());
    let shown = frames.filter(|frame| frame.function != "runtime.goexit");
    shown.take(limit).map(place).collect()
}

fn place(frame: &Frame<'_>) -> Place {
    Place {
        function: frame.display().into_owned(),
        file: Some(frame.file.to_string()).filter(|file| !file.is_empty()),
        line: Some(frame.line.into()).filter(|line| *line != 0),
    }
}
