//! The table of outstanding blocks: address → size, stack, birth.
//!
//! There may be tens of millions, so an entry is packed into 18 bytes and the table is cut into shards that grow one by
//! one: the memory per block stays below 48 bytes at any moment, growing included.

use hashbrown::HashTable;

/// Shards of the table; a power of two.
const SHARDS: usize = 256;
/// Sizes from here on are kept aside.
const HUGE: u64 = u32::MAX as u64;

/// What is known of an outstanding block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Requested bytes.
    pub size: u64,
    /// Index of its stack (24 bits).
    pub stack: u32,
    /// Index of its sampling interval.
    pub interval: u8,
    /// When it was allocated, in hundredths of a second since the ledger's beginning.
    pub born: u32,
}

/// 48 bits of address, 32 of size, 24 of stack, 8 of interval, 32 of birth, in halves of a word so that it needs no
/// padding.
#[derive(Clone, Copy)]
struct Entry([u16; 9]);

const _: () = assert!(size_of::<Entry>() == 18);

impl Entry {
    fn new(address: u64, block: &Block) -> Self {
        let size = block.size.min(HUGE);
        let half = |value: u64, index: u32| (value >> (16 * index)) as u16;
        let stack = u64::from(block.stack & 0xff_ffff) | u64::from(block.interval) << 24;
        let born = u64::from(block.born);
        Self([
            half(address, 0),
            half(address, 1),
            half(address, 2),
            half(size, 0),
            half(size, 1),
            half(stack, 0),
            half(stack, 1),
            half(born, 0),
            half(born, 1),
        ])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.0[at]) | u32::from(self.0[at + 1]) << 16
    }

    fn address(&self) -> u64 {
        u64::from(self.word(0)) | u64::from(self.0[2]) << 32
    }

    fn size(&self) -> u64 {
        u64::from(self.word(3))
    }

    fn block(&self) -> Block {
        let stack = self.word(5);
        Block {
            size: self.size(),
            stack: stack & 0xff_ffff,
            interval: (stack >> 24) as u8,
            born: self.word(7),
        }
    }
}

fn hash(address: u64) -> u64 {
    let mixed = (address ^ (address >> 21)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

fn shard(hash: u64) -> usize {
    (hash >> 40) as usize & (SHARDS - 1)
}

/// Outstanding blocks of one process by address. Addresses have 48 bits; higher ones do not exist in a process.
pub struct BlockTable {
    shards: Vec<HashTable<Entry>>,
    /// Sizes that do not fit into an entry.
    huge: hashbrown::HashMap<u64, u64>,
}

impl Default for BlockTable {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            huge: hashbrown::HashMap::new(),
        }
    }
}

impl BlockTable {
    /// Puts a block in; returns the one that was thought to live there.
    pub fn insert(&mut self, address: u64, block: Block) -> Option<Block> {
        let hash = hash(address);
        let old = self.remove_hashed(address, hash);
        if block.size >= HUGE {
            self.huge.insert(address, block.size);
        }
        self.shards[shard(hash)].insert_unique(hash, Entry::new(address, &block), |entry| self::hash(entry.address()));
        old
    }

    /// Takes a block out.
    pub fn remove(&mut self, address: u64) -> Option<Block> {
        self.remove_hashed(address, hash(address))
    }

    fn remove_hashed(&mut self, address: u64, hash: u64) -> Option<Block> {
        let found = self.shards[shard(hash)]
            .find_entry(hash, |entry| entry.address() == address)
            .ok()?;
        let (entry, _) = found.remove();
        let mut block = entry.block();
        if block.size == HUGE {
            block.size = self.huge.remove(&address).unwrap_or(HUGE);
        }
        Some(block)
    }

    /// How many blocks are outstanding.
    pub fn len(&self) -> usize {
        self.shards.iter().map(HashTable::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(HashTable::is_empty)
    }

    /// All outstanding blocks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Block)> + '_ {
        self.shards.iter().flatten().map(|entry| {
            let (address, mut block) = (entry.address(), entry.block());
            if block.size == HUGE {
                block.size = self.huge.get(&address).copied().unwrap_or(HUGE);
            }
            (address, block)
        })
    }

    /// Bytes of memory that the table occupies.
    pub fn memory(&self) -> usize {
        self.shards.iter().map(HashTable::allocation_size).sum::<usize>() + self.huge.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn block(size: u64) -> Block {
        Block {
            size,
            stack: 0xab_cdef,
            interval: 3,
            born: u32::MAX - 1,
        }
    }

    #[test]
    fn blocks_come_out_as_they_went_in() {
        let mut table = BlockTable::default();
        for size in [0, 1, HUGE - 1, HUGE, HUGE + 1, 1 << 45] {
            assert_eq!(table.insert(0x7fff_1234_5678, block(size)), None);
            assert_eq!(table.iter().collect::<Vec<_>>(), [(0x7fff_1234_5678, block(size))]);
            assert_eq!(table.remove(0x7fff_1234_5678), Some(block(size)));
            assert!(table.is_empty() && table.huge.is_empty());
        }
    }

    #[test]
    fn a_block_needs_less_than_48_bytes_at_any_number() {
        let mut table = BlockTable::default();
        let mut worst = 0.0f64;
        for index in 0..400_000u64 {
            table.insert(0x5555_0000_0000 + index * 48, block(48));
            if index > 100_000 && index % 1000 == 0 {
                worst = worst.max(table.memory() as f64 / (index + 1) as f64);
            }
        }
        assert!(worst < 48.0, "{worst} bytes per block");
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<bool>(), 0u64..64, any::<u64>()), 0..400)) {
            let mut table = BlockTable::default();
            let mut naive: HashMap<u64, Block> = HashMap::new();
            for (insert, address, size) in steps {
                let address = address * 16;
                if insert {
                    prop_assert_eq!(table.insert(address, block(size)), naive.insert(address, block(size)));
                } else {
                    prop_assert_eq!(table.remove(address), naive.remove(&address));
                }
                prop_assert_eq!(table.len(), naive.len());
            }
            let all: HashMap<u64, Block> = table.iter().collect();
            prop_assert_eq!(all, naive);
        }
    }
}
