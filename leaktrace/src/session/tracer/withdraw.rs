//! When calls of a process may have been missed: taking its probes away for good, or beginning anew with other ones.
//!
//! Invariant: what may have been given back unseen is left out ([`TraceError::doubtful`]).

use std::collections::HashMap;

use leaktrace_common::config::MAX_SAMPLES;

use super::{TraceError, Tracer};
use crate::{bpf::kernel::UprobeMechanism, bpf::links::Links, probe::plan::Refused};

/// Samples of all processes from which on one gives up its own.
const CROWDED_SAMPLES: u64 = MAX_SAMPLES as u64 / 8 * 7;

impl TraceError {
    /// The process of which all that was recorded before is doubtful, since frees may have been missed.
    pub fn doubtful(&self) -> Option<u32> {
        match self {
            Self::Withdrawn { pid, .. }
            | Self::Shared { pid, .. }
            | Self::SharerMissed { pid, .. }
            | Self::TooManySamples { pid, .. } => Some(*pid),
            _ => None,
        }
    }
}

impl Tracer {
    /// Takes a process's probes away, since calls of its allocator are missed from now on.
    pub(super) fn withdraw(&mut self, pid: u32, cause: Option<Refused>) -> Result<(), TraceError> {
        self.take_probes(pid);
        cause.map_or(Ok(()), |cause| Err(TraceError::Withdrawn { pid, cause }))
    }

    fn take_probes(&mut self, pid: u32) {
        self.set_active(pid, false);
        if let Some(traced) = self.processes.get_mut(&pid) {
            // It is active again when it runs another program.
            traced.active = true;
            traced.ended = true;
            traced.links = Links::new();
            traced.probed.clear();
        }
    }

    /// Makes room for the samples of others if there is hardly any left: begins anew with the process that has most, of the
    /// user who has most. To be called from time to time.
    pub fn make_room_for_samples(&mut self) -> Result<(), TraceError> {
        let mut users: HashMap<u32, (u64, u64, u32)> = HashMap::new();
        let mut all = 0;
        for (pid, traced) in &self.processes {
            let Some(slot) = traced.slot.as_ref().filter(|_| traced.settings.sample_interval != 0) else {
                continue;
            };
            let (held, own) = self.table.samples(slot);
            all = held;
            let (sum, most, of) = users.entry(traced.user).or_insert((0, 0, *pid));
            *sum += own;
            if own > *most {
                (*most, *of) = (own, *pid);
            }
        }
        if all < CROWDED_SAMPLES {
            return Ok(());
        }
        let Some((_, samples, pid)) = users.into_values().max() else {
            return Ok(());
        };
        // Of many that hold little none is greedy.
        if samples < CROWDED_SAMPLES / 8 {
            return Ok(());
        }
        if let Some(slot) = self.processes.get(&pid).and_then(|traced| traced.slot.as_ref()) {
            self.table.forget_samples(slot);
        }
        Err(TraceError::TooManySamples { pid, samples })
    }

    /// A child of the process goes on using its memory.
    pub(super) fn note_sharer(&mut self, pid: u32, sharer: u32, missed: bool) -> Result<(), TraceError> {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        traced.program.note_sharer(sharer);
        if missed && !traced.ended {
            self.take_probes(pid);
            return Err(TraceError::SharerMissed { pid, sharer });
        }
        match self.sharer_without_probes(pid) {
            Some(_) => self.include_sharer(pid, sharer),
            None => Ok(()),
        }
    }

    /// A process that uses the memory of a traced one, whose probes it does not run into: sessions belong to one process,
    /// perf events to a memory.
    pub(super) fn sharer_without_probes(&self, pid: u32) -> Option<u32> {
        let traced = self.processes.get(&pid)?;
        let has_sessions = self.mechanism_of(traced) == UprobeMechanism::Session && !traced.links.is_empty();
        traced.slot.as_ref().filter(|_| has_sessions).and_then(|slot| {
            let noted = self.table.sharer_of(slot);
            noted.or_else(|| traced.program.sharers.last().copied())
        })
    }

    /// Has the calls of processes seen that use the memory of a traced one. What one of them gave back before is not known.
    pub(super) fn include_sharer(&mut self, pid: u32, sharer: u32) -> Result<(), TraceError> {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        traced.program.note_sharer(sharer);
        let thread = traced.thread;
        if let Err(error) = self.attach_again(pid, thread) {
            tracing::debug!("failed to attach to the memory of pid {pid}: {error}");
            self.take_probes(pid);
            return Err(TraceError::SharerMissed { pid, sharer });
        }
        Err(TraceError::Shared { pid, sharer })
    }
}
