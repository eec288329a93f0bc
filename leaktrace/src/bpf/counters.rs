//! Loss counters of the kernel side.

use std::cell::Cell;

use aya::maps::{MapData, PerCpuArray};
use leaktrace_common::reason::Counter;

/// How often a counter is asked for that could not be read.
const TRIES: usize = 3;

/// Reader of the counters.
pub struct Counters {
    map: PerCpuArray<MapData, u64>,
    /// Each as it was read last: one that cannot be read for the moment has not begun anew.
    last: [Cell<u64>; Counter::COUNT],
}

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self {
            map,
            last: std::array::from_fn(|_| Cell::new(0)),
        }
    }

    /// Every counter, summed over the CPUs, indexed by its number.
    pub fn read(&self) -> [u64; Counter::COUNT] {
        std::array::from_fn(|index| {
            let last = &self.last[index];
            // Whoever reads 0 takes it that nothing was lost.
            if let Some(values) = (0..TRIES).find_map(|_| self.map.get(&(index as u32), 0).ok()) {
                last.set(values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)));
            }
            last.get()
        })
    }
}
