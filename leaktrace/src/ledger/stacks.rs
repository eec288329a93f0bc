//! Stacks of one process with what was allocated through each.
//!
//! Invariant: they take at most the memory that is set aside for them. A stack for which there is none left is not told
//! apart from other such ones, and what is allocated through it is counted at [`StackTable::OTHER`].

use std::sync::Arc;

use hashbrown::HashMap;
use leaktrace_common::reason::WalkEnd;

use super::{
    CodeHistory,
    frames::{FrameTree, Frames, Leaf, NODE_BYTES},
};
use crate::model::{ProcessAddress, StackId};

/// Most stacks that are told apart: what an entry of the block table can name.
const MAX_STACKS: usize = 1 << 24;
/// Bytes that a stack takes at most besides its frames: its own, and its place in the index, both just grown.
const STACK_BYTES: usize = 2 * size_of::<Stack>() + 40;
/// Bytes that the stacks of a process may take if nobody says otherwise: a quarter of a million stacks with a hundred
/// frames each, of which few are like others.
pub const DEFAULT_LIMIT: usize = 128 << 20;

/// Objects and bytes. In exact mode these are whole numbers below 2^53, which a double holds exactly; in sampled mode
/// they are sums of scaled samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// How many objects.
    pub objects: f64,
    /// How many bytes.
    pub bytes: f64,
}

impl Amount {
    /// Adds another amount, `times` times.
    pub fn add(&mut self, other: Amount, times: f64) {
        self.objects += other.objects * times;
        self.bytes += other.bytes * times;
    }
}

/// What happened through one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Allocated since tracing began.
    pub allocated: Amount,
    /// Of that, outstanding.
    pub live: Amount,
    /// Records that make up `live`: when it comes to 0, so does `live`, without a rest from rounding.
    pub live_records: u64,
}

impl Totals {
    /// One record more.
    pub fn allocate(&mut self, amount: Amount) {
        self.allocated.add(amount, 1.0);
        self.live.add(amount, 1.0);
        self.live_records += 1;
    }

    /// One record less.
    pub fn release(&mut self, amount: Amount) {
        self.live_records = self.live_records.saturating_sub(1);
        if self.live_records == 0 {
            self.live = Amount::default();
        } else {
            self.live.add(amount, -1.0);
        }
    }
}

/// Which threads came through a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// None yet.
    #[default]
    None,
    /// This one alone.
    One(u32),
    /// Several.
    Many,
}

impl Threads {
    /// One more allocation by a thread.
    pub fn note(&mut self, tid: u32) {
        *self = match *self {
            Self::None => Self::One(tid),
            Self::One(known) if known == tid => return,
            _ => Self::Many,
        };
    }
}

/// A stack and what happened through it.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Its frames in the table's tree.
    pub leaf: Leaf,
    /// Where the walk ended.
    pub end: WalkEnd,
    /// How many changes of code there had been when it came: what its addresses mean.
    pub code: u64,
    /// How many there had been when it was last made sure that they still mean that.
    checked: u64,
    /// Who came through.
    pub thread: Threads,
    /// Blocks from an allocator.
    pub native: Totals,
    /// Its live bytes at the last two marks, the older one first.
    pub marks: [f64; 2],
    /// Anonymous mappings: allocated only; what is live stands in the regions.
    pub mapped: Amount,
    /// Address space that a process whose growth is sampled reserved.
    pub reserved: Amount,
}

impl Stack {
    /// Nothing happened through it yet.
    fn new(leaf: Leaf, end: WalkEnd, code: u64) -> Self {
        Self {
            leaf,
            end,
            code,
            checked: code,
            thread: Threads::None,
            native: Totals::default(),
            marks: [0.0; 2],
            mapped: Amount::default(),
            reserved: Amount::default(),
        }
    }
}

/// All stacks of a process, by index.
pub struct StackTable {
    index: HashMap<StackId, u32>,
    stacks: Vec<Stack>,
    tree: FrameTree,
    /// Bytes that all this may take.
    limit: usize,
    /// A stack came for which there was no memory.
    is_full: bool,
}

impl Default for StackTable {
    fn default() -> Self {
        let empty = || Stack::new(Leaf::default(), WalkEnd::Bottom, 0);
        Self {
            index: HashMap::new(),
            stacks: vec![empty(), empty()],
            tree: FrameTree::default(),
            limit: DEFAULT_LIMIT,
            is_full: false,
        }
    }
}

impl StackTable {
    /// What stands for all stacks whose record never came.
    pub const UNKNOWN: u32 = 0;
    /// What stands for all stacks for which there was no memory.
    pub const OTHER: u32 = 1;

    /// Notes a stack, innermost frame first; one that is known already is left as it is.
    pub fn define(
        &mut self,
        id: StackId,
        end: WalkEnd,
        frames: impl DoubleEndedIterator<Item = ProcessAddress>,
        code: &CodeHistory,
    ) {
        if self.index.contains_key(&id) {
            return;
        }
        let room = self.room().saturating_sub(STACK_BYTES) / NODE_BYTES;
        match self.tree.add(frames.rev(), room) {
            Some(leaf) => {
                self.add(id, Stack::new(leaf, end, code.count()));
            }
            None => self.is_full = true,
        }
    }

    /// Notes a stack that an id stands for from now on. [`StackTable::OTHER`] if there is no room.
    fn add(&mut self, id: StackId, stack: Stack) -> u32 {
        if self.stacks.len() >= MAX_STACKS || self.room() < STACK_BYTES {
            self.is_full = true;
            return Self::OTHER;
        }
        let index = self.stacks.len() as u32;
        self.index.insert(id, index);
        self.stacks.push(stack);
        index
    }

    /// Index of a stack; of one that is not known [`StackTable::OTHER`] or [`StackTable::UNKNOWN`]. Where code that it
    /// leads through was replaced, the same addresses are another stack from then on.
    pub fn find(&mut self, id: StackId, code: &CodeHistory) -> u32 {
        let Some(&index) = self.index.get(&id) else {
            return if self.is_full { Self::OTHER } else { Self::UNKNOWN };
        };
        let now = code.count();
        let stack = &mut self.stacks[index as usize];
        if stack.checked == now {
            return index;
        }
        if !code.touches(self.tree.of(stack.leaf), stack.checked) {
            stack.checked = now;
            return index;
        }
        let another = Stack::new(stack.leaf, stack.end, now);
        self.add(id, another)
    }

    /// Says how many bytes the stacks may take. Those that are there stay.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Gives up what only new stacks and their events need: none is known by its id any more.
    pub fn seal(&mut self) {
        self.limit = 0;
        self.index = HashMap::new();
        self.tree.seal();
    }

    /// An empty table with the same limit.
    pub fn emptied(&self) -> Self {
        Self {
            limit: self.limit,
            ..Self::default()
        }
    }

    /// Bytes that the stacks take at most.
    pub fn memory(&self) -> usize {
        self.len() * STACK_BYTES + self.tree.memory()
    }

    fn room(&self) -> usize {
        self.limit.saturating_sub(self.memory())
    }

    /// The stack at an index; indices come from this table.
    pub fn get_mut(&mut self, index: u32) -> &mut Stack {
        let index = if (index as usize) < self.stacks.len() {
            index
        } else {
            Self::UNKNOWN
        };
        &mut self.stacks[index as usize]
    }

    /// Program counters of the stack at an index, innermost first.
    pub fn frames(&self, index: u32) -> Vec<ProcessAddress> {
        let leaf = self.stacks.get(index as usize).map(|stack| stack.leaf);
        self.tree.of(leaf.unwrap_or_default()).collect()
    }

    /// The frames of all stacks, as they are now.
    pub fn all_frames(&self) -> Arc<Frames> {
        self.tree.share()
    }

    /// Notes what is live now as what growth is measured from later.
    pub fn mark(&mut self) {
        for stack in &mut self.stacks {
            stack.marks = [stack.marks[1], stack.native.live.bytes];
        }
    }

    /// All stacks with their indices, what is not told apart first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &Stack)> {
        self.stacks
            .iter()
            .enumerate()
            .map(|(index, stack)| (index as u32, stack))
    }

    /// How many stacks are told apart.
    pub fn len(&self) -> usize {
        self.stacks.len() - 2
    }

    /// Whether none came yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
