//! Traced processes as the kernel side sees them: one slot each, named by the cookies of its probes; and the processes that
//! use the memory of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use aya::maps::{Array, HashMap, MapData, MapError};
use leaktrace_common::config::{
    GrowthState, MAX_PROCESSES, MAX_SHARERS, Process, ProcessSlot, Sharer, held_of_slot, held_of_user,
};

use super::{
    grace::GracePeriod,
    requirements::with_causes,
    sampled::SampledBlocks,
    tables::{ArrayFull, MappedArray},
};

/// Why a process could not be made known.
#[derive(Debug, thiserror::Error)]
pub enum ProcessTableError {
    /// There are too many.
    #[error("{MAX_PROCESSES} processes are traced already, and no more can be at once")]
    Full(#[from] ArrayFull),
    /// The kernel refused.
    #[error("failed to enter pid {pid} in BPF map `SLOTS`: {}", with_causes(cause))]
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
    /// Processes that use the memory of a traced one.
    sharers: HashMap<MapData, u32, Sharer>,
    /// Numbers of the users of traced processes, and how many processes each has.
    users: BTreeMap<u32, (u32, u32)>,
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
    user: u32,
    user_number: u32,
    /// It was forgotten by its pid, which another process may have by now.
    has_ended: bool,
}

impl Slot {
    /// Its number, for cookies.
    pub fn number(&self) -> u16 {
        // MAX_PROCESSES is far below 2^16.
        self.index as u16
    }

    /// What samples are known by.
    fn process(&self) -> Process {
        self.complete(Process {
            pid: self.pid,
            ..Process::default()
        })
    }

    /// What the kernel side is to know, with where it counts.
    fn complete(&self, process: Process) -> Process {
        Process {
            held: held_of_slot(self.index),
            held_of_user: held_of_user(self.user_number),
            ..process
        }
    }
}

impl ProcessTable {
    pub(super) fn new(
        slots: MappedArray<ProcessSlot>,
        by_pid: HashMap<MapData, u32, u32>,
        sharers: HashMap<MapData, u32, Sharer>,
        growth: Array<MapData, GrowthState>,
        sampled: SampledBlocks,
        grace: Arc<GracePeriod>,
    ) -> Self {
        Self {
            slots,
            by_pid,
            sharers,
            users: BTreeMap::new(),
            growth,
            sampled,
            grace,
        }
    }

    /// Makes a process of a user known.
    pub fn add(&mut self, process: Process, user: u32) -> Result<Slot, ProcessTableError> {
        let run = self.slots.store([ProcessSlot::default()].into_iter())?;
        let slot = Slot {
            index: run.start,
            pid: process.pid,
            current: 0,
            changed: None,
            is_sampled: process.sample_interval != 0,
            user,
            user_number: self.count_in(user),
            has_ended: false,
        };
        let process = slot.complete(process);
        self.slots.change(slot.index, |entry| {
            // SAFETY: `entry` points to a whole slot, which no cookie and no pid leads to yet.
            unsafe { (&raw mut (*entry).versions[0]).write_volatile(process) };
        });
        let known = self.growth.set(slot.index, GrowthState::default(), 0);
        match known.and_then(|()| self.by_pid.insert(process.pid, slot.index, 0)) {
            Ok(()) => Ok(slot),
            Err(cause) => {
                self.slots.release(run);
                self.count_out(user);
                Err(ProcessTableError::Slots {
                    pid: process.pid,
                    cause,
                })
            }
        }
    }

    /// The number of a user, who has one more process.
    fn count_in(&mut self, user: u32) -> u32 {
        let taken: BTreeSet<u32> = self.users.values().map(|(number, _)| *number).collect();
        let free = (0..).zip(&taken).find(|(number, taken)| number != *taken);
        let number = free.map_or(taken.len() as u32, |(number, _)| number);
        let (number, count) = self.users.entry(user).or_insert((number, 0));
        *count += 1;
        *number
    }

    fn count_out(&mut self, user: u32) {
        if let Some((_, count)) = self.users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&user);
            }
        }
    }

    /// What another process calls is a traced one's doing from now on: it uses its memory.
    pub fn share(&mut self, slot: &Slot, pid: u32) -> Result<(), ProcessTableError> {
        let sharer = Sharer {
            slot: slot.index,
            owner: slot.pid,
            execs: self.execs(slot),
            is_waited_for: 0,
        };
        let known = self.sharers.insert(pid, sharer, 0);
        known
            .and_then(|()| self.by_pid.insert(pid, slot.index, 0))
            .map_err(|cause| ProcessTableError::Slots { pid, cause })
    }

    /// A process that uses the memory of the one in the slot, and goes on doing so.
    pub fn sharer_of(&self, slot: &Slot) -> Option<u32> {
        let execs = self.execs(slot);
        let uses = |sharer: &Sharer| sharer.slot == slot.index && sharer.execs == execs && sharer.is_waited_for == 0;
        self.all_sharers()
            .find_map(|(pid, sharer)| uses(&sharer).then_some(pid))
    }

    /// All that are noted. One that goes meanwhile may have the kernel begin again, but not for ever.
    fn all_sharers(&self) -> impl Iterator<Item = (u32, Sharer)> {
        let sharers = self.sharers.iter().filter_map(Result::ok);
        sharers.take(2 * MAX_SHARERS as usize)
    }

    /// The process whose memory this one uses, if that one is traced.
    pub fn owner_of(&self, pid: u32) -> Option<u32> {
        self.sharers.get(&pid, 0).ok().map(|sharer| sharer.owner)
    }

    fn execs(&self, slot: &Slot) -> u32 {
        // SAFETY: `entry` points to a whole slot; the kernel side writes the word in one store.
        let execs = self.slots.look(slot.index, |entry| unsafe {
            (&raw const (*entry).execs).read_volatile()
        });
        execs as u32
    }

    /// Replaces what is known of a process, at once for each program that begins after this.
    pub fn change(&mut self, slot: &mut Slot, process: Process) {
        if let Some(changed) = slot.changed {
            self.grace.wait_for_programs_of(changed);
        }
        let process = slot.complete(process);
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
            let execs = self.execs(slot);
            self.sampled.forget_earlier(&slot.process(), execs);
        }
    }

    /// Samples that are held: of all processes, and of the one in a slot.
    pub fn samples(&self, slot: &Slot) -> (u64, u64) {
        (self.sampled.held(0), self.sampled.held(held_of_slot(slot.index)))
    }

    /// Forgets the samples of a process that goes on being traced: what it holds has to be forgotten elsewhere, too.
    pub fn forget_samples(&mut self, slot: &Slot) {
        self.sampled.begin_anew(&slot.process());
    }

    /// A process has ended: another one may have its pid from now on, and nothing that it does is the ended one's.
    pub fn end(&mut self, slot: &mut Slot) {
        if !slot.has_ended {
            slot.has_ended = true;
            let _ = self.by_pid.remove(&slot.pid);
        }
    }

    /// Forgets a process whose probes are detached, and its samples: nobody sees their frees any more.
    pub fn remove(&mut self, slot: Slot) {
        if !slot.has_ended {
            let _ = self.by_pid.remove(&slot.pid);
        }
        let of_slot = |sharer: &Sharer| sharer.slot == slot.index && sharer.owner == slot.pid;
        let sharers: Vec<u32> = self
            .all_sharers()
            .filter_map(|(pid, sharer)| of_slot(&sharer).then_some(pid))
            .collect();
        for pid in sharers {
            let _ = self.sharers.remove(&pid);
            let _ = self.by_pid.remove(&pid);
        }
        self.slots.change(slot.index, |entry| {
            // SAFETY: `entry` points to a whole slot; a program that still reads it sees pid 0 and stops.
            unsafe {
                (&raw mut (*entry).versions[0].pid).write_volatile(0);
                (&raw mut (*entry).versions[1].pid).write_volatile(0);
            }
        });
        // A program in the middle must not come to see the next process's numbers.
        self.grace.wait_for_programs_of(Instant::now());
        if slot.is_sampled {
            self.sampled.forget_all(&slot.process());
        }
        self.count_out(slot.user);
        self.slots.release(slot.index..slot.index + 1);
    }
}
