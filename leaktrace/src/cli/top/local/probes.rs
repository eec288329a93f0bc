//! The probes of a stand-alone session.
//!
//! Invariant: a process that is not traced any more has no probe left, and without any the kernel side is gone, too.

use std::collections::HashMap;

use super::super::source::SourceError;
use crate::{
    api,
    bpf::{features, usage::Counting},
    model::ProcessKey,
    report::profile::Profile,
    session::{live::Live, profile::kernel_losses},
    symbolize::Symbolizer,
};

/// Ring buffer: a quarter of a second of a million events.
const RING_BYTES: u32 = 16 << 20;

/// Processes with probes.
pub struct Probes {
    /// Mean bytes between samples.
    interval: u64,
    live: Option<Live>,
    /// The kernel counts hits while something is traced; `None` where it cannot.
    counting: Option<Counting>,
    symbolizer: Symbolizer,
}

impl Probes {
    /// None yet. `interval` is the mean number of bytes between samples.
    pub fn new(interval: u64) -> Self {
        Self {
            interval,
            live: None,
            counting: None,
            symbolizer: Symbolizer::new(),
        }
    }

    /// Places probes. Returns the mean bytes between samples.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn add(&mut self, key: ProcessKey) -> Result<u64, SourceError> {
        let live = match &mut self.live {
            Some(live) => live,
            none => {
                features::require()?;
                none.insert(Live::start(RING_BYTES)?)
            }
        };
        let result = live.add(key, self.interval);
        let interval = live.interval(key.pid).unwrap_or(self.interval);
        self.tidy();
        result?;
        if self.counting.is_none() {
            self.counting = Counting::begin().ok();
        }
        Ok(interval)
    }

    /// Takes probes away. Returns whether there were any.
    pub fn remove(&mut self, pid: u32) -> bool {
        let were_there = self.live.as_mut().is_some_and(|live| live.remove(pid));
        self.tidy();
        were_there
    }

    fn tidy(&mut self) {
        if self.live.as_ref().is_some_and(|live| live.traced().next().is_none()) {
            self.live = None;
            self.counting = None;
        }
    }

    /// Acts on what the kernel side noticed. Returns processes that are not traced any more, and why.
    pub fn follow(&mut self) -> Vec<(ProcessKey, String)> {
        let Some(live) = &mut self.live else { return Vec::new() };
        live.follow();
        let withdrawn = live.take_withdrawn();
        for (key, _) in &withdrawn {
            self.remove(key.pid);
        }
        withdrawn
    }

    /// Outstanding bytes of each traced process.
    pub fn live_bytes(&self) -> HashMap<u32, f64> {
        let held = self.live.as_ref().map(Live::held).unwrap_or_default();
        held.into_iter().map(|(pid, held)| (pid, held.bytes)).collect()
    }

    /// Probe hits of a process so far.
    pub fn hits(&self, pid: u32) -> Option<u64> {
        self.counting.as_ref()?;
        Some(self.live.as_ref()?.usage(pid)?.runs())
    }

    /// Losses over all processes.
    pub fn losses(&self) -> Vec<api::Loss> {
        let Some(live) = &self.live else { return Vec::new() };
        let (counters, undecodable) = live.losses();
        let losses = kernel_losses(&counters, undecodable);
        let loss = |loss: &crate::report::loss::Loss| api::Loss {
            name: loss.name.clone(),
            count: loss.count,
            meaning: loss.meaning.clone(),
        };
        losses.iter().map(loss).collect()
    }

    /// A profile as of now; `None` for a process that is not traced.
    pub fn profile(&mut self, pid: u32) -> Option<Profile> {
        let moment = self.live.as_mut()?.capture(pid)?;
        Some(moment.profile(&self.symbolizer, None).0)
    }
}
