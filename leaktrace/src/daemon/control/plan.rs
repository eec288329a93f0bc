//! What is to be done with each process, from what was seen of it: rules, growth, and how many each user has.
//!
//! Part of the table's owner: it reads states and asks for changes; it changes none by itself. Invariant: a user with many
//! growing processes keeps no other user out.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Control, RETRY_AFTER, for_people,
    state::{Entry, Mode, Origin, State},
};
use crate::{
    model::{
        ProcessKey,
        quantity::{bytes, signed},
    },
    monitor::{clock::Now, growth::Growth},
};

/// A process as it was seen.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Which.
    pub key: ProcessKey,
    /// Its name.
    pub comm: &'a str,
    /// Its user.
    pub uid: u32,
    /// The rule that it matches, and the rule's sampling interval.
    pub rule: Option<(&'a str, Option<u64>)>,
    /// Growth over `growth_time`.
    pub growth: Option<Growth>,
    /// Growth over a quarter of that.
    pub early: Option<Growth>,
    /// Growth over `release_time`, of a traced process.
    pub recent: Option<Growth>,
    /// Its runtime says itself who allocates: its growth is not sampled.
    pub has_own_profile: bool,
}

/// A process that is to be traced.
struct Wanted<'a> {
    rank: f64,
    candidate: &'a Candidate<'a>,
    origin: Origin,
    interval: u64,
    reason: String,
}

/// What is wanted, by user; those of one in order of their rank, with their places among all.
type Queues<'a> = BTreeMap<u32, VecDeque<(usize, Wanted<'a>)>>;

/// Takes whose turn it is: the first of the user who has fewest, of several such the one who ranks first.
fn next_of_all_users<'a>(queues: &mut Queues<'a>, users: &BTreeMap<u32, Vec<ProcessKey>>) -> Option<Wanted<'a>> {
    let place = |uid: &u32, queue: &VecDeque<(usize, Wanted<'_>)>| {
        let (place, _) = queue.front()?;
        Some((users.get(uid).map_or(0, Vec::len), *place))
    };
    let (_, uid) = queues
        .iter()
        .filter_map(|(uid, queue)| Some((place(uid, queue)?, *uid)))
        .min()?;
    let (_, next) = queues.get_mut(&uid)?.pop_front()?;
    Some(next)
}

impl Control {
    /// Decides on every process.
    pub fn plan(&mut self, candidates: &[Candidate<'_>], now: Now) {
        self.give_up(now);
        self.plan_traces(candidates, now);
        self.plan_growth_samples(candidates, now);
    }

    fn plan_traces(&mut self, candidates: &[Candidate<'_>], now: Now) {
        let own_pid = self.own_pid;
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.key.pid != own_pid) {
            let entry = self.entries.get(&candidate.key);
            match entry.map(|entry| &entry.state) {
                Some(State::Traced) => {
                    if let Some(reason) = self.release_reason(candidate, now) {
                        self.release(candidate.key, reason, now);
                    }
                    continue;
                }
                Some(State::Attaching(_) | State::Releasing { .. } | State::Gone(_)) => continue,
                Some(State::Idle(_) | State::GrowthSampled { .. }) | None => {}
            }
            // Refused, detached, released or stopped by hand: not again at once.
            let is_left_alone = |entry: &Entry| {
                entry.held
                    || entry
                        .decided
                        .is_some_and(|at| now.seconds < at.saturating_add(RETRY_AFTER))
            };
            if entry.is_some_and(is_left_alone) {
                continue;
            }
            if let Some((origin, interval, reason)) = self.trace_reason(candidate) {
                let rank = match origin {
                    Origin::Growth => candidate.growth.map_or(0.0, |growth| growth.per_hour),
                    Origin::Rule(_) | Origin::Manual => f64::INFINITY,
                };
                wanted.push(Wanted {
                    rank,
                    candidate,
                    origin,
                    interval,
                    reason,
                });
            }
        }
        wanted.sort_by(|a, b| b.rank.total_cmp(&a.rank).then(a.candidate.key.cmp(&b.candidate.key)));
        let limit = self.settings.max_processes;
        let mut users = self.probed_by_user(candidates);
        let mut room = limit.saturating_sub(self.count(Mode::Probes));
        let mut queues = Queues::new();
        for (place, wanted) in wanted.into_iter().enumerate() {
            queues
                .entry(wanted.candidate.uid)
                .or_default()
                .push_back((place, wanted));
        }
        while let Some(next) = next_of_all_users(&mut queues, &users) {
            let (key, uid) = (next.candidate.key, next.candidate.uid);
            if room > 0 {
                room -= 1;
                users.entry(uid).or_default().push(key);
                let entry = self.entry(key, next.candidate.comm);
                (entry.origin, entry.interval) = (Some(next.origin), next.interval);
                self.attach(key, Mode::Probes, next.reason);
            } else if let Some((victim, count)) = self.one_of_most(&mut users, uid) {
                // There is room for this one at the next look.
                let reason = format!("its user has {count} of the {limit} traced processes, and another one has fewer");
                self.release(victim, reason, now);
            } else {
                let reason = format!(
                    "{}; but {limit} processes are traced already: raise `trace.max_processes` or stop one",
                    next.reason
                );
                self.entry(key, next.candidate.comm);
                self.refuse(key, reason, now);
            }
        }
    }

    /// Which processes of each user have probes, or are about to.
    fn probed_by_user(&self, candidates: &[Candidate<'_>]) -> BTreeMap<u32, Vec<ProcessKey>> {
        let mut users: BTreeMap<u32, Vec<ProcessKey>> = BTreeMap::new();
        let probed = |candidate: &&Candidate<'_>| self.state(candidate.key).mode() == Some(Mode::Probes);
        for candidate in candidates.iter().filter(probed) {
            users.entry(candidate.uid).or_default().push(candidate.key);
        }
        users
    }

    /// Takes a process from the user who has most of them traced, if that is more than `user` would have with one more; not
    /// one that was asked for by hand. Also tells how many that user has.
    fn one_of_most(&self, users: &mut BTreeMap<u32, Vec<ProcessKey>>, user: u32) -> Option<(ProcessKey, usize)> {
        let own = users.get(&user).map_or(0, Vec::len);
        let (_, most) = users.iter_mut().max_by_key(|(_, processes)| processes.len())?;
        let count = most.len();
        if count <= own + 1 {
            return None;
        }
        let is_free = |key: &&ProcessKey| {
            let origin = self.entries.get(*key).and_then(|entry| entry.origin.as_ref());
            self.is_traced(**key) && origin.is_some_and(|origin| *origin != Origin::Manual)
        };
        let newest = |key: &&ProcessKey| self.entries.get(*key).and_then(|entry| entry.decided);
        let victim = *most.iter().filter(is_free).max_by_key(newest)?;
        most.retain(|key| *key != victim);
        Some((victim, count))
    }

    fn trace_reason(&self, candidate: &Candidate<'_>) -> Option<(Origin, u64, String)> {
        if let Some((name, interval)) = candidate.rule {
            let interval = interval.unwrap_or(self.settings.sample_interval);
            return Some((Origin::Rule(name.to_owned()), interval, format!("rule `{name}`")));
        }
        let growth = candidate.growth.filter(|_| self.settings.auto)?;
        if !growth.steady || growth.per_hour < self.settings.growth_slope {
            return None;
        }
        let reason = format!(
            "anonymous memory grew for {} by {} an hour, from {} to {}; the limit is {} an hour",
            for_people(self.settings.growth_time),
            bytes(growth.per_hour),
            bytes(growth.quarters[0]),
            bytes(growth.quarters[3]),
            bytes(self.settings.growth_slope)
        );
        Some((Origin::Growth, self.settings.sample_interval, reason))
    }

    fn release_reason(&self, candidate: &Candidate<'_>, now: Now) -> Option<String> {
        let entry = self.entries.get(&candidate.key)?;
        match entry.origin.as_ref()? {
            Origin::Manual => None,
            Origin::Rule(name) => match candidate.rule {
                Some(_) => None,
                None => Some(format!("rule `{name}` does not match any more")),
            },
            Origin::Growth => {
                let time = self.settings.release_time;
                let long_enough = now.seconds >= entry.decided?.saturating_add(time);
                let recent = candidate.recent.filter(|growth| long_enough && growth.over >= time)?;
                (!recent.steady || recent.per_hour < self.settings.growth_slope / 2.0).then(|| {
                    format!(
                        "growth has stopped: {} an hour over the last {}",
                        signed(recent.per_hour),
                        for_people(time)
                    )
                })
            }
        }
    }

    fn plan_growth_samples(&mut self, candidates: &[Candidate<'_>], now: Now) {
        let own_pid = self.own_pid;
        let mut growing = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.key.pid != own_pid) {
            let grows = candidate
                .early
                .filter(|growth| growth.steady && growth.per_hour >= self.settings.growth_slope)
                .filter(|_| !candidate.has_own_profile);
            let entry = self.entries.get_mut(&candidate.key);
            let refused = entry.as_ref().and_then(|entry| entry.growth_refused);
            match (entry.map(|entry| &mut entry.state), grows) {
                (Some(State::GrowthSampled { grew, .. }), Some(_)) => *grew = now.seconds,
                (Some(State::GrowthSampled { grew, .. }), None)
                    if candidate.has_own_profile || now.seconds >= grew.saturating_add(self.settings.release_time) =>
                {
                    self.end_growth_sampling(candidate.key);
                }
                (None | Some(State::Idle(_)), Some(growth))
                    if refused.is_none_or(|at| now.seconds >= at.saturating_add(RETRY_AFTER)) =>
                {
                    growing.push((growth.per_hour, candidate));
                }
                _ => {}
            }
        }
        // The limit may have been lowered: those that have not grown for the longest time go first.
        let mut sampled: Vec<(u32, ProcessKey)> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::GrowthSampled { grew, .. } => Some((grew, *key)),
                _ => None,
            })
            .collect();
        sampled.sort_unstable();
        let over = self.count(Mode::Growth).saturating_sub(self.settings.growth_samples);
        for (_, key) in sampled.into_iter().take(over) {
            self.end_growth_sampling(key);
        }
        let paused = |at: u32| now.seconds < at.saturating_add(RETRY_AFTER);
        if self.growth_paused.is_some_and(paused) {
            return;
        }
        self.growth_paused = None;
        growing.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.key.cmp(&b.1.key)));
        let room = self.settings.growth_samples.saturating_sub(self.count(Mode::Growth));
        for (per_hour, candidate) in growing.into_iter().take(room) {
            let reason = format!("its memory began to grow by {} an hour", bytes(per_hour));
            self.entry(candidate.key, candidate.comm);
            self.attach(candidate.key, Mode::Growth, reason);
        }
    }
}
