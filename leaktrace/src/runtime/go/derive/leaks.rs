//! Goroutines that pile up: the same ones, blocked at the same place, and ever more of them.
//!
//! Looks at several snapshots of one process. A pool of idle workers is blocked too, and so is a server's listener, but
//! their number stands still; a group is suspect only if none of its goroutines went on *and* it grew. Invariant: no
//! verdict without a collection in between, since only the collector notes that a goroutine still waits.

use hashbrown::HashMap;

use super::groups::GroupKey;
use crate::runtime::go::goroutines::{GoroutineSnapshot, Status};

/// One look.
#[derive(Clone, Debug, Default)]
struct Look {
    /// Collections until then.
    collections: u64,
    groups: HashMap<GroupKey, HashMap<u64, Wait>>,
}

/// What tells one wait of a goroutine from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    since: u64,
    queue: u64,
}

impl Wait {
    /// Whether a later look shows the same wait. `since` is 0 until the collector finds the goroutine waiting, and
    /// again once it has gone on.
    fn is_continued_by(self, later: Self) -> bool {
        self.queue == later.queue && (self.since == 0 || self.since == later.since)
    }
}

/// A group that grew while nobody in it went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Which group.
    pub key: GroupKey,
    /// Its size at each look.
    pub counts: Vec<u64>,
    /// Goroutines of the first look that still sit in the same wait at the last one.
    pub persisted: u64,
    /// Collections between the first and the last look.
    pub collections: u64,
}

/// Collects looks at one process.
#[derive(Clone, Debug, Default)]
pub struct LeakWatch {
    looks: Vec<Look>,
}

/// Share of the first look's goroutines, in percent, that may have gone on in a group that is still suspect: one that
/// is woken and blocks again is no proof against the others.
const MAX_GONE_PERCENT: u64 = 5;

impl LeakWatch {
    /// Takes note of a snapshot. `collections` is the collector's count at that time.
    pub fn look(&mut self, snapshot: &GoroutineSnapshot, collections: u64) {
        let mut look = Look {
            collections,
            ..Look::default()
        };
        for goroutine in &snapshot.goroutines {
            if matches!(goroutine.status, Status::Waiting | Status::Leaked) && !goroutine.stack.is_empty() {
                let wait = Wait {
                    since: goroutine.wait_since,
                    queue: goroutine.waiting,
                };
                look.groups
                    .entry(GroupKey::of(goroutine))
                    .or_default()
                    .insert(goroutine.id, wait);
            }
        }
        // The first and the sizes in between are all that the verdict needs of older looks.
        if self.looks.len() > 1 {
            let last = self.looks.len() - 1;
            self.looks[last].groups.values_mut().for_each(|members| {
                members
                    .values_mut()
                    .for_each(|wait| *wait = Wait { since: 0, queue: 0 });
            });
        }
        self.looks.push(look);
    }

    /// Looks so far.
    pub fn looks(&self) -> usize {
        self.looks.len()
    }

    /// Collections between the first and the last look.
    pub fn collections(&self) -> u64 {
        match (self.looks.first(), self.looks.last()) {
            (Some(first), Some(last)) => last.collections.saturating_sub(first.collections),
            _ => 0,
        }
    }

    /// Groups that grew while nobody in them went on, most grown first. Empty before a second look and a collection.
    pub fn suspects(&self) -> Vec<Suspect> {
        let ([first, .., last], 1..) = (self.looks.as_slice(), self.collections()) else {
            return Vec::new();
        };
        let mut suspects = Vec::new();
        for (key, members) in &last.groups {
            let counts: Vec<u64> = self
                .looks
                .iter()
                .map(|look| look.groups.get(key).map_or(0, HashMap::len) as u64)
                .collect();
            let grew = counts.windows(2).all(|pair| pair[0] <= pair[1]) && counts.first() < counts.last();
            let earlier = first.groups.get(key);
            let persisted = earlier.map_or(0, |earlier| {
                let same = |(id, wait): &(&u64, &Wait)| members.get(*id).is_some_and(|now| wait.is_continued_by(*now));
                earlier.iter().filter(same).count() as u64
            });
            let gone = counts[0] - persisted;
            // A group that was not there at first may be a burst that is about to end: it has proven nothing yet.
            if grew && counts[0] > 0 && gone * 100 <= counts[0] * MAX_GONE_PERCENT {
                suspects.push(Suspect {
                    key: key.clone(),
                    counts,
                    persisted,
                    collections: self.collections(),
                });
            }
        }
        let growth = |suspect: &Suspect| suspect.counts[suspect.counts.len() - 1] - suspect.counts[0];
        suspects.sort_by(|a, b| growth(b).cmp(&growth(a)).then_with(|| a.key.cmp(&b.key)));
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::go::goroutines::{Goroutine, StackState};

    fn blocked(id: u64, place: u64, since: u64) -> Goroutine {
        Goroutine {
            address: id,
            id,
            status: Status::Waiting,
            scanning: false,
            wait_reason: 14,
            wait_since: since,
            stack_low: 0,
            stack_high: 2048,
            creator_pc: 1,
            start_pc: 2,
            parent: 1,
            locked: false,
            waiting: id * 16,
            channel: 5,
            stack: vec![place],
            state: StackState::Complete,
        }
    }

    fn watch(looks: &[(u64, Vec<Goroutine>)]) -> Vec<(u64, Vec<u64>, u64)> {
        let mut watch = LeakWatch::default();
        for (collections, goroutines) in looks {
            let snapshot = GoroutineSnapshot {
                goroutines: goroutines.clone(),
                ..GoroutineSnapshot::default()
            };
            watch.look(&snapshot, *collections);
        }
        watch
            .suspects()
            .into_iter()
            .map(|suspect| (suspect.key.stack[0], suspect.counts, suspect.persisted))
            .collect()
    }

    #[test]
    fn the_same_ones_and_ever_more() {
        let many = |count: u64, since: u64| (1..=count).map(|id| blocked(id, 100, since)).collect::<Vec<_>>();
        assert_eq!(
            watch(&[(1, many(3, 0)), (2, many(5, 7)), (3, many(9, 7))]),
            [(100, vec![3, 5, 9], 3)]
        );
        assert!(
            watch(&[(1, many(3, 0)), (1, many(9, 0))]).is_empty(),
            "no collection in between"
        );
        assert!(
            watch(&[(1, many(9, 7)), (2, many(9, 7))]).is_empty(),
            "an idle pool does not grow"
        );
        assert!(watch(&[(1, many(9, 7))]).is_empty());
    }

    #[test]
    fn others_in_their_place_are_no_leak() {
        let first: Vec<Goroutine> = (1..=20).map(|id| blocked(id, 100, 7)).collect();
        let new: Vec<Goroutine> = (50..=90).map(|id| blocked(id, 100, 8)).collect();
        assert!(
            watch(&[(1, first.clone()), (4, new)]).is_empty(),
            "all of the first went on"
        );
        let woken: Vec<Goroutine> = (1..=30).map(|id| blocked(id, 100, 9)).collect();
        assert!(
            watch(&[(1, first), (4, woken)]).is_empty(),
            "the same ones, but in another wait"
        );
    }
}
