//! Everything known of processes from outside, without a kernel side: who they are, the course of their memory, whether
//! it grows, their runtime's collector and goroutines, and views of their profiles.
//!
//! The daemon and `leaktrace top -p` both answer from here, so that they cannot differ. `table` looks at processes,
//! `series` keeps the course of each, `growth` says which of them grow, `identity` who they are, `collector` follows Go's
//! collectors, `goroutines` groups, `views` makes tables and trees, `clock` is the time of all this. Decides nothing.

pub mod clock;
pub mod collector;
pub mod goroutines;
pub mod growth;
pub mod identity;
pub mod series;
pub mod table;
pub mod views;

use std::{sync::Arc, time::Duration};

use self::{
    clock::Now,
    collector::Collectors,
    table::{Changes, Inside, Scope, Table, Watched},
};
use crate::{api, model::ProcessKey};

/// Seconds between two looks at collectors.
const COLLECTORS_EVERY: u32 = 5;

/// What is remembered and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds that are kept.
    pub history: u32,
    /// Seconds that growth is measured over.
    pub window: u32,
}

impl Settings {
    /// From what the configuration says.
    pub fn new(history: Duration, window: Duration) -> Self {
        Self {
            history: clock::seconds(history),
            window: clock::seconds(window),
        }
    }
}

/// Processes that are looked at again and again.
pub struct Monitor {
    table: Table,
    collectors: Collectors,
    collected: Option<u32>,
}

impl Monitor {
    /// Knows no process yet.
    pub fn new(scope: Scope, settings: Settings) -> Self {
        Self {
            table: Table::new(scope, settings),
            collectors: Collectors::default(),
            collected: None,
        }
    }

    /// Other settings from now on.
    pub fn configure(&mut self, settings: Settings) {
        self.table.configure(settings);
    }

    /// Looks at every process, and at collectors where that is due.
    pub fn look(&mut self, now: Now) -> Changes {
        let changes = self.table.look(now.seconds);
        for (key, _) in &changes.gone {
            self.collectors.end(*key);
        }
        for key in &changes.new {
            let is_go = self
                .table
                .get(key.pid)
                .is_some_and(|watched| watched.key == *key && watched.identity.runtime == api::Runtime::Go);
            if is_go && self.collectors.begin(*key) {
                self.look_at_collector(*key, now);
            } else {
                self.collectors.end(*key);
            }
        }
        if self
            .collected
            .is_none_or(|at| now.seconds >= at.saturating_add(COLLECTORS_EVERY))
        {
            self.collected = Some(now.seconds);
            for key in self.collectors.keys() {
                self.look_at_collector(key, now);
            }
        }
        changes
    }

    fn look_at_collector(&mut self, key: ProcessKey, now: Now) {
        let live = self.collectors.look(key);
        self.table.note(key, now.seconds, |inside| inside.go_heap = live);
    }

    /// A process by its pid.
    pub fn get(&self, pid: u32) -> Option<&Watched> {
        self.table.get(pid)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.table.iter()
    }

    /// A process's key and identity.
    pub fn identity(&self, pid: u32) -> Option<(ProcessKey, Arc<api::Identity>)> {
        self.get(pid)
            .map(|watched| (watched.key, Arc::clone(&watched.identity)))
    }

    /// Processes that there was no room for.
    pub fn beyond(&self) -> usize {
        self.table.beyond
    }

    /// Notes what is known from inside a process.
    pub fn note(&mut self, key: ProcessKey, now: Now, change: impl FnOnce(&mut Inside)) {
        self.table.note(key, now.seconds, change);
    }

    /// Notes of every process how much tracing knows to be live; nothing of those that are not traced.
    pub fn note_tracked(&mut self, now: Now, live: impl Fn(ProcessKey) -> Option<u64>) {
        self.table.note_tracked(now.seconds, live);
    }

    /// The course of a process's memory between two moments of the wall's clock, with the collections of its Go heap.
    pub fn timeline(&self, pid: u32, since: u64, until: u64, now: Now) -> Option<api::Timeline> {
        let watched = self.table.get(pid)?;
        let mut timeline = watched.timeline(now.seconds_of(since), now.seconds_of(until), now);
        timeline.collections = self.collectors.between(watched.key, since, until);
        Some(timeline)
    }

    /// The collector of a Go process.
    pub fn gc(&mut self, key: ProcessKey) -> Option<api::Gc> {
        self.collectors.gc(key)
    }
}
