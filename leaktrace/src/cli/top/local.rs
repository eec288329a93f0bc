//! Single processes as a source, without the daemon: `/proc` for memory, probes of its own for the native heap, the
//! runtime's own records for Go.
//!
//! Invariant: a pid stands for the process that had it at the start; another one that gets it later is not shown.

mod goroutines;
mod history;
mod look;
mod probes;
mod views;

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use self::{
    history::{History, Point},
    look::Look,
    probes::Probes,
};
use super::source::{Heap, Order, Query, Source, SourceError};
use crate::{
    daemon::{api, watch::identity::Identities},
    model::ProcessKey,
    proc::{ProcError, identity},
    report::profile::Profile,
    runtime::go::{GoProcess, heap::View, profile},
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

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A process that is looked at.
struct Watched {
    key: ProcessKey,
    identity: api::Identity,
    memory: api::Memory,
    tracing: api::Tracing,
    history: History,
    go: Option<GoProcess>,
    /// Probe hits when they were counted last, and when that was.
    hits: Option<(u64, Instant)>,
    decisions: Vec<api::Decision>,
}

/// Processes that are looked at from here.
pub struct Local {
    watched: Vec<Watched>,
    probes: Probes,
    identities: Identities,
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
    pub fn new(keys: &[ProcessKey], tracing: Tracing, interval: Duration) -> Self {
        let identities = Identities::default();
        let mut local = Self {
            watched: keys.iter().map(|key| Watched::new(*key, &identities)).collect(),
            probes: Probes::new(tracing.sample_interval),
            identities,
            interval: interval.max(Duration::from_millis(100)),
            looked: None,
            started: now(),
        };
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
            // Go's own heap needs no probes.
            Err(SourceError::Record(error @ RecordError::NoAllocator { .. })) if watched.go.is_some() => {
                let reason = "the Go heap is read without probes; there is no native allocator to trace".to_owned();
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
        let live = self.probes.live_bytes();
        for watched in &mut self.watched {
            if watched.tracing.state == api::TraceState::Gone {
                continue;
            }
            match Look::at(watched.key) {
                Some(look) => {
                    let pid = watched.key.pid;
                    // Sums of scaled samples: the fraction means nothing.
                    watched.memory.tracked = match watched.tracing.state {
                        api::TraceState::Traced => Some(live.get(&pid).map_or(0, |bytes| bytes.max(0.0) as u64)),
                        _ => None,
                    };
                    watched.take(look, self.probes.hits(pid), &self.identities);
                }
                None => {
                    self.probes.remove(watched.key.pid);
                    watched.go = None;
                    watched.stands(api::TraceState::Gone, "release", "the process ended".to_owned());
                }
            }
        }
    }

    fn profile(&mut self, pid: u32, heap: Heap) -> Result<Profile, SourceError> {
        let place = self.find(pid)?;
        if let Some(profile) = self.probes.profile(pid) {
            return Ok(profile);
        }
        let watched = &self.watched[place];
        match &watched.go {
            Some(go) if heap != Heap::Native => {
                let snapshot = go.heap()?;
                let time = i64::try_from(now()).unwrap_or(i64::MAX);
                Ok(profile::heap_profile(go, &snapshot, View::Now, time))
            }
            _ => {
                let why = match watched.tracing.state {
                    api::TraceState::Gone => "the process ended".to_owned(),
                    api::TraceState::Traced => "the process ended, or runs another program now".to_owned(),
                    _ => "the process is not traced; `t` begins".to_owned(),
                };
                Err(SourceError::Nothing(why))
            }
        }
    }

    fn row(watched: &Watched) -> api::Process {
        api::Process {
            identity: watched.identity.clone(),
            memory: watched.memory,
            tracing: watched.tracing.clone(),
            spark: watched.history.spark(),
        }
    }
}

/// Who a process is; only its numbers if it has ended meanwhile.
fn identity_of(key: ProcessKey, identities: &Identities) -> api::Identity {
    identities.read(key).unwrap_or_else(|_| api::Identity {
        pid: key.pid,
        start_time: key.start_time,
        ..api::Identity::default()
    })
}

impl Watched {
    fn new(key: ProcessKey, identities: &Identities) -> Self {
        let tracing = api::Tracing {
            state: api::TraceState::Watched,
            reason: "named on the command line; tracing is off".to_owned(),
            since: now(),
            sample_interval: None,
            cost: None,
            hits: None,
            suspect: None,
        };
        let mut watched = Self {
            key,
            identity: identity_of(key, identities),
            memory: api::Memory::default(),
            tracing,
            history: History::default(),
            go: GoProcess::attach(key.pid).ok().filter(|go| go.key == key),
            hits: None,
            decisions: Vec::new(),
        };
        watched.name_runtime();
        watched
    }

    fn name_runtime(&mut self) {
        self.identity.runtime = if self.go.is_some() {
            api::Runtime::Go
        } else {
            api::Runtime::Native
        };
        self.identity.runtime_version = self.go.as_ref().map(|go| go.version.to_string());
    }

    /// Notes how it stands from now on.
    fn stands(&mut self, state: api::TraceState, action: &str, reason: String) {
        /// As many as the API tells.
        const MAX_DECISIONS: usize = 100;
        self.decisions.insert(
            0,
            api::Decision {
                time: now(),
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
        self.tracing = api::Tracing {
            state,
            reason,
            since: now(),
            sample_interval: None,
            cost: None,
            hits: None,
            suspect: None,
        };
        self.memory.tracked = None;
    }

    fn take(&mut self, look: Look, hits: Option<u64>, identities: &Identities) {
        if look.comm != self.identity.comm {
            // It renamed itself, or runs another program.
            self.identity = identity_of(self.key, identities);
            // Even if that names it otherwise: look again only at the next change.
            self.identity.comm.clone_from(&look.comm);
            self.go = GoProcess::attach(self.key.pid).ok().filter(|go| go.key == self.key);
            self.name_runtime();
        }
        self.memory.rss = look.rss;
        self.memory.anonymous = look.anonymous;
        self.memory.swap = look.swap;
        self.memory.major_faults = look.major_faults;
        self.memory.go_heap = self
            .go
            .as_ref()
            .and_then(|go| go.collector().ok())
            .map(|state| state.live);
        let counted = hits.map(|hits| (hits, Instant::now()));
        self.tracing.hits = counted.zip(self.hits).and_then(|((hits, at), (before, since))| {
            let seconds = at.saturating_duration_since(since).as_secs_f64();
            (seconds > 0.0).then(|| hits.saturating_sub(before) as f64 / seconds)
        });
        self.hits = counted;
        self.history.add(Point {
            time: now(),
            rss: look.rss,
            anonymous: look.anonymous,
            swap: look.swap,
            tracked: self.memory.tracked,
            go_heap: self.memory.go_heap,
        });
        self.memory.growth = self.history.growth();
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
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map(|name| name.trim_end().to_owned())
                .unwrap_or_default(),
            started: self.started,
            processes: self.watched.len(),
            traced: traced.count(),
            own: look::own(),
            losses: self.probes.losses(),
            ..api::Status::default()
        })
    }

    fn processes(&mut self, _: &Order) -> Result<api::Processes, SourceError> {
        self.look();
        Ok(api::Processes {
            time: now(),
            total: self.watched.len(),
            processes: self.watched.iter().map(Self::row).collect(),
        })
    }

    fn details(&mut self, pid: u32) -> Result<api::Details, SourceError> {
        let place = self.find(pid)?;
        self.look();
        Ok(api::Details {
            process: Self::row(&self.watched[place]),
            decisions: self.watched[place].decisions.clone(),
        })
    }

    fn timeline(&mut self, pid: u32) -> Result<api::Timeline, SourceError> {
        let place = self.find(pid)?;
        Ok(self.watched[place].history.timeline())
    }

    fn top(&mut self, pid: u32, query: &Query) -> Result<api::Top, SourceError> {
        let profile = self.profile(pid, query.heap)?;
        views::top(profile, query)
    }

    fn stacks(&mut self, pid: u32, query: &Query) -> Result<api::Stacks, SourceError> {
        let profile = self.profile(pid, query.heap)?;
        views::stacks(profile, query)
    }

    fn goroutines(&mut self, pid: u32) -> Result<api::Goroutines, SourceError> {
        let place = self.find(pid)?;
        match &self.watched[place].go {
            Some(go) => goroutines::read(go),
            None => {
                // Says why: no Go program, a release that is not known, a privilege missing.
                let go = GoProcess::attach(pid)?;
                goroutines::read(&go)
            }
        }
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

    #[test]
    fn looks_at_its_own_process() {
        let pid = std::process::id();
        let keys = find(&[pid, pid]).unwrap();
        assert_eq!(keys.len(), 1);
        let mut local = Local::new(&keys, OFF, Duration::from_secs(1));
        let answer = local.processes(&Order::default()).unwrap();
        assert_eq!(answer.total, 1);
        let own = &answer.processes[0];
        assert!(own.memory.rss >= own.memory.anonymous && own.memory.anonymous > 0);
        assert_eq!(own.tracing.state, api::TraceState::Watched);
        assert!(own.identity.started > 0 && own.identity.started <= now());
        assert_eq!(local.timeline(pid).unwrap().time.len(), 1);
        assert!(matches!(local.goroutines(pid), Err(SourceError::Go(_))));
        let error = local.top(pid, &Query::default()).unwrap_err();
        assert_eq!(error.to_string(), "the process is not traced; `t` begins");
        assert!(matches!(local.trace(pid, false), Err(SourceError::Nothing(_))));
        assert!(local.status().unwrap().own.rss > 0);
    }

    #[test]
    fn a_process_that_ends_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let keys = find(&[child.id()]).unwrap();
        let mut local = Local::new(&keys, OFF, Duration::from_millis(1));
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
