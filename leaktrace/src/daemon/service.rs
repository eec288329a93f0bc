//! What the parts of the daemon share: the monitor of processes, the policy, the engine, the store, the push targets.
//!
//! Locks are held for moments, at most for a look at `/proc` or one read of a collector, and never while a process is
//! attached to; where two are needed, the monitor's is taken first. Answers to the HTTP side are in `answers`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    backend::Snapshot,
    config::Config,
    growth_sampling::{self, Change, Suspects},
    own,
    policy::{self, Candidate, Policy, Wish},
    push::Pusher,
    store::Store,
    trace::engine::{Engine, Readings},
};
use crate::{
    api,
    model::ProcessKey,
    monitor::{
        Monitor,
        clock::{Clock, Now, seconds},
    },
    report::profile::Profile,
    session::{live::Moment, managed::ManagedHeap},
    symbolize::Symbolizer,
};

/// How long a look at all processes may take, beyond twice the interval.
const WATCHER_PATIENCE: Duration = Duration::from_secs(120);

/// The daemon's parts.
pub struct Service {
    pub(super) config: RwLock<Arc<Config>>,
    pub(super) clock: Clock,
    pub(super) monitor: Mutex<Monitor>,
    pub(super) policy: Mutex<Policy>,
    pub(super) suspects: Mutex<Suspects>,
    pub(super) engine: Engine,
    pub(super) store: Mutex<Store>,
    pub(super) pusher: Pusher,
    pub(super) snapshot: RwLock<Arc<Snapshot>>,
    /// When the snapshot was published, by the own clock.
    pub(super) published: AtomicU32,
    pub(super) own: Mutex<own::Figures>,
    pub(super) host: String,
    pub(super) started: u64,
    /// What does not work at the moment, by what it is about.
    pub(super) troubles: Mutex<HashMap<&'static str, String>>,
}

/// A lock whose holder panicked still holds data that is whole enough to be shown.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Service {
    /// The configuration in effect.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(|poison| poison.into_inner()))
    }

    /// All processes as of the last look.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(|poison| poison.into_inner()))
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(snapshot);
        self.published.store(self.clock.now().seconds, Ordering::Relaxed);
    }

    /// How long ago processes were published last; the wall's clock may jump meanwhile.
    pub(super) fn since_published(&self) -> Duration {
        let published = self.published.load(Ordering::Relaxed);
        Duration::from_secs(self.clock.now().seconds.saturating_sub(published).into())
    }

    /// Which part does not do its work any more, if one does not.
    pub(super) fn stuck(&self) -> Option<String> {
        // Alive means that the watching thread still publishes.
        let allowed = self.config().watch.interval * 2 + WATCHER_PATIENCE;
        let silent = self.since_published();
        if silent >= allowed {
            return Some(format!("processes have not been looked at for {} s", silent.as_secs()));
        }
        self.engine
            .stuck()
            .map(|time| format!("tracing has been stuck for {} s", time.as_secs()))
    }

    /// Says that something does not work, or that it works again.
    pub(super) fn trouble(&self, about: &'static str, what: Option<String>) {
        let mut troubles = lock(&self.troubles);
        match what {
            Some(what) => {
                if troubles.get(about) != Some(&what) {
                    tracing::warn!("{what}");
                }
                troubles.insert(about, what);
            }
            None => {
                if troubles.remove(about).is_some() {
                    tracing::info!("{about}: works again");
                }
            }
        }
    }

    /// A process's key and identity, if it is watched.
    pub(super) fn identity(&self, pid: u32) -> Option<(ProcessKey, Arc<api::Identity>)> {
        lock(&self.monitor).identity(pid)
    }

    /// How a process stands, with what it costs.
    pub(super) fn tracing(&self, policy: &Policy, key: ProcessKey, started: u64, readings: &Readings) -> api::Tracing {
        let mut tracing = policy.tracing(key, started);
        tracing.suspect = lock(&self.suspects).reason(key).map(str::to_owned);
        if tracing.state == api::TraceState::Traced {
            let reading = readings.targets.get(&key).copied().unwrap_or_default();
            tracing.sample_interval = Some(reading.interval);
            tracing.cost = reading.cost.map(|cost| cost.total());
            tracing.hits = reading.cost.map(|cost| cost.hits);
        }
        tracing
    }

    /// Does what the policy wishes, and tells it what became of it.
    pub(super) fn fulfil(&self, wish: Wish) {
        match wish {
            Wish::Trace { key, interval, reason } => {
                let result = self.engine.trace(key, interval);
                let mut policy = lock(&self.policy);
                match result {
                    Ok(()) => policy.traces(key, reason, self.clock.now()),
                    Err(error) => policy.refused(key, error.to_string(), self.clock.now()),
                }
            }
            Wish::Release { key, reason } => {
                self.engine.release(key);
                lock(&self.policy).released(key, reason, self.clock.now());
            }
        }
    }

    /// Candidates for the policy, by the configuration's rules.
    pub(super) fn wishes(&self, config: &Config, now: Now) -> Vec<Wish> {
        let monitor = lock(&self.monitor);
        let release = seconds(config.watch.release_time);
        let mut policy = lock(&self.policy);
        let candidates: Vec<Candidate<'_>> = monitor
            .iter()
            .map(|watched| Candidate {
                key: watched.key,
                comm: &watched.identity.comm,
                uid: watched.identity.uid,
                rule: config
                    .trace
                    .rules
                    .iter()
                    .find(|rule| rule.matches(&watched.identity))
                    .map(|rule| (rule.name.as_str(), rule.sample_interval)),
                growth: watched.growth,
                lately: policy
                    .is_traced(watched.key)
                    .then(|| watched.growth_over(release))
                    .flatten(),
            })
            .collect();
        policy.look(&candidates, now)
    }

    /// Follows the growth of what begins to grow, and no longer that of what has stopped.
    pub(super) fn follow_suspects(&self, config: &Config, now: Now) {
        let settings = growth_sampling::Settings {
            limit: config.watch.suspects,
            slope: config.watch.growth_slope,
            release_time: seconds(config.watch.release_time),
        };
        let candidates = self.suspect_candidates(seconds(config.watch.growth_time / 4));
        let changes = lock(&self.suspects).look(&candidates, settings, now.seconds);
        for change in changes {
            match change {
                Change::Leave(key) => self.engine.leave(key),
                Change::Follow(key) => {
                    if let Err(error) = self.engine.suspect(key, config.watch.suspect_interval) {
                        tracing::info!("the growth of pid {} is not followed: {error}", key.pid);
                        lock(&self.suspects).refused(key, now.seconds);
                    }
                }
            }
        }
    }

    fn suspect_candidates(&self, window: u32) -> Vec<growth_sampling::Candidate> {
        let monitor = lock(&self.monitor);
        let policy = lock(&self.policy);
        let own = std::process::id();
        monitor
            .iter()
            .filter(|watched| watched.key.pid != own)
            .map(|watched| growth_sampling::Candidate {
                key: watched.key,
                growth: watched.growth_over(window),
                better: watched.identity.runtime.is_managed() || policy.is_traced(watched.key),
            })
            .collect()
    }

    /// A profile of a traced process as of now.
    pub(super) fn moment(&self, key: ProcessKey) -> Option<Moment> {
        self.engine.capture(key)
    }
}

/// Makes a profile of a traced process; may take a second. Symbols are not kept between two: a daemon's memory is worth
/// more than a second every minute. `earlier` is the managed heap that the profile before left; this one leaves another.
pub(super) fn profile_of(moment: Moment, earlier: Option<ManagedHeap>) -> (Profile, Option<ManagedHeap>) {
    moment.profile(&Symbolizer::new(), earlier)
}

/// The policy's part of the configuration.
pub(super) fn policy_settings(config: &Config) -> policy::Settings {
    policy::Settings {
        auto: config.trace.auto,
        max_processes: config.trace.max_processes,
        growth_slope: config.watch.growth_slope,
        growth_time: seconds(config.watch.growth_time),
        release_time: seconds(config.watch.release_time),
        sample_interval: config.trace.sample_interval,
    }
}
