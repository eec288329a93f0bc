//! Processes with the course of their memory, by looks at `/proc`: all of the machine, or some.
//!
//! A look is cheap: one read for each process, more for those whose memory changed. Nothing is asked of a process that
//! ended; one that reused its pid is another entry.

use std::{collections::HashMap, fs, sync::Arc};

use super::{
    Settings,
    clock::Now,
    growth::{Growth, growth},
    identity::Identities,
    series::Series,
};
use crate::{
    api,
    model::{ProcessKey, page_size},
    proc::{
        find,
        footprint::{self, Footprint},
        identity, living,
    },
};

/// Looks between two that also ask for swap, faults and name, for a process whose memory changed.
const REST_EVERY: u32 = 8;
/// The same for one at rest.
const REST_AT_REST_EVERY: u32 = 64;
/// Most processes that are looked at; further ones are counted.
const MAX_PROCESSES: usize = 65_536;
/// Points of a sparkline.
const SPARK: u32 = 60;
/// What a sparkline covers, in seconds.
const SPARK_SPAN: u32 = 3600;

/// Resident and swapped memory, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    rss: u32,
    anonymous: u32,
    swap: u32,
}

impl Sample {
    fn bytes(pages: u32) -> u64 {
        u64::from(pages) * page_size()
    }

    /// What a leak makes grow: anonymous memory wherever it is.
    fn held(self) -> u64 {
        Self::bytes(self.anonymous) + Self::bytes(self.swap)
    }
}

/// Which processes are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the machine.
    Machine,
    /// These, and none that has the pid of one later.
    Only(Vec<ProcessKey>),
}

impl Scope {
    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Machine => find::pids().collect(),
            Self::Only(keys) => keys.iter().map(|key| key.pid).collect(),
        }
    }

    fn holds(&self, key: ProcessKey) -> bool {
        match self {
            Self::Machine => true,
            Self::Only(keys) => keys.contains(&key),
        }
    }

    /// Looks until the next that also asks for swap, faults and name. Where there are few processes, it is each.
    fn rest_every(&self, at_rest: bool) -> u32 {
        match self {
            Self::Machine if at_rest => REST_AT_REST_EVERY,
            Self::Machine => REST_EVERY,
            Self::Only(_) => 1,
        }
    }
}

/// What is known from tracing and from the Go runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Live bytes of native allocations since tracing began.
    pub tracked: Option<u64>,
    /// Live bytes of the Go heap.
    pub go_heap: Option<u64>,
    /// Goroutines.
    pub goroutines: Option<u32>,
}

/// One process.
pub struct Watched {
    /// Pid and start time.
    pub key: ProcessKey,
    /// Who it is.
    pub identity: Arc<api::Identity>,
    footprint: Footprint,
    samples: Series<Sample>,
    inside: Series<Inside>,
    major_faults: u64,
    brk: Option<u64>,
    /// Growth over the policy's window.
    pub growth: Option<Growth>,
    rest_due: u32,
    seen: u32,
}

/// What changed in a look.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Processes that were not there before, or run another program now.
    pub new: Vec<ProcessKey>,
    /// Processes that ended, and who they were.
    pub gone: Vec<(ProcessKey, Arc<api::Identity>)>,
}

/// The processes.
pub struct Table {
    scope: Scope,
    processes: HashMap<u32, Watched>,
    identities: Identities,
    looks: u32,
    settings: Settings,
    /// Processes that there was no room for.
    pub beyond: usize,
}

impl Table {
    /// Knows no process yet.
    pub fn new(scope: Scope, settings: Settings) -> Self {
        Self {
            scope,
            processes: HashMap::new(),
            identities: Identities::default(),
            looks: 0,
            settings,
            beyond: 0,
        }
    }

    /// Other times from now on.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Looks at every process. `now` is in seconds of the own clock.
    pub fn look(&mut self, now: u32) -> Changes {
        self.looks += 1;
        self.beyond = 0;
        let mut changes = Changes::default();
        for pid in self.scope.pids() {
            if let Some(watched) = self.processes.get_mut(&pid) {
                match watched.look(now, self.looks, &self.scope, self.settings) {
                    Look::Same => continue,
                    Look::Renamed => {
                        let key = watched.key;
                        if let Ok(identity) = self.identities.read(key) {
                            watched.identity = Arc::new(identity);
                            changes.new.push(key);
                        }
                        continue;
                    }
                    Look::Gone => {
                        changes.gone.push((watched.key, Arc::clone(&watched.identity)));
                        self.processes.remove(&pid);
                    }
                }
            }
            if self.processes.len() >= MAX_PROCESSES {
                self.beyond += 1;
                continue;
            }
            if let Some(watched) = self.begin(pid, now) {
                changes.new.push(watched.key);
                self.processes.insert(pid, watched);
            }
        }
        let looks = self.looks;
        self.processes.retain(|_, watched| {
            let there = watched.seen == looks;
            if !there {
                changes.gone.push((watched.key, Arc::clone(&watched.identity)));
            }
            there
        });
        changes
    }

    /// `None` for kernel threads and for processes that ended meanwhile.
    fn begin(&mut self, pid: u32, now: u32) -> Option<Watched> {
        let mut footprint = Footprint::open(pid).ok()?;
        let stat = identity::read_stat(pid).ok()?;
        if stat.kernel_thread || living::has_ended(&stat) || !self.scope.holds(stat.key) {
            return None;
        }
        footprint.belongs_to(stat.key);
        let identity = self.identities.read(stat.key).ok()?;
        let mut watched = Watched {
            key: stat.key,
            identity: Arc::new(identity),
            footprint,
            samples: Series::default(),
            inside: Series::default(),
            major_faults: 0,
            brk: None,
            growth: None,
            rest_due: self.looks,
            seen: 0,
        };
        match watched.look(now, self.looks, &self.scope, self.settings) {
            Look::Gone => None,
            Look::Same | Look::Renamed => Some(watched),
        }
    }

    /// Processes by pid.
    pub fn get(&self, pid: u32) -> Option<&Watched> {
        self.processes.get(&pid)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.processes.values()
    }

    /// Notes of every process how much tracing knows to be live; nothing of those that are not traced.
    pub fn note_tracked(&mut self, now: u32, live: impl Fn(ProcessKey) -> Option<u64>) {
        for watched in self.processes.values_mut() {
            let mut inside = watched.inside.last().unwrap_or_default();
            let tracked = live(watched.key);
            if tracked.is_some() || inside.tracked.is_some() {
                inside.tracked = tracked;
                watched.inside.push(now, inside, self.settings.history);
            }
        }
    }

    /// Notes what is known from inside a process.
    pub fn note(&mut self, key: ProcessKey, now: u32, change: impl FnOnce(&mut Inside)) {
        if let Some(watched) = self.processes.get_mut(&key.pid).filter(|watched| watched.key == key) {
            let mut inside = watched.inside.last().unwrap_or_default();
            change(&mut inside);
            watched.inside.push(now, inside, self.settings.history);
        }
    }
}

enum Look {
    Same,
    Renamed,
    Gone,
}

impl Watched {
    fn look(&mut self, now: u32, looks: u32, scope: &Scope, settings: Settings) -> Look {
        let Ok(resident) = self.footprint.resident() else {
            return Look::Gone;
        };
        self.seen = looks;
        let pages = |bytes: u64| u32::try_from(bytes / page_size()).unwrap_or(u32::MAX);
        let last = self.samples.last();
        let mut sample = Sample {
            rss: pages(resident.rss),
            anonymous: pages(resident.anonymous),
            swap: last.map_or(0, |last| last.swap),
        };
        let mut result = Look::Same;
        if looks >= self.rest_due {
            let at_rest = last == Some(sample);
            self.rest_due = looks + scope.rest_every(at_rest);
            if let Ok(rest) = self.footprint.rest() {
                sample.swap = pages(rest.swap);
                self.major_faults = rest.major_faults;
            }
            // Where the map pays: for one that grows.
            if self.growth.is_some_and(|growth| growth.per_hour > 0.0) {
                self.brk = footprint::read_brk(self.key.pid).ok().flatten();
            }
            match identity::read_stat(self.key.pid) {
                Ok(stat) if stat.key == self.key => {
                    if stat.comm != self.identity.comm || executable(self.key.pid) != self.identity.executable {
                        result = Look::Renamed;
                    }
                }
                _ => return Look::Gone,
            }
        }
        self.samples.push(now, sample, settings.history);
        self.growth = growth(&self.samples, settings.window, |sample| sample.held() as f64);
        result
    }

    /// Growth over another time than the policy's.
    pub fn growth_over(&self, window: u32) -> Option<Growth> {
        growth(&self.samples, window, |sample| sample.held() as f64)
    }

    /// What it holds. Growth is that of what the kernel counts, not of the Go heap or of tracked memory.
    pub fn memory(&self) -> api::Memory {
        let sample = self.samples.last().unwrap_or_default();
        let inside = self.inside.last().unwrap_or_default();
        api::Memory {
            rss: Sample::bytes(sample.rss),
            anonymous: Sample::bytes(sample.anonymous),
            swap: Sample::bytes(sample.swap),
            brk: self.brk,
            major_faults: self.major_faults,
            tracked: inside.tracked,
            go_heap: inside.go_heap,
            goroutines: inside.goroutines.map(u64::from),
            growth: self.growth.map(|growth| growth.per_hour),
        }
    }

    /// Anonymous and swapped bytes over the last hour, equally spaced.
    pub fn spark(&self, now: u32) -> Vec<u64> {
        let Some((first, _)) = self.samples.span() else {
            return Vec::new();
        };
        let begin = first.max(now.saturating_sub(SPARK_SPAN));
        let points = SPARK.min(now - begin + 1);
        (0..points)
            .filter_map(|point| {
                let at = begin + (u64::from(now - begin) * u64::from(point) / u64::from((points - 1).max(1))) as u32;
                self.samples.at(at).map(Sample::held)
            })
            .collect()
    }

    /// Its course between two times of the own clock, as columns.
    pub fn timeline(&self, since: u32, until: u32, now: Now) -> api::Timeline {
        let mut timeline = api::Timeline::default();
        let Some((first, last)) = self.samples.span() else {
            return timeline;
        };
        let (since, until) = (since.max(first), until.min(last));
        if since > until {
            return timeline;
        }
        let mut times: Vec<u32> = self.samples.changes(since, until).collect();
        times.extend(self.inside.changes(since, until));
        times.extend([since, until]);
        times.sort_unstable();
        times.dedup();
        for at in times {
            let Some(sample) = self.samples.at(at) else { continue };
            let inside = self.inside.at(at).unwrap_or_default();
            timeline.time.push(now.wall_of(at));
            timeline.rss.push(Sample::bytes(sample.rss));
            timeline.anonymous.push(Sample::bytes(sample.anonymous));
            timeline.swap.push(Sample::bytes(sample.swap));
            timeline.tracked.push(inside.tracked);
            timeline.go_heap.push(inside.go_heap);
            timeline.goroutines.push(inside.goroutines.map(u64::from));
        }
        timeline
    }
}

fn executable(pid: u32) -> Option<String> {
    let path = fs::read_link(format!("/proc/{}/exe", living::thread(pid))).ok()?;
    Some(path.to_string_lossy().into_owned())
}
