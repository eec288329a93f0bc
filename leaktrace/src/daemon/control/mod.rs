//! The one table of what is done with each process, and why: traced by rule, growth or by hand, its growth sampled
//! without probes, left alone.
//!
//! Pure: what was seen, asked and answered comes in, commands for the engine come out ([`Control::commands`]). `state` has
//! the state of one process, which [`Control::set_state`] alone changes, `plan` what is to be done by what was seen; every change on tracing is a decision with its
//! reason. Invariants: once the engine has done all commands, it observes exactly the processes that the table says, in
//! the way that it says; a command that was given up is undone; this process itself is never traced, since what it does
//! when it reads its own events would feed on itself.

pub mod plan;
pub mod state;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use self::state::{Attempt, Entry, Idle, Mode, Origin, Settlement, State};
use crate::{
    api,
    model::{ProcessKey, quantity::bytes},
    monitor::clock::Now,
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
