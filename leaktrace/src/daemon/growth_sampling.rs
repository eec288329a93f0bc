//! Which processes' growth is followed by stack, without probes: those that begin to grow, before they are traced, and
//! those that grow and cannot be traced.
//!
//! Pure: looks in, changes out. Invariant: never more than the limit at once.

use std::collections::{HashMap, HashSet};

use crate::{
    model::{ProcessKey, quantity::bytes},
    monitor::growth::Growth,
};

/// How long a process that could not be followed is left alone, in seconds.
const RETRY_AFTER: u32 = 600;

/// How suspects are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Most at once.
    pub limit: usize,
    /// Growth in bytes an hour from which on a process is one.
    pub slope: f64,
    /// How long it must not grow until it is none, in seconds.
    pub release_time: u32,
}

/// A process at one look.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which.
    pub key: ProcessKey,
    /// Its growth over a short time.
    pub growth: Option<Growth>,
    /// It is followed in a better way: by probes, or by Go's own profile.
    pub better: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Follow its growth.
    Follow(ProcessKey),
    /// Follow it no longer.
    Leave(ProcessKey),
}

struct Followed {
    /// When it was last seen growing.
    grew: u32,
    reason: String,
}

/// The suspects.
#[derive(Default)]
pub struct Suspects {
    followed: HashMap<ProcessKey, Followed>,
    /// Processes that could not be followed, and when.
    refused: HashMap<ProcessKey, u32>,
    /// When following was found to cost too much.
    forgone: Option<u32>,
}

impl Suspects {
    /// Looks at every process at `now`, in seconds that never go back, and says what is to be done.
    pub fn look(&mut self, candidates: &[Candidate], settings: Settings, now: u32) -> Vec<Change> {
        let mut changes = Vec::new();
        let alive: HashSet<ProcessKey> = candidates.iter().map(|candidate| candidate.key).collect();
        self.refused
            .retain(|key, at| alive.contains(key) && now < at.saturating_add(RETRY_AFTER));
        let mut growing = Vec::new();
        for candidate in candidates {
            let growth = candidate
                .growth
                .filter(|growth| growth.steady && growth.per_hour >= settings.slope && !candidate.better);
            match (self.followed.get_mut(&candidate.key), growth) {
                (Some(followed), Some(_)) => followed.grew = now,
                // Who follows it better has taken it over.
                (Some(_), None) if candidate.better => {
                    self.followed.remove(&candidate.key);
                }
                (Some(followed), None) => {
                    if now >= followed.grew.saturating_add(settings.release_time) {
                        self.followed.remove(&candidate.key);
                        changes.push(Change::Leave(candidate.key));
                    }
                }
                (None, Some(growth)) if !self.refused.contains_key(&candidate.key) => {
                    growing.push((growth.per_hour, candidate.key));
                }
                (None, _) => {}
            }
        }
        self.leave_beyond(settings.limit, &mut changes);
        growing.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if self.forgone.is_some_and(|at| now < at.saturating_add(RETRY_AFTER)) {
            return changes;
        }
        self.forgone = None;
        let room = settings.limit.saturating_sub(self.followed.len());
        for (per_hour, key) in growing.into_iter().take(room) {
            let reason = format!("its memory began to grow by {} an hour", bytes(per_hour));
            self.followed.insert(key, Followed { grew: now, reason });
            changes.push(Change::Follow(key));
        }
        changes
    }

    /// The limit may have been lowered: those that have not grown for the longest time go first.
    fn leave_beyond(&mut self, limit: usize, changes: &mut Vec<Change>) {
        while self.followed.len() > limit {
            let Some(key) = self
                .followed
                .iter()
                .min_by_key(|(key, followed)| (followed.grew, **key))
                .map(|(key, _)| *key)
            else {
                return;
            };
            self.followed.remove(&key);
            changes.push(Change::Leave(key));
        }
    }

    /// A process could not be followed.
    pub fn refused(&mut self, key: ProcessKey, now: u32) {
        self.followed.remove(&key);
        self.refused.insert(key, now);
    }

    /// Following costs too much: all are left alone for a while. Returns those that were followed.
    pub fn forgo(&mut self, now: u32) -> Vec<ProcessKey> {
        let keys: Vec<ProcessKey> = self.followed.drain().map(|(key, _)| key).collect();
        self.forgone = Some(now);
        keys
    }

    /// A process ended. Returns whether it was followed.
    pub fn gone(&mut self, key: ProcessKey) -> bool {
        self.refused.remove(&key);
        self.followed.remove(&key).is_some()
    }

    /// Those that are followed.
    pub fn followed(&self) -> impl Iterator<Item = ProcessKey> + '_ {
        self.followed.keys().copied()
    }

    /// Why a process is followed, if it is.
    pub fn reason(&self, key: ProcessKey) -> Option<&str> {
        self.followed.get(&key).map(|followed| followed.reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        limit: 2,
        slope: 1000.0,
        release_time: 300,
    };

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: 1 }
    }

    fn grows(pid: u32, per_hour: f64) -> Candidate {
        Candidate {
            key: key(pid),
            growth: Some(Growth {
                per_hour,
                steady: per_hour > 0.0,
                quarters: [0.0; 4],
                over: 60,
            }),
            better: false,
        }
    }

    #[test]
    fn what_grows_fastest_is_followed_until_it_has_not_grown_for_a_while() {
        let mut suspects = Suspects::default();
        let all = [grows(1, 2000.0), grows(2, 900.0), grows(3, 9000.0), grows(4, 3000.0)];
        assert_eq!(
            suspects.look(&all, SETTINGS, 10),
            [Change::Follow(key(3)), Change::Follow(key(4))]
        );
        assert!(suspects.reason(key(3)).is_some_and(|reason| reason.contains("an hour")));
        assert_eq!(suspects.look(&all, SETTINGS, 20), []);
        let stopped = [grows(1, 2000.0), grows(3, 0.0), grows(4, 3000.0)];
        assert_eq!(suspects.look(&stopped, SETTINGS, 300), []);
        // Its place is free for another.
        assert_eq!(
            suspects.look(&stopped, SETTINGS, 320),
            [Change::Leave(key(3)), Change::Follow(key(1))]
        );
        assert_eq!(suspects.reason(key(3)), None);
    }

    #[test]
    fn what_is_traced_is_none() {
        let mut suspects = Suspects::default();
        assert_eq!(
            suspects.look(&[grows(1, 2000.0)], SETTINGS, 0),
            [Change::Follow(key(1))]
        );
        let traced = Candidate {
            better: true,
            ..grows(1, 2000.0)
        };
        assert_eq!(suspects.look(&[traced], SETTINGS, 1), []);
        assert_eq!(suspects.reason(key(1)), None);
    }

    #[test]
    fn a_refusal_is_remembered_for_a_while() {
        let mut suspects = Suspects::default();
        let all = [grows(1, 2000.0)];
        assert_eq!(suspects.look(&all, SETTINGS, 0), [Change::Follow(key(1))]);
        suspects.refused(key(1), 0);
        assert_eq!(suspects.look(&all, SETTINGS, 1), []);
        assert_eq!(suspects.look(&all, SETTINGS, 600), [Change::Follow(key(1))]);
        assert!(suspects.gone(key(1)));
        assert!(!suspects.gone(key(1)));
    }

    #[test]
    fn nobody_is_followed_for_a_while_after_it_cost_too_much() {
        let mut suspects = Suspects::default();
        let all = [grows(1, 2000.0)];
        suspects.look(&all, SETTINGS, 0);
        assert_eq!(suspects.forgo(5), [key(1)]);
        assert_eq!(suspects.followed().count(), 0);
        let others = [grows(1, 2000.0), grows(2, 3000.0)];
        assert_eq!(suspects.look(&others, SETTINGS, 604), []);
        assert_eq!(
            suspects.look(&others, SETTINGS, 605),
            [Change::Follow(key(2)), Change::Follow(key(1))]
        );
    }

    #[test]
    fn a_lower_limit_holds_at_once() {
        let mut suspects = Suspects::default();
        suspects.look(&[grows(1, 2000.0), grows(2, 3000.0)], SETTINGS, 0);
        suspects.look(&[grows(1, 2000.0), grows(2, 0.0)], SETTINGS, 9);
        let off = Settings { limit: 0, ..SETTINGS };
        assert_eq!(
            suspects.look(&[grows(1, 2000.0), grows(2, 0.0)], off, 10),
            [Change::Leave(key(2)), Change::Leave(key(1))]
        );
    }
}
