//! The order of events: records and releases that did not fit among them, merged into one stream.
//!
//! Pure: where records come from is behind [`Source`]. A release whose record did not fit comes from a set beside the
//! records, with its position in the stream, and is put back into its place like this: a batch of records is copied first,
//! the set is read then, and only then is the batch handed on, with each release before the first record at or behind its
//! position. A later allocation at the same address can be in the batch only if the release was in the set by the time it
//! was read, so none comes too late.
//!
//! A release that did not fit into the set either is known by the bucket that it falls into, and not by its position. Its
//! [`Doubt`] is handed on behind each batch until all records are read that were there when it was noticed.
//!
//! Invariant: whoever applies what comes, in the order in which it comes, holds nothing after a [`turn`](Stream::turn) that
//! was given back before [`position`](Stream::position), whichever records and releases were lost.

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BinaryHeap};

use leaktrace_common::config::{
    LOST_PROCESSES, LOST_RELEASES, RELEASE_INTERVAL, RELEASE_PROGRAM, ReleaseKey, block_bucket, process_bucket,
};

use crate::{
    event::{self, Event},
    ledger::Ledger,
    model::ProcessAddress,
};

/// Where records come from, and what is told beside them. Positions count bytes of the stream and never go back.
pub trait Source {
    /// Hands at most `limit` records to `consume`, each with the position at which it begins. Returns how many.
    fn drain(&mut self, limit: usize, consume: impl FnMut(u64, &[u8])) -> usize;

    /// Position behind the last record that was handed out.
    fn position(&self) -> u64;

    /// Position behind the last record that was made so far, handed out or not.
    fn produced(&self) -> u64;

    /// Takes out the releases whose record did not fit, with their positions: at least all that happened before this began.
    fn take_deferred(&mut self, take: impl FnMut(ReleaseKey, u64));

    /// Buckets (`leaktrace_common::config::LOST_RELEASES`) that releases were lost of since this was asked last.
    fn take_lost(&mut self) -> Vec<u32>;

    /// Whether notices of new code were lost since this was asked last.
    fn take_lost_notices(&mut self) -> bool;
}

/// What comes next in the order.
pub enum Ordered<'a> {
    /// An event.
    Event {
        /// Where it stands.
        position: u64,
        /// Its process.
        pid: u32,
        /// What happened.
        event: Event<'a>,
    },
    /// A record that could not be decoded.
    Undecodable,
    /// Code may have come to be anywhere meanwhile. Told before and behind the records that it happened among.
    NoticesLost,
    /// What may have been given back by now is to be left out.
    Doubt(&'a Doubt),
}

/// What releases that were lost for good may have given back.
pub struct Doubt {
    buckets: Vec<bool>,
    /// Whether some of the buckets are of blocks.
    blocks: bool,
    /// Records before this position may be of what was given back.
    until: u64,
}

impl Doubt {
    fn has(&self, bucket: u32) -> bool {
        self.buckets.get(bucket as usize).copied().unwrap_or(true)
    }

    /// Whether a process may run another program now.
    pub fn concerns_program(&self, pid: u32) -> bool {
        self.has(LOST_PROCESSES + process_bucket(pid))
    }

    /// Leaves what may have been given back out of a process's ledger.
    pub fn leave_out(&self, pid: u32, ledger: &mut Ledger) {
        if self.concerns_program(pid) {
            ledger.leave_out_all();
            return;
        }
        if self.has(process_bucket(pid)) {
            ledger.leave_out_mappings();
        }
        if self.blocks {
            ledger.leave_out_blocks(|address| self.has(block_bucket(pid, address.0)));
        }
    }
}

/// Records copied off the source: their bytes, and for each its position and end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    records: Vec<(u64, usize)>,
}

impl Batch {
    fn fill(&mut self, source: &mut impl Source, limit: usize) -> usize {
        self.bytes.clear();
        self.records.clear();
        source.drain(limit, |position, record| {
            self.bytes.extend_from_slice(record);
            self.records.push((position, self.bytes.len()));
        })
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |(position, end)| {
            let record = &self.bytes[start..*end];
            start = *end;
            (*position, record)
        })
    }
}

/// A release whose place in the stream is not reached: position, process, what (the earliest first).
type Waiting = Reverse<(u64, u32, u32, u64, u64)>;

/// The stream of one source.
pub struct Stream<S> {
    source: S,
    batch: Batch,
    waiting: BinaryHeap<Waiting>,
    doubt: Option<Doubt>,
}

impl<S: Source> Stream<S> {
    /// Of a source that nothing was read from.
    pub fn new(source: S) -> Self {
        Self {
            source,
            batch: Batch::default(),
            waiting: BinaryHeap::new(),
            doubt: None,
        }
    }

    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The source, to be given more.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }

    /// Position behind the last record that was handed on.
    pub fn position(&self) -> u64 {
        self.source.position()
    }

    /// Hands on at most `limit` records with what belongs between them. Returns how many records there were.
    pub fn turn(&mut self, limit: usize, mut apply: impl FnMut(Ordered<'_>)) -> usize {
        let count = self.batch.fill(&mut self.source, limit);
        self.read_beside();
        let notices_lost = self.source.take_lost_notices();
        if notices_lost {
            apply(Ordered::NoticesLost);
        }
        let batch = std::mem::take(&mut self.batch);
        for (position, record) in batch.iter() {
            self.release(position, &mut apply);
            apply(
                event::decode(record).map_or(Ordered::Undecodable, |(pid, event)| Ordered::Event {
                    position,
                    pid,
                    event,
                }),
            );
        }
        self.batch = batch;
        let reached = self.source.position();
        self.release(reached, &mut apply);
        if notices_lost {
            apply(Ordered::NoticesLost);
        }
        self.tell_doubt(reached, &mut apply);
        count
    }

    /// Hands on all releases that are known, wherever they stand: no record will be read any more.
    pub fn finish(&mut self, mut apply: impl FnMut(Ordered<'_>)) {
        self.read_beside();
        self.release(u64::MAX, &mut apply);
        self.tell_doubt(u64::MAX, &mut apply);
    }

    fn read_beside(&mut self) {
        let waiting = &mut self.waiting;
        self.source.take_deferred(|key, position| {
            waiting.push(Reverse((position, key.pid, key.kind(), key.address, key.length)));
        });
        let lost = self.source.take_lost();
        if lost.is_empty() {
            return;
        }
        let doubt = self.doubt.get_or_insert_with(|| Doubt {
            buckets: vec![false; LOST_RELEASES as usize],
            blocks: false,
            until: 0,
        });
        // Read after the marks: whatever a lost release gave back has its record before this position.
        doubt.until = self.source.produced();
        for bucket in lost {
            doubt.blocks |= bucket >= 2 * LOST_PROCESSES;
            if let Some(bucket) = doubt.buckets.get_mut(bucket as usize) {
                *bucket = true;
            }
        }
    }

    /// Hands on the releases that happened before the record at `reached`.
    fn release(&mut self, reached: u64, apply: &mut impl FnMut(Ordered<'_>)) {
        while let Some(Reverse((position, pid, kind, address, length))) = self.waiting.peek().copied()
            && position <= reached
        {
            self.waiting.pop();
            let address = ProcessAddress(address);
            let event = match kind {
                RELEASE_INTERVAL => Event::Munmap { address, length },
                RELEASE_PROGRAM => Event::Exec,
                _ => Event::Free(address),
            };
            apply(Ordered::Event { position, pid, event });
        }
    }

    fn tell_doubt(&mut self, reached: u64, apply: &mut impl FnMut(Ordered<'_>)) {
        if let Some(doubt) = &self.doubt {
            apply(Ordered::Doubt(doubt));
            if doubt.until <= reached {
                self.doubt = None;
            }
        }
    }
}
