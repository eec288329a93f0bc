//! Which profiles there are, in memory.
//!
//! Invariant: entries are in the order of their sequence numbers, which is that in which they were stored; `bytes` and
//! `by_process` say the same as `entries`.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use super::entry::{Entry, MAX_SEQUENCE, parse_id};
use crate::api::Key;

/// More profiles than this are not kept, whatever the settings say: the index is in memory.
pub(super) const MAX_ENTRIES: usize = 100_000;

/// What retention goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Profiles of one process.
    pub count_per_process: usize,
    /// Nanoseconds on the clock of [`super::age`].
    pub age: u64,
    /// Bytes on disk of all.
    pub bytes: u64,
}

/// The profiles of a store.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<u64, Entry>,
    by_process: HashMap<Key, BTreeSet<u64>>,
    bytes: u64,
    /// The next sequence number.
    next: u64,
    /// The age clock, as far as it was written down.
    pub clock: u64,
}

impl Index {
    pub(super) fn insert(&mut self, entry: Entry) {
        self.remove(entry.sequence);
        self.skip_to(entry.sequence + 1);
        self.clock = self.clock.max(entry.stored);
        self.bytes += entry.footprint();
        self.by_process.entry(entry.process).or_default().insert(entry.sequence);
        self.entries.insert(entry.sequence, entry);
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Entry> {
        let entry = self.entries.remove(&sequence)?;
        self.bytes -= entry.footprint();
        if let Some(sequences) = self.by_process.get_mut(&entry.process) {
            sequences.remove(&sequence);
            if sequences.is_empty() {
                self.by_process.remove(&entry.process);
            }
        }
        Some(entry)
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(&sequence)
    }

    /// The entry with this id.
    pub(super) fn find(&self, id: &str) -> Option<&Entry> {
        let (process, sequence) = parse_id(id)?;
        self.get(sequence).filter(|entry| entry.process == process)
    }

    /// Oldest first.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next sequence number: no profile ever had it.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next.max(1)
    }

    /// Takes care that sequence numbers below are not given (again).
    pub(super) fn skip_to(&mut self, sequence: u64) {
        self.next = self.next.max(sequence.min(MAX_SEQUENCE));
    }

    /// The oldest profiles that take at least so many bytes together; all if that is not enough.
    pub(super) fn oldest(&self, bytes: u64) -> Vec<u64> {
        let mut sum = 0;
        let enough = |entry: &&Entry| {
            let more = sum < bytes;
            sum += entry.footprint();
            more
        };
        let oldest = self.entries().take_while(enough);
        oldest.map(|entry| entry.sequence).collect()
    }

    /// What the limits do not allow to stay at the time `clock`, looking at the count of one process or of all.
    pub(super) fn outdated(&self, limits: &Limits, clock: u64, process: Option<Key>) -> BTreeSet<u64> {
        let mut gone = BTreeSet::new();
        let mut count = |sequences: &BTreeSet<u64>| {
            let excess = sequences.len().saturating_sub(limits.count_per_process);
            gone.extend(sequences.iter().take(excess));
        };
        match process {
            Some(process) => self.by_process.get(&process).into_iter().for_each(&mut count),
            None => self.by_process.values().for_each(&mut count),
        }
        let size = |sequence: &u64| self.get(*sequence).map_or(0, Entry::footprint);
        let mut bytes = self.bytes - gone.iter().map(size).sum::<u64>();
        let mut left = self.len() - gone.len();
        for entry in self.entries() {
            let old = clock.saturating_sub(entry.stored) > limits.age;
            if !old && bytes <= limits.bytes && left <= MAX_ENTRIES {
                break;
            }
            if gone.insert(entry.sequence) {
                bytes -= entry.footprint();
                left -= 1;
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::Heap;
    use super::*;

    fn entry(sequence: u64, pid: u32, file_size: u64, stored: u64) -> Entry {
        Entry {
            sequence,
            process: Key { pid, start_time: 1 },
            comm: "x".into(),
            begin: 0,
            end: 0,
            heap: Heap::Native,
            in_use: 0,
            size: file_size,
            file_size,
            stored,
        }
    }

    proptest! {
        /// Against the rule said plainly: newest first, each stays if it fits.
        #[test]
        fn what_stays_is_the_newest_that_fits(
            profiles in proptest::collection::vec((1u32..5, 1u64..20_000, 0u64..50), 0..60),
            count in 0usize..8, age in 0u64..300, bytes in 0u64..200_000,
        ) {
            let mut index = Index::default();
            let mut clock = 0;
            for (number, (pid, size, wait)) in profiles.iter().enumerate() {
                clock += wait;
                index.insert(entry(number as u64 + 1, *pid, *size, clock));
            }
            let limits = Limits { count_per_process: count, age, bytes };
            for sequence in index.outdated(&limits, clock, None) {
                index.remove(sequence);
            }
            let mut of_process = std::collections::HashMap::<u32, usize>::new();
            let (mut total, mut expected) = (0, Vec::new());
            clock = profiles.iter().map(|profile| profile.2).sum();
            let mut at = clock;
            let mut full = false;
            for (number, (pid, size, wait)) in profiles.iter().enumerate().rev() {
                let seen = of_process.entry(*pid).or_default();
                *seen += 1;
                if *seen <= count {
                    let footprint = size.div_ceil(4096) * 4096;
                    full |= total + footprint > bytes;
                    if !full && clock - at <= age {
                        total += footprint;
                        expected.push(number as u64 + 1);
                    }
                }
                at -= wait;
            }
            expected.reverse();
            let stays: Vec<u64> = index.entries().map(|entry| entry.sequence).collect();
            prop_assert_eq!(stays, expected);
            prop_assert_eq!(index.bytes(), total);
        }
    }

    #[test]
    fn sequence_numbers_are_not_given_twice() {
        let mut index = Index::default();
        assert_eq!(index.next_sequence(), 1);
        index.insert(entry(9, 1, 1, 0));
        index.remove(9);
        assert_eq!(index.next_sequence(), 10);
    }

    #[test]
    fn the_oldest_that_make_room() {
        let mut index = Index::default();
        for sequence in 1..=4 {
            index.insert(entry(sequence, 1, 4096, 0));
        }
        assert_eq!(index.oldest(0), Vec::<u64>::new());
        assert_eq!(index.oldest(1), [1]);
        assert_eq!(index.oldest(4097), [1, 2]);
        assert_eq!(index.oldest(u64::MAX), [1, 2, 3, 4]);
    }
}
