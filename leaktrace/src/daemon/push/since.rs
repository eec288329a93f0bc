//! What was allocated since the profile before: receivers sum `alloc_space` and `alloc_objects` over all profiles that
//! they get, while a profile has them since counting began.
//!
//! Remembers the counts of each stack in some 25 bytes. Knows no process and no clock. Invariant: while counts go on,
//! what is told of a stack in all profiles together is its count in the last one.
//!
//! Stacks are known by the addresses of their frames and the build IDs of the files there, as in the ledger: counts go on
//! only within one program in one address space, where addresses stay and names may change (a file that is replaced, a
//! perf map that is written). Of the labels those count that stay as well: a thread may end, and the mean size of a
//! stack's blocks moves.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use crate::{
    model::HeapKind,
    report::profile::{Profile, Sample},
};

/// Stacks of one heap that are told apart; later ones share one count, and which of them got what is not exact then.
const MOST_STACKS: usize = 1 << 16;

/// Stands for all stacks beyond [`MOST_STACKS`].
const OTHERS: u64 = 0;

/// Kinds of values that are counted.
const COUNTED: [&str; 2] = ["alloc_objects", "alloc_space"];

/// One number for each of [`COUNTED`].
type Amounts = [i64; COUNTED.len()];

/// Where the counts of a heap began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Other numbers say that counts began anew.
    pub run: [u64; 2],
    /// How long ago that was, at most.
    pub age: Duration,
}

/// Where the counts of a profile began; `None` for a heap that it does not tell of, and where that is not known: counts
/// are taken to go on then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Of traced allocations and mappings.
    pub native: Option<Origin>,
    /// Of a managed runtime's heap, which it counts by itself, traced or not.
    pub managed: Option<Origin>,
}

/// What the profiles of one process told so far.
#[derive(Debug, Default)]
pub struct Since {
    native: Counts,
    managed: Counts,
    hasher: RandomState,
}

impl Since {
    /// Takes from a profile's allocations what was told before, and returns over what time the rest came about. What is
    /// in use stays as it is; samples that say nothing any more are left out.
    pub fn tell(&mut self, profile: &mut Profile, origins: Origins, now: Instant) -> Duration {
        let columns = COUNTED.map(|kind| profile.sample_types.iter().position(|known| known.kind == kind));
        let native = origins.native.map(|origin| self.native.begin(origin, now));
        let managed = origins.managed.map(|origin| self.managed.begin(origin, now));
        let keys: Vec<(bool, u64)> = profile
            .samples
            .iter()
            .map(|sample| key(profile, sample, &self.hasher))
            .collect();
        self.native.subtract(profile, &keys, false, columns);
        self.managed.subtract(profile, &keys, true, columns);
        profile
            .samples
            .retain(|sample| sample.values.iter().any(|value| *value != 0));
        native.into_iter().chain(managed).max().unwrap_or_default()
    }

    /// Gives up what was remembered of native allocations: the process is not traced any more.
    pub fn forget_native(&mut self) {
        self.native = Counts::default();
    }
}

/// The counts of one heap.
#[derive(Debug, Default)]
struct Counts {
    run: [u64; 2],
    told: HashMap<u64, Amounts>,
    at: Option<Instant>,
}

impl Counts {
    /// Takes note of where counts began; returns over what time the profile's own came about.
    fn begin(&mut self, origin: Origin, now: Instant) -> Duration {
        if self.run != origin.run {
            self.run = origin.run;
            self.told = HashMap::new();
        }
        let before = self.at.replace(now);
        before.map_or(origin.age, |before| {
            now.saturating_duration_since(before).min(origin.age)
        })
    }

    fn subtract(&mut self, profile: &mut Profile, keys: &[(bool, u64)], is_managed: bool, columns: [Option<usize>; 2]) {
        let own = keys
            .iter()
            .zip(&mut profile.samples)
            .filter(|((managed, _), _)| *managed == is_managed);
        // One stack may be several samples, with labels that the key leaves out: what was told goes from the first on.
        let mut seen: HashMap<u64, (Amounts, Amounts)> = HashMap::new();
        for ((_, key), sample) in own {
            let full = self.told.len() + seen.len() >= MOST_STACKS;
            let known = self.told.contains_key(key) || seen.contains_key(key);
            let key = if known || !full { *key } else { OTHERS };
            let before = || (self.told.get(&key).copied().unwrap_or_default(), Amounts::default());
            let (left, sum) = seen.entry(key).or_insert_with(before);
            for (index, column) in columns.iter().enumerate() {
                let Some(value) = column.and_then(|column| sample.values.get_mut(column)) else {
                    continue;
                };
                sum[index] = sum[index].saturating_add(*value);
                let told = left[index].clamp(0, (*value).max(0));
                left[index] -= told;
                *value -= told;
            }
        }
        // What this profile does not have stays: a bucket of Go that kept changing is back in the next one.
        self.told.extend(seen.into_iter().map(|(key, (_, sum))| (key, sum)));
    }
}

/// Whether a sample is of a managed runtime's heap, and what stands for its stack.
fn key(profile: &Profile, sample: &Sample, hasher: &RandomState) -> (bool, u64) {
    let heap = sample
        .labels
        .iter()
        .find(|label| label.key == HeapKind::LABEL)
        .map_or("", |label| label.value.as_str());
    let is_managed = HeapKind::parse(heap).is_some_and(HeapKind::is_managed);
    let mut hash = hasher.build_hasher();
    heap.hash(&mut hash);
    for location in profile.stack(sample) {
        location.address.hash(&mut hash);
        // Addresses that one file left to another.
        let mapping = location.mapping.and_then(|id| profile.mappings.get(id.index()));
        mapping.map(|mapping| &mapping.build_id).hash(&mut hash);
    }
    if is_managed {
        // The runtime counts each size of block by itself.
        sample.numbers.hash(&mut hash);
    }
    (is_managed, hash.finish().max(OTHERS + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{FrameLine, NumericLabel, ProfileBuilder, TextLabel};

    /// A stack by its number, with what it has allocated: objects, and 10 bytes for each.
    type Row = (u64, i64);

    /// A profile of stacks with one object of 8 bytes in use each; `name` is what their functions are called, and what
    /// their thread and mean size are told as depends on it as well.
    fn profile(heap: HeapKind, name: &str, rows: &[Row]) -> Profile {
        let mut builder = ProfileBuilder::heap();
        add(&mut builder, heap, name, rows);
        builder.finish()
    }

    fn add(builder: &mut ProfileBuilder, heap: HeapKind, name: &str, rows: &[Row]) {
        for (stack, objects) in rows {
            let line = FrameLine {
                function: name,
                ..FrameLine::default()
            };
            let locations = vec![
                builder.location(None, 0x1000 + stack, &[line]),
                builder.location(None, 0x10, &[line]),
            ];
            let label = |key: &str, value: &str| TextLabel {
                key: key.into(),
                value: value.into(),
            };
            let bytes = NumericLabel {
                key: "bytes".into(),
                value: if heap.is_managed() { 10 } else { name.len() as i64 },
                unit: "bytes".into(),
            };
            let labels = vec![TextLabel::heap(heap), label("thread", name)];
            builder.sample(locations, &[*objects, objects * 10, 1, 8], labels, vec![bytes]);
        }
    }

    fn totals(profile: &Profile) -> [i64; 4] {
        ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"]
            .map(|kind| profile.totals().get(kind).expect("a heap profile has it"))
    }

    const fn native(run: u64, seconds: u64) -> Origins {
        Origins {
            native: Some(Origin {
                run: [run, 0],
                age: Duration::from_secs(seconds),
            }),
            managed: None,
        }
    }

    const fn managed(run: u64, seconds: u64) -> Origins {
        Origins {
            native: None,
            managed: native(run, seconds).native,
        }
    }

    #[test]
    fn what_is_told_together_is_the_total_of_the_last() {
        let mut since = Since::default();
        let now = Instant::now();
        let mut sum = [0; 2];
        let mut last = [0; 4];
        // Names, threads and mean sizes change, a stack is new, one rests.
        for (name, rows) in [
            ("one", vec![(1, 10), (2, 5)]),
            ("another", vec![(1, 10), (2, 7), (3, 1)]),
            ("one", vec![(1, 25), (2, 7), (3, 2)]),
        ] {
            let mut told = profile(HeapKind::Native, name, &rows);
            last = totals(&told);
            since.tell(&mut told, native(1, 60), now);
            let part = totals(&told);
            assert_eq!(part[2..], last[2..], "what is in use stays");
            assert!(
                told.samples
                    .iter()
                    .all(|sample| sample.values.iter().all(|value| *value >= 0))
            );
            sum = [sum[0] + part[0], sum[1] + part[1]];
        }
        assert_eq!(sum, last[..2]);
        assert_eq!(sum, [34, 340]);
    }

    #[test]
    fn counts_that_begin_anew_are_told_whole() {
        let mut since = Since::default();
        let now = Instant::now();
        let mut tell = |run, objects| {
            let mut told = profile(HeapKind::Native, "f", &[(1, objects)]);
            since.tell(&mut told, native(run, 60), now);
            totals(&told)[0]
        };
        assert_eq!([tell(1, 10), tell(1, 12)], [10, 2]);
        assert_eq!(
            tell(2, 100),
            100,
            "attached again: more than before, and nothing of it was told"
        );
        assert_eq!(tell(2, 100), 0);
    }

    #[test]
    fn what_is_released_is_forgotten_and_the_runtimes_goes_on() {
        let mut since = Since::default();
        let now = Instant::now();
        let both = |objects: i64, of_runtime: i64| {
            let mut builder = ProfileBuilder::heap();
            add(&mut builder, HeapKind::Native, "f", &[(1, objects)]);
            add(&mut builder, HeapKind::Go, "f", &[(1, of_runtime)]);
            builder.finish()
        };
        let origins = Origins {
            managed: managed(7, 600).managed,
            ..native(1, 60)
        };
        let mut told = both(10, 1000);
        since.tell(&mut told, origins, now);
        assert_eq!(totals(&told)[0], 1010);
        since.forget_native();
        assert_eq!(since.native.told.len(), 0);
        let mut told = profile(HeapKind::Go, "f", &[(1, 1001)]);
        since.tell(&mut told, managed(7, 700), now);
        assert_eq!(totals(&told)[0], 1, "not traced");
        let mut told = both(3, 1005);
        since.tell(
            &mut told,
            Origins {
                managed: managed(7, 800).managed,
                ..native(2, 5)
            },
            now,
        );
        assert_eq!(totals(&told)[0], 3 + 4, "traced again");
    }

    #[test]
    fn a_bucket_that_is_missing_once_is_not_told_twice() {
        let mut since = Since::default();
        let now = Instant::now();
        let mut tell = |rows: &[Row]| {
            let mut told = profile(HeapKind::Go, "f", rows);
            since.tell(&mut told, managed(1, 60), now);
            totals(&told)[0]
        };
        assert_eq!([tell(&[(1, 50), (2, 5)]), tell(&[(2, 6)])], [55, 1]);
        assert_eq!(tell(&[(1, 53), (2, 6)]), 3);
    }

    #[test]
    fn a_window_begins_with_the_last_profile_or_with_the_counts() {
        let mut since = Since::default();
        let begin = Instant::now();
        let mut window = |origins: Origins, at: u64| {
            let mut told = profile(HeapKind::Native, "f", &[(1, 1)]);
            since
                .tell(&mut told, origins, begin + Duration::from_secs(at))
                .as_secs()
        };
        assert_eq!(window(native(1, 45), 0), 45, "the first");
        assert_eq!(window(native(1, 105), 60), 60);
        assert_eq!(window(native(2, 10), 120), 10, "attached again meanwhile");
        assert_eq!(window(native(3, 70), 180), 60, "another program since some moment");
        let both = Origins {
            managed: managed(1, 1000).managed,
            ..native(3, 130)
        };
        assert_eq!(window(both, 240), 1000, "Go's heap for the first time");
    }

    #[test]
    fn no_more_is_remembered_than_is_allowed() {
        let mut since = Since::default();
        let now = Instant::now();
        let mut rows: Vec<Row> = (0..MOST_STACKS as u64 + 2000).map(|stack| (stack, 2)).collect();
        let mut sum = 0;
        for _ in 0..3 {
            let mut told = profile(HeapKind::Native, "f", &rows);
            since.tell(&mut told, native(1, 60), now);
            sum += totals(&told)[0];
            rows.iter_mut().for_each(|(_, objects)| *objects += 3);
        }
        assert!(since.native.told.len() <= MOST_STACKS + 1);
        assert_eq!(sum, rows.len() as i64 * (2 + 3 + 3), "the sum is right all the same");
    }

    proptest! {
        #[test]
        fn sums_equal_totals(steps in prop::collection::vec(prop::collection::vec((0u64..6, 0i64..50), 0..8), 1..8)) {
            let mut since = Since::default();
            let (mut counts, mut told_sum) = ([0i64; 6], 0);
            for step in &steps {
                for (stack, more) in step {
                    counts[*stack as usize] += more;
                }
                let rows: Vec<Row> = (0..6).map(|stack| (stack, counts[stack as usize])).collect();
                let mut told = profile(HeapKind::Native, "f", &rows);
                since.tell(&mut told, native(1, 60), Instant::now());
                told_sum += totals(&told)[1];
                prop_assert_eq!(told_sum, counts.iter().sum::<i64>() * 10);
            }
        }
    }
}
