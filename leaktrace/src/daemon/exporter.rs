//! The loop that makes profiles from time to time, stores them and hands them to the push targets.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    push::{Export, Origin, Origins, Since},
    service::{Service, lock, profile_of},
    store::{Heap, NewEntry, StoreError},
};
use crate::{
    api,
    export::pprof,
    model::ProcessKey,
    monitor::{
        clock::{before, since_1970, wall},
        goroutines::Goroutines,
    },
    proc::{identity, living, memory},
    report::profile::Profile,
    runtime,
    session::{live::Moment, managed::ManagedHeap},
};

/// Between two looks at what is due.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at the store's limits.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// Bytes that the Go heaps of all traced processes may take between two exports: a process whose heap finds no room has
/// none in its last profile.
const KEPT_HEAPS: usize = 16 << 20;
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
    /// When its last profile was made.
    told: Option<Instant>,
    /// What was sent of it.
    since: Since,
    /// It was not traced at the last turn.
    untraced: bool,
    identity: Arc<api::Identity>,
    /// The managed heap of its last profile, and how many programs it had run before that one: what its very last profile has
    /// if it ends before the next.
    managed: Option<(u64, ManagedHeap)>,
}

impl Last {
    /// Notes whether it is traced; what was sent of native allocations is forgotten at the second turn without, since a
    /// last profile that was on its way at the first one is made by then.
    fn note(&mut self, traced: bool) {
        if self.untraced && !traced {
            self.since.forget_native();
        }
        self.untraced = !traced;
    }

    /// Of a process that was not exported yet.
    fn new(identity: Arc<api::Identity>) -> Self {
        Self {
            at: Instant::now(),
            told: None,
            since: Since::default(),
            untraced: false,
            identity,
            managed: None,
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
            let is_managed = process.identity.runtime.is_managed();
            let followed = traced || process.tracing.suspect.is_some();
            let key = ProcessKey {
                pid: process.identity.pid,
                start_time: process.identity.start_time,
            };
            if let Some(last) = self.last.get_mut(&key) {
                last.note(followed);
            }
            let interval = match (followed, is_managed) {
                (true, _) => config.export.interval,
                (false, true) => config.export.go_interval,
                (false, false) => continue,
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
                self.export_managed(key);
            }
        }
        if std::mem::take(&mut self.worked) {
            // Naming addresses takes tens of megabytes for a moment.
            memory::give_back();
        }
        if self.tidied.elapsed() >= TIDY_EVERY {
            self.tidied = Instant::now();
            lock(&self.service.store).tidy(wall());
        }
    }

    fn export_moment(&mut self, key: ProcessKey, moment: Moment) {
        let is_managed = moment.is_managed();
        let heap = match (moment.is_growth(), is_managed) {
            (true, _) => Heap::Growth,
            (false, true) => Heap::Both,
            (false, false) => Heap::Native,
        };
        let (attached, programs) = moment.origin();
        let origins = Origins {
            native: Some(Origin {
                run: [since_1970(attached), programs],
                age: moment.age(),
            }),
            managed: is_managed.then(|| origin_of_managed(key)).flatten(),
        };
        // That of another program would be told as this one's.
        let earlier = self.last.get_mut(&key).and_then(|last| last.managed.take());
        let earlier = earlier.filter(|(of, _)| *of == programs).map(|(_, heap)| heap);
        let (profile, managed) = profile_of(moment, earlier);
        self.keep(key, managed.map(|heap| (programs, heap)));
        self.export(key, heap, profile, origins);
    }

    fn keep(&mut self, key: ProcessKey, heap: Option<(u64, ManagedHeap)>) {
        let kept = self.last.values().filter_map(|last| last.managed.as_ref());
        let room = KEPT_HEAPS.saturating_sub(kept.map(|(_, heap)| heap.memory()).sum());
        if let Some(last) = self.last.get_mut(&key) {
            last.managed = heap.filter(|(_, heap)| heap.memory() <= room);
        }
    }

    fn export_managed(&mut self, key: ProcessKey) {
        // Attaching reads the program's function table: once for both.
        let process = match runtime::attach(key.pid) {
            Ok(process) => process,
            Err(error) => {
                tracing::debug!("failed to read the runtime of pid {}: {error}", key.pid);
                return;
            }
        };
        let origins = Origins {
            native: None,
            managed: origin_of_managed(key),
        };
        match process.heap() {
            Ok(heap) => self.export(key, Heap::Go, heap.profile(wall() as i64), origins),
            Err(error) => tracing::debug!("failed to read the heap of pid {}: {error}", key.pid),
        }
        if let Ok(goroutines) = Goroutines::read(process.as_ref()) {
            let count = u32::try_from(goroutines.count()).ok();
            lock(&self.service.monitor).note(key, self.service.clock.now(), |inside| inside.goroutines = count);
        }
    }

    fn export(&mut self, key: ProcessKey, heap: Heap, profile: Profile, origins: Origins) {
        self.worked = true;
        let end = wall();
        let Some((identity, told)) = self.note_export(key) else {
            return;
        };
        // By the clock that never jumps: a profile does not begin behind its end.
        let length = told.map_or_else(
            || Duration::from_nanos(u64::try_from(profile.duration_nanos).unwrap_or(0)),
            |told| told.elapsed(),
        );
        let Some(bytes) = encode(&profile, key) else { return };
        self.store(&NewEntry {
            identity: &identity,
            begin: before(end, length),
            end,
            heap,
            in_use: in_use(&profile),
            bytes: &bytes,
        });
        self.push(key, identity, profile, origins, end);
    }

    /// Who a process is, and when its profile before was made; this one is made now.
    fn note_export(&mut self, key: ProcessKey) -> Option<(Arc<api::Identity>, Option<Instant>)> {
        if let Some(last) = self.last.get_mut(&key) {
            return Some((Arc::clone(&last.identity), last.told.replace(Instant::now())));
        }
        let (_, identity) = self.service.identity(key.pid).filter(|(known, _)| *known == key)?;
        Some((identity, None))
    }

    fn store(&self, entry: &NewEntry<'_>) {
        let stored = lock(&self.service.store).put(entry);
        match stored {
            // A pause is told by the store itself.
            Ok(_) | Err(StoreError::Paused { .. }) => self.service.trouble("store", None),
            Err(error) => self.service.trouble("store", Some(error.to_string())),
        }
    }

    /// Hands a profile to the push targets, with allocations since the one before in the place of all.
    fn push(
        &mut self,
        key: ProcessKey,
        identity: Arc<api::Identity>,
        mut profile: Profile,
        origins: Origins,
        end: u64,
    ) {
        let mut first = Since::default();
        let since = self.last.get_mut(&key).map_or(&mut first, |last| &mut last.since);
        if self.service.pusher.is_empty() {
            *since = Since::default();
            return;
        }
        let length = since.tell(&mut profile, origins, Instant::now());
        let begin = before(end, length);
        profile.time_nanos = i64::try_from(begin).unwrap_or(0);
        profile.duration_nanos = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
        profile
            .comments
            .push("allocations are those since the profile that was made before this one".to_owned());
        let Some(bytes) = encode(&profile, key) else { return };
        self.service.pusher.offer(Export {
            identity,
            begin,
            end,
            profile: Arc::new(profile),
            pprof: bytes.into(),
        });
    }

    /// Last profiles of all processes that are traced or whose growth is sampled, as many as there is time for.
    fn finish(&mut self, deadline: Instant) {
        // Copies first: they are what detaching takes away.
        let observed = &self.service.decided().observed;
        let moments: Vec<(ProcessKey, Moment)> = observed
            .iter()
            .filter_map(|(key, _)| Some((*key, self.service.moment(*key)?)))
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

/// Where the counts of a managed heap began: with the program that the process runs now. `None` if it ended.
fn origin_of_managed(key: ProcessKey) -> Option<Origin> {
    identity::read_stat(key.pid).ok().filter(|stat| stat.key == key)?;
    let program = identity::read_stat(living::thread(key.pid)).ok()?;
    Some(Origin {
        run: [program.stack_start, 0],
        age: identity::age(key.start_time),
    })
}

/// A profile as compressed pprof.
fn encode(profile: &Profile, key: ProcessKey) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match pprof::write(profile, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::warn!("failed to encode the profile of pid {}: {error}", key.pid);
            None
        }
    }
}

/// Outstanding bytes that a profile tells.
fn in_use(profile: &Profile) -> i64 {
    profile.totals().get("inuse_space").unwrap_or(0)
}
