//! Goroutines of a process: groups, the runtime's own text, and a profile. The runtime's own goroutines are left out.

use std::{collections::HashMap, time::Duration};

use super::clock::wall;
use crate::{
    api,
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

/// The goroutines of a process at one moment.
pub struct Goroutines<'p> {
    process: &'p GoProcess,
    snapshot: GoroutineSnapshot,
    /// By the address that they began at: whether that is the program's code, rather than the runtime's own.
    program: HashMap<u64, bool>,
    /// The monotonic clock.
    now: u64,
}

impl<'p> Goroutines<'p> {
    /// Reads the goroutines of a running process.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(process: &'p GoProcess) -> Result<Self, GoError> {
        let snapshot = process.goroutines()?;
        let symbolizer = Symbolizer::new(process.table(), &process.version);
        let mut program = HashMap::new();
        for goroutine in &snapshot.goroutines {
            program
                .entry(goroutine.start_pc)
                .or_insert_with(|| !dump::is_system(&symbolizer, goroutine));
        }
        Ok(Self {
            process,
            snapshot,
            program,
            now: clock::monotonic(),
        })
    }

    fn is_program(&self, goroutine: &Goroutine) -> bool {
        self.program.get(&goroutine.start_pc).copied().unwrap_or(true)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let all = self.snapshot.goroutines.iter();
        all.filter(|goroutine| self.is_program(goroutine)).count()
    }

    /// In groups, those that wait for at least `min_wait`.
    pub fn groups(&self, min_wait: Duration) -> api::Goroutines {
        let mut symbolizer = Symbolizer::new(self.process.table(), &self.process.version);
        let waits = |goroutine: &Goroutine| {
            min_wait.is_zero()
                || goroutine.wait_since != 0
                    && u128::from(self.now.saturating_sub(goroutine.wait_since)) >= min_wait.as_nanos()
        };
        let groups = group(&self.snapshot, |goroutine| {
            waits(goroutine) && self.is_program(goroutine)
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
        let channel = match group.channels()[..] {
            [(channel, _)] => Some(channel),
            // One of several is not what they wait for.
            _ => None,
        };
        Some(api::GoroutineGroup {
            count: group.goroutines.len() as u64,
            state: group.key.status.name().to_owned(),
            wait_reason: waits.then(|| text.to_owned()),
            longest_wait: group.waits(self.now).map(|(longest, _)| longest),
            stack_bytes: group.stack_bytes(),
            channel,
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
        let mut text = String::new();
        for goroutine in &self.snapshot.goroutines {
            if !self.is_program(goroutine) {
                continue;
            }
            if text.len() > MAX_DUMP {
                text.push_str("...further goroutines left out...\n");
                break;
            }
            dump::write(&mut text, self.process, &mut symbolizer, goroutine, self.now);
        }
        text
    }

    /// As a profile in Go's own form.
    pub fn profile(&self) -> Profile {
        profile::goroutine_profile(self.process, &self.snapshot, wall() as i64, |goroutine| {
            self.is_program(goroutine)
        })
    }
}
