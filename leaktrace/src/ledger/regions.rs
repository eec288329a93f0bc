//! Anonymous mappings outside an allocator: intervals of the address space, cut and joined as the process does.

use std::collections::BTreeMap;

/// One mapped interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address behind it.
    pub end: u64,
    /// Index of the stack that mapped it.
    pub stack: u32,
    /// When, in hundredths of a second since the ledger's beginning.
    pub born: u32,
}

/// Mapped intervals by first address; they never overlap.
#[derive(Default)]
pub struct Regions(BTreeMap<u64, Region>);

impl Regions {
    /// Maps an interval over whatever was there.
    pub fn map(&mut self, start: u64, region: Region) {
        if region.end <= start {
            return;
        }
        self.unmap(start, region.end);
        self.0.insert(start, region);
    }

    /// Unmaps an interval; what it covers in part is cut.
    pub fn unmap(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        if let Some((&before, &region)) = self.0.range(..start).next_back()
            && region.end > start
        {
            self.0.insert(before, Region { end: start, ..region });
            if region.end > end {
                self.0.insert(end, region);
            }
        }
        let inside: Vec<u64> = self.0.range(start..end).map(|(at, _)| *at).collect();
        for at in inside {
            if let Some(region) = self.0.remove(&at)
                && region.end > end
            {
                self.0.insert(end, region);
            }
        }
    }

    /// Takes an interval out: the parts of it that were mapped, in order.
    pub fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Region)> {
        if end <= start {
            return Vec::new();
        }
        let before = self
            .0
            .range(..start)
            .next_back()
            .filter(|(_, region)| region.end > start);
        let parts = before.into_iter().chain(self.0.range(start..end));
        let clip = |(at, region): (&u64, &Region)| {
            let part = Region {
                end: region.end.min(end),
                ..*region
            };
            (start.max(*at), part)
        };
        let parts = parts.map(clip).collect();
        self.unmap(start, end);
        parts
    }

    /// The region that begins at an address.
    pub fn at(&self, start: u64) -> Option<Region> {
        self.0.get(&start).copied()
    }

    /// The region that an address lies in.
    pub fn containing(&self, address: u64) -> Option<Region> {
        self.0
            .range(..=address)
            .next_back()
            .map(|(_, region)| *region)
            .filter(|region| region.end > address)
    }

    /// All regions in order: first address and region.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Region)> + '_ {
        self.0.iter().map(|(start, region)| (*start, *region))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(end: u64, stack: u32) -> Region {
        Region { end, stack, born: 0 }
    }

    #[test]
    fn unmapping_the_middle_leaves_both_ends() {
        let mut regions = Regions::default();
        regions.map(10, region(40, 1));
        regions.unmap(20, 30);
        assert_eq!(
            regions.iter().collect::<Vec<_>>(),
            [(10, region(20, 1)), (30, region(40, 1))]
        );
    }

    #[test]
    fn what_is_taken_out_is_cut_at_both_ends() {
        let mut regions = Regions::default();
        regions.map(10, region(40, 1));
        regions.map(50, region(90, 2));
        assert_eq!(regions.take(20, 60), [(20, region(40, 1)), (50, region(60, 2))]);
        assert_eq!(
            regions.iter().collect::<Vec<_>>(),
            [(10, region(20, 1)), (60, region(90, 2))]
        );
        assert_eq!(regions.take(60, 20), []);
    }

    proptest! {
        #[test]
        fn behaves_like_one_cell_per_address(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..32), 0..60)
        ) {
            let mut regions = Regions::default();
            let mut cells = [0u32; 128];
            for (number, (map, start, length)) in steps.into_iter().enumerate() {
                let stack = number as u32 + 1;
                if map {
                    regions.map(start, region(start + length, stack));
                } else {
                    regions.unmap(start, start + length);
                }
                let value = if map { stack } else { 0 };
                cells[start as usize..(start + length) as usize].fill(value);
            }
            for (address, cell) in cells.iter().enumerate() {
                let found = regions.containing(address as u64).map_or(0, |region| region.stack);
                prop_assert_eq!(found, *cell, "at {}", address);
            }
        }
    }
}
