//! Stacks of one process with what was allocated through each.

use std::sync::Arc;

use hashbrown::HashMap;
use leaktrace_common::reason::WalkEnd;

use super::CodeHistory;
use crate::model::{ProcessAddress, StackId};

/// Most stacks that are told apart: what an entry of the block table can name. Later ones share
/// [`StackTable::OVERFLOW`].
const MAX_STACKS: usize = 1 << 24;

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
    /// Program counters, innermost first.
    pub frames: Arc<[ProcessAddress]>,
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
    fn new(frames: Arc<[ProcessAddress]>, end: WalkEnd, code: u64) -> Self {
        Self {
            frames,
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
}

impl Default for StackTable {
    fn default() -> Self {
        Self {
            index: HashMap::new(),
            stacks: vec![Stack::new(Arc::default(), WalkEnd::Bottom, 0)],
        }
    }
}

impl StackTable {
    /// The stack that stands for all that cannot be told apart: beyond the limit, or whose record never came.
    pub const OVERFLOW: u32 = 0;

    /// Notes a stack; one that is known already is left as it is.
    pub fn define(
        &mut self,
        id: StackId,
        end: WalkEnd,
        frames: impl Iterator<Item = ProcessAddress>,
        code: &CodeHistory,
    ) {
        if !self.index.contains_key(&id) {
            self.add(id, Stack::new(frames.collect(), end, code.count()));
        }
    }

    /// Notes a stack that an id stands for from now on. [`StackTable::OVERFLOW`] if there is no room.
    fn add(&mut self, id: StackId, stack: Stack) -> u32 {
        if self.stacks.len() >= MAX_STACKS {
            return Self::OVERFLOW;
        }
        let index = self.stacks.len() as u32;
        self.index.insert(id, index);
        self.stacks.push(stack);
        index
    }

    /// Index of a stack, [`StackTable::OVERFLOW`] if it is not known. Where code that it leads through was replaced, the
    /// same addresses are another stack from then on.
    pub fn find(&mut self, id: StackId, code: &CodeHistory) -> u32 {
        let Some(&index) = self.index.get(&id) else {
            return Self::OVERFLOW;
        };
        let now = code.count();
        let stack = &mut self.stacks[index as usize];
        if stack.checked == now {
            return index;
        }
        if !code.touches(&stack.frames, stack.checked) {
            stack.checked = now;
            return index;
        }
        let another = Stack::new(Arc::clone(&stack.frames), stack.end, now);
        self.add(id, another)
    }

    /// The stack at an index; indices come from this table.
    pub fn get_mut(&mut self, index: u32) -> &mut Stack {
        let index = if (index as usize) < self.stacks.len() {
            index
        } else {
            Self::OVERFLOW
        };
        &mut self.stacks[index as usize]
    }

    /// Program counters of the stack at an index.
    pub fn frames(&self, index: u32) -> Arc<[ProcessAddress]> {
        let stack = self.stacks.get(index as usize);
        stack.map(|stack| Arc::clone(&stack.frames)).unwrap_or_default()
    }

    /// Notes what is live now as what growth is measured from later.
    pub fn mark(&mut self) {
        for stack in &mut self.stacks {
            stack.marks = [stack.marks[1], stack.native.live.bytes];
        }
    }

    /// All stacks with their indices, the overflow stack first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Stack)> {
        self.stacks
            .iter()
            .enumerate()
            .map(|(index, stack)| (index as u32, stack))
    }

    /// How many stacks are told apart.
    pub fn len(&self) -> usize {
        self.stacks.len() - 1
    }

    /// Whether none came yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
