//! The loop that makes profiles from time to time, stores them and hands them to the push targets.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    api, moment,
    push::Export,
    service::{Service, lock, profile_of},
    store::{Heap, NewEntry, StoreError},
};
use crate::{
    export::pprof, model::ProcessKey, proc::memory, report::profile::Profile, runtime::go::GoProcess,
    session::live::Moment,
};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the store's limits.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// Processes that are remembered between two exports.
const MAX_IDENTITIES: usize = 4096;

/// Something to do.
pub enum Job {
    /// A last profile of a process that ended, or that is detached from.
    Last(ProcessKey, Arc<api::Identity>, Box<Moment>),
    /// A process ended.
    Gone(ProcessKey),
    /// Last profiles of everything, at once; then end, and say so.
    Finish {
        /// When to give up.
        deadline: Instant,
    },
}

/// The loop's state.
pub struct Exporter {
    service: Arc<Service>,
    /// When each process was last exported, and who it is: it may be gone when its last profile is made.
    last: HashMap<ProcessKey, Last>,
    tidied: Instant,
    /// A profile was made since the last turn.
    worked: bool,
}

struct Last {
    at: Instant,
    /// The end of its last profile, in nanoseconds since 1970.
    told: Option<u64>,
    identity: Arc<api::Identity>,
}

impl Last {
    /// Of a process that was not exported yet.
    fn new(identity: Arc<api::Identity>) -> Self {
        Self {
            at: Instant::now(),
            told: None,
            identity,
        }
    }
}

impl Exporter {
    /// Makes the loop.
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            last: HashMap::new(),
            tidied: Instant::now(),
            worked: false,
        }
    }

    /// Exports until told to finish.
    pub fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let mut due = Instant::now() + TICK;
        loop {
            match jobs.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Job::Last(key, identity, moment)) => {
                    self.last.entry(key).or_insert_with(|| Last::new(identity));
                    self.export_moment(key, *moment);
                }
                Ok(Job::Gone(key)) => {
                    self.last.remove(&key);
                }
                Ok(Job::Finish { deadline }) => {
                    self.finish(deadline);
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.turn();
                    due = Instant::now() + TICK;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn turn(&mut self) {
        let config = self.service.config();
        let snapshot = self.service.snapshot();
        for process in &snapshot.processes {
            let traced = process.tracing.state == api::TraceState::Traced;
            let is_go = process.identity.runtime == api::Runtime::Go;
            let followed = traced || process.tracing.suspect.is_some();
            let interval = match (followed, is_go) {
                (true, _) => config.export.interval,
                (false, true) => config.export.go_interval,
                (false, false) => continue,
            };
            let key = ProcessKey {
                pid: process.identity.pid,
                start_time: process.identity.start_time,
            };
            let Some(last) = self.last.get_mut(&key) else {
                if self.last.len() < MAX_IDENTITIES {
                    self.last.insert(key, Last::new(Arc::new(process.identity.clone())));
                }
                continue;
            };
            if last.at.elapsed() < interval {
                continue;
            }
            last.at = Instant::now();
            if last.identity.comm != process.identity.comm {
                last.identity = Arc::new(process.identity.clone());
            }
            if followed {
                if let Some(moment) = self.service.moment(key) {
                    self.export_moment(key, moment);
                }
            } else {
                self.export_go(key);
            }
        }
        if std::mem::take(&mut self.worked) {
            // Naming addresses takes tens of megabytes for a moment.
            memory::give_back();
        }
        if self.tidied.elapsed() >= TIDY_EVERY {
            self.tidied = Instant::now();
            lock(&self.service.store).tidy(moment::wall());
        }
    }

    fn export_moment(&mut self, key: ProcessKey, moment: Moment) {
        let heap = match (moment.is_growth(), moment.is_go()) {
            (true, _) => Heap::Growth,
            (false, true) => Heap::Both,
            (false, false) => Heap::Native,
        };
        self.export(key, heap, profile_of(moment));
    }

    fn export_go(&mut self, key: ProcessKey) {
        // Attaching reads the program's function table: once for both.
        let process = match GoProcess::attach(key.pid) {
            Ok(process) => process,
            Err(error) => {
                tracing::debug!("no Go profile of pid {}: {error}", key.pid);
                return;
            }
        };
        match Service::go_profile(&process) {
            Ok(profile) => self.export(key, Heap::Go, profile),
            Err(error) => tracing::debug!("no Go profile of pid {}: {error}", key.pid),
        }
        if let Ok(snapshot) = process.goroutines() {
            let now = self.service.clock.now();
            let count = u32::try_from(snapshot.goroutines.len()).ok();
            lock(&self.service.table).note(key, now.seconds, |inside| inside.goroutines = count);
        }
    }

    fn export(&mut self, key: ProcessKey, heap: Heap, profile: Profile) {
        self.worked = true;
        let end = moment::wall();
        let (identity, begin) = match self.last.get_mut(&key) {
            Some(last) => (Arc::clone(&last.identity), last.told.replace(end)),
            None => match self.service.identity(key.pid).filter(|(known, _)| *known == key) {
                Some((_, identity)) => (identity, None),
                None => return,
            },
        };
        let begin = begin.unwrap_or_else(|| u64::try_from(profile.time_nanos).unwrap_or(end));
        let mut bytes = Vec::new();
        if let Err(error) = pprof::write(&profile, &mut bytes) {
            tracing::warn!("failed to encode the profile of pid {}: {error}", key.pid);
            return;
        }
        let in_use = profile
            .sample_type(Some("inuse_space"))
            .map(|column| profile.samples.iter().map(|sample| sample.values[column]).sum())
            .unwrap_or(0);
        let stored = lock(&self.service.store).put(&NewEntry {
            identity: &identity,
            begin,
            end,
            heap,
            in_use,
            bytes: &bytes,
        });
        match stored {
            // A pause is told by the store itself.
            Ok(_) | Err(StoreError::Paused { .. }) => self.service.trouble("store", None),
            Err(error) => self.service.trouble("store", Some(error.to_string())),
        }
        self.service.pusher.offer(Export {
            identity,
            begin,
            end,
            profile: Arc::new(profile),
            pprof: bytes.into(),
        });
    }

    /// Last profiles of all traced processes, as many as there is time for.
    fn finish(&mut self, deadline: Instant) {
        let traced: Vec<ProcessKey> = lock(&self.service.policy).traced().collect();
        // Copies first: they are what detaching takes away.
        let moments: Vec<(ProcessKey, Moment)> = traced
            .into_iter()
            .filter_map(|key| Some((key, self.service.moment(key)?)))
            .collect();
        for (key, moment) in moments {
            if Instant::now() >= deadline {
                tracing::warn!("no time for the last profile of pid {}", key.pid);
                continue;
            }
            self.export_moment(key, moment);
        }
    }
}
