//! The collectors of all Go processes, looked at from time to time: live heap, and the collections in between.

use std::collections::{HashMap, VecDeque};

use crate::{
    api,
    model::ProcessKey,
    runtime::go::{
        collector::Collector,
        gc::{Collection, CollectorState, Follower},
    },
};

/// Collections that are remembered of a process.
const MAX_COLLECTIONS: usize = 256;

struct Followed {
    collector: Collector,
    follower: Follower,
    last: CollectorState,
    collections: VecDeque<api::Collection>,
}

/// Go processes whose collector is followed.
#[derive(Default)]
pub struct Collectors(HashMap<ProcessKey, Followed>);

impl Collectors {
    /// Begins to follow a process, or begins anew with one that runs another program. Returns whether it can be read.
    pub fn begin(&mut self, key: ProcessKey) -> bool {
        let attached = Collector::attach(key.pid).and_then(|collector| {
            let state = collector.state()?;
            Ok((collector, state))
        });
        match attached {
            Ok((collector, state)) if collector.key == key => {
                let mut follower = Follower::default();
                follower.follow(&state).for_each(drop);
                let followed = Followed {
                    collector,
                    follower,
                    last: state,
                    collections: VecDeque::new(),
                };
                self.0.insert(key, followed);
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!("the collector of pid {} is not followed: {error}", key.pid);
                self.0.remove(&key);
                false
            }
        }
    }

    /// Forgets a process.
    pub fn end(&mut self, key: ProcessKey) {
        self.0.remove(&key);
    }

    /// Those that are followed.
    pub fn keys(&self) -> Vec<ProcessKey> {
        self.0.keys().copied().collect()
    }

    /// Looks at a process: its live heap, if it is followed and could be read.
    pub fn look(&mut self, key: ProcessKey) -> Option<u64> {
        let followed = self.0.get_mut(&key)?;
        let state = followed.collector.state().ok()?;
        for collection in followed.follower.follow(&state) {
            if followed.collections.len() >= MAX_COLLECTIONS {
                followed.collections.pop_front();
            }
            followed.collections.push_back(told(&collection));
        }
        followed.last = state;
        Some(followed.last.live)
    }

    /// Collections that ended between two moments, in nanoseconds since 1970.
    pub fn between(&self, key: ProcessKey, since: u64, until: u64) -> Vec<api::Collection> {
        let Some(followed) = self.0.get(&key) else {
            return Vec::new();
        };
        let within = |collection: &&api::Collection| collection.end.is_some_and(|end| end >= since && end <= until);
        followed.collections.iter().filter(within).copied().collect()
    }

    /// The collector of a process.
    pub fn gc(&mut self, key: ProcessKey) -> Option<api::Gc> {
        self.look(key);
        let followed = self.0.get(&key)?;
        let state = &followed.last;
        Some(api::Gc {
            collections_total: state.finished,
            live: state.live,
            goal: state.goal,
            in_use: state.in_use,
            cpu_fraction: state.cpu_fraction,
            gogc: state.percent,
            memory_limit: Some(state.memory_limit).filter(|limit| *limit < i64::MAX as u64),
            collections: followed.collections.iter().copied().collect(),
        })
    }
}

fn told(collection: &Collection) -> api::Collection {
    let state = collection.state.as_ref();
    let heap = state.map(|state| state.phases.heap);
    api::Collection {
        number: collection.number,
        end: collection.end,
        pause: collection.pause,
        before: heap.map(|heap| heap[0]),
        after: heap.map(|heap| heap[1]),
        live: heap.map(|heap| heap[2]),
        goal: state.map(|state| state.last_goal),
    }
}
