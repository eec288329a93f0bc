//! Samples of memory that became resident: of a process that is followed without probes.
//!
//! A sample is a page. As long as it is there, so is, on average, what it stands for. Invariant: there are at most
//! [`MAX_PAGES`].

use std::collections::{BTreeMap, HashMap};

use super::Amount;
use crate::model::{ProcessAddress, page_size};

/// Most samples of one process; with a mean of 256 KiB that is 16 GiB.
const MAX_PAGES: usize = 1 << 16;

/// One page, and what came with it.
#[derive(Clone, Copy)]
struct Sample {
    stack: u32,
    /// What it stands for.
    bytes: f64,
}

/// The samples.
#[derive(Default)]
pub(super) struct Pages {
    samples: BTreeMap<u64, Sample>,
}

impl Pages {
    /// One more sample: a page that became resident again belongs to who touched it last. Returns whether there was room.
    pub fn settle(&mut self, address: ProcessAddress, stack: u32, bytes: f64) -> bool {
        let page = address.0 / page_size() * page_size();
        if self.samples.len() >= MAX_PAGES && !self.samples.contains_key(&page) {
            return false;
        }
        self.samples.insert(page, Sample { stack, bytes });
        true
    }

    /// A page is not resident any more.
    pub fn leave(&mut self, page: ProcessAddress) {
        self.samples.remove(&page.0);
    }

    /// A part of the address space was given back.
    pub fn unmap(&mut self, start: u64, end: u64) {
        while start < end
            && let Some(page) = self.samples.range(start..end).next().map(|(page, _)| *page)
        {
            self.samples.remove(&page);
        }
    }

    /// Forgets all; returns how many there were.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.samples).len()
    }

    /// The pages.
    pub fn addresses(&self) -> impl Iterator<Item = ProcessAddress> + '_ {
        self.samples.keys().map(|page| ProcessAddress(*page))
    }

    /// Bytes that all samples stand for.
    pub fn bytes(&self) -> f64 {
        self.samples.values().map(|sample| sample.bytes).sum()
    }

    /// What the samples of each stack stand for.
    pub fn by_stack(&self) -> HashMap<u32, Amount> {
        let mut sums: HashMap<u32, Amount> = HashMap::new();
        for Sample { stack, bytes } in self.samples.values().copied() {
            let objects = bytes / page_size() as f64;
            sums.entry(stack).or_default().add(Amount { objects, bytes }, 1.0);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_counts_while_its_page_is_there() {
        let mut pages = Pages::default();
        assert!(pages.settle(ProcessAddress(0x7123), 1, 8192.0));
        assert!(pages.settle(ProcessAddress(0x9000), 2, 4096.0));
        assert_eq!(pages.bytes(), 12288.0);
        assert_eq!(
            pages.by_stack()[&1],
            Amount {
                objects: 2.0,
                bytes: 8192.0
            }
        );
        // Somebody else touches the first page after it was gone.
        assert!(pages.settle(ProcessAddress(0x7fff), 2, 4096.0));
        pages.leave(ProcessAddress(0x9000));
        pages.leave(ProcessAddress(0x9000));
        assert!(pages.settle(ProcessAddress(0xa000), 3, 4096.0));
        pages.unmap(0x8000, 0xb000);
        pages.unmap(0xb000, 0x8000);
        assert_eq!(pages.bytes(), 4096.0);
        assert_eq!(pages.by_stack()[&2].bytes, 4096.0);
        assert_eq!(pages.addresses().collect::<Vec<_>>(), [ProcessAddress(0x7000)]);
    }

    #[test]
    fn there_is_no_more_room_than_the_limit() {
        let mut pages = Pages::default();
        for page in 0..MAX_PAGES as u64 {
            assert!(pages.settle(ProcessAddress((page + 1) * page_size()), 1, 4096.0));
        }
        assert!(!pages.settle(ProcessAddress(1 << 40), 1, 4096.0));
        assert!(pages.settle(ProcessAddress(page_size()), 2, 4096.0));
        pages.leave(ProcessAddress(page_size()));
        assert!(pages.settle(ProcessAddress(1 << 40), 1, 4096.0));
    }
}
