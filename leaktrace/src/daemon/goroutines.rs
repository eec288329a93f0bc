//! Goroutines of a process as the daemon tells them: groups, the runtime's own text, and a profile.

use std::{collections::HashMap, time::Duration};

use super::{api, backend::Failure, moment};
use crate::{
    report::profile::Profile,
    runtime::go::{
        GoError, GoProcess, clock, dump,
        goroutines::{Goroutine, GoroutineSnapshot},
        groups::{Group, group},
        profile,
        stacks::Symbolizer,
    },
};

/// Groups that are told.
const MAX_GROUPS: usize = 1000;
/// Ids that are told of a group.
const MAX_IDS: usize = 20;
/// Longest dump, in bytes.
const MAX_DUMP: usize = 64 << 20;

/// One look at the goroutines of a process.
pub struct Look {
    process: GoProcess,
    snapshot: GoroutineSnapshot,
    /// The monotonic clock.
    now: u64,
}

fn failure(error: &GoError) -> Failure {
    match error {
        GoError::NotGo { .. } => Failure::Nothing(error.to_string()),
        error => Failure::Failed(error.to_string()),
    }
}

impl Look {
    /// Reads the goroutines of a running process.
    ///
    /// # Errors
    /// [`Failure::Nothing`] for a program that is not Go.
    pub fn at(pid: u32) -> Result<Self, Failure> {
        let process = GoProcess::attach(pid).map_err(|error| failure(&error))?;
        let snapshot = process.goroutines().map_err(|error| failure(&error))?;
        Ok(Self {
            process,
            snapshot,
            now: clock::monotonic(),
        })
    }

    /// Goroutines whose code is not the runtime's own.
    fn is_program(&self, symbolizer: &Symbolizer<'_>) -> HashMap<u64, bool> {
        let mut known = HashMap::new();
        for goroutine in &self.snapshot.goroutines {
            known
                .entry(goroutine.start_pc)
                .or_insert_with(|| !dump::is_system(symbolizer, goroutine));
        }
        known
    }

    /// In groups.
    pub fn groups(&self, min_wait: Duration) -> api::Goroutines {
        let mut symbolizer = Symbolizer::new(self.process.table(), &self.process.version);
        let program = self.is_program(&symbolizer);
        let waits = |goroutine: &Goroutine| {
            min_wait.is_zero()
                || goroutine.wait_since != 0
                    && u128::from(self.now.saturating_sub(goroutine.wait_since)) >= min_wait.as_nanos()
        };
        let groups = group(&self.snapshot, |goroutine| {
            waits(goroutine) && program[&goroutine.start_pc]
        });
        api::Goroutines {
            total: groups.iter().map(|group| group.goroutines.len() as u64).sum(),
            groups: groups
                .iter()
                .take(MAX_GROUPS)
                .filter_map(|group| self.told(group, &mut symbolizer))
                .collect(),
        }
    }

    fn told(&self, group: &Group<'_>, symbolizer: &mut Symbolizer<'_>) -> Option<api::GoroutineGroup> {
        let first = group.goroutines.first()?;
        let frames = |symbolizer: &mut Symbolizer<'_>, stack: &[u64]| -> Vec<api::Frame> {
            symbolizer
                .goroutine_stack(stack)
                .iter()
                .flat_map(|place| place.frames.iter())
                .filter(|frame| frame.function != "runtime.goexit")
                .map(|frame| api::Frame {
                    function: frame.display().to_string(),
                    file: Some(frame.file.to_string()).filter(|file| !file.is_empty()),
                    line: Some(frame.line.into()).filter(|line| *line != 0),
                })
                .collect()
        };
        let text = self.process.wait_text(first);
        let waits = group.key.wait_reason != 0;
        Some(api::GoroutineGroup {
            count: group.goroutines.len() as u64,
            state: group.key.status.name().to_owned(),
            wait_reason: waits.then(|| text.to_owned()),
            longest_wait: group.waits(self.now).map(|(longest, _)| longest),
            stack_bytes: group.stack_bytes(),
            channel: group.channels().first().map(|(channel, _)| *channel),
            stack: frames(symbolizer, &group.key.stack),
            created_by: match group.key.creator_pc {
                0 => None,
                creator => frames(symbolizer, &[creator]).into_iter().next(),
            },
            ids: group
                .goroutines
                .iter()
                .take(MAX_IDS)
                .map(|goroutine| goroutine.id)
                .collect(),
        })
    }

    /// As the runtime would print them; cut at a length that no one reads to its end.
    pub fn dump(&self) -> String {
        let mut symbolizer = Symbolizer::new(self.process.table(), &self.process.version);
        let program = self.is_program(&symbolizer);
        let mut text = String::new();
        for goroutine in &self.snapshot.goroutines {
            if !program[&goroutine.start_pc] {
                continue;
            }
            if text.len() > MAX_DUMP {
                text.push_str("...further goroutines left out...\n");
                break;
            }
            dump::write(&mut text, &self.process, &mut symbolizer, goroutine, self.now);
        }
        text
    }

    /// As a profile in Go's own form.
    pub fn profile(&self) -> Profile {
        let symbolizer = Symbolizer::new(self.process.table(), &self.process.version);
        let program = self.is_program(&symbolizer);
        profile::goroutine_profile(&self.process, &self.snapshot, moment::wall() as i64, |goroutine| {
            program[&goroutine.start_pc]
        })
    }
}
