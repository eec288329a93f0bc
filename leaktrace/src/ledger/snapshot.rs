//! What the ledger says at one moment: per stack and kind, with ages and growth.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use leaktrace_common::reason::WalkEnd;

use super::{
    Amount, CodeHistory, Ledger, StackTable, Threads,
    frames::{Frames, Leaf},
};
use crate::model::{HeapKind, ProcessAddress};

/// Upper bounds of the age classes in seconds; a last class takes what is older.
pub const AGE_BOUNDS: [u32; 6] = [1, 10, 60, 600, 3600, 86400];

/// Live bytes by age class.
pub type Ages = [f64; AGE_BOUNDS.len() + 1];

/// One stack in one kind of memory.
#[derive(Clone, Debug)]
pub struct Row {
    /// Kind of memory.
    pub kind: HeapKind,
    /// Its frames, for [`Snapshot::frames`]; none for what could not be told apart.
    pub leaf: Leaf,
    /// It stands for all stacks for which there was no memory.
    pub is_other: bool,
    /// Where the walk ended.
    pub end: WalkEnd,
    /// How many changes of code ([`Snapshot::code`]) came before it.
    pub code: u64,
    /// The thread that allocated, if it was always the same.
    pub thread: Option<u32>,
    /// Allocated since tracing began.
    pub allocated: Amount,
    /// Of that, outstanding.
    pub live: Amount,
    /// Outstanding bytes by age.
    pub ages: Ages,
    /// Outstanding bytes more than at [`Snapshot::growth_since`]; native memory only.
    pub growth: f64,
}

/// Live bytes at a moment in the past.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Hundredths of a second since the ledger's beginning.
    pub at: u32,
    /// Live bytes of the process.
    pub live_bytes: f64,
}

/// All stacks at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Stacks with anything to tell, in no particular order.
    pub rows: Vec<Row>,
    /// Frames of all stacks.
    pub frames: Arc<Frames>,
    /// When code changed where.
    pub code: CodeHistory,
    /// How the live bytes came to be what they are.
    pub history: Vec<Window>,
    /// The moment, in hundredths of a second since the ledger's beginning.
    pub at: u32,
    /// What the rows' growth is measured from, in hundredths of a second since the ledger's beginning.
    pub growth_since: u32,
}

impl Snapshot {
    /// Program counters of a row's stack, innermost first.
    pub fn frames(&self, row: &Row) -> impl Iterator<Item = ProcessAddress> + '_ {
        self.frames.of(row.leaf)
    }
}

/// A stack without a row.
const NO_ROW: usize = usize::MAX;

/// A bounded history: when it is full every second entry goes and the distance doubles.
#[derive(Default)]
pub(super) struct Windows {
    history: VecDeque<Window>,
    distance: u32,
    /// When the stacks' marks were set, the older one first.
    marks: [u32; 2],
}

const MAX_WINDOWS: usize = 128;
/// First distance between two entries, in hundredths of a second.
const FIRST_DISTANCE: u32 = 100;
/// Windows between two marks of the stacks.
const WINDOWS_PER_MARK: usize = 4;

impl Windows {
    /// Returns whether the stacks are to be marked.
    fn note(&mut self, at: u32, live_bytes: impl FnOnce() -> f64) -> bool {
        let distance = self.distance.max(FIRST_DISTANCE);
        if self
            .history
            .back()
            .is_some_and(|last| at.saturating_sub(last.at) < distance)
        {
            return false;
        }
        self.history.push_back(Window {
            at,
            live_bytes: live_bytes(),
        });
        if self.history.len() >= MAX_WINDOWS {
            let mut keep = false;
            self.history.retain(|_| {
                keep = !keep;
                keep
            });
            self.distance = distance * 2;
        }
        let marks = at.saturating_sub(self.marks[1]) as usize >= distance as usize * WINDOWS_PER_MARK;
        if marks {
            self.marks = [self.marks[1], at];
        }
        marks
    }
}

fn age_class(age_centiseconds: u32) -> usize {
    let seconds = age_centiseconds / 100;
    AGE_BOUNDS
        .iter()
        .position(|bound| seconds < *bound)
        .unwrap_or(AGE_BOUNDS.len())
}

impl Ledger {
    /// Notes the live bytes for the history; to be called from time to time, cheap when too early.
    pub fn note_history(&mut self, now: u32) {
        let mut windows = std::mem::take(&mut self.windows);
        if windows.note(now, || self.live_bytes()) {
            self.stacks.mark();
        }
        self.windows = windows;
    }

    /// What the ledger says now.
    pub fn snapshot(&self, now: u32) -> Snapshot {
        let mut mapped: HashMap<u32, Amount> = HashMap::new();
        for (start, region) in self.regions.iter() {
            let bytes = (region.end - start) as f64;
            mapped
                .entry(region.stack)
                .or_default()
                .add(Amount { objects: 1.0, bytes }, 1.0);
        }
        let resident = self.pages.by_stack();
        let stacks = self.stacks.iter().len();
        let mut rows = Vec::with_capacity(stacks);
        // Which row a stack's blocks and its mappings are in.
        let (mut of_blocks, mut of_mappings) = (vec![NO_ROW; stacks], vec![NO_ROW; stacks]);
        for (index, stack) in self.stacks.iter() {
            let native = (HeapKind::Native, stack.native.allocated, stack.native.live);
            let mapping = (
                HeapKind::Mmap,
                stack.mapped,
                mapped.get(&index).copied().unwrap_or_default(),
            );
            let resident = (
                HeapKind::Resident,
                Amount::default(),
                resident.get(&index).copied().unwrap_or_default(),
            );
            let reserved = (HeapKind::Reserved, stack.reserved, Amount::default());
            for (kind, allocated, live) in [native, mapping, resident, reserved] {
                if allocated.objects == 0.0 && live.objects == 0.0 {
                    continue;
                }
                let growth = match kind {
                    HeapKind::Native => live.bytes - stack.marks[0],
                    _ => 0.0,
                };
                match kind {
                    HeapKind::Native => of_blocks[index as usize] = rows.len(),
                    HeapKind::Mmap => of_mappings[index as usize] = rows.len(),
                    _ => {}
                }
                rows.push(Row {
                    kind,
                    leaf: stack.leaf,
                    is_other: index == StackTable::OTHER,
                    end: stack.end,
                    code: stack.code,
                    thread: match stack.thread {
                        Threads::One(tid) => Some(tid),
                        Threads::None | Threads::Many => None,
                    },
                    allocated,
                    live,
                    growth,
                    ages: Ages::default(),
                });
            }
        }
        let mut add_age = |places: &[usize], stack: u32, born: u32, bytes: f64| {
            if let Some(row) = places.get(stack as usize).and_then(|place| rows.get_mut(*place)) {
                row.ages[age_class(now.saturating_sub(born))] += bytes;
            }
        };
        for (_, block) in self.blocks.iter() {
            let bytes = self.intervals.amount(block.size, block.interval).bytes;
            add_age(&of_blocks, block.stack, block.born, bytes);
        }
        for (start, region) in self.regions.iter() {
            add_age(&of_mappings, region.stack, region.born, (region.end - start) as f64);
        }
        Snapshot {
            rows,
            frames: self.stacks.all_frames(),
            code: self.code.clone(),
            history: self.windows.history.iter().cloned().collect(),
            at: now,
            growth_since: self.windows.marks[0],
        }
    }
}
