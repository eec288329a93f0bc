//! Records through the stream into ledgers.
//!
//! Whatever comes: what a ledger shows agrees with itself. The totals of each stack are the sum over its blocks and regions,
//! and regions do not overlap.

use std::collections::{BTreeMap, VecDeque};

use leaktrace_common::config::{LOST_PROCESSES, LOST_RELEASES, ReleaseKey, block_bucket};
use leaktrace_common::event::{
    KIND_ALLOC, KIND_CODE_MAPPED, KIND_EXEC, KIND_FORK, KIND_FREE, KIND_GROWTH, KIND_MMAP, KIND_MREMAP,
    KIND_MREMAP_BEGIN, KIND_MUNMAP, KIND_REALLOC_BEGIN, KIND_REALLOC_END, KIND_STACK, KIND_THREAD_EXIT,
};

use super::input::Input;
use crate::event;
use crate::ledger::Ledger;
use crate::model::HeapKind;
use crate::model::ProcessAddress;
use crate::session::stream::{Ordered, Source, Stream};

/// Positions and records, with what is beside them.
#[derive(Default)]
struct Queue {
    records: VecDeque<(u64, Vec<u8>)>,
    produced: u64,
    consumed: u64,
    deferred: Vec<(ReleaseKey, u64)>,
    lost: Vec<u32>,
    lost_notices: bool,
}

impl Source for Queue {
    fn drain(&mut self, limit: usize, mut consume: impl FnMut(u64, &[u8])) -> usize {
        let count = limit.min(self.records.len());
        for (position, record) in self.records.drain(..count) {
            consume(position, &record);
            self.consumed = position + (record.len() as u64 + 8).next_multiple_of(8);
        }
        count
    }

    fn position(&self) -> u64 {
        self.consumed
    }

    fn produced(&self) -> u64 {
        self.produced
    }

    fn take_deferred(&mut self, mut take: impl FnMut(ReleaseKey, u64)) {
        for (key, position) in self.deferred.drain(..) {
            take(key, position);
        }
    }

    fn take_lost(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.lost)
    }

    fn take_lost_notices(&mut self) -> bool {
        std::mem::take(&mut self.lost_notices)
    }
}

#[derive(Default)]
struct Ledgers {
    by_pid: BTreeMap<u32, Ledger>,
    now: u32,
}

impl Ledgers {
    fn apply(&mut self, next: Ordered<'_>) {
        match next {
            Ordered::Event { pid, event, .. } => {
                // As in the pump: processes are few.
                if self.by_pid.len() < 8 || self.by_pid.contains_key(&pid) {
                    self.by_pid.entry(pid).or_default().apply(event, self.now);
                }
            }
            Ordered::Undecodable => {}
            Ordered::NoticesLost => {
                for ledger in self.by_pid.values_mut() {
                    ledger.code_changed_anywhere(1, 2);
                }
            }
            Ordered::Doubt(doubt) => {
                for (pid, ledger) in &mut self.by_pid {
                    doubt.leave_out(*pid, ledger);
                }
            }
        }
    }

    fn check(&mut self) {
        self.now += 50;
        for ledger in self.by_pid.values_mut() {
            ledger.note_history(self.now);
            check(ledger, self.now);
        }
    }
}

fn check(ledger: &Ledger, now: u32) {
    let snapshot = ledger.snapshot(now);
    let scale: f64 = snapshot.rows.iter().map(|row| row.allocated.bytes).sum();
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * scale.max(1.0);
    for row in &snapshot.rows {
        let by_age: f64 = row.ages.iter().sum();
        if matches!(row.kind, HeapKind::Native | HeapKind::Mmap) {
            assert!(near(by_age, row.live.bytes), "{} bytes by age: {row:?}", by_age);
            assert!(row.live.objects >= -1e-6, "{row:?}");
        }
    }
    let live = |kind| -> f64 {
        let rows = snapshot.rows.iter().filter(|row| row.kind == kind);
        rows.map(|row| row.live.bytes).sum()
    };
    let all = live(HeapKind::Native) + live(HeapKind::Mmap) + live(HeapKind::Resident);
    assert!(
        near(ledger.live_bytes(), all),
        "{} and {all} bytes",
        ledger.live_bytes()
    );
    let mut end = 0;
    for mapping in ledger.mappings() {
        assert!(mapping.bytes > 0 && mapping.address.0 >= end, "mappings overlap");
        end = mapping.address.0 + mapping.bytes;
    }
    assert_eq!(ledger.blocks().count(), ledger.outstanding());
    let _ = (ledger.memory(), ledger.notes(), ledger.pages());
}

/// Records that are any bytes, each with its length in front.
pub(super) fn records(data: &[u8]) {
    let mut input = Input::new(data);
    let mut ledgers = Ledgers::default();
    while !input.is_empty() {
        let length = input.byte();
        if let Some((pid, event)) = event::decode(input.take(length.into())) {
            ledgers.by_pid.entry(pid % 4).or_default().apply(event, ledgers.now);
        }
        ledgers.now = ledgers.now.saturating_add(1);
    }
    for ledger in ledgers.by_pid.values() {
        ledger.snapshot(ledgers.now);
    }
}

/// Calls of a few threads on a few addresses, with records that did not fit, in batches. Nothing of it has to make sense:
/// a kernel side that tells nonsense must not break the ledger.
pub(super) fn events(data: &[u8]) {
    let mut input = Input::new(data);
    let mut stream = Stream::new(Queue::default());
    let mut ledgers = Ledgers::default();
    let intervals = input.byte();
    // Each turn costs a look at all that is held.
    let mut turns = 0;
    while !input.is_empty() && turns < 64 {
        let choice = input.byte();
        if choice >= 0xf0 {
            turns += 1;
            stream.turn(usize::from(choice & 15) * 4 + 1, |next| ledgers.apply(next));
            ledgers.check();
            continue;
        }
        let (kind, who) = (choice % 20, input.byte());
        let pid = 1 + u32::from(who & 1);
        let tid = u64::from(10 + (who >> 1 & 3));
        let stack = u64::from(who >> 3 & 7);
        let interval = if intervals & 1 != 0 {
            u64::from(who >> 6) << 5
        } else {
            0
        };
        let last = tid | interval << 32;
        let block = 0x7000_0000 + u64::from(input.byte() & 31) * 32;
        let page = |byte: u8| 0x7f00_0000_0000 + u64::from(byte & 31) * 4096;
        let size = 1 + u64::from(input.byte()) * 40;
        let (kind, words) = match kind {
            0..=3 => (KIND_ALLOC, vec![block, size, stack, last]),
            4 | 5 => (KIND_FREE, vec![block]),
            6 => (KIND_REALLOC_BEGIN, vec![block, tid]),
            7 => {
                let new = [0, block, block + 32][usize::from(input.byte() % 3)];
                (KIND_REALLOC_END, vec![new, size, stack, last, block])
            }
            8 => (
                KIND_STACK,
                vec![stack, 2 | u64::from(who & 3) << 32, 0x1000 + stack, 0x2000],
            ),
            9 | 10 => (KIND_MMAP, vec![page(input.byte()), size << 6, stack, tid]),
            11 => (KIND_MUNMAP, vec![page(input.byte()), size << 6]),
            12 => (KIND_MREMAP_BEGIN, vec![page(input.byte()), size << 6, tid]),
            13 => {
                let (old, new) = (page(input.byte()), page(input.byte()));
                (KIND_MREMAP, vec![new, size << 6, stack, tid, old, size << 5])
            }
            14 => (KIND_GROWTH, vec![page(input.byte()), 4096, stack, last]),
            15 => (KIND_CODE_MAPPED, vec![page(input.byte()), size << 12, size, size + 9]),
            16 => (KIND_THREAD_EXIT, vec![tid]),
            17 => (KIND_FORK, vec![99]),
            18 => {
                let source = stream.source_mut();
                let kind = u32::from(who >> 3) % 3;
                let key = ReleaseKey {
                    address: if kind == 1 { page(input.byte()) } else { block },
                    length: size << 6,
                    pid,
                    place: ReleaseKey::place(kind, source.produced),
                };
                // Its record would stand here; or it was one of a call that is still being entered.
                let late = u64::from(input.byte() & 3) * 64;
                source.deferred.push((key, source.produced.saturating_sub(late)));
                continue;
            }
            _ if who & 0x40 != 0 => (KIND_EXEC, vec![0]),
            _ => {
                let source = stream.source_mut();
                match input.byte() & 3 {
                    0 => source.lost.push(block_bucket(pid, block)),
                    1 => source.lost.push(input.number() as u32 % (2 * LOST_PROCESSES)),
                    2 => source.lost.push(input.number() as u32 % (LOST_RELEASES + 9)),
                    _ => source.lost_notices = true,
                }
                continue;
            }
        };
        let flags = u8::from(who & 0x20 != 0);
        let mut record = vec![kind, flags, 0, 0];
        record.extend(pid.to_ne_bytes());
        words.iter().for_each(|word| record.extend(word.to_ne_bytes()));
        let source = stream.source_mut();
        let position = source.produced;
        source.produced += (record.len() as u64 + 8).next_multiple_of(8);
        source.records.push_back((position, record));
    }
    while stream.turn(1000, |next| ledgers.apply(next)) > 0 {}
    stream.finish(|next| ledgers.apply(next));
    ledgers.check();
    for ledger in ledgers.by_pid.values_mut() {
        let pages = ledger.pages();
        ledger.leave_pages(&pages);
        ledger.leave_out_blocks(|address: ProcessAddress| address.0 & 32 != 0);
        check(ledger, ledgers.now);
        ledger.leave_out_all();
        assert_eq!(ledger.outstanding(), 0);
        check(ledger, ledgers.now);
    }
}
