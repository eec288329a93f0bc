//! What the parts of the daemon share: the monitor of processes, the engine, the store, the push targets.
//!
//! Locks are held for moments, at most for a look at `/proc` and at collectors, and never two at once, nor while a process
//! is attached to. What is done with processes is the controller's alone; here is what it published last. Answers to the
//! HTTP side are in `answers`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use super::{
    backend::Snapshot, config::Config, control::state::Mode, controller::Message, own, push::Pusher, store::Store,
    trace::engine::Engine,
};
use crate::{
    api,
    model::ProcessKey,
    monitor::{Monitor, clock::Clock},
    report::profile::Profile,
    session::{live::Moment, managed::ManagedHeap},
    symbolize::Symbolizer,
};

/// How long a look at all processes may take, over twice the interval.
const WATCHER_PATIENCE: Duration = Duration::from_secs(120);

/// The daemon's parts.
pub struct Service {
    pub(super) config: RwLock<Arc<Config>>,
    pub(super) clock: Clock,
    pub(super) monitor: Mutex<Monitor>,
    pub(super) engine: Engine,
    /// To the controller.
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) store: Mutex<Store>,
    pub(super) pusher: Pusher,
    pub(super) snapshot: RwLock<Arc<Snapshot>>,
    /// When the snapshot was published, by the own clock.
    pub(super) published: AtomicU32,
    pub(super) decided: RwLock<Arc<Published>>,
    pub(super) own: Mutex<own::Figures>,
    pub(super) host: String,
    pub(super) started: u64,
    /// What does not work at the moment, by what it is about.
    pub(super) troubles: Mutex<HashMap<&'static str, String>>,
}

/// What the controller has decided, as of its last decision.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Newest first.
    pub decisions: Vec<api::Decision>,
    /// Processes that the engine observes, and how.
    pub observed: Vec<(ProcessKey, Mode)>,
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

    /// What was decided, and the rows of the list with it.
    pub(super) fn republish(&self, decided: Published, update: impl FnMut(&mut api::Process)) {
        *self.decided.write().unwrap_or_else(|poison| poison.into_inner()) = Arc::new(decided);
        let mut snapshot = self.snapshot.write().unwrap_or_else(|poison| poison.into_inner());
        Arc::make_mut(&mut snapshot).processes.iter_mut().for_each(update);
    }

    /// What was decided last.
    pub(super) fn decided(&self) -> Arc<Published> {
        Arc::clone(&self.decided.read().unwrap_or_else(|poison| poison.into_inner()))
    }

    /// How many processes are observed in this way.
    pub(super) fn count(&self, mode: Mode) -> usize {
        self.decided().observed.iter().filter(|(_, of)| *of == mode).count()
    }

    /// What people are told of a process, if it was seen.
    pub(super) fn tracing(&self, key: ProcessKey) -> Option<api::Tracing> {
        let snapshot = self.snapshot();
        let is_it =
            |process: &&api::Process| (process.identity.pid, process.identity.start_time) == (key.pid, key.start_time);
        snapshot
            .processes
            .iter()
            .find(is_it)
            .map(|process| process.tracing.clone())
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

    /// Says that something does not work, or that it has recovered.
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
                    tracing::info!("{about}: recovered");
                }
            }
        }
    }

    /// A process's key and identity, if it is watched.
    pub(super) fn identity(&self, pid: u32) -> Option<(ProcessKey, Arc<api::Identity>)> {
        lock(&self.monitor).identity(pid)
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
