//! The one table of what is done with each process, and why: traced by rule, growth or by hand, its growth sampled
//! without probes, left alone.
//!
//! Pure: what was seen, asked and answered comes in, commands for the engine come out ([`Control::commands`]). `state` has
//! the state of one process, which [`Control::set_state`] alone changes; every change on tracing is a decision with its
//! reason. Invariants: once the engine has done all commands, it observes exactly the processes that the table says, in
//! the way that it says; a command that was given up is undone; this process itself is never traced, since what it does
//! when it reads its own events would feed on itself.

pub mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use self::state::{Attempt, Entry, Idle, Mode, Origin, Settlement, State};
use crate::{
    api,
    model::{
        ProcessKey,
        quantity::{bytes, signed},
    },
    monitor::{clock::Now, growth::Growth},
};

/// Decisions that are remembered.
const MAX_DECISIONS: usize = 2000;
/// How long a process that could not be traced or sampled, or was too expensive, is left alone; in seconds. So long is
/// growth sampling paused, too, when it was found to cost too much.
const RETRY_AFTER: u32 = 600;
/// How long attaching may take, in seconds: one or two with large libraries. The first loads the kernel side, too, and the
/// verifier is slow on an emulated processor.
pub const ATTACH_LIMIT: u32 = 120;

/// How it is decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Trace what grows.
    pub auto: bool,
    /// Most traced processes at once.
    pub max_processes: usize,
    /// Growth in bytes an hour from which on a process is traced.
    pub growth_slope: f64,
    /// How long it must grow, in seconds.
    pub growth_time: u32,
    /// How long it must not, until it is released, in seconds.
    pub release_time: u32,
    /// Mean bytes between samples of a traced process.
    pub sample_interval: u64,
    /// Most processes whose growth is sampled at once.
    pub growth_samples: usize,
    /// Mean bytes of growth between samples.
    pub growth_interval: u64,
}

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

/// Whose turn it is: the first process of the user who has fewest.
fn next_of_all_users(wanted: &[Wanted<'_>], users: &BTreeMap<u32, Vec<ProcessKey>>) -> Option<usize> {
    let count = |wanted: &Wanted<'_>| users.get(&wanted.candidate.uid).map_or(0, Vec::len);
    (0..wanted.len()).min_by_key(|index| count(&wanted[*index]))
}

/// What the engine is to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Attach to a process, and answer with [`Control::attached`] if the settlement can be claimed; else undo it.
    Attach {
        /// Which.
        key: ProcessKey,
        /// How.
        mode: Mode,
        /// Mean bytes between samples.
        interval: u64,
        /// Which attempt the answer is to.
        number: u64,
        /// Between the answer and the end of waiting.
        settlement: Settlement,
    },
    /// Detach from a process, if attached, and answer with [`Control::released`].
    Release {
        /// Which.
        key: ProcessKey,
        /// Which command the answer is to.
        number: u64,
        /// Make a last profile.
        last_profile: bool,
    },
    /// Change the sampling interval of a traced process.
    Interval {
        /// Which.
        key: ProcessKey,
        /// Mean bytes between samples.
        interval: u64,
        /// Why.
        reason: String,
    },
}

/// The table.
pub struct Control {
    settings: Settings,
    own_pid: u32,
    entries: HashMap<ProcessKey, Entry>,
    decisions: VecDeque<api::Decision>,
    commands: Vec<Command>,
    /// That of the last command.
    number: u64,
    /// Since when growth sampling is paused.
    growth_paused: Option<u32>,
    /// How often something changed that people are told.
    revision: u64,
}

impl Control {
    /// Knows nothing yet.
    pub fn new(settings: Settings, own_pid: u32) -> Self {
        Self {
            settings,
            own_pid,
            entries: HashMap::new(),
            decisions: VecDeque::new(),
            commands: Vec::new(),
            number: 0,
            growth_paused: None,
            revision: 0,
        }
    }

    /// Other settings from now on. What is traced by a rule that is gone is released by the next plan.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// What the engine is to do, in this order; each once.
    pub fn commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// The state of a process.
    pub fn state(&self, key: ProcessKey) -> &State {
        const WATCHED: &State = &State::Idle(Idle::Watched);
        self.entries.get(&key).map_or(WATCHED, |entry| &entry.state)
    }

    /// Whether probes are in place in a process.
    pub fn is_traced(&self, key: ProcessKey) -> bool {
        matches!(self.state(key), State::Traced)
    }

    /// Processes that the engine observes, or is about to, and how.
    pub fn observed(&self) -> impl Iterator<Item = (ProcessKey, Mode)> + '_ {
        self.entries
            .iter()
            .filter_map(|(key, entry)| Some((*key, entry.state.mode()?)))
    }

    fn count(&self, mode: Mode) -> usize {
        self.observed().filter(|(_, of)| *of == mode).count()
    }

    /// The sampling interval that a process was to begin with.
    pub fn wanted_interval(&self, key: ProcessKey) -> u64 {
        self.entries
            .get(&key)
            .map_or(self.settings.sample_interval, |entry| entry.interval)
    }

    /// What people are told of a process. Cost and interval are not known here.
    pub fn tracing(&self, key: ProcessKey, started: u64) -> api::Tracing {
        let entry = self.entries.get(&key);
        let reason = match entry.map(|entry| (&entry.state, entry.reason.as_str())) {
            Some((State::Attaching(attempt), _)) if attempt.mode == Mode::Probes => {
                format!("attaching: {}", attempt.reason)
            }
            None | Some((_, "")) => "its memory does not grow steadily, and no rule names it".to_owned(),
            Some((_, reason)) => reason.to_owned(),
        };
        api::Tracing {
            state: self.state(key).shown(),
            reason,
            since: entry
                .filter(|entry| entry.decided.is_some())
                .map_or(started, |entry| entry.since),
            sample_interval: None,
            cost: None,
            hits: None,
            suspect: match self.state(key) {
                State::GrowthSampled { reason, .. } => Some(reason.clone()),
                _ => None,
            },
        }
    }

    /// How often something changed that people are told.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Decisions, newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &api::Decision> {
        self.decisions.iter()
    }

    // What was seen.

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
        while let Some(index) = next_of_all_users(&wanted, &users) {
            let next = wanted.remove(index);
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

    /// A process ended. Returns whether the engine has to do with it: what it held is worth a last profile.
    pub fn gone(&mut self, key: ProcessKey) -> bool {
        match self.state(key) {
            State::Gone(_) => return false,
            State::Releasing { number, .. } => self.set_state(key, State::Gone(*number), true),
            state if state.mode().is_some() => self.set_state(key, State::Gone(self.number + 1), true),
            _ => {
                self.entries.remove(&key);
                return false;
            }
        }
        true
    }

    // What was asked.

    /// Somebody asks for a process to be traced.
    pub fn start(&mut self, key: ProcessKey, comm: &str, interval: Option<u64>, now: Now) {
        let interval = interval.unwrap_or(self.settings.sample_interval);
        let reason = "asked for by hand".to_owned();
        let entry = self.entry(key, comm);
        (entry.held, entry.origin, entry.interval) = (false, Some(Origin::Manual), interval);
        match &mut entry.state {
            State::Traced => self.decide(key, "trace", reason, now),
            State::Attaching(attempt) if attempt.mode == Mode::Probes => attempt.reason = reason,
            State::Gone(_) => {}
            _ => self.attach(key, Mode::Probes, reason),
        }
    }

    /// Somebody asks for a process not to be traced any more. Returns the number of the command that does it; `None` if it
    /// was not traced, or about to be.
    pub fn stop(&mut self, key: ProcessKey, now: Now) -> Option<u64> {
        if self.state(key).mode() != Some(Mode::Probes) {
            return None;
        }
        let reason = "stopped by hand; it is not traced again until asked for".to_owned();
        self.release(key, reason, now);
        self.entries.get_mut(&key)?.held = true;
        Some(self.number)
    }

    /// A process is not to be traced any more.
    pub fn release(&mut self, key: ProcessKey, reason: String, now: Now) {
        if self.state(key).mode() == Some(Mode::Probes) {
            self.set_state(key, State::Idle(Idle::Watched), false);
            self.decide(key, "release", reason, now);
        }
    }

    /// The engine has taken a process's probes away by itself: what they stood on has changed.
    pub fn withdrawn(&mut self, key: ProcessKey, reason: String, now: Now) {
        if self.is_traced(key) {
            self.set_state(key, State::Idle(Idle::Refused), false);
            self.decide(key, "refuse", reason, now);
        }
    }

    /// A process is too expensive: its probes are taken away.
    pub fn detach(&mut self, key: ProcessKey, reason: String, now: Now) {
        if self.is_traced(key) {
            self.set_state(key, State::Idle(Idle::Detached), true);
            self.decide(key, "detach", reason, now);
        }
    }

    /// A process is to have another sampling interval.
    pub fn set_interval(&mut self, key: ProcessKey, interval: u64, reason: String, now: Now) {
        if self.is_traced(key) {
            self.decide_aside(
                key,
                "interval",
                format!("now {}: {reason}", bytes(interval as f64)),
                now,
            );
            self.commands.push(Command::Interval { key, interval, reason });
        }
    }

    /// Growth sampling costs too much: it is paused. Returns whether there was any.
    pub fn pause_growth_sampling(&mut self, now: Now) -> bool {
        let sampled: Vec<ProcessKey> = self
            .observed()
            .filter(|(_, mode)| *mode == Mode::Growth)
            .map(|(key, _)| key)
            .collect();
        self.growth_paused = Some(now.seconds);
        sampled.iter().for_each(|key| self.end_growth_sampling(*key));
        !sampled.is_empty()
    }

    // What was answered.

    /// The engine was told to attach to a process: its time begins.
    pub fn begun(&mut self, key: ProcessKey, number: u64, now: Now) {
        if let Some(entry) = self.entries.get_mut(&key)
            && let State::Attaching(attempt) = &mut entry.state
            && attempt.number == number
        {
            attempt.begun = Some(now.seconds);
        }
    }

    /// Whether this attempt goes on.
    pub fn is_attempting(&self, key: ProcessKey, number: u64) -> bool {
        matches!(self.state(key), State::Attaching(attempt) if attempt.number == number)
    }

    /// The engine has attached to a process, or failed to. An answer to an attempt that is over changes nothing: a command
    /// that undoes it is on its way.
    pub fn attached(&mut self, key: ProcessKey, number: u64, result: Result<(), String>, now: Now) {
        let State::Attaching(attempt) = self.state(key) else {
            return;
        };
        if attempt.number != number {
            return;
        }
        let Attempt {
            mode, reason, before, ..
        } = attempt.clone();
        match (mode, result) {
            (Mode::Probes, Ok(())) => {
                self.set_state(key, State::Traced, false);
                self.decide(key, "trace", reason, now);
            }
            (Mode::Growth, Ok(())) => {
                let grew = now.seconds;
                self.set_state(key, State::GrowthSampled { grew, reason, before }, false);
            }
            (Mode::Probes, Err(why)) => {
                self.set_state(key, State::Idle(Idle::Refused), false);
                self.decide(key, "refuse", why, now);
            }
            (Mode::Growth, Err(why)) => {
                tracing::info!("failed to sample the growth of pid {}: {why}", key.pid);
                self.set_state(key, State::Idle(before), false);
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.growth_refused = Some(now.seconds);
                }
            }
        }
    }

    /// The engine has detached from a process. Returns whether that is the last that was to be done for one that ended.
    pub fn released(&mut self, key: ProcessKey, number: u64) -> bool {
        match *self.state(key) {
            State::Gone(last) if last == number => self.entries.remove(&key).is_some(),
            State::Releasing { number: last, then } if last == number => {
                self.set_state(key, State::Idle(then), false);
                false
            }
            _ => false,
        }
    }

    /// Attempts that took too long are over; the engine undoes them when it comes to their end.
    pub fn give_up(&mut self, now: Now) {
        let overdue: Vec<(ProcessKey, u64)> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| match &entry.state {
                State::Attaching(attempt)
                    if attempt.begun.is_some_and(|begun| now.seconds >= begun.saturating_add(ATTACH_LIMIT))
                        // Else the answer is on its way.
                        && attempt.settlement.claim() =>
                {
                    Some((*key, attempt.number))
                }
                _ => None,
            })
            .collect();
        for (key, number) in overdue {
            let why = format!(
                "attaching to pid {} took longer than {ATTACH_LIMIT} s: given up",
                key.pid
            );
            self.attached(key, number, Err(why), now);
        }
    }

    // How the table changes.

    fn entry(&mut self, key: ProcessKey, comm: &str) -> &mut Entry {
        self.entries.entry(key).or_insert_with(|| Entry {
            state: State::Idle(Idle::Watched),
            reason: String::new(),
            since: 0,
            decided: None,
            origin: None,
            interval: self.settings.sample_interval,
            comm: comm.to_owned(),
            held: false,
            growth_refused: None,
        })
    }

    /// The only place where a state changes. Whatever leaves the kernel's care is released: also an attempt that failed or
    /// was given up, which the engine may have done half.
    fn set_state(&mut self, key: ProcessKey, state: State, last_profile: bool) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        self.revision += 1;
        let before = std::mem::replace(&mut entry.state, state);
        match &entry.state {
            State::Attaching(attempt) => self.commands.push(Command::Attach {
                key,
                mode: attempt.mode,
                interval: match attempt.mode {
                    Mode::Probes => entry.interval,
                    Mode::Growth => self.settings.growth_interval,
                },
                number: attempt.number,
                settlement: attempt.settlement.clone(),
            }),
            after if before.mode().is_some() && after.mode().is_none() => {
                self.number += 1;
                if let (State::Traced, State::Idle(then)) = (&before, after) {
                    entry.state = State::Releasing {
                        number: self.number,
                        then: *then,
                    };
                }
                self.commands.push(Command::Release {
                    key,
                    number: self.number,
                    last_profile,
                });
            }
            _ => {}
        }
    }

    /// The engine takes away what it had of a process when it attaches to it in another way.
    fn attach(&mut self, key: ProcessKey, mode: Mode, reason: String) {
        self.number += 1;
        let attempt = Attempt {
            number: self.number,
            mode,
            begun: None,
            reason,
            before: self.state(key).idle(),
            settlement: Settlement::default(),
        };
        self.set_state(key, State::Attaching(attempt), false);
    }

    fn end_growth_sampling(&mut self, key: ProcessKey) {
        let before = self.state(key).idle();
        self.set_state(key, State::Idle(before), false);
    }

    /// A process is not even tried. Sampling its growth goes on.
    fn refuse(&mut self, key: ProcessKey, reason: String, now: Now) {
        if let Some(entry) = self.entries.get_mut(&key) {
            match &mut entry.state {
                State::GrowthSampled { before, .. } | State::Idle(before) => *before = Idle::Refused,
                State::Attaching(_) | State::Traced | State::Releasing { .. } | State::Gone(_) => return,
            }
        }
        self.decide(key, "refuse", reason, now);
    }

    /// Notes why a process is, or is not, traced from now on.
    fn decide(&mut self, key: ProcessKey, action: &str, reason: String, now: Now) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.reason.clone_from(&reason);
            (entry.since, entry.decided) = (now.wall, Some(now.seconds));
        }
        self.decide_aside(key, action, reason, now);
    }

    /// Notes a decision that does not change that.
    fn decide_aside(&mut self, key: ProcessKey, action: &str, reason: String, now: Now) {
        let comm = self
            .entries
            .get(&key)
            .map(|entry| entry.comm.clone())
            .unwrap_or_default();
        tracing::info!("{action} pid {} ({}): {reason}", key.pid, comm.escape_debug());
        self.revision += 1;
        self.decisions.truncate(MAX_DECISIONS - 1);
        self.decisions.push_front(api::Decision {
            time: now.wall,
            process: api::Key {
                pid: key.pid,
                start_time: key.start_time,
            },
            comm,
            action: action.to_owned(),
            reason,
        });
    }
}

/// Seconds as people write them.
fn for_people(seconds: u32) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds.into())).to_string()
}
