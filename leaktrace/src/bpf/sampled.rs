//! The set of blocks that were taken as samples, as userspace sees it: it only takes out what nobody will free.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{HashMap, MapData};
use leaktrace_common::config::{BlockKey, Process};

use super::{syscall, tables::MappedArray};

/// Blocks taken as samples, of all processes: each with the number of programs that its process had run before.
pub struct SampledBlocks {
    blocks: HashMap<MapData, BlockKey, u32>,
    fd: OwnedFd,
    /// How many there are: in all, for each slot, for each user.
    held: MappedArray<u64>,
}

impl SampledBlocks {
    pub(super) fn new(blocks: HashMap<MapData, BlockKey, u32>, fd: OwnedFd, held: MappedArray<u64>) -> Self {
        Self { blocks, fd, held }
    }

    /// Counts what is held of a process no more.
    fn count_out(&mut self, process: &Process, count: u64) {
        for counter in [0, process.held_of_user, process.held] {
            // SAFETY: an aligned word of the mapping; programs in the kernel change it by atomic instructions, too.
            self.held.change(counter, |held| unsafe {
                AtomicU64::from_ptr(held).fetch_sub(count, Ordering::Relaxed);
            });
        }
    }

    /// How many are held by one of the counters.
    pub fn held(&self, counter: u32) -> u64 {
        // SAFETY: an aligned word of the mapping; programs in the kernel change it by atomic instructions.
        self.held.look(counter, |held| unsafe { held.read_volatile() })
    }

    /// Takes out all blocks of a process that goes on being traced.
    pub fn begin_anew(&mut self, process: &Process) {
        let count = self.take_out(process.pid, None);
        self.count_out(process, count);
    }

    /// Takes out all blocks of a process that is not traced any more.
    pub fn forget_all(&mut self, process: &Process) {
        self.take_out(process.pid, None);
        // What was counted and is gone in another way, if anything, must not stay counted.
        let left = self.held(process.held);
        self.count_out(process, left);
    }

    /// Takes out blocks of a process whose frees will not be seen, but keeps those that were taken in the program that it
    /// runs now, if it still does. Looks at the whole set once, some milliseconds. They are counted no more since the exec.
    pub fn forget_earlier(&mut self, process: &Process, still_running: u32) {
        self.take_out(process.pid, Some(still_running));
    }

    fn take_out(&mut self, pid: u32, still_running: Option<u32>) -> u64 {
        let mut count = 0;
        let is_gone = |key: &BlockKey, program: u32| key.pid == pid && Some(program) != still_running;
        let blocks = &mut self.blocks;
        let looked = syscall::each_batch(self.fd.as_fd(), |batch: &[(BlockKey, u32)]| {
            for (key, _) in batch.iter().filter(|(key, program)| is_gone(key, *program)) {
                // One that is not there was freed a moment ago.
                count += u64::from(blocks.remove(key).is_ok());
            }
        });
        if let Err(error) = looked {
            tracing::debug!("failed to look through the samples of pid {pid}: {error}");
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use leaktrace_common::config::{MAX_SAMPLES, may_hold_sample};

    /// Takes all that one process of a user can get; samples by user and process.
    fn take_all(held: &mut [Vec<u64>], user: usize, process: usize) {
        loop {
            let all: u64 = held.iter().flatten().sum();
            let of_user: u64 = held[user].iter().sum();
            let own = held[user][process];
            if !may_hold_sample(all, of_user, own) {
                return;
            }
            // In steps, since a million single ones take long.
            held[user][process] += 8;
        }
    }

    #[test]
    fn whoever_takes_all_leaves_half_of_it() {
        for processes in [1, 2, 8] {
            let mut held: Vec<Vec<u64>> = Vec::new();
            let mut free = u64::from(MAX_SAMPLES);
            for user in 0..8 {
                held.push(vec![0; processes]);
                (0..processes).for_each(|process| take_all(&mut held, user, process));
                let left = u64::from(MAX_SAMPLES) - held.iter().flatten().sum::<u64>();
                assert!(held[user][0] >= free * 4 / 10, "{processes} processes: {held:?}");
                assert!(
                    left >= free / 2 - 8 * processes as u64,
                    "{processes} processes: {held:?}"
                );
                free = left;
            }
        }
    }
}
