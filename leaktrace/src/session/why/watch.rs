//! A process between two moments: its memory by kind at both, its size in between, and who allocated meanwhile.
//!
//! Two kernel sides work at once, since a process is followed by probes or by page faults: one samples allocations, the
//! other memory that becomes resident. Each may be refused, which is a note: what is left still answers. Invariant: when
//! a [`Watch`] is finished or dropped nothing of it is left in the process.

use std::{
    collections::HashMap,
    ffi::OsString,
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    course::Point,
    family::{Family, Member},
    go::{self, Begin, Grown},
    snapshot::Snapshot,
};
use crate::{
    bpf::features,
    model::ProcessKey,
    proc::{ProcError, footprint::Footprint, identity, living},
    report::profile::Profile,
    session::{
        launch::LaunchError,
        live::{Live, Moment},
        recording::RecordError,
    },
    symbolize::Symbolizer,
};

/// What to watch.
#[derive(Clone, Debug)]
pub enum Target {
    /// A running process.
    Process(u32),
    /// A command to start.
    Command(Vec<OsString>),
}

/// Mean bytes between samples of allocations at first: a leak of a megabyte has a thousand.
const INTERVAL: u64 = 1 << 10;
/// It grows by this factor while more samples come than that in a second, up to the limit.
const COARSER: u64 = 8;
const MAX_RATE: u64 = 20_000;
const MAX_INTERVAL: u64 = 1 << 20;
/// Mean bytes between samples of resident memory.
const GROWTH_INTERVAL: u64 = 64 << 10;
/// Ring buffer of each kernel side.
const RING_BYTES: u32 = 16 << 20;
/// Points of the course of the size: one a second, more of a short watch, fewer of a long one.
const MIN_POINTS: u32 = 30;
const MAX_POINTS: u32 = 600;
const SECOND: Duration = Duration::from_secs(1);
/// How often it is looked which sampled pages are still there.
const PAGES: Duration = Duration::from_secs(5);
/// A snapshot in the meantime, for a process that ends by itself, may take so much of the time until the next one.
const SNAPSHOT_SHARE: u32 = 20;

/// A watch under way.
pub struct Watch {
    /// Who is watched.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
    probes: Option<Live>,
    growth: Option<Live>,
    go: Option<Begin>,
    child: Option<Child>,
    is_new: bool,
    looked_for_go: bool,
    footprint: Footprint,
    started: Instant,
    before: Snapshot,
    last: Snapshot,
    course: Vec<Point>,
    family: Family,
    interval: u64,
    returns: u64,
    next_point: Instant,
    point_distance: Duration,
    next_second: Instant,
    next_pages: Instant,
    next_snapshot: Instant,
    notes: Vec<String>,
}

/// What was found.
pub struct Findings {
    /// Who was watched.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
    /// Seconds between the two snapshots.
    pub seconds: f64,
    /// Memory at the begin.
    pub before: Snapshot,
    /// And at the end.
    pub after: Snapshot,
    /// How its size went.
    pub course: Vec<Point>,
    /// The process has ended.
    pub ended: bool,
    /// It was watched from its first instruction on.
    pub is_new: bool,
    /// Allocations that were made meanwhile and not freed.
    pub native: Option<Profile>,
    /// Memory that became resident meanwhile and still is.
    pub resident: Option<Profile>,
    /// What Go's runtime says.
    pub go: Option<Grown>,
    /// Descendants, the one that grew most first.
    pub family: Vec<Member>,
    /// What else is to be said.
    pub notes: Vec<String>,
    /// The command, if it still runs.
    pub child: Option<Child>,
}

/// Both kernel sides, as far as they could be loaded.
struct Sides {
    probes: Option<Live>,
    growth: Option<Live>,
    notes: Vec<String>,
}

impl Sides {
    fn load() -> Self {
        let mut notes = Vec::new();
        if let Err(error) = features::require() {
            notes.push(format!("no stacks: {error}"));
            return Self {
                probes: None,
                growth: None,
                notes,
            };
        }
        let mut load = |what| {
            Live::start(RING_BYTES)
                .inspect_err(|error| notes.push(format!("{what}: {error}")))
                .ok()
        };
        let probes = load("allocations are not followed");
        let growth = load("what becomes resident is not followed");
        Self { probes, growth, notes }
    }

    fn follow_growth(&mut self, key: ProcessKey) {
        if let Some(growth) = &mut self.growth
            && let Err(error) = growth.add_growth(key, GROWTH_INTERVAL)
        {
            self.notes
                .push(format!("what becomes resident is not followed: {error}"));
            self.growth = None;
        }
    }

    fn follow_allocations(&mut self, key: ProcessKey, is_go: bool) {
        let Some(Err(error)) = self.probes.as_mut().map(|probes| probes.add(key, INTERVAL)) else {
            return;
        };
        self.probes = None;
        // A Go program without C code has no allocator but Go's, which is read.
        if !(is_go && matches!(error, RecordError::NoAllocator { .. })) {
            self.notes.push(format!("allocations are not followed: {error}"));
        }
    }
}

impl Watch {
    /// Attaches to a process, or starts a command, and takes the first snapshot. `duration` is how long it is meant to
    /// take.
    ///
    /// # Errors
    /// The process cannot be read, or the command not be started.
    pub fn start(target: &Target, duration: Duration) -> Result<Self, RecordError> {
        match target {
            Target::Process(pid) => Self::attach(*pid, duration),
            Target::Command(command) => Self::launch(command, duration),
        }
    }

    fn attach(pid: u32, duration: Duration) -> Result<Self, RecordError> {
        // Says what is wrong with a pid before anything is loaded.
        let identity = identity::read_identity(pid)?;
        let mut sides = Sides::load();
        let go = go::begin(pid, &mut sides.notes);
        sides.follow_growth(identity.key);
        sides.follow_allocations(identity.key, go.is_some());
        let before = Snapshot::take(pid, go.as_ref().map(|go| &go.process))?;
        Ok(Self::new(identity.key, identity.comm, sides, before, go, duration)?)
    }

    fn launch(command: &[OsString], duration: Duration) -> Result<Self, RecordError> {
        let mut sides = Sides::load();
        let mut before = None;
        let (key, child) = match sides.probes.take() {
            Some(mut probes) => {
                let result = probes.launch(command, INTERVAL, |key| {
                    sides.follow_growth(key);
                    before = Some(Snapshot::take(key.pid, None));
                });
                sides.probes = Some(probes);
                result?
            }
            None => {
                let child = start_plainly(command)?;
                (identity::read_key(child.id())?, child)
            }
        };
        let before = before.unwrap_or_else(|| Snapshot::take(key.pid, None))?;
        let comm = identity::read_stat(key.pid)?.comm;
        let mut watch = Self::new(key, comm, sides, before, None, duration)?;
        watch.child = Some(child);
        watch.is_new = true;
        Ok(watch)
    }

    fn new(
        key: ProcessKey,
        comm: String,
        sides: Sides,
        before: Snapshot,
        go: Option<Begin>,
        duration: Duration,
    ) -> Result<Self, ProcError> {
        let mut footprint = Footprint::open(key.pid)?;
        footprint.belongs_to(key);
        let now = Instant::now();
        let point_distance = (duration / MIN_POINTS)
            .clamp(Duration::from_millis(50), SECOND)
            .max(duration / MAX_POINTS);
        Ok(Self {
            key,
            comm,
            probes: sides.probes,
            growth: sides.growth,
            go,
            child: None,
            is_new: false,
            looked_for_go: false,
            footprint,
            started: now,
            last: before.clone(),
            next_snapshot: now + SECOND,
            before,
            course: Vec::new(),
            family: Family::new(key.pid),
            interval: INTERVAL,
            returns: 0,
            next_point: now,
            point_distance,
            next_second: now + SECOND,
            next_pages: now + PAGES,
            notes: sides.notes,
        })
    }

    /// Tells when there is something to [`follow`](Self::follow).
    pub fn noticed(&self) -> [Arc<Notify>; 2] {
        let of = |live: &Option<Live>| live.as_ref().map_or_else(Default::default, Live::noticed);
        [of(&self.probes), of(&self.growth)]
    }

    /// Acts on what the kernel sides noticed.
    pub fn follow(&mut self) {
        for live in [&mut self.probes, &mut self.growth].into_iter().flatten() {
            live.follow();
        }
    }

    /// Whether probes, and page faults, are followed.
    pub fn follows(&self) -> (bool, bool) {
        (self.probes.is_some(), self.growth.is_some())
    }

    /// Does what is due. To be called several times a second. Returns whether the process still runs.
    pub fn tick(&mut self) -> bool {
        let now = Instant::now();
        if let Some(child) = &mut self.child
            && let Ok(Some(_)) = child.try_wait()
        {
            self.child = None;
            return false;
        }
        if !living::is_running(self.key) {
            return false;
        }
        if now >= self.next_point {
            self.next_point = now + self.point_distance;
            self.look();
        }
        if now >= self.next_second {
            self.next_second = now + SECOND;
            self.sample_coarser();
            self.follow();
            self.find_go();
        }
        if now >= self.next_pages {
            self.next_pages = now + PAGES;
            if let Some(growth) = &self.growth {
                growth.look_at_pages(self.key.pid);
            }
        }
        if now >= self.next_snapshot {
            if let Ok(snapshot) = self.snapshot() {
                self.last = snapshot;
            }
            self.next_snapshot = Instant::now() + SECOND.max(self.last.cost * SNAPSHOT_SHARE);
        }
        true
    }

    /// A command's runtime is set up only after its first instructions.
    fn find_go(&mut self) {
        if self.is_new && !self.looked_for_go {
            self.looked_for_go = true;
            self.go = go::begin(self.key.pid, &mut self.notes);
        }
    }

    fn look(&mut self) {
        let at = self.started.elapsed().as_secs_f64();
        if let Ok(resident) = self.footprint.resident() {
            self.course.push((at, resident.rss));
        }
        self.family.look(at);
    }

    fn snapshot(&self) -> Result<Snapshot, ProcError> {
        let snapshot = Snapshot::take(self.key.pid, self.go.as_ref().map(|go| &go.process))?;
        // Of a process that ends meanwhile a part is read.
        match living::is_running(self.key) {
            true => Ok(snapshot),
            false => Err(ProcError::Exited { pid: self.key.pid }),
        }
    }

    /// Takes fewer samples where there are many allocations.
    fn sample_coarser(&mut self) {
        let Some(probes) = &mut self.probes else { return };
        let held: HashMap<u32, _> = probes.held();
        let Some(held) = held.get(&self.key.pid) else { return };
        let rate = held.returns.saturating_sub(self.returns);
        self.returns = held.returns;
        if rate > MAX_RATE && self.interval < MAX_INTERVAL {
            self.interval = (self.interval * COARSER).min(MAX_INTERVAL);
            probes.set_interval(self.key.pid, self.interval, &format!("{rate} samples in a second"));
        }
    }

    /// Takes the second snapshot, detaches, and names what was found.
    pub fn finish(mut self, symbolizer: &Symbolizer) -> Findings {
        let pid = self.key.pid;
        let snapshot = self.snapshot();
        self.look();
        let ended = snapshot.is_err();
        let after = match snapshot {
            Ok(snapshot) => snapshot,
            Err(_) => {
                let age = self.last.at.elapsed().as_secs_f64();
                self.notes.push(format!(
                    "the process has ended: its memory is as of {age:.1} s before that was seen"
                ));
                self.last.clone()
            }
        };
        let native = self.probes.take().and_then(|live| captured(live, pid));
        let resident = self.growth.take().and_then(|live| captured(live, pid));
        // Both are detached now; the rest costs the process nothing.
        let go = self.go.as_ref().filter(|_| !ended).map(Begin::grown);
        Findings {
            key: self.key,
            comm: self.comm,
            seconds: after.at.saturating_duration_since(self.before.at).as_secs_f64(),
            before: self.before,
            after,
            course: self.course,
            ended,
            is_new: self.is_new,
            native: native.map(|moment| moment.native_profile(symbolizer)),
            resident: resident.map(|moment| moment.native_profile(symbolizer)),
            go,
            family: self.family.by_growth(),
            notes: self.notes,
            child: self.child,
        }
    }
}

/// Copies what a kernel side holds, and gives it up.
fn captured(mut live: Live, pid: u32) -> Option<Moment> {
    live.follow();
    live.capture(pid)
}

/// Starts a command that nothing follows from its first instruction.
fn start_plainly(command: &[OsString]) -> Result<Child, LaunchError> {
    let name = || {
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        words.join(" ")
    };
    let failed = |cause| LaunchError::Spawn { command: name(), cause };
    let Some((program, arguments)) = command.split_first() else {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    };
    Command::new(program).args(arguments).spawn().map_err(failed)
}
