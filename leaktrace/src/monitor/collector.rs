//! The collectors of all processes with a managed runtime, looked at from time to time: live heap, and the collections in between.

use std::collections::{HashMap, VecDeque};

use crate::{
    api,
    model::ProcessKey,
    runtime::{self, Collection, Collector, CollectorState},
};

/// Collections that are remembered of a process.
const MAX_COLLECTIONS: usize = 256;

struct Followed {
    collector: Box<dyn Collector>,
    last: CollectorState,
    collections: VecDeque<api::Collection>,
}

/// Processes whose collector is followed.
#[derive(Default)]
pub struct Collectors(HashMap<ProcessKey, Followed>);

impl Collectors {
    /// Begins to follow a process, or begins anew with one that runs another program. Returns whether it can be read.
    pub fn begin(&mut self, key: ProcessKey) -> bool {
        let attached = runtime::attach(key.pid).and_then(|process| {
            let mut collector = process.collector()?;
            let (state, _) = collector.follow()?;
            Ok((collector, state))
        });
        match attached {
            Ok((collector, state)) if collector.key() == key => {
                let followed = Followed {
                    collector,
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
        let (state, ended) = followed.collector.follow().ok()?;
        for collection in ended {
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
            collections_total: state.collections,
            live: state.live,
            goal: state.goal,
            in_use: state.in_use,
            cpu_fraction: state.cpu_fraction,
            gogc: state.growth_percent,
            memory_limit: state.memory_limit,
            collections: followed.collections.iter().copied().collect(),
        })
    }
}

fn told(collection: &Collection) -> api::Collection {
    api::Collection {
        number: collection.number,
        end: collection.end,
        pause: collection.pause,
        before: collection.before,
        after: collection.after,
        live: collection.live,
        goal: collection.goal,
    }
}
