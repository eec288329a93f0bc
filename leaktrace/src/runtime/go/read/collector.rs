//! The collector of a Go process, looked at again and again for a long time: what that needs and no more.
//!
//! A [`GoProcess`] holds the program's function table, which may be tens of megabytes; this holds a few addresses.

use super::gc::{self, CollectorState, Follower};
use crate::model::ProcessKey;
use crate::proc::memory::ProcessMemory;
use crate::runtime::go::error::{Area, GoError};
use crate::runtime::go::locate::Globals;
use crate::runtime::go::offsets::Layout;
use crate::runtime::go::process::GoProcess;
use crate::runtime::{self, Collection, Collector, RuntimeError};

/// A Go process whose collector is looked at.
#[derive(Debug)]
pub struct GoCollector {
    key: ProcessKey,
    globals: Globals,
    layout: Layout,
    follower: Follower,
}

impl GoCollector {
    /// Of a process that is attached to.
    ///
    /// # Errors
    /// Its collector cannot be read.
    pub fn of(process: &GoProcess) -> Result<Self, GoError> {
        let (layout, _) = process.layout(Area::Collector)?;
        Ok(Self {
            key: process.key,
            globals: process.globals,
            layout: layout.clone(),
            follower: Follower::default(),
        })
    }
}

impl Collector for GoCollector {
    fn key(&self) -> ProcessKey {
        self.key
    }

    fn follow(&mut self) -> Result<(runtime::CollectorState, Vec<Collection>), RuntimeError> {
        // Held open, a process's memory would be a descriptor for each.
        let memory = ProcessMemory::new(self.key.pid);
        let state =
            gc::read(&memory, &self.globals, &self.layout).map_err(|error| GoError::collector(self.key.pid, error))?;
        let ended = self.follower.follow(&state).map(|ended| collection(&ended)).collect();
        Ok((figures(&state), ended))
    }
}

fn figures(state: &CollectorState) -> runtime::CollectorState {
    runtime::CollectorState {
        collections: state.finished,
        live: state.live,
        goal: state.goal,
        in_use: state.in_use,
        cpu_fraction: state.cpu_fraction,
        growth_percent: state.percent,
        memory_limit: Some(state.memory_limit).filter(|limit| *limit < i64::MAX as u64),
    }
}

fn collection(ended: &gc::Collection<'_>) -> Collection {
    let heap = ended.state.map(|state| state.phases.heap);
    Collection {
        number: ended.number,
        end: ended.end,
        pause: ended.pause,
        before: heap.map(|heap| heap[0]),
        after: heap.map(|heap| heap[1]),
        live: heap.map(|heap| heap[2]),
        goal: ended.state.map(|state| state.last_goal),
    }
}
