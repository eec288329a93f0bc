//! The probes of a stand-alone session.
//!
//! Invariant: a process that is not traced any more has no probe left.

use std::{collections::HashMap, sync::atomic::Ordering};

use clap::ValueEnum;

use super::super::source::SourceError;
use crate::{
    bpf::features,
    daemon::api,
    model::ProcessKey,
    report::profile::Profile,
    session::{
        recording::{RecordError, Recording, Target},
        tracer::Settings,
    },
};

/// Ring buffer of each process: a quarter of a second of a million events.
const RING_BYTES: u32 = 16 << 20;
/// Mean distance of samples.
const SAMPLE_INTERVAL: u64 = 512 << 10;

/// How to trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Every allocation.
    Exact,
    /// A sample by bytes, scaled: for long sessions with busy processes.
    Sampled,
    /// Not at all: memory only, unless `t` is pressed.
    Off,
}

/// Figures of a traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Events so far.
    pub events: u64,
    /// Live bytes.
    pub live: u64,
}

/// Processes with probes.
pub struct Probes {
    mode: Mode,
    recordings: HashMap<u32, Recording>,
}

impl Probes {
    /// None yet.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            recordings: HashMap::new(),
        }
    }

    /// Mean bytes between samples; 0: every allocation.
    pub fn interval(&self) -> u64 {
        if self.mode == Mode::Exact { 0 } else { SAMPLE_INTERVAL }
    }

    /// Places probes. Returns what was done, in a sentence.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn add(&mut self, key: ProcessKey) -> Result<String, SourceError> {
        if self.recordings.contains_key(&key.pid) {
            return Ok("probes are in place".to_owned());
        }
        features::require()?;
        let interval = self.interval();
        let settings = Settings {
            sample_interval: interval,
            min_size: 0,
            track_mmap: interval == 0,
            ring_bytes: RING_BYTES,
        };
        let recording = Recording::start(&Target::Processes(vec![key.pid]), settings)?;
        if recording.processes().any(|traced| traced.key != key) {
            recording.finish();
            return Err(RecordError::Gone(key.pid).into());
        }
        let probes: usize = recording.processes().map(|traced| traced.plan.probes().count()).sum();
        self.recordings.insert(key.pid, recording);
        Ok(match probes {
            0 => "no native allocator, so no probes".to_owned(),
            1 => "1 probe is in place".to_owned(),
            count => format!("{count} probes are in place"),
        })
    }

    /// Takes probes away. Returns whether there were any.
    pub fn remove(&mut self, pid: u32) -> bool {
        match self.recordings.remove(&pid) {
            Some(recording) => {
                recording.finish();
                true
            }
            None => false,
        }
    }

    /// Acts on what the kernel side noticed.
    pub fn follow(&mut self) {
        self.recordings.values_mut().for_each(Recording::follow);
    }

    /// Figures of a process.
    pub fn figures(&self, pid: u32) -> Option<Figures> {
        let figures = self.recordings.get(&pid)?.figures();
        Some(Figures {
            events: figures.events.load(Ordering::Relaxed),
            live: figures.live_bytes.load(Ordering::Relaxed),
        })
    }

    /// Losses over all processes.
    pub fn losses(&self) -> Vec<api::Loss> {
        let lost = |recording: &Recording| recording.figures().lost.load(Ordering::Relaxed);
        let count: u64 = self.recordings.values().map(lost).sum();
        if count == 0 {
            return Vec::new();
        }
        vec![api::Loss {
            name: "alloc_lost".to_owned(),
            count,
            meaning: "allocations that did not fit into the ring buffer".to_owned(),
        }]
    }

    /// A profile as of now.
    pub fn profile(&mut self, _pid: u32) -> Option<Profile> {
        None
    }

    /// Why a traced process has no profile.
    pub fn missing(&self) -> &'static str {
        "stacks of a stand-alone session are not to be had yet"
    }
}
