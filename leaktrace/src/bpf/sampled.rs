//! The set of blocks that were taken as samples, as userspace sees it: it only takes out what nobody will free.

use aya::maps::{HashMap, MapData};
use leaktrace_common::config::BlockKey;

/// Blocks taken as samples, of all processes.
pub struct SampledBlocks(HashMap<MapData, BlockKey, u32>);

impl SampledBlocks {
    pub(super) fn new(map: HashMap<MapData, BlockKey, u32>) -> Self {
        Self(map)
    }

    /// Takes out blocks of a process that is not traced any more: their frees will not be seen.
    pub fn forget(&mut self, pid: u32, addresses: impl Iterator<Item = u64>) {
        for address in addresses {
            // One that is not there was freed a moment ago.
            let _ = self.0.remove(&BlockKey { address, pid, pad: 0 });
        }
    }
}
