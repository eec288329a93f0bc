//! [`Pusher`]: all targets.
//!
//! Owns the tasks. Invariant: there is one task per target, and none outlives the [`Pusher`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{runtime::Handle, task::JoinHandle, time::timeout_at};

use super::{
    Export,
    backoff::Pace,
    queue::Item,
    settings::TargetSettings,
    target::{Remains, Target},
};
use crate::api::PushFigures;

/// Sends profiles to all targets.
#[derive(Debug)]
pub struct Pusher {
    runtime: Handle,
    host: Arc<str>,
    pace: Pace,
    targets: Mutex<Vec<Running>>,
}

/// A target and its task.
#[derive(Debug)]
struct Running {
    target: Arc<Target>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pusher {
    /// Starts a task per target; `host` is the name of this machine. Settings that do not pass
    /// [`TargetSettings::check`] make a target that drops, counts and tells why.
    ///
    /// # Panics
    /// Outside a tokio runtime. The other methods may be called from any thread.
    pub fn start(targets: Vec<TargetSettings>, host: &str) -> Self {
        Self::start_paced(targets, host, Pace::default())
    }

    /// As [`start`](Self::start), at another pace.
    pub(super) fn start_paced(targets: Vec<TargetSettings>, host: &str, pace: Pace) -> Self {
        let pusher = Self {
            runtime: Handle::current(),
            host: host.into(),
            pace,
            targets: Mutex::default(),
        };
        pusher.reload(targets);
        pusher
    }

    /// Whether there is no target.
    pub fn is_empty(&self) -> bool {
        self.targets().is_empty()
    }

    /// Hands a profile to every target. Never waits: what does not fit into a queue pushes out the oldest there, and is
    /// counted.
    pub fn offer(&self, export: Export) {
        let item = Item::new(export);
        for running in self.targets().iter() {
            running.target.offer(item.clone());
        }
    }

    /// How each target does, in the order of the configuration.
    pub fn figures(&self) -> Vec<PushFigures> {
        self.targets().iter().map(|running| running.target.figures()).collect()
    }

    /// Other targets from now on. Those that did not change go on undisturbed. One that changed but kept its name keeps
    /// its counters and what waits, and one that is gone drops what waits.
    pub fn reload(&self, targets: Vec<TargetSettings>) {
        let mut running = self.targets();
        let mut old = std::mem::take(&mut *running);
        for settings in targets {
            let same = old.iter().position(|before| *before.target.settings() == settings);
            if let Some(same) = same {
                running.push(old.remove(same));
                continue;
            }
            let named = old
                .iter()
                .position(|before| before.target.settings().name == settings.name);
            let remains = named.map_or_else(Remains::default, |named| old.remove(named).target.dissolve());
            let target = Arc::new(Target::new(settings, Arc::clone(&self.host), self.pace, remains));
            let task = self.runtime.spawn(Arc::clone(&target).run());
            running.push(Running { target, task });
        }
        for gone in old {
            let left = gone.target.dissolve().items.len();
            if left > 0 {
                let name = &gone.target.settings().name;
                tracing::warn!(
                    "{left} profiles that waited for `{name}` are dropped: the target is not configured any more"
                );
            }
        }
    }

    /// Sends what waits, until `deadline` at the latest; what is left is dropped and counted, and so is what is offered
    /// from now on. A target that fails three times in a row is given up earlier. Returns the number of profiles left.
    pub async fn flush(&self, deadline: Instant) -> u64 {
        let tasks: Vec<_> = {
            let mut running = self.targets();
            running.iter().for_each(|running| running.target.close());
            // The entries stay, for their figures; an ended task stands in for the one that is awaited.
            let ended = || self.runtime.spawn(std::future::ready(()));
            running
                .iter_mut()
                .map(|running| {
                    (
                        Arc::clone(&running.target),
                        std::mem::replace(&mut running.task, ended()),
                    )
                })
                .collect()
        };
        let mut left = 0;
        for (target, mut task) in tasks {
            if timeout_at(deadline.into(), &mut task).await.is_err() {
                task.abort();
            }
            let here = target.give_up();
            if here > 0 {
                tracing::warn!(
                    "{here} profiles that waited for `{}` are dropped at the end",
                    target.settings().name
                );
            }
            left += here;
        }
        left
    }

    fn targets(&self) -> MutexGuard<'_, Vec<Running>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
