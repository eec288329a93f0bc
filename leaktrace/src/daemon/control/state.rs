//! One state for each process: what the engine was told to do with it, and what people are told of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::api;

/// How a process is observed by the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Its growth is sampled by stack, without probes.
    Growth,
    /// Probes are in place.
    Probes,
}

/// Who wants a process traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A rule of the configuration, by its name.
    Rule(String),
    /// It grows.
    Growth,
    /// Somebody asked.
    Manual,
}

/// An answer is taken, or given up waiting for; never both. Whoever claims it first decides which, and the other side
/// learns that it came too late: what nobody waits for any more is undone by who did it.
#[derive(Clone, Debug, Default)]
pub struct Settlement(Arc<AtomicBool>);

impl Settlement {
    /// Whether it was free until now.
    pub fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Whether it is not free any more.
    #[cfg(test)]
    pub fn is_claimed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a process is that the engine has nothing to do with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Observed from outside alone.
    #[default]
    Watched,
    /// It should be traced and cannot be.
    Refused,
    /// It was traced until the budget was spent.
    Detached,
}

/// What the engine was told to begin, until it answers.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which; answers to earlier ones are not taken.
    pub number: u64,
    /// What it is about.
    pub mode: Mode,
    /// When the engine was told, in seconds of the own clock.
    pub begun: Option<u32>,
    /// Why.
    pub reason: String,
    /// How it was before.
    pub before: Idle,
    /// Whether it was answered, or given up.
    pub settlement: Settlement,
}

/// The state of a process.
#[derive(Clone, Debug)]
pub enum State {
    /// `Watched`, `Refused` or `Detached`: no part of it is in the kernel.
    Idle(Idle),
    /// Its growth is sampled by stack.
    GrowthSampled {
        /// When it was last seen growing, in seconds of the own clock.
        grew: u32,
        /// Why.
        reason: String,
        /// How it is but for that.
        before: Idle,
    },
    /// The engine attaches to it.
    Attaching(Attempt),
    /// Probes are in place.
    Traced,
    /// The probes are being taken away: until the engine says that they are, nobody is told that it is not traced.
    Releasing {
        /// The command that does it.
        number: u64,
        /// How it is then.
        then: Idle,
    },
    /// It ended, and the engine was told so by the command of this number.
    Gone(u64),
}

impl State {
    /// What the engine does with it once it has done all that it was told, if attaching succeeds.
    pub fn mode(&self) -> Option<Mode> {
        match self {
            Self::GrowthSampled { .. } => Some(Mode::Growth),
            Self::Attaching(attempt) => Some(attempt.mode),
            Self::Traced => Some(Mode::Probes),
            Self::Idle(_) | Self::Releasing { .. } | Self::Gone(_) => None,
        }
    }

    /// How it is, or would be if the engine had nothing to do with it.
    pub fn idle(&self) -> Idle {
        match self {
            Self::Idle(idle) | Self::GrowthSampled { before: idle, .. } | Self::Releasing { then: idle, .. } => *idle,
            Self::Attaching(attempt) => attempt.before,
            Self::Traced | Self::Gone(_) => Idle::Watched,
        }
    }

    /// As people are told it.
    pub fn shown(&self) -> api::TraceState {
        match (self, self.idle()) {
            (Self::Traced | Self::Releasing { .. }, _) => api::TraceState::Traced,
            (Self::Gone(_), _) => api::TraceState::Gone,
            (_, Idle::Watched) => api::TraceState::Watched,
            (_, Idle::Refused) => api::TraceState::Refused,
            (_, Idle::Detached) => api::TraceState::Detached,
        }
    }
}

/// All that is known of a process about which something was decided.
#[derive(Clone, Debug)]
pub struct Entry {
    /// How it is.
    pub state: State,
    /// Why it is, or is not, traced: the last decision on that, in a sentence.
    pub reason: String,
    /// When that was, in nanoseconds since 1970.
    pub since: u64,
    /// The same in seconds of the own clock; `None` before the first.
    pub decided: Option<u32>,
    /// Who wanted it traced last.
    pub origin: Option<Origin>,
    /// The sampling interval that it was to begin with.
    pub interval: u64,
    /// Its name.
    pub comm: String,
    /// Stopped by hand: not traced again until asked.
    pub held: bool,
    /// When its growth could not be sampled.
    pub growth_refused: Option<u32>,
}
