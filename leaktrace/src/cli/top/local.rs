//! Single processes as a source, without the daemon: `/proc` for memory, probes of its own for the native heap, the
//! runtime's own records for Go.
//!
//! Invariant: a pid stands for the process that had it at the start; another one that gets it later is not shown.

mod probes;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use self::probes::Probes;
use super::source::{Heap, MAX_ROWS, Order, Query, Source, SourceError};
use crate::{
    api,
    daemon::own::Own,
    model::{HeapKind, ProcessKey},
    monitor::{
        Monitor, Settings,
        clock::{Clock, wall},
        goroutines::Goroutines,
        table::Scope,
        views::{self, HeapFilter, TREE_NODES, TopOptions},
    },
    proc::{ProcError, identity},
    report::profile::Profile,
    runtime::{self, Attached},
    session::recording::RecordError,
};

/// Most processes in one session.
pub const MAX_PROCESSES: usize = 64;

/// How to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Begin with it, rather than when asked to.
    pub at_once: bool,
    /// Mean bytes between samples.
    pub sample_interval: u64,
}

/// A process that is looked at, as it was seen last: that stays when it has ended.
struct Watched {
    key: ProcessKey,
    identity: Arc<api::Identity>,
    memory: api::Memory,
    spark: Vec<u64>,
    tracing: api::Tracing,
    /// Its managed runtime, once it was asked for.
    managed: Option<Box<dyn Attached>>,
    /// Probe hits when they were counted last, and when that was.
    hits: Option<(u64, Instant)>,
    decisions: Vec<api::Decision>,
}

/// Processes that are looked at from here.
pub struct Local {
    watched: Vec<Watched>,
    monitor: Monitor,
    probes: Probes,
    clock: Clock,
    own: Own,
    interval: Duration,
    looked: Option<Instant>,
    started: u64,
}

/// Finds the processes of these pids, each once.
///
/// # Errors
/// When one of them is no process with memory of its own, or there are too many.
pub fn find(pids: &[u32]) -> Result<Vec<ProcessKey>, SourceError> {
    let distinct: HashSet<u32> = pids.iter().copied().collect();
    if distinct.len() > MAX_PROCESSES {
        return Err(SourceError::Nothing(format!(
            "{} processes are too many to look at from here, {MAX_PROCESSES} are possible; start the daemon for more",
            distinct.len()
        )));
    }
    let mut keys = Vec::new();
    for pid in distinct {
        if identity::thread_group(pid).is_ok_and(|process| process != pid) {
            let process = identity::thread_group(pid)?;
            return Err(ProcError::Thread { tid: pid, process }.into());
        }
        keys.push(identity::read_identity(pid)?.key);
    }
    keys.sort_unstable_by_key(|key| key.pid);
    Ok(keys)
}

impl Local {
    /// Begins to look at processes every `interval`, and to trace them unless told otherwise.
    pub fn new(keys: &[ProcessKey], tracing: Tracing, interval: Duration, settings: Settings) -> Self {
        let mut local = Self {
            watched: keys.iter().map(|key| Watched::new(*key)).collect(),
            monitor: Monitor::new(Scope::Only(keys.to_vec()), settings),
            probes: Probes::new(tracing.sample_interval),
            clock: Clock::default(),
            own: Own::default(),
            interval: interval.max(Duration::from_millis(100)),
            looked: None,
            started: wall(),
        };
        local.look();
        if tracing.at_once {
            for key in keys {
                // What does not work is told as the reason why the process is not traced.
                let _ = local.start(key.pid);
            }
        }
        local
    }

    fn find(&self, pid: u32) -> Result<usize, SourceError> {
        self.watched
            .iter()
            .position(|watched| watched.key.pid == pid)
            .ok_or(SourceError::Process(ProcError::NoSuchProcess { pid }))
    }

    fn start(&mut self, pid: u32) -> Result<api::Tracing, SourceError> {
        let place = self.find(pid)?;
        let result = self.probes.add(self.watched[place].key);
        let watched = &mut self.watched[place];
        match result {
            Ok(interval) => {
                watched.hits = None;
                watched.stands(
                    api::TraceState::Traced,
                    "trace",
                    "asked for on the command line or by hand".to_owned(),
                );
                watched.tracing.sample_interval = Some(interval);
                Ok(watched.tracing.clone())
            }
            // The heap of a managed runtime needs no probes.
            Err(SourceError::Record(error @ RecordError::NoAllocator { .. })) if watched.is_managed() => {
                let runtime = watched.identity.runtime.title();
                let reason =
                    format!("the {runtime} heap is read without probes; there is no native allocator to trace");
                watched.stands(api::TraceState::Watched, "refuse", reason);
                Err(error.into())
            }
            Err(error) => {
                watched.stands(api::TraceState::Refused, "refuse", error.to_string());
                Err(error)
            }
        }
    }

    fn stop(&mut self, pid: u32) -> Result<api::Tracing, SourceError> {
        let place = self.find(pid)?;
        if !self.probes.remove(pid) {
            return Err(SourceError::Nothing(format!("pid {pid} is not traced")));
        }
        let watched = &mut self.watched[place];
        watched.stands(api::TraceState::Watched, "release", "ended by hand".to_owned());
        Ok(watched.tracing.clone())
    }

    /// Looks at every process, unless that was just done.
    fn look(&mut self) {
        let due = self.interval.min(Duration::from_secs(1));
        if self.looked.is_some_and(|looked| looked.elapsed() < due) {
            return;
        }
        self.looked = Some(Instant::now());
        let now = self.clock.now();
        self.monitor.look(now);
        let live = self.probes.live_bytes();
        let watched = &self.watched;
        // Sums of scaled samples: the fraction means nothing.
        self.monitor.note_tracked(now, |key| {
            let watched = watched.iter().find(|watched| watched.key == key)?;
            (watched.tracing.state == api::TraceState::Traced)
                .then(|| live.get(&key.pid).map_or(0, |bytes| bytes.max(0.0) as u64))
        });
        for watched in &mut self.watched {
            let pid = watched.key.pid;
            match self.monitor.get(pid) {
                Some(seen) => {
                    if !Arc::ptr_eq(&watched.identity, &seen.identity) {
                        watched.identity = Arc::clone(&seen.identity);
                        // It may run another program.
                        watched.managed = None;
                    }
                    watched.memory = seen.memory();
                    watched.spark = seen.spark(now.seconds);
                    watched.count(self.probes.hits(pid));
                }
                None if watched.tracing.state != api::TraceState::Gone => {
                    self.probes.remove(pid);
                    watched.managed = None;
                    watched.memory.tracked = None;
                    watched.stands(api::TraceState::Gone, "release", "the process ended".to_owned());
                }
                None => {}
            }
        }
    }

    /// The profile as of now, reduced to what the query asks for, and the position of its sample type.
    fn profile(&mut self, pid: u32, query: &Query) -> Result<(Profile, usize), SourceError> {
        let mut profile = self.whole_profile(pid, query.heap)?;
        views::without_allocator(&mut profile);
        let wanted = match query.heap {
            Heap::Both => None,
            Heap::Native => Some(HeapKind::Native),
            Heap::Go => Some(HeapKind::Go),
        };
        HeapFilter(wanted).apply(&mut profile);
        let sample_type = profile
            .sample_type(Some(query.sample_type()))
            .map_err(|error| SourceError::Nothing(error.to_string()))?;
        Ok((profile, sample_type))
    }

    fn whole_profile(&mut self, pid: u32, heap: Heap) -> Result<Profile, SourceError> {
        let place = self.find(pid)?;
        if let Some(profile) = self.probes.profile(pid) {
            return Ok(profile);
        }
        let watched = &mut self.watched[place];
        if watched.is_managed() && heap != Heap::Native && watched.tracing.state != api::TraceState::Gone {
            let heap = watched.runtime()?.heap()?;
            return Ok(heap.profile(wall() as i64));
        }
        let why = match watched.tracing.state {
            api::TraceState::Gone => "the process ended",
            api::TraceState::Traced => "the process ended, or runs another program now",
            _ => "the process is not traced; `t` begins",
        };
        Err(SourceError::Nothing(why.to_owned()))
    }
}

impl Watched {
    fn new(key: ProcessKey) -> Self {
        Self {
            key,
            identity: Arc::new(api::Identity {
                pid: key.pid,
                start_time: key.start_time,
                ..api::Identity::default()
            }),
            memory: api::Memory::default(),
            spark: Vec::new(),
            tracing: tracing(
                api::TraceState::Watched,
                "named on the command line; tracing is off".to_owned(),
            ),
            managed: None,
            hits: None,
            decisions: Vec::new(),
        }
    }

    fn is_managed(&self) -> bool {
        self.identity.runtime.is_managed()
    }

    /// Its managed runtime. An error says why not: no such program, a release that is not known, a privilege missing.
    fn runtime(&mut self) -> Result<&dyn Attached, SourceError> {
        let managed = match self.managed.take() {
            Some(managed) => managed,
            None => runtime::attach(self.key.pid)?,
        };
        if managed.run().key != self.key {
            return Err(ProcError::Exited { pid: self.key.pid }.into());
        }
        let managed: &dyn Attached = &**self.managed.insert(managed);
        Ok(managed)
    }

    /// Notes how it stands from now on.
    fn stands(&mut self, state: api::TraceState, action: &str, reason: String) {
        /// As many as the API tells.
        const MAX_DECISIONS: usize = 100;
        self.decisions.insert(
            0,
            api::Decision {
                time: wall(),
                process: api::Key {
                    pid: self.key.pid,
                    start_time: self.key.start_time,
                },
                comm: self.identity.comm.clone(),
                action: action.to_owned(),
                reason: reason.clone(),
            },
        );
        self.decisions.truncate(MAX_DECISIONS);
        self.tracing = tracing(state, reason);
        self.memory.tracked = None;
    }

    fn count(&mut self, hits: Option<u64>) {
        let counted = hits.map(|hits| (hits, Instant::now()));
        self.tracing.hits = counted.zip(self.hits).and_then(|((hits, at), (before, since))| {
            let seconds = at.saturating_duration_since(since).as_secs_f64();
            (seconds > 0.0).then(|| hits.saturating_sub(before) as f64 / seconds)
        });
        self.hits = counted;
    }

    fn row(&self) -> api::Process {
        api::Process {
            identity: api::Identity::clone(&self.identity),
            memory: self.memory,
            tracing: self.tracing.clone(),
            spark: self.spark.clone(),
        }
    }
}

fn tracing(state: api::TraceState, reason: String) -> api::Tracing {
    api::Tracing {
        state,
        reason,
        since: wall(),
        sample_interval: None,
        cost: None,
        hits: None,
        suspect: None,
    }
}

impl Source for Local {
    fn title(&self) -> String {
        "stand-alone".to_owned()
    }

    fn tend(&mut self) {
        for (key, reason) in self.probes.follow() {
            for watched in self.watched.iter_mut().filter(|watched| watched.key == key) {
                watched.stands(api::TraceState::Refused, "refuse", reason.clone());
            }
        }
        self.look();
    }

    fn status(&mut self) -> Result<api::Status, SourceError> {
        let traced = self
            .watched
            .iter()
            .filter(|watched| watched.tracing.state == api::TraceState::Traced);
        let own = self.own.look();
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim_end().to_owned())
                .unwrap_or_default(),
            started: self.started,
            processes: self.watched.len(),
            traced: traced.count(),
            own: api::Own {
                cpu: own.cpu,
                rss: own.rss,
                ..api::Own::default()
            },
            losses: self.probes.losses(),
            ..api::Status::default()
        })
    }

    fn processes(&mut self, _: &Order) -> Result<api::Processes, SourceError> {
        self.look();
        Ok(api::Processes {
            time: wall(),
            total: self.watched.len(),
            processes: self.watched.iter().map(Watched::row).collect(),
        })
    }

    fn details(&mut self, pid: u32) -> Result<api::Details, SourceError> {
        let place = self.find(pid)?;
        self.look();
        Ok(api::Details {
            process: self.watched[place].row(),
            decisions: self.watched[place].decisions.clone(),
        })
    }

    fn timeline(&mut self, pid: u32) -> Result<api::Timeline, SourceError> {
        const HOUR: u64 = 3_600_000_000_000;
        self.find(pid)?;
        let now = self.clock.now();
        let timeline = self.monitor.timeline(pid, now.wall.saturating_sub(HOUR), now.wall, now);
        Ok(timeline.unwrap_or_default())
    }

    fn top(&mut self, pid: u32, query: &Query) -> Result<api::Top, SourceError> {
        let (profile, sample_type) = self.profile(pid, query)?;
        let options = TopOptions {
            sample_type,
            cumulative: query.cumulative,
            filter: query.filter.clone(),
            limit: MAX_ROWS,
        };
        Ok(views::top(&profile, &options))
    }

    fn stacks(&mut self, pid: u32, query: &Query) -> Result<api::Stacks, SourceError> {
        let (profile, sample_type) = self.profile(pid, query)?;
        Ok(views::stacks(&profile, sample_type, TREE_NODES))
    }

    fn goroutines(&mut self, pid: u32) -> Result<api::Goroutines, SourceError> {
        let place = self.find(pid)?;
        let watched = &mut self.watched[place];
        let key = watched.key;
        let goroutines = Goroutines::read(watched.runtime()?)?;
        let count = u32::try_from(goroutines.count()).ok();
        self.monitor
            .note(key, self.clock.now(), |inside| inside.goroutines = count);
        Ok(goroutines.groups(Duration::ZERO))
    }

    fn trace(&mut self, pid: u32, on: bool) -> Result<api::Tracing, SourceError> {
        if on { self.start(pid) } else { self.stop(pid) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const OFF: Tracing = Tracing {
        at_once: false,
        sample_interval: 65_536,
    };
    const SETTINGS: Settings = Settings {
        history: 3600,
        window: 600,
    };

    #[test]
    fn looks_at_its_own_process() {
        let pid = std::process::id();
        let keys = find(&[pid, pid]).unwrap();
        assert_eq!(keys.len(), 1);
        let mut local = Local::new(&keys, OFF, Duration::from_secs(1), SETTINGS);
        let answer = local.processes(&Order::default()).unwrap();
        assert_eq!(answer.total, 1);
        let own = &answer.processes[0];
        assert!(own.memory.rss >= own.memory.anonymous && own.memory.anonymous > 0);
        assert_eq!(own.tracing.state, api::TraceState::Watched);
        assert!(own.identity.started > 0 && own.identity.started <= wall());
        assert_eq!(local.timeline(pid).unwrap().time.len(), 1);
        assert!(matches!(local.goroutines(pid), Err(SourceError::Runtime(_))));
        let error = local.top(pid, &Query::default()).unwrap_err();
        assert_eq!(error.to_string(), "the process is not traced; `t` begins");
        assert!(matches!(local.trace(pid, false), Err(SourceError::Nothing(_))));
        assert!(local.status().unwrap().own.rss > 0);
    }

    #[test]
    fn a_process_that_ends_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let keys = find(&[child.id()]).unwrap();
        let mut local = Local::new(&keys, OFF, Duration::from_millis(1), SETTINGS);
        local.tend();
        child.kill().unwrap();
        child.wait().unwrap();
        local.looked = None;
        let details = local.details(child.id()).unwrap();
        assert_eq!(details.process.tracing.state, api::TraceState::Gone);
        assert_eq!(details.decisions[0].reason, "the process ended");
        assert!(matches!(
            find(&[child.id()]),
            Err(SourceError::Process(ProcError::NoSuchProcess { .. }))
        ));
    }
}
