//! Who may have how much of what all traced processes share: fair by user, and by process within a user.
//!
//! It is pure: numbers in, numbers out. Invariants: no more is given than there is; who asks for no more than an equal part
//! of it gets all that it asks for, whatever others ask for; and whoever has most is cut first.

use std::collections::{BTreeMap, HashMap};

/// Who has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    /// Its user.
    pub user: u32,
    /// The process.
    pub pid: u32,
}

/// Divides `capacity` between `demands`: all get what they want, or as much as everybody else who wants more. Users are
/// equal, and so are the processes of one user. What is given stands in the order of the demands.
pub fn divide(demands: &[(Holder, u32)], capacity: u32) -> Vec<u32> {
    let mut users: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, (holder, _)) in demands.iter().enumerate() {
        users.entry(holder.user).or_default().push(index);
    }
    let wanted = |indices: &Vec<usize>| indices.iter().map(|index| u64::from(demands[*index].1)).sum();
    let of_users = level(&users.values().map(wanted).collect::<Vec<u64>>(), capacity.into());
    let mut given = vec![0; demands.len()];
    for (indices, room) in users.values().zip(of_users) {
        let wanted: Vec<u64> = indices.iter().map(|index| u64::from(demands[*index].1)).collect();
        for (index, share) in indices.iter().zip(level(&wanted, room)) {
            // No more than the demand, which has 32 bits.
            given[*index] = share as u32;
        }
    }
    given
}

/// The same among equals.
fn level(wanted: &[u64], mut room: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|index| wanted[*index]);
    let mut given = vec![0; wanted.len()];
    let mut left = wanted.len() as u64;
    for index in order {
        given[index] = wanted[index].min(room / left.max(1));
        room -= given[index];
        left -= 1;
    }
    given
}

/// Something that is there once, whoever uses it.
#[derive(Clone, Debug)]
pub struct Thing<K> {
    /// Which.
    pub key: K,
    /// How much room it takes.
    pub size: u64,
    /// Who uses it.
    pub holders: Vec<Holder>,
}

/// What has to go so that `wanting` can have something of this size which nobody uses yet; `None` if nobody has more than
/// it would have then.
///
/// A thing counts wholly for each user and each process that uses it: what is given up is used by such alone as have more.
pub fn victim<K: Copy + Ord>(things: &[Thing<K>], wanting: Holder, size: u64) -> Option<K> {
    let mut users: HashMap<u32, u64> = HashMap::new();
    let mut processes: HashMap<Holder, u64> = HashMap::new();
    for thing in things {
        let mut of_thing: Vec<u32> = thing.holders.iter().map(|holder| holder.user).collect();
        of_thing.sort_unstable();
        of_thing.dedup();
        for user in of_thing {
            *users.entry(user).or_default() += thing.size;
        }
        for holder in &thing.holders {
            *processes.entry(*holder).or_default() += thing.size;
        }
    }
    let has = |user: u32| users.get(&user).copied().unwrap_or(0);
    let process_has = |holder: Holder| processes.get(&holder).copied().unwrap_or(0);
    let (user_with, process_with) = (has(wanting.user) + size, process_has(wanting) + size);
    let has_more = |holder: &Holder| {
        if holder.user == wanting.user {
            holder.pid != wanting.pid && process_has(*holder) > process_with
        } else {
            has(holder.user) > user_with
        }
    };
    let candidates = things
        .iter()
        .filter(|thing| thing.size > 0 && thing.holders.iter().all(has_more));
    let rank = |thing: &Thing<K>| {
        let poorest = thing
            .holders
            .iter()
            .map(|holder| (has(holder.user), process_has(*holder)))
            .min()
            // Nobody uses it.
            .unwrap_or((u64::MAX, u64::MAX));
        (poorest, thing.size, thing.key)
    };
    candidates.max_by_key(|thing| rank(thing)).map(|thing| thing.key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(user: u32, pid: u32) -> Holder {
        Holder { user, pid }
    }

    #[test]
    fn who_wants_most_is_cut() {
        let demands = [(holder(1, 1), 900), (holder(1, 2), 10), (holder(2, 3), 40)];
        assert_eq!(divide(&demands, 1000), [900, 10, 40]);
        assert_eq!(divide(&demands, 100), [50, 10, 40]);
        assert_eq!(divide(&demands, 60), [20, 10, 30]);
        assert!(divide(&[], 60).is_empty());
    }

    #[test]
    fn many_processes_of_one_user_take_nothing_from_another() {
        let mut demands: Vec<(Holder, u32)> = (0..100).map(|pid| (holder(1, pid), 4096)).collect();
        demands.push((holder(2, 100), 4096));
        let given = divide(&demands, 16384);
        assert_eq!(given[100], 4096);
        assert!(given[..100].iter().all(|share| (122..=123).contains(share)));
    }

    fn demands() -> impl Strategy<Value = Vec<(Holder, u32)>> {
        prop::collection::vec((0_u32..6, 0_u32..5000), 0..40).prop_map(|demands| {
            let numbered = demands.into_iter().zip(0..);
            numbered
                .map(|((user, wanted), pid)| (holder(user, pid), wanted))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(demands in demands(), capacity in 0_u32..40_000) {
            let given = divide(&demands, capacity);
            prop_assert!(given.iter().map(|share| u64::from(*share)).sum::<u64>() <= capacity.into());
            prop_assert!(given.iter().zip(&demands).all(|(share, (_, wanted))| share <= wanted));
        }

        #[test]
        fn nothing_is_left_while_somebody_wants_more(demands in demands(), capacity in 0_u32..40_000) {
            let given: u64 = divide(&demands, capacity).into_iter().map(u64::from).sum();
            let wanted: u64 = demands.iter().map(|(_, wanted)| u64::from(*wanted)).sum();
            prop_assert_eq!(given, wanted.min(capacity.into()));
        }

        #[test]
        fn an_equal_part_is_always_given(demands in demands(), capacity in 0_u32..40_000) {
            let mut users: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
            for (holder, wanted) in &demands {
                let user = users.entry(holder.user).or_default();
                user.0 += 1;
                user.1 += wanted;
            }
            let part = capacity / (users.len() as u32).max(1);
            for ((holder, wanted), share) in demands.iter().zip(divide(&demands, capacity)) {
                let (processes, in_all) = users[&holder.user];
                if in_all <= part || *wanted <= part / processes {
                    prop_assert_eq!(share, *wanted);
                }
            }
        }

        /// Whoever has most is cut until the innocent one's fits: it always does below its equal part.
        #[test]
        fn things_of_an_innocent_user_always_fit(
            things in prop::collection::vec((1_u64..300, prop::collection::vec((0_u32..4, 0_u32..3), 1..4)), 0..60),
            size in 1_u64..300,
        ) {
            let mut things: Vec<Thing<usize>> = things
                .into_iter()
                .enumerate()
                .map(|(key, (size, holders))| Thing {
                    key,
                    size,
                    holders: holders.into_iter().map(|(user, pid)| holder(user, user * 10 + pid)).collect(),
                })
                .collect();
            let total = |things: &[Thing<usize>]| things.iter().map(|thing| thing.size).sum::<u64>();
            // As much as is there now, and an equal part of it for each of five users.
            let capacity = total(&things).max(size * 5);
            let innocent = holder(9, 99);
            while total(&things) + size > capacity {
                let gone = victim(&things, innocent, size);
                prop_assert!(gone.is_some());
                things.retain(|thing| Some(thing.key) != gone);
            }
        }

        /// What goes is what somebody has more of, so that nobody takes the same things from each other again and again.
        #[test]
        fn who_has_less_keeps_it(
            sizes in prop::collection::vec((1_u64..300, 0_u32..4), 1..30),
            size in 1_u64..300,
        ) {
            let things: Vec<Thing<usize>> = sizes
                .iter()
                .enumerate()
                .map(|(key, (size, user))| Thing { key, size: *size, holders: vec![holder(*user, *user)] })
                .collect();
            let has = |user: u32| sizes.iter().filter(|(_, of)| *of == user).map(|(size, _)| size).sum::<u64>();
            if let Some(gone) = victim(&things, holder(0, 0), size) {
                let (_, user) = sizes[gone];
                prop_assert!(user != 0 && has(user) > has(0) + size);
            }
        }
    }
}
