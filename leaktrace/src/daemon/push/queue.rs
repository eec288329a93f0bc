//! Profiles that wait for a target.
//!
//! Bounded by number and by bytes; when something does not fit, the oldest go. Knows nothing of time or networks.
//! Invariant: neither bound is ever exceeded.

use std::{collections::VecDeque, mem::size_of};

use super::Export;
use crate::report::profile::{Function, Line, Location, Mapping, NumericLabel, Profile, Sample, TextLabel};

/// A profile that waits.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// The profile.
    pub export: Export,
    /// Bytes that it takes in memory.
    pub weight: usize,
    /// Attempts that the receiver answered, or let run out.
    pub attempts: u32,
}

impl Item {
    /// A profile that was not sent yet.
    pub(super) fn new(export: Export) -> Self {
        Self {
            weight: weight(&export),
            export,
            attempts: 0,
        }
    }
}

/// The profiles that wait, oldest first.
#[derive(Debug)]
pub(super) struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    most_items: usize,
    most_bytes: usize,
}

impl Queue {
    /// Nothing waits.
    pub(super) const fn new(most_items: usize, most_bytes: usize) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            most_items,
            most_bytes,
        }
    }

    /// Profiles that wait.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds the newest one. Returns how many were dropped for it, or 1 when it can never fit.
    pub(super) fn push(&mut self, item: Item) -> u64 {
        if item.weight > self.most_bytes || self.most_items == 0 {
            return 1;
        }
        let mut dropped = 0;
        while self.items.len() >= self.most_items || self.bytes > self.most_bytes - item.weight {
            let Some(oldest) = self.items.pop_front() else { break };
            self.bytes -= oldest.weight;
            dropped += 1;
        }
        self.bytes += item.weight;
        self.items.push_back(item);
        dropped
    }

    /// Gives the oldest one back, to be tried again. False when others took its place: it is the oldest, so it goes.
    #[must_use]
    pub(super) fn put_back(&mut self, item: Item) -> bool {
        let fits = self.items.len() < self.most_items && self.bytes.saturating_add(item.weight) <= self.most_bytes;
        if fits {
            self.bytes += item.weight;
            self.items.push_front(item);
        }
        fits
    }

    /// Takes the oldest one.
    pub(super) fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.weight;
        Some(item)
    }
}

/// Bytes that a profile takes in memory, roughly. One that is shared counts in full at each place that holds it.
fn weight(export: &Export) -> usize {
    let profile: &Profile = &export.profile;
    let samples = profile.samples.iter().map(|sample| {
        size_of::<Sample>()
            + size_of_val(sample.locations.as_slice())
            + size_of_val(sample.values.as_slice())
            + texts(&sample.labels, |label: &TextLabel| label.key.len() + label.value.len())
            + texts(&sample.numbers, |label: &NumericLabel| {
                label.key.len() + label.unit.len()
            })
    });
    let locations = profile
        .locations
        .iter()
        .map(|location| size_of::<Location>() + location.lines.len() * size_of::<Line>());
    let functions = texts(&profile.functions, |function: &Function| {
        function.name.len() + function.system_name.len() + function.file.len()
    });
    let mappings = texts(&profile.mappings, |mapping: &Mapping| {
        mapping.file.len() + mapping.build_id.len()
    });
    let comments = texts(&profile.comments, String::len);
    export.pprof.len()
        + size_of::<Profile>()
        + samples.sum::<usize>()
        + locations.sum::<usize>()
        + functions
        + mappings
        + comments
}

/// Bytes of things and of the text in them.
fn texts<T>(things: &[T], text: impl Fn(&T) -> usize) -> usize {
    size_of_val(things) + things.iter().map(text).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::api::Identity;

    fn item(begin: u64, weight: usize) -> Item {
        Item {
            export: Export {
                identity: Arc::new(Identity::default()),
                begin,
                end: 0,
                profile: Arc::new(Profile::default()),
                pprof: Arc::from([]),
            },
            weight,
            attempts: 0,
        }
    }

    #[test]
    fn the_oldest_go_first() {
        let mut queue = Queue::new(3, 100);
        assert_eq!((0..3).map(|n| queue.push(item(n, 30))).sum::<u64>(), 0);
        assert_eq!(queue.push(item(3, 50)), 2);
        assert_eq!(queue.push(item(4, 101)), 1, "larger than the queue");
        assert_eq!(queue.len(), 2, "and it pushed nobody out");
        let oldest = queue.pop().expect("two wait");
        assert_eq!(oldest.export.begin, 2);
        assert_eq!(queue.push(item(5, 50)), 0);
        assert!(!queue.put_back(oldest), "its place is taken");
        assert_eq!(queue.pop().map(|item| item.export.begin), Some(3));
        assert_eq!(queue.pop().map(|item| item.export.begin), Some(5));
        assert!(queue.is_empty());
    }

    #[test]
    fn weight_grows_with_what_is_held() {
        let small = item(0, 0).export;
        let mut large = small.clone();
        large.pprof = vec![0; 1000].into();
        large.profile = Arc::new(Profile {
            comments: vec!["x".repeat(500)],
            samples: vec![Sample::default(); 100],
            ..Profile::default()
        });
        let more = weight(&large) - weight(&small);
        assert!((1500 + 100 * size_of::<Sample>()..3000 + 100 * size_of::<Sample>()).contains(&more));
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_is_lost(steps in proptest::collection::vec((0u8..4, 0usize..60), 0..200)) {
            let mut queue = Queue::new(4, 100);
            let (mut offered, mut taken, mut dropped, mut last) = (0u64, 0u64, 0u64, None);
            let mut held: Option<Item> = None;
            for (step, weight) in steps {
                match step {
                    0 | 1 => {
                        offered += 1;
                        dropped += queue.push(item(offered, weight));
                    }
                    2 => if let Some(item) = held.take() {
                        dropped += u64::from(!queue.put_back(item));
                    },
                    _ => {
                        if let Some(item) = held.take() {
                            prop_assert!(last < Some(item.export.begin), "in order");
                            last = Some(item.export.begin);
                            taken += 1;
                        }
                        held = queue.pop();
                    }
                }
                prop_assert!(queue.items.len() <= 4 && queue.bytes <= 100);
                prop_assert_eq!(queue.bytes, queue.items.iter().map(|item| item.weight).sum::<usize>());
                prop_assert_eq!(offered, taken + dropped + queue.len() as u64 + u64::from(held.is_some()));
            }
        }
    }
}
