//! Traced processes as the kernel side sees them: one slot each, named by the cookies of its probes.

use std::{sync::Arc, time::Instant};

use aya::maps::{Array, HashMap, MapData, MapError};
use leaktrace_common::config::{GrowthState, MAX_PROCESSES, Process, ProcessSlot};

use super::{
    grace::GracePeriod,
    sampled::SampledBlocks,
    tables::{ArrayFull, MappedArray},
};

/// Why a process could not be made known.
#[derive(Debug, thiserror::Error)]
pub enum ProcessTableError {
    /// There are too many.
    #[error("{MAX_PROCESSES} processes are traced already")]
    Full(#[from] ArrayFull),
    /// The kernel refused.
    #[error("failed to enter pid {pid} in BPF map `SLOTS`: {cause}")]
    Slots {
        /// Process.
        pid: u32,
        /// Why.
        cause: MapError,
    },
}

/// The table of traced processes.
pub struct ProcessTable {
    slots: MappedArray<ProcessSlot>,
    by_pid: HashMap<MapData, u32, u32>,
    /// What the kernel side remembers to see growth, by slot.
    growth: Array<MapData, GrowthState>,
    sampled: SampledBlocks,
    grace: Arc<GracePeriod>,
}

/// The place of one process; given back by [`ProcessTable::remove`].
#[derive(Debug)]
pub struct Slot {
    index: u32,
    pid: u32,
    current: u64,
    /// When it was changed last; until then programs may have begun that read the version that is not current now.
    changed: Option<Instant>,
    /// Its blocks are taken as samples.
    is_sampled: bool,
}

impl Slot {
    /// Its number, for cookies.
    pub fn number(&self) -> u16 {
        // MAX_PROCESSES is far below 2^16.
        self.index as u16
    }
}

impl ProcessTable {
    pub(super) fn new(
        slots: MappedArray<ProcessSlot>,
        by_pid: HashMap<MapData, u32, u32>,
        growth: Array<MapData, GrowthState>,
        sampled: SampledBlocks,
        grace: Arc<GracePeriod>,
    ) -> Self {
        Self {
            slots,
            by_pid,
            growth,
            sampled,
            grace,
        }
    }

    /// Makes a process known.
    pub fn add(&mut self, process: Process) -> Result<Slot, ProcessTableError> {
        let value = ProcessSlot {
            current: 0,
            execs: 0,
            versions: [process, Process::default()],
        };
        let run = self.slots.store([value].into_iter())?;
        let slot = Slot {
            index: run.start,
            pid: process.pid,
            current: 0,
            changed: None,
            is_sampled: process.sample_interval != 0,
        };
        let known = self.growth.set(slot.index, GrowthState::default(), 0);
        match known.and_then(|()| self.by_pid.insert(process.pid, slot.index, 0)) {
            Ok(()) => Ok(slot),
            Err(cause) => {
                self.slots.release(run);
                Err(ProcessTableError::Slots {
                    pid: process.pid,
                    cause,
                })
            }
        }
    }

    /// Replaces what is known of a process, at once for each program that begins after this.
    pub fn change(&mut self, slot: &mut Slot, process: Process) {
        if let Some(changed) = slot.changed {
            self.grace.wait_for_programs_of(changed);
        }
        let next = 1 - slot.current;
        self.slots.change(slot.index, |entry| {
            // SAFETY: `entry` points to a whole slot; programs do not read the version that is not current.
            unsafe { (&raw mut (*entry).versions[next as usize]).write_volatile(process) };
            std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            // SAFETY: as above; one aligned store.
            unsafe { (&raw mut (*entry).current).write_volatile(next) };
        });
        slot.current = next;
        slot.changed = Some(Instant::now());
    }

    /// Forgets the samples of the programs that a process ran before the one that it runs now.
    pub fn forget_earlier(&mut self, slot: &Slot) {
        if slot.is_sampled {
            // SAFETY: `entry` points to a whole slot; the kernel side writes the word in one store.
            let execs = self.slots.look(slot.index, |entry| unsafe {
                (&raw const (*entry).execs).read_volatile()
            });
            self.sampled.forget(slot.pid, Some(execs as u32));
        }
    }

    /// Forgets a process whose probes are detached, and its samples: nobody sees their frees any more.
    pub fn remove(&mut self, slot: Slot) {
        let _ = self.by_pid.remove(&slot.pid);
        self.slots.change(slot.index, |entry| {
            // SAFETY: `entry` points to a whole slot; a program that still reads it sees pid 0 and stops.
            unsafe {
                (&raw mut (*entry).versions[0].pid).write_volatile(0);
                (&raw mut (*entry).versions[1].pid).write_volatile(0);
            }
        });
        // A program in the middle must not come to see the next process's numbers.
        self.grace.wait_for_programs_of(Instant::now());
        self.slots.release(slot.index..slot.index + 1);
        if slot.is_sampled {
            self.sampled.forget(slot.pid, None);
        }
    }
}
