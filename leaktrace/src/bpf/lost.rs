//! Releases that were lost for good, as the kernel side counts them: by what they may have been.

use leaktrace_common::config::LOST_RELEASES;

use super::tables::MappedArray;

/// The counts, and what they were when they were read last.
pub struct LostReleases {
    counts: MappedArray<u64>,
    seen: Vec<u64>,
}

impl LostReleases {
    pub(super) fn new(counts: MappedArray<u64>) -> Self {
        Self {
            counts,
            seen: vec![0; LOST_RELEASES as usize],
        }
    }

    /// Entries whose count has changed since the last time.
    pub fn take(&mut self) -> Vec<u32> {
        let mut changed = Vec::new();
        for (index, seen) in (0..).zip(&mut self.seen) {
            // SAFETY: `count` points to an entry; the kernel side changes it by single stores.
            let count = self.counts.look(index, |count| unsafe { count.read_volatile() });
            if count != *seen {
                *seen = count;
                changed.push(index);
            }
        }
        changed
    }
}
