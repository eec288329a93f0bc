//! The ledger of one process: from events to what is outstanding, per stack.
//!
//! No I/O and no clock: events come with their time. Invariant: the live totals of the stacks are the sum over the
//! outstanding blocks and regions.
//!
//! Where a release was lost for good, what it may have given back is left out (`leave_out_*`), which is counted too.
//!
//! A repair is made where the events contradict each other (an allocation at an address that is already live means that
//! a free was missed); each is counted.

mod blocks;
mod code;
mod frames;
mod pages;
mod regions;
mod snapshot;
mod stacks;

use std::collections::HashMap;

pub use blocks::{Block, BlockTable};
pub use code::{CodeChange, CodeHistory, Interval};
pub use frames::{Frames, Leaf};
pub use regions::{Region, Regions};
pub use snapshot::{AGE_BOUNDS, Ages, Row, Snapshot, Window};
pub use stacks::{Amount, DEFAULT_LIMIT, Stack, StackTable, Threads, Totals};

use crate::{
    event::{Event, NewBlock, NewCode},
    model::{ProcessAddress, page_size},
};

/// What the ledger noticed about its own input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Events applied.
    pub events: u64,
    /// Calls whose return was told: allocations and reallocations.
    pub returns: u64,
    /// Frees of blocks that were allocated before tracing began, or whose allocation was lost.
    pub unknown_frees: u64,
    /// Allocations at an address that was live: the free in between was not told.
    pub missed_frees: u64,
    /// Allocations whose stack is not known.
    pub unknown_stacks: u64,
    /// Allocations whose stack is not told apart from others: there was no memory for it.
    pub other_stacks: u64,
    /// Allocations whose stack is not complete.
    pub truncated_stacks: u64,
    /// Samples of growth for which there was no room.
    pub crowded_pages: u64,
    /// Blocks and mappings that were left out, because a call that gave one of them back was lost.
    pub left_out: u64,
    /// Programs that it ran before this one, whose memory was given up with them.
    pub execs: u64,
}

/// A block or mapping that is outstanding.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// Where it lies.
    pub address: ProcessAddress,
    /// Its bytes; of a block those that were asked for.
    pub bytes: u64,
    /// Who made it: program counters, innermost first.
    pub frames: Vec<ProcessAddress>,
    /// When, in hundredths of a second since the ledger's beginning.
    pub born: u32,
}

/// A block that is inside `realloc` and belongs to no one else.
struct InFlight {
    address: u64,
    block: Option<Block>,
}

/// Mappings that are inside `mremap` and belong to no one else.
struct Moving {
    start: u64,
    end: u64,
    /// First address and mapping, in order.
    parts: Vec<(u64, Region)>,
}

/// The ledger of one process.
#[derive(Default)]
pub struct Ledger {
    blocks: BlockTable,
    regions: Regions,
    pages: pages::Pages,
    stacks: StackTable,
    code: CodeHistory,
    in_flight: HashMap<u32, InFlight>,
    moving: HashMap<u32, Moving>,
    /// Sampling intervals that blocks refer to by index; the first is 0: every allocation.
    intervals: Intervals,
    notes: Notes,
    windows: snapshot::Windows,
}

/// Sampling intervals by index. There are few: one at the beginning and one for each change.
struct Intervals(Vec<u64>);

impl Default for Intervals {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Intervals {
    fn index(&mut self, interval: u64) -> u8 {
        let found = self.0.iter().position(|known| *known == interval).unwrap_or_else(|| {
            // Beyond 255 changes the nearest known interval stands in.
            if self.0.len() <= usize::from(u8::MAX) {
                self.0.push(interval);
                self.0.len() - 1
            } else {
                let nearest = self
                    .0
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, known)| known.abs_diff(interval));
                nearest.map_or(0, |(index, _)| index)
            }
        });
        found as u8
    }

    /// What one record of this size stands for: a block of `size` bytes is taken with the probability
    /// 1 − exp(−size / interval).
    fn amount(&self, size: u64, interval: u8) -> Amount {
        let (size, interval) = (size as f64, self.0[usize::from(interval)] as f64);
        let objects = if interval == 0.0 || size == 0.0 {
            1.0
        } else {
            -1.0 / (-size / interval).exp_m1()
        };
        Amount {
            objects,
            bytes: size * objects,
        }
    }
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one event that happened at `now`, in hundredths of a second since the ledger's beginning.
    pub fn apply(&mut self, event: Event<'_>, now: u32) {
        self.notes.events += 1;
        self.notes.returns += u64::from(matches!(event, Event::Alloc(_) | Event::ReallocEnd { .. }));
        match event {
            Event::Alloc(new) => self.allocate(new, now),
            Event::Free(address) => self.free(address),
            Event::ReallocBegin { old, tid } => {
                let block = self.take(old.0);
                self.in_flight.insert(tid, InFlight { address: old.0, block });
            }
            Event::ReallocEnd {
                old,
                new,
                failed,
                tid,
                begin_deferred,
            } => {
                // What is in flight from an earlier reallocation, whose end was lost, is not what this one began with.
                let in_flight = self.in_flight.remove(&tid);
                let in_flight = in_flight.filter(|block| !begin_deferred && block.address == old.0);
                match in_flight {
                    Some(InFlight { block: Some(block), .. }) if failed => self.put_back(old.0, block),
                    // The block was not known, or it is gone for good.
                    Some(_) => {}
                    // The beginning is with the deferred releases, or this is a resize in place, which has none.
                    None if begin_deferred || failed => {}
                    None => {
                        self.take(old.0);
                    }
                }
                if let Some(new) = new {
                    self.allocate(new, now);
                }
            }
            Event::Stack { id, end, frames } => self.stacks.define(id, end, frames.iter(), &self.code),
            Event::Mmap(new) => self.map(new, now),
            Event::Reserved(new) => self.add_reserved(new),
            Event::Resident(new) => self.settle(new),
            Event::Munmap { address, length } => {
                let end = address.0.saturating_add(page_aligned(length));
                self.regions.unmap(address.0, end);
                self.pages.unmap(address.0, end);
            }
            Event::MremapBegin { old, old_length, tid } => self.begin_move(old.0, old_length, tid),
            Event::MremapEnd {
                old,
                old_length,
                new,
                tid,
                begin_deferred,
            } => {
                let moving = self.moving.remove(&tid).filter(|moving| {
                    !begin_deferred
                        && moving.start == old.0
                        && moving.end == old.0.saturating_add(page_aligned(old_length))
                });
                let parts = moving.map(|moving| moving.parts).unwrap_or_default();
                match new {
                    Some(new) => self.end_move(old.0, old_length, &parts, new, now),
                    // A failed one leaves all as it was.
                    None => parts.into_iter().for_each(|(at, part)| self.regions.map(at, part)),
                }
            }
            Event::Exec => self.exec(),
            Event::ThreadExit(tid) => {
                self.in_flight.remove(&tid);
                self.moving.remove(&tid);
            }
            Event::CodeMapped(NewCode { was_there: true, .. }) => {}
            Event::CodeMapped(code) => self.code.note(CodeChange {
                start: code.start.0,
                end: code.end.0,
                begun: code.begun,
                done: code.done,
            }),
            // A child's heap is a copy that no event of this process changes; that of a sharer is this one.
            Event::Fork { .. } | Event::Sharer { .. } => {}
        }
    }

    /// Code may have changed anywhere, at some moment between two times: what told it was lost.
    pub fn code_changed_anywhere(&mut self, begun: u64, done: u64) {
        self.code.note(CodeChange {
            start: 0,
            end: u64::MAX,
            begun,
            done,
        });
    }

    fn free(&mut self, address: ProcessAddress) {
        if self.take(address.0).is_none() {
            self.notes.unknown_frees += 1;
        }
    }

    fn allocate(&mut self, new: NewBlock, now: u32) {
        let stack = self.stack_of(&new);
        let block = Block {
            size: new.size,
            stack,
            interval: self.intervals.index(new.interval),
            born: now,
        };
        let amount = self.intervals.amount(block.size, block.interval);
        if let Some(old) = self.blocks.insert(new.address.0, block) {
            self.notes.missed_frees += 1;
            self.release(&old);
        }
        let stack = self.stacks.get_mut(stack);
        stack.thread.note(new.tid);
        stack.native.allocate(amount);
    }

    fn put_back(&mut self, address: u64, block: Block) {
        let amount = self.intervals.amount(block.size, block.interval);
        let totals = &mut self.stacks.get_mut(block.stack).native;
        totals.live.add(amount, 1.0);
        totals.live_records += 1;
        if let Some(old) = self.blocks.insert(address, block) {
            self.notes.missed_frees += 1;
            self.release(&old);
        }
    }

    fn take(&mut self, address: u64) -> Option<Block> {
        let block = self.blocks.remove(address)?;
        self.release(&block);
        Some(block)
    }

    fn release(&mut self, block: &Block) {
        let amount = self.intervals.amount(block.size, block.interval);
        self.stacks.get_mut(block.stack).native.release(amount);
    }

    fn map(&mut self, new: NewBlock, now: u32) {
        let stack = self.stacks.find(new.stack, &self.code);
        self.notes.other_stacks += u64::from(stack == StackTable::OTHER);
        self.stacks.get_mut(stack).mapped.add(
            Amount {
                objects: 1.0,
                bytes: new.size as f64,
            },
            1.0,
        );
        let end = new.address.0.saturating_add(page_aligned(new.size));
        self.regions.map(new.address.0, Region { end, stack, born: now });
    }

    fn add_reserved(&mut self, new: NewBlock) {
        let interval = self.intervals.index(new.interval);
        let amount = self.intervals.amount(new.size, interval);
        let index = self.stack_of(&new);
        self.stacks.get_mut(index).reserved.add(amount, 1.0);
    }

    fn settle(&mut self, new: NewBlock) {
        let interval = self.intervals.index(new.interval);
        let bytes = self.intervals.amount(new.size, interval).bytes;
        let index = self.stack_of(&new);
        if !self.pages.settle(new.address, index, bytes) {
            self.notes.crowded_pages += 1;
        }
    }

    /// Index of the stack that memory came through; notes what is not known of it.
    fn stack_of(&mut self, new: &NewBlock) -> u32 {
        let index = self.stacks.find(new.stack, &self.code);
        match index {
            StackTable::UNKNOWN => self.notes.unknown_stacks += 1,
            StackTable::OTHER => self.notes.other_stacks += 1,
            _ => {}
        }
        if self.stacks.get_mut(index).end != leaktrace_common::reason::WalkEnd::Bottom {
            self.notes.truncated_stacks += 1;
        }
        index
    }

    /// Pages that samples of growth were taken at, and that are held to be resident.
    pub fn pages(&self) -> Vec<ProcessAddress> {
        self.pages.addresses().collect()
    }

    /// Forgets pages that are not resident any more.
    pub fn leave_pages(&mut self, gone: &[ProcessAddress]) {
        gone.iter().for_each(|page| self.pages.leave(*page));
    }

    fn begin_move(&mut self, start: u64, length: u64, tid: u32) {
        let end = start.saturating_add(page_aligned(length));
        let parts = self.regions.take(start, end);
        self.moving.insert(tid, Moving { start, end, parts });
    }

    /// What was moved stays with the stack that made it; only growth belongs to the stack that asked for it. Of a mapping
    /// that is not known neither is followed.
    fn end_move(&mut self, old: u64, old_length: u64, parts: &[(u64, Region)], new: NewBlock, now: u32) {
        let (old_length, new_length) = (page_aligned(old_length), page_aligned(new.size));
        let start = new.address.0;
        let kept = start.saturating_add(old_length.min(new_length));
        // Whatever was there before is gone.
        self.regions.unmap(start, start.saturating_add(new_length));
        for (at, part) in parts {
            let moved = |address: u64| start.saturating_add(address - old);
            let end = moved(part.end).min(kept);
            self.regions.map(moved(*at), Region { end, ..*part });
        }
        if new_length > old_length && !parts.is_empty() {
            let grown = NewBlock {
                address: ProcessAddress(kept),
                size: new_length - old_length,
                ..new
            };
            self.map(grown, now);
        }
    }

    /// Leaves out blocks that may have been given back by calls that were lost.
    pub fn leave_out_blocks(&mut self, is_in_doubt: impl Fn(ProcessAddress) -> bool) {
        let blocks = self.blocks.iter().map(|(address, _)| address);
        let left_out: Vec<u64> = blocks.filter(|address| is_in_doubt(ProcessAddress(*address))).collect();
        self.notes.left_out += left_out.len() as u64;
        for address in left_out {
            self.take(address);
        }
    }

    /// Leaves out all that is outstanding.
    pub fn leave_out_all(&mut self) {
        self.in_flight.clear();
        self.leave_out_blocks(|_| true);
        self.leave_out_mappings();
    }

    /// Leaves out all mappings, and all pages that became resident.
    pub fn leave_out_mappings(&mut self) {
        self.moving.clear();
        let mappings = std::mem::take(&mut self.regions).len();
        self.notes.left_out += (mappings + self.pages.clear()) as u64;
    }

    /// All memory of the old program is gone, and its stacks mean nothing any more.
    fn exec(&mut self) {
        let notes = Notes {
            execs: self.notes.execs + 1,
            ..self.notes
        };
        *self = Self {
            notes,
            stacks: self.stacks.emptied(),
            ..Self::default()
        };
    }

    /// Outstanding blocks one by one, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = Outstanding> + '_ {
        self.blocks.iter().map(|(address, block)| Outstanding {
            address: ProcessAddress(address),
            bytes: block.size,
            frames: self.stacks.frames(block.stack),
            born: block.born,
        })
    }

    /// Outstanding mappings one by one, by address.
    pub fn mappings(&self) -> impl Iterator<Item = Outstanding> + '_ {
        self.regions.iter().map(|(start, region)| Outstanding {
            address: ProcessAddress(start),
            bytes: region.end - start,
            frames: self.stacks.frames(region.stack),
            born: region.born,
        })
    }

    /// What the ledger noticed.
    pub fn notes(&self) -> Notes {
        self.notes
    }

    /// Outstanding blocks.
    pub fn outstanding(&self) -> usize {
        self.blocks.len()
    }

    /// Outstanding bytes over all stacks, and regions; of a process that is followed without probes its growth.
    pub fn live_bytes(&self) -> f64 {
        let native: f64 = self.stacks.iter().map(|(_, stack)| stack.native.live.bytes).sum();
        native
            + self.pages.bytes()
            + self
                .regions
                .iter()
                .map(|(start, region)| (region.end - start) as f64)
                .sum::<f64>()
    }

    /// Gives up memory that only further events need; to be called when there will be none.
    pub fn seal(&mut self) {
        self.stacks.seal();
    }

    /// Says how many bytes of memory stacks may take from now on.
    pub fn set_stack_limit(&mut self, bytes: usize) {
        self.stacks.set_limit(bytes);
    }

    /// Bytes of memory that stacks take in here at most.
    pub fn stack_memory(&self) -> usize {
        self.stacks.memory()
    }

    /// Bytes of memory that the outstanding blocks occupy in here.
    pub fn memory(&self) -> usize {
        self.blocks.memory()
    }
}

fn page_aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(page_size()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
