//! Goroutines that do the same thing, counted.
//!
//! A group shares state, wait reason, stack and creation site. The channels that its goroutines wait for are listed in
//! it: workers on one channel are one entry, requests that each wait for a channel of their own are one group still.

use hashbrown::HashMap;

use crate::proc::memory::MemoryReader;
use crate::runtime::go::goroutines::{Goroutine, GoroutineSnapshot, Status};
use crate::runtime::go::process::GoProcess;

/// What the goroutines of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey {
    /// What they do.
    pub status: Status,
    /// Why they wait, by number.
    pub wait_reason: u8,
    /// Where they started: the `go` statement's return address.
    pub creator_pc: u64,
    /// Return addresses, innermost first.
    pub stack: Vec<u64>,
}

impl GroupKey {
    /// That of a goroutine.
    pub fn of(goroutine: &Goroutine) -> Self {
        Self {
            status: goroutine.status,
            wait_reason: goroutine.wait_reason,
            creator_pc: goroutine.creator_pc,
            stack: goroutine.stack.clone(),
        }
    }
}

/// Who waits for a channel, over all goroutines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiters {
    /// In a plain receive.
    pub receivers: u64,
    /// In a plain send.
    pub senders: u64,
    /// In a select, with this channel as the first in order.
    pub selecting: u64,
}

/// Goroutines that do the same thing.
#[derive(Clone, Debug)]
pub struct Group<'s> {
    /// What they have in common.
    pub key: GroupKey,
    /// Who they are, in the order of the runtime's list.
    pub goroutines: Vec<&'s Goroutine>,
}

impl Group<'_> {
    /// Bytes of stack that they hold.
    pub fn stack_bytes(&self) -> u64 {
        self.goroutines.iter().map(|goroutine| goroutine.stack_size()).sum()
    }

    /// Longest and shortest known wait, in nanoseconds; `None` where the collector has not noted any yet.
    pub fn waits(&self, now: u64) -> Option<(u64, u64)> {
        let waits = || {
            self.goroutines
                .iter()
                .filter(|g| g.wait_since != 0)
                .map(|g| now.saturating_sub(g.wait_since))
        };
        Some((waits().max()?, waits().min()?))
    }

    /// Channels with the number of these goroutines that wait for each, most first.
    pub fn channels(&self) -> Vec<(u64, u64)> {
        tally(self.goroutines.iter().map(|goroutine| goroutine.channel))
    }

    /// Goroutines that started these, with how many each, most first.
    pub fn parents(&self) -> Vec<(u64, u64)> {
        tally(self.goroutines.iter().map(|goroutine| goroutine.parent))
    }
}

/// Counts values other than 0; most first, then by value.
fn tally(values: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut counts = HashMap::new();
    values
        .filter(|&value| value != 0)
        .for_each(|value| *counts.entry(value).or_insert(0u64) += 1);
    let mut counts: Vec<(u64, u64)> = counts.into_iter().collect();
    counts.sort_by_key(|&(value, count)| (std::cmp::Reverse(count), value));
    counts
}

/// Groups those goroutines that `keep` wants, largest first.
pub fn group<'s>(snapshot: &'s GoroutineSnapshot, keep: impl Fn(&Goroutine) -> bool) -> Vec<Group<'s>> {
    let mut groups: HashMap<GroupKey, Vec<&Goroutine>> = HashMap::new();
    for goroutine in snapshot.goroutines.iter().filter(|goroutine| keep(goroutine)) {
        groups.entry(GroupKey::of(goroutine)).or_default().push(goroutine);
    }
    let mut groups: Vec<Group<'_>> = groups
        .into_iter()
        .map(|(key, goroutines)| Group { key, goroutines })
        .collect();
    groups.sort_by(|a, b| {
        b.goroutines
            .len()
            .cmp(&a.goroutines.len())
            .then_with(|| a.key.cmp(&b.key))
    });
    groups
}

/// Who waits for each channel.
pub fn waiters<M: MemoryReader>(process: &GoProcess<M>, snapshot: &GoroutineSnapshot) -> HashMap<u64, Waiters> {
    let mut waiters: HashMap<u64, Waiters> = HashMap::new();
    for goroutine in snapshot.goroutines.iter().filter(|goroutine| goroutine.channel != 0) {
        let entry = waiters.entry(goroutine.channel).or_default();
        match process.wait_text(goroutine) {
            "chan receive" => entry.receivers += 1,
            "chan send" => entry.senders += 1,
            _ => entry.selecting += 1,
        }
    }
    waiters
}
