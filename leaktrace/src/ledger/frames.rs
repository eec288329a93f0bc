//! The frames of many stacks: a tree that begins at the outermost frame, in which stacks share the callers that they have
//! in common.
//!
//! A stack of a hundred frames that differs from an earlier one in its ten innermost takes ten nodes. Invariant: a node
//! comes after its parent, so every way outwards ends at the root.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::model::ProcessAddress;

/// What a node takes at most, in bytes: its own, and its place in the table by which it is found again, both just grown.
pub const NODE_BYTES: usize = 2 * size_of::<Node>() + 12;

/// A frame, and the caller's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    parent: u32,
    /// Halves of the address, so that a node needs no padding.
    low: u32,
    high: u32,
}

impl Node {
    fn new(parent: u32, address: ProcessAddress) -> Self {
        Self {
            parent,
            low: address.0 as u32,
            high: (address.0 >> 32) as u32,
        }
    }

    fn address(self) -> ProcessAddress {
        ProcessAddress(u64::from(self.low) | u64::from(self.high) << 32)
    }

    fn hash(self) -> u64 {
        let mixed = (self.address().0 ^ u64::from(self.parent) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32 ^ u64::from(self.parent)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
}

/// A stack's innermost node, by which its frames are read. The default is the empty stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leaf(u32);

/// The frames alone, to read.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// The node behind [`Leaf`] n is at n - 1.
    nodes: Vec<Node>,
}

impl Frames {
    /// Program counters of a stack, innermost first.
    pub fn of(&self, leaf: Leaf) -> impl Iterator<Item = ProcessAddress> + '_ {
        let node = |number: u32| self.nodes.get(number.checked_sub(1)? as usize).copied();
        std::iter::successors(node(leaf.0), move |inner| node(inner.parent)).map(Node::address)
    }
}

/// The tree under construction.
#[derive(Default)]
pub struct FrameTree {
    /// Shared with snapshots: copied if a stack comes while one is there.
    frames: Arc<Frames>,
    known: HashTable<u32>,
    /// The stack that came last, outermost first, with its nodes: the next one mostly begins as it does.
    last: Vec<(ProcessAddress, u32)>,
}

impl FrameTree {
    /// The stack with these frames, outermost first. `None` if it would need more than so many new nodes.
    pub fn add(&mut self, frames: impl Iterator<Item = ProcessAddress>, room: usize) -> Option<Leaf> {
        let mut frames = frames.peekable();
        let mut shared = 0;
        while let Some((address, _)) = self.last.get(shared)
            && frames.next_if_eq(address).is_some()
        {
            shared += 1;
        }
        self.last.truncate(shared);
        let mut parent = self.last.last().map_or(0, |(_, node)| *node);
        let first_new = self.frames.nodes.len();
        for address in frames {
            let node = Node::new(parent, address);
            let nodes = &self.frames.nodes;
            let hash = node.hash();
            let found = self.known.find(hash, |number| nodes[*number as usize - 1] == node);
            parent = match found {
                Some(number) => *number,
                None => {
                    let number = u32::try_from(nodes.len() + 1).ok()?;
                    if nodes.len() - first_new >= room {
                        return None;
                    }
                    let nodes = &mut Arc::make_mut(&mut self.frames).nodes;
                    nodes.push(node);
                    self.known
                        .insert_unique(hash, number, |number| nodes[*number as usize - 1].hash());
                    number
                }
            };
            self.last.push((address, parent));
        }
        Some(Leaf(parent))
    }

    /// Program counters of a stack, innermost first.
    pub fn of(&self, leaf: Leaf) -> impl Iterator<Item = ProcessAddress> + '_ {
        self.frames.of(leaf)
    }

    /// All frames, as they are now.
    pub fn share(&self) -> Arc<Frames> {
        Arc::clone(&self.frames)
    }

    /// Gives up what only new stacks need.
    pub fn seal(&mut self) {
        self.known = HashTable::new();
        self.last = Vec::new();
    }

    /// Bytes that it takes at most.
    pub fn memory(&self) -> usize {
        self.frames.nodes.len() * NODE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(stack: &[u64]) -> impl Iterator<Item = ProcessAddress> + '_ {
        stack.iter().copied().map(ProcessAddress)
    }

    #[test]
    fn callers_are_shared() {
        let mut tree = FrameTree::default();
        let long: Vec<u64> = (1..=100).collect();
        let one = tree.add(addresses(&long), 100);
        assert_eq!(tree.memory(), 100 * NODE_BYTES);
        let other = tree.add(addresses(&[&long[..90], &[7]].concat()), 1);
        assert_eq!(tree.memory(), 101 * NODE_BYTES);
        assert_ne!(one, other);
        assert_eq!(tree.add(addresses(&long), 0), one, "it is there, and needs no room");
        assert_eq!(
            tree.add(addresses(&long[..50]), 0).map(|leaf| tree.of(leaf).count()),
            Some(50)
        );
        assert_eq!(tree.add(addresses(&[]), 0), Some(Leaf::default()));
        assert_eq!(tree.add(addresses(&[1, 1]), 0), None);
        assert_eq!(tree.add(addresses(&long), 0), one);
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut tree = FrameTree::default();
        let leaf = tree.add(addresses(&[1, 2]), 9).unwrap_or_default();
        let frames = tree.share();
        let later = tree.add(addresses(&[1, 3]), 9).unwrap_or_default();
        assert!(frames.of(leaf).eq(addresses(&[2, 1])));
        assert!(tree.of(later).eq(addresses(&[3, 1])));
        assert_eq!(frames.of(later).count(), 0, "a leaf of another tree leads nowhere");
    }

    proptest! {
        #[test]
        fn what_was_added_is_read_back(stacks in prop::collection::vec(prop::collection::vec(0..4u64, 0..9), 1..40), room in 0..12usize) {
            let mut tree = FrameTree::default();
            let leaves: Vec<_> = stacks.iter().map(|stack| tree.add(addresses(stack), room)).collect();
            for (stack, leaf) in stacks.iter().zip(&leaves) {
                if let Some(leaf) = leaf {
                    prop_assert!(tree.of(*leaf).eq(addresses(stack).collect::<Vec<_>>().into_iter().rev()));
                }
            }
            for (one, first) in stacks.iter().zip(&leaves) {
                for (other, second) in stacks.iter().zip(&leaves) {
                    if let (Some(first), Some(second)) = (first, second) {
                        prop_assert_eq!(one == other, first == second);
                    }
                }
            }
        }
    }
}
