//! Loss counters of the kernel side.

use aya::maps::{MapData, PerCpuArray};
use leaktrace_common::reason::Counter;

/// Reader of the counters.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self(map)
    }

    /// Every counter, summed over the CPUs, indexed by its number.
    pub fn read(&self) -> [u64; Counter::COUNT] {
        std::array::from_fn(|index| {
            self.0.get(&(index as u32), 0).map_or(0, |values| {
                values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value))
            })
        })
    }
}
