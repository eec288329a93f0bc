//! Ages of sampled objects: what was allocated long ago and is still held.
//!
//! An object carries no time. One look tells whether it survived the last collection; more looks tell since when it was
//! seen. Invariant: an object counts as the same one only if no collection passed since the last look, or it survived
//! the one that did: a new object at an old address starts anew.

use hashbrown::HashMap;

use super::spans::ObjectSnapshot;

/// Since when an object is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// First seen, in nanoseconds of the caller's clock.
    pub since: u64,
    /// Collections that had ended then.
    pub collections: u64,
    /// It survived a collection at the last look.
    pub survived: bool,
}

/// Objects followed over several looks.
#[derive(Clone, Debug, Default)]
pub struct ObjectTracker {
    objects: HashMap<(u64, u64), Seen>,
    collections: u64,
}

impl ObjectTracker {
    /// Takes note of a snapshot. `last_collection` is when the last collection ended, of the same clock as `now`: an
    /// object that survived it is at least so old.
    pub fn look(&mut self, snapshot: &ObjectSnapshot, now: u64, collections: u64, last_collection: u64) {
        let collected = collections != self.collections;
        let mut objects = HashMap::with_capacity(snapshot.objects.len());
        for object in &snapshot.objects {
            let key = (object.address, object.bucket);
            let known = self.objects.get(&key).filter(|_| !collected || object.survived);
            let since = known.map_or(if object.survived { last_collection.min(now) } else { now }, |seen| {
                seen.since
            });
            let first = known.map_or(collections, |seen| seen.collections);
            objects.insert(
                key,
                Seen {
                    since,
                    collections: first,
                    survived: object.survived,
                },
            );
        }
        self.objects = objects;
        self.collections = collections;
    }

    /// All objects of the last look: address, bucket, and since when.
    pub fn objects(&self) -> impl Iterator<Item = (u64, u64, Seen)> {
        self.objects
            .iter()
            .map(|(&(address, bucket), &seen)| (address, bucket, seen))
    }

    /// Collections at the last look.
    pub fn collections(&self) -> u64 {
        self.collections
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::go::spans::SampledObject;

    fn snapshot(objects: &[(u64, bool)]) -> ObjectSnapshot {
        let objects = objects
            .iter()
            .map(|&(address, survived)| SampledObject {
                address,
                bucket: 1,
                survived,
            })
            .collect();
        ObjectSnapshot {
            objects,
            ..ObjectSnapshot::default()
        }
    }

    #[test]
    fn age_begins_with_the_first_look_or_the_collection_before() {
        let mut tracker = ObjectTracker::default();
        tracker.look(&snapshot(&[(16, true), (32, false)]), 100, 5, 80);
        tracker.look(&snapshot(&[(16, true), (32, false), (48, false)]), 200, 5, 80);
        let since = |tracker: &ObjectTracker| {
            let mut all: Vec<_> = tracker
                .objects()
                .map(|(address, _, seen)| (address, seen.since))
                .collect();
            all.sort_unstable();
            all
        };
        assert_eq!(since(&tracker), [(16, 80), (32, 100), (48, 200)]);
        // A collection: 32 is a new object at an old address, 16 is the old one, 48 is gone.
        tracker.look(&snapshot(&[(16, true), (32, false)]), 300, 6, 250);
        assert_eq!(since(&tracker), [(16, 80), (32, 300)]);
    }
}
