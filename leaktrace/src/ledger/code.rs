//! When code came to be at which place of a process: what an address on a stack meant depends on when it was there.
//!
//! A library that is closed leaves its addresses to the next one. Changes are numbered in the order in which they happened
//! among the records, so a stack that came after so many of them is one of that time. Invariant: [`CodeHistory::interval`]
//! never reaches over a change at the address; where too much is forgotten to say, it is empty.

use std::collections::{BTreeMap, VecDeque};

use crate::model::ProcessAddress;

/// Changes that are kept one by one. Of earlier ones their places are kept.
const MAX_CHANGES: usize = 8192;
/// Places of earlier changes that are told apart.
const MAX_PLACES: usize = 8192;

/// Code was mapped. Times are the kernel's monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeChange {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What was there before was not replaced before this time.
    pub begun: u64,
    /// The new code is there from this time on.
    pub done: u64,
}

impl CodeChange {
    fn covers(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A time in which the code at an address was the same, in nanoseconds of the kernel's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Since.
    pub from: u64,
    /// Until.
    pub until: u64,
}

impl Interval {
    /// The code was never another.
    pub const ALWAYS: Self = Self {
        from: 0,
        until: u64::MAX,
    };
    /// Nothing is known.
    const NEVER: Self = Self {
        from: u64::MAX,
        until: 0,
    };
}

/// All changes of one program.
#[derive(Clone, Debug, Default)]
pub struct CodeHistory {
    /// The last ones, in order.
    changes: VecDeque<CodeChange>,
    /// How many came before those.
    dropped: u64,
    /// Places of those: starts and ends, apart from each other.
    places: BTreeMap<u64, u64>,
    /// When the last of those was done.
    horizon: u64,
}

impl CodeHistory {
    /// Notes a change.
    pub fn note(&mut self, change: CodeChange) {
        if self.changes.len() >= MAX_CHANGES {
            for _ in 0..MAX_CHANGES / 2 {
                if let Some(old) = self.changes.pop_front() {
                    self.dropped += 1;
                    self.horizon = self.horizon.max(old.done);
                    self.add_place(old.start, old.end);
                }
            }
        }
        self.changes.push_back(change);
    }

    /// How many changes there were so far.
    pub fn count(&self) -> u64 {
        self.dropped + self.changes.len() as u64
    }

    /// Whether one of these addresses is in code that changed after the first `since` changes.
    pub fn touches(&self, frames: impl IntoIterator<Item = ProcessAddress>, since: u64) -> bool {
        let later = || self.changes.iter().skip(self.position(since));
        let mut addresses = frames.into_iter().map(|frame| frame.0.saturating_sub(1));
        addresses.any(|address| {
            (since < self.dropped && self.was_changed(address)) || later().any(|change| change.covers(address))
        })
    }

    /// When the code at an address was what it was after the first `at` changes.
    pub fn interval(&self, address: ProcessAddress, at: u64) -> Interval {
        let address = address.0;
        let old = !self.places.is_empty() && self.was_changed(address);
        if old && at < self.dropped {
            return Interval::NEVER;
        }
        let at = self.position(at);
        let before = self.changes.iter().take(at).rev().find(|change| change.covers(address));
        let after = self.changes.iter().skip(at).find(|change| change.covers(address));
        Interval {
            from: before.map_or(if old { self.horizon } else { 0 }, |change| change.done),
            until: after.map_or(u64::MAX, |change| change.begun),
        }
    }

    fn position(&self, number: u64) -> usize {
        usize::try_from(number.saturating_sub(self.dropped)).unwrap_or(usize::MAX)
    }

    fn was_changed(&self, address: u64) -> bool {
        let place = self.places.range(..=address).next_back();
        place.is_some_and(|(_, end)| address < *end)
    }

    /// Joins what touches; with too many places neighbours are joined over what lies between them.
    fn add_place(&mut self, mut start: u64, mut end: u64) {
        while let Some((first, last)) = self
            .places
            .range(..=end)
            .next_back()
            .map(|(first, last)| (*first, *last))
            && last >= start
        {
            start = start.min(first);
            end = end.max(last);
            self.places.remove(&first);
        }
        self.places.insert(start, end);
        if self.places.len() > MAX_PLACES
            && let (Some((start, _)), Some((second, end))) = (self.places.pop_first(), self.places.pop_first())
        {
            debug_assert!(start < second);
            self.places.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(start: u64, time: u64) -> CodeChange {
        CodeChange {
            start,
            end: start + 0x100,
            begun: time,
            done: time + 1,
        }
    }

    #[test]
    fn an_address_means_what_it_meant_at_the_time() {
        let mut history = CodeHistory::default();
        history.note(change(0x1000, 10));
        history.note(change(0x5000, 20));
        history.note(change(0x1000, 30));
        let at = |address, number| {
            let Interval { from, until } = history.interval(ProcessAddress(address), number);
            (from, until)
        };
        assert_eq!(at(0x1010, 0), (0, 10));
        assert_eq!(at(0x1010, 1), (11, 30));
        assert_eq!(at(0x1010, 2), (11, 30));
        assert_eq!(at(0x1010, 3), (31, u64::MAX));
        assert_eq!(at(0x9000, 2), (0, u64::MAX));
        let frames = [ProcessAddress(0x9000), ProcessAddress(0x1001)];
        assert!(history.touches(frames, 2));
        assert!(!history.touches(frames, 3));
        // A return address points behind its call.
        assert!(history.touches([ProcessAddress(0x1100)], 0));
        assert!(!history.touches([ProcessAddress(0x1000)], 0));
    }

    #[test]
    fn what_is_forgotten_is_not_guessed() {
        let mut history = CodeHistory::default();
        history.note(change(0x1000, 1));
        for number in 0..MAX_CHANGES as u64 {
            history.note(change(0x10_0000, 10 * number));
        }
        assert!(history.dropped > 0 && history.changes.len() <= MAX_CHANGES);
        assert_eq!(history.count(), 1 + MAX_CHANGES as u64);
        // Of the time before the first change nothing can be said any more, of now everything.
        assert_eq!(history.interval(ProcessAddress(0x1000), 0), Interval::NEVER);
        let now = history.interval(ProcessAddress(0x1000), history.count());
        assert_eq!(
            now,
            Interval {
                from: history.horizon,
                until: u64::MAX
            }
        );
        // Elsewhere nothing changed at any time.
        assert_eq!(history.interval(ProcessAddress(0x4000), 0), Interval::ALWAYS);
        assert!(history.touches([ProcessAddress(0x1001)], 0));
        assert!(!history.touches([ProcessAddress(0x1001)], history.dropped));
    }

    #[test]
    fn places_are_joined() {
        let mut history = CodeHistory::default();
        for number in 0..3 * MAX_CHANGES as u64 {
            history.note(change(0x1000 * (number * 7919 % 50_000), number));
        }
        assert!(history.places.len() <= MAX_PLACES);
        let ends: Vec<_> = history.places.iter().collect();
        assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
