//! Stream and ledger against a model of the kernel side in which any record may not fit and any deferred release may find
//! no room: what is shown outstanding was outstanding, by address and by owner, at the moment that the reader had come to.
//!
//! `PROPTEST_CASES` says how many cases are tried.
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use leaktrace_common::{
    config::RELEASE_BLOCK,
    event::{
        FLAG_BEGIN_DEFERRED, KIND_ALLOC, KIND_EXEC, KIND_FORK, KIND_FREE, KIND_MMAP, KIND_MREMAP, KIND_MREMAP_BEGIN,
        KIND_MUNMAP, KIND_REALLOC_BEGIN, KIND_REALLOC_END, KIND_STACK, KIND_THREAD_EXIT,
    },
};
use proptest::prelude::*;

use super::*;
use crate::ledger::Ledger;

const PIDS: [u32; 2] = [1, 1 + LOST_PROCESSES];
const THREADS: usize = 3;
const BLOCKS: u64 = 8;
const PAGES: u64 = 16;
const BASE: u64 = 0x7000_0000;
const PAGE: u64 = 4096;

/// What a process really holds: blocks by address, pages by number, each with who made it.
#[derive(Clone, Default, Debug, PartialEq)]
struct Truth {
    blocks: BTreeMap<u64, u64>,
    pages: BTreeMap<u64, u64>,
}

/// A reallocation or mremap under way.
#[derive(Clone, Debug)]
enum Pending {
    Realloc {
        old: u64,
        owner: u64,
        deferred: bool,
        freed: bool,
    },
    Mremap {
        first: u64,
        owners: Vec<u64>,
        deferred: bool,
        freed: bool,
    },
}

#[derive(Clone, Default)]
struct Process {
    truth: Truth,
    pending: [Option<Pending>; THREADS],
}

impl Process {
    /// Whether an address can be handed out.
    fn block_is_free(&self, address: u64) -> bool {
        !self.truth.blocks.contains_key(&address)
            && self
                .pending
                .iter()
                .flatten()
                .all(|pending| !matches!(pending, Pending::Realloc { old, freed: false, .. } if *old == address))
    }

    fn page_is_free(&self, page: u64) -> bool {
        !self.truth.pages.contains_key(&page) && !self.page_is_held(page)
    }

    fn page_is_held(&self, page: u64) -> bool {
        self.pending.iter().flatten().any(|pending| {
            matches!(pending, Pending::Mremap { first, owners, freed: false, .. }
                if (*first..*first + owners.len() as u64).contains(&page))
        })
    }

    fn run_is_free(&self, first: u64, count: u64) -> bool {
        (first..first + count).all(|page| self.page_is_free(page))
    }
}

/// What one of the threads does.
#[derive(Clone, Debug)]
enum Op {
    Malloc(u64),
    Free(u64),
    ReallocBegin(u64),
    /// The old block, or the old pages, can be handed out from here on.
    PendingFreed,
    /// To this address, or in place, or not at all.
    ReallocEnd(u64, u8),
    Mmap(u64, u64, bool),
    Munmap(u64, u64),
    MremapBegin(u64, u64),
    MremapEnd(u64, u64, u8),
    Exec,
    ThreadExit,
    Fork,
}

#[derive(Clone, Debug)]
struct Step {
    process: usize,
    thread: usize,
    op: Op,
    /// For each record two bits: it fits; if not, the set takes it.
    luck: u16,
}

#[derive(Clone, Debug)]
enum Act {
    Kernel(Step),
    /// The reader takes a batch of at most so many; what happens between batch and set, and between set and marks.
    Turn(usize, Vec<Step>, Vec<Step>),
}

/// The kernel side, and the processes under it.
#[derive(Default)]
struct Model {
    processes: [Process; 2],
    ring: VecDeque<(u64, Vec<u8>)>,
    producer: u64,
    consumer: u64,
    deferred: BTreeMap<(u32, u64, u64, u32), u64>,
    lost: BTreeSet<u32>,
    luck: u16,
    /// The last owner; each call has its own.
    owner: u64,
    /// Truths, with the producer's position at that time.
    history: Vec<(u64, [Truth; 2])>,
    between: [Vec<Step>; 2],
    /// How many truths there were when the set was read last.
    read_at: usize,
}

impl Model {
    fn note(&mut self) {
        let truths = self.processes.each_ref().map(|process| process.truth.clone());
        self.history.push((self.producer, truths));
    }

    fn take_luck(&mut self) -> (bool, bool) {
        let luck = (self.luck & 1 != 0, self.luck & 2 != 0);
        self.luck = self.luck.rotate_right(2);
        luck
    }

    fn put(&mut self, kind: u8, flags: u8, pid: u32, words: &[u64]) -> Result<(), bool> {
        let (fits, stored) = self.take_luck();
        if !fits {
            return Err(stored);
        }
        let mut bytes = vec![kind, flags, 0, 0];
        bytes.extend(pid.to_ne_bytes());
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        let length = (bytes.len() as u64 + 8).next_multiple_of(8);
        self.ring.push_back((self.producer, bytes));
        self.producer += length;
        self.note();
        Ok(())
    }

    /// A record of something given back. Returns whether it did not fit.
    fn put_release(&mut self, kind: u8, pid: u32, words: &[u64], release: u32) -> bool {
        let Err(stored) = self.put(kind, 0, pid, words) else {
            return false;
        };
        let address = words.first().copied().unwrap_or(0);
        let length = if release == RELEASE_INTERVAL { words[1] } else { 0 };
        if stored {
            let place = ReleaseKey::place(release, self.producer);
            self.deferred.insert((pid, address, length, place), self.producer);
        } else {
            self.lost.insert(match release {
                RELEASE_INTERVAL => process_bucket(pid),
                RELEASE_PROGRAM => LOST_PROCESSES + process_bucket(pid),
                _ => block_bucket(pid, address),
            });
        }
        true
    }

    /// The record of something new, behind its stack's.
    fn put_new(&mut self, kind: u8, flags: u8, pid: u32, words: &[u64]) {
        // id, depth and end, one frame
        if self.put(KIND_STACK, 0, pid, &[self.owner, 1, self.owner]).is_ok() {
            let _ = self.put(kind, flags, pid, words);
        }
    }

    fn run(&mut self, step: &Step) {
        self.luck = step.luck;
        let pid = PIDS[step.process];
        let tid = step.thread as u64 + 10;
        self.owner += 1;
        let owner = self.owner;
        let process = self.processes[step.process].clone();
        let block = |slot: u64| BASE + slot * 32;
        let at = |page: u64| BASE * 2 + page * PAGE;
        let idle = process.pending[step.thread].is_none();
        match &step.op {
            Op::Malloc(slot) if idle && process.block_is_free(block(*slot)) => {
                self.processes[step.process].truth.blocks.insert(block(*slot), owner);
                self.note();
                self.put_new(KIND_ALLOC, 0, pid, &[block(*slot), owner, owner, tid]);
            }
            Op::Free(slot) if idle && process.truth.blocks.contains_key(&block(*slot)) => {
                self.put_release(KIND_FREE, pid, &[block(*slot)], RELEASE_BLOCK);
                self.processes[step.process].truth.blocks.remove(&block(*slot));
            }
            Op::ReallocBegin(slot) if idle && process.truth.blocks.contains_key(&block(*slot)) => {
                let old = block(*slot);
                let deferred = self.put_release(KIND_REALLOC_BEGIN, pid, &[old, tid], RELEASE_BLOCK);
                let process = &mut self.processes[step.process];
                let owner = process.truth.blocks.remove(&old).unwrap();
                process.pending[step.thread] = Some(Pending::Realloc {
                    old,
                    owner,
                    deferred,
                    freed: false,
                });
            }
            Op::PendingFreed => {
                if let Some(Pending::Realloc { freed, .. } | Pending::Mremap { freed, .. }) =
                    &mut self.processes[step.process].pending[step.thread]
                {
                    *freed = true;
                }
            }
            Op::ReallocEnd(slot, outcome) => self.end_realloc(step, block(*slot), *outcome),
            Op::Mmap(first, count, fixed) if idle => {
                let pages = *first..*first + *count;
                if *fixed && pages.clone().all(|page| !process.page_is_held(page)) {
                    self.put_release(KIND_MUNMAP, pid, &[at(*first), count * PAGE], RELEASE_INTERVAL);
                } else if !process.run_is_free(*first, *count) {
                    return;
                }
                let truth = &mut self.processes[step.process].truth;
                truth.pages.extend(pages.map(|page| (page, owner)));
                self.note();
                self.put_new(KIND_MMAP, 0, pid, &[at(*first), count * PAGE, owner, tid]);
            }
            Op::Munmap(first, count) if idle && (*first..*first + *count).all(|page| !process.page_is_held(page)) => {
                // Lengths are rounded up to pages.
                self.put_release(KIND_MUNMAP, pid, &[at(*first), count * PAGE - 100], RELEASE_INTERVAL);
                let truth = &mut self.processes[step.process].truth;
                truth.pages.retain(|page, _| !(*first..*first + *count).contains(page));
            }
            Op::MremapBegin(first, count)
                if idle && (*first..*first + *count).all(|page| process.truth.pages.contains_key(&page)) =>
            {
                let words = [at(*first), count * PAGE, tid];
                let deferred = self.put_release(KIND_MREMAP_BEGIN, pid, &words, RELEASE_INTERVAL);
                let process = &mut self.processes[step.process];
                let pages = *first..*first + *count;
                let owners = pages.map(|page| process.truth.pages.remove(&page).unwrap()).collect();
                process.pending[step.thread] = Some(Pending::Mremap {
                    first: *first,
                    owners,
                    deferred,
                    freed: false,
                });
            }
            Op::MremapEnd(first, count, outcome) => self.end_mremap(step, *first, *count, *outcome),
            Op::Exec => {
                self.processes[step.process].pending = Default::default();
                self.put_release(KIND_EXEC, pid, &[], RELEASE_PROGRAM);
                self.processes[step.process] = Process::default();
            }
            Op::ThreadExit if idle => {
                let _ = self.put(KIND_THREAD_EXIT, 0, pid, &[tid]);
            }
            Op::Fork => {
                let _ = self.put(KIND_FORK, 0, pid, &[99]);
            }
            _ => return,
        }
        self.note();
    }

    fn end_realloc(&mut self, step: &Step, target: u64, outcome: u8) {
        let (pid, tid, owner) = (PIDS[step.process], step.thread as u64 + 10, self.owner);
        let process = &mut self.processes[step.process];
        let Some(Pending::Realloc {
            old,
            owner: old_owner,
            deferred,
            freed,
        }) = process.pending[step.thread].clone()
        else {
            return;
        };
        let flags = if deferred { FLAG_BEGIN_DEFERRED } else { 0 };
        let new = match outcome {
            0 if !freed => {
                process.pending[step.thread] = None;
                process.truth.blocks.insert(old, old_owner);
                self.note();
                if !deferred {
                    let _ = self.put(KIND_REALLOC_END, 0, pid, &[0, 64, 0, tid, old]);
                }
                return;
            }
            1 => {
                // To nothing.
                process.pending[step.thread] = None;
                let _ = self.put(KIND_REALLOC_END, flags, pid, &[0, 0, 0, tid, old]);
                return;
            }
            2 if !freed => old,
            _ if process.block_is_free(target) => target,
            _ => return,
        };
        process.pending[step.thread] = None;
        process.truth.blocks.insert(new, owner);
        self.note();
        self.put_new(KIND_REALLOC_END, flags, pid, &[new, owner, owner, tid, old]);
    }

    fn end_mremap(&mut self, step: &Step, target: u64, count: u64, outcome: u8) {
        let (pid, tid, owner) = (PIDS[step.process], step.thread as u64 + 10, self.owner);
        let at = |page: u64| BASE * 2 + page * PAGE;
        let process = &mut self.processes[step.process];
        let Some(Pending::Mremap {
            first,
            mut owners,
            deferred,
            freed,
        }) = process.pending[step.thread].clone()
        else {
            return;
        };
        let flags = if deferred { FLAG_BEGIN_DEFERRED } else { 0 };
        let length = owners.len() as u64 * PAGE;
        if outcome == 0 && !freed {
            process.pending[step.thread] = None;
            process.truth.pages.extend((first..).zip(owners));
            self.note();
            if !deferred {
                let _ = self.put(KIND_MREMAP, 0, pid, &[0, count * PAGE, 0, tid, at(first), length]);
            }
            return;
        }
        // In place where that is possible, else to where there is room.
        let mut without = process.clone();
        without.pending[step.thread] = None;
        let to = if !freed && outcome == 1 && without.run_is_free(first, count) {
            first
        } else if process.run_is_free(target, count) {
            target
        } else {
            return;
        };
        process.pending[step.thread] = None;
        owners.resize(count as usize, owner);
        process.truth.pages.extend((to..).zip(owners));
        self.note();
        let words = [at(to), count * PAGE, owner, tid, at(first), length];
        if count * PAGE > length {
            self.put_new(KIND_MREMAP, flags, pid, &words);
        } else {
            let _ = self.put(KIND_MREMAP, flags, pid, &words);
        }
    }

    fn run_between(&mut self, index: usize) {
        for step in std::mem::take(&mut self.between[index]) {
            self.run(&step);
        }
    }
}

impl Source for Model {
    fn drain(&mut self, limit: usize, mut consume: impl FnMut(u64, &[u8])) -> usize {
        for count in 0..limit {
            let Some((position, record)) = self.ring.pop_front() else {
                return count;
            };
            consume(position, &record);
            self.consumer = self.ring.front().map_or(self.producer, |(position, _)| *position);
        }
        limit
    }

    fn position(&self) -> u64 {
        self.consumer
    }

    fn produced(&self) -> u64 {
        self.producer
    }

    fn take_deferred(&mut self, mut take: impl FnMut(ReleaseKey, u64)) {
        self.run_between(0);
        self.read_at = self.history.len();
        for ((pid, address, length, place), position) in std::mem::take(&mut self.deferred) {
            let key = ReleaseKey {
                address,
                length,
                pid,
                place,
            };
            take(key, position);
        }
    }

    fn take_lost(&mut self) -> Vec<u32> {
        self.run_between(1);
        std::mem::take(&mut self.lost).into_iter().collect()
    }

    fn take_lost_notices(&mut self) -> bool {
        false
    }
}

/// The reader's side: what the pump does with the stream.
#[derive(Default)]
struct Ledgers(BTreeMap<u32, Ledger>);

impl Ledgers {
    fn apply(&mut self, next: Ordered<'_>) {
        match next {
            Ordered::Event { pid, event, .. } => self.0.entry(pid).or_default().apply(event, 0),
            Ordered::Undecodable => panic!("a record that cannot be decoded"),
            Ordered::NoticesLost => panic!("no notice is lost"),
            Ordered::Doubt(doubt) => {
                for (pid, ledger) in &mut self.0 {
                    doubt.leave_out(*pid, ledger);
                }
            }
        }
    }

    fn shown(&self, pid: u32) -> Truth {
        let Some(ledger) = self.0.get(&pid) else {
            return Truth::default();
        };
        let blocks = ledger.blocks().map(|block| (block.address.0, block.bytes)).collect();
        let pages = ledger.mappings().flat_map(|mapping| {
            let owner = mapping.frames.first().map_or(0, |frame| frame.0);
            assert_eq!(mapping.bytes % PAGE, 0, "a part of a page");
            let first = (mapping.address.0 - 2 * BASE) / PAGE;
            (first..first + mapping.bytes / PAGE).map(move |page| (page, owner))
        });
        Truth {
            pages: pages.collect(),
            blocks,
        }
    }

    fn check(&self, truths: &[Truth; 2]) -> Result<(), TestCaseError> {
        for (pid, truth) in PIDS.into_iter().zip(truths) {
            let shown = self.shown(pid);
            for (address, owner) in &shown.blocks {
                prop_assert_eq!(
                    truth.blocks.get(address),
                    Some(owner),
                    "block {:#x} of {}",
                    address,
                    pid
                );
            }
            for (page, owner) in &shown.pages {
                prop_assert_eq!(truth.pages.get(page), Some(owner), "page {} of {}", page, pid);
            }
        }
        Ok(())
    }
}

/// Runs all; after each turn, and at the end, nothing is shown that was not there. Returns what is shown at the end, and
/// what is there.
fn run(acts: Vec<Act>) -> Result<([Truth; 2], [Truth; 2]), TestCaseError> {
    let mut stream = Stream::new(Model::default());
    let mut ledgers = Ledgers::default();
    stream.source.note();
    for act in acts {
        let (limit, between) = match act {
            Act::Kernel(step) => {
                stream.source.run(&step);
                continue;
            }
            Act::Turn(limit, first, second) => (limit, [first, second]),
        };
        stream.source.between = between;
        stream.turn(limit, |next| ledgers.apply(next));
        let reached = stream.position();
        let model = &stream.source;
        let mut known = model.history[..model.read_at].iter().rev();
        let (_, truths) = known.find(|(producer, _)| *producer <= reached).unwrap();
        ledgers.check(truths)?;
    }
    while stream.position() < stream.source.produced() {
        stream.turn(5, |next| ledgers.apply(next));
    }
    stream.finish(|next| ledgers.apply(next));
    let truths = stream.source.processes.map(|process| process.truth);
    ledgers.check(&truths)?;
    Ok((PIDS.map(|pid| ledgers.shown(pid)), truths))
}

fn op() -> impl Strategy<Value = Op> {
    let (slot, page, count) = (|| 0..BLOCKS, || 0..PAGES - 5, || 1u64..5);
    prop_oneof![
        8 => slot().prop_map(Op::Malloc),
        6 => slot().prop_map(Op::Free),
        4 => slot().prop_map(Op::ReallocBegin),
        2 => Just(Op::PendingFreed),
        6 => (slot(), 0u8..4).prop_map(|(slot, outcome)| Op::ReallocEnd(slot, outcome)),
        6 => (page(), count(), any::<bool>()).prop_map(|(page, count, fixed)| Op::Mmap(page, count, fixed)),
        4 => (page(), count()).prop_map(|(page, count)| Op::Munmap(page, count)),
        6 => (page(), 1u64..3).prop_map(|(page, count)| Op::MremapBegin(page, count)),
        6 => (page(), count(), 0u8..3).prop_map(|(page, count, outcome)| Op::MremapEnd(page, count, outcome)),
        1 => Just(Op::Exec),
        1 => Just(Op::ThreadExit),
        1 => Just(Op::Fork),
    ]
}

fn step(luck: impl Strategy<Value = u16>) -> impl Strategy<Value = Step> {
    let process = prop_oneof![4 => Just(0usize), 1 => Just(1)];
    (process, 0..THREADS, op(), luck).prop_map(|(process, thread, op, luck)| Step {
        process,
        thread,
        op,
        luck,
    })
}

fn acts(luck: impl Strategy<Value = u16> + Clone) -> impl Strategy<Value = Vec<Act>> {
    let few = |luck| prop::collection::vec(step(luck), 0..3);
    let act = prop_oneof![
        6 => step(luck.clone()).prop_map(Act::Kernel),
        1 => (1usize..12, few(luck.clone()), few(luck)).prop_map(|(limit, first, second)| Act::Turn(limit, first, second)),
    ];
    prop::collection::vec(act, 0..120)
}

/// All fits, nothing fits but the set takes it, or anything.
fn any_luck() -> impl Strategy<Value = u16> + Clone {
    prop_oneof![3 => Just(u16::MAX), 2 => Just(0xaaaa), 3 => any::<u16>()]
}

fn cases(by_default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(asked.unwrap_or(by_default))
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn whatever_is_lost_nothing_is_shown_that_is_not_there(acts in acts(any_luck())) {
        run(acts)?;
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn where_nothing_is_lost_all_is_shown(acts in acts(Just(u16::MAX))) {
        let (shown, truth) = run(acts)?;
        prop_assert_eq!(shown, truth);
    }
}

#[test]
fn a_free_that_is_deferred_twice_before_it_is_read_is_two() {
    let act = |op, luck| {
        Act::Kernel(Step {
            process: 0,
            thread: 0,
            op,
            luck,
        })
    };
    let between = |op, luck| Step {
        process: 0,
        thread: 0,
        op,
        luck,
    };
    // The reader is preempted between batch and set; meanwhile there is room, and none any more.
    let acts = vec![
        act(Op::Malloc(0), u16::MAX),
        act(Op::Free(0), 0xaaaa),
        Act::Turn(
            10,
            vec![between(Op::Malloc(0), u16::MAX), between(Op::Free(0), 0xaaaa)],
            Vec::new(),
        ),
    ];
    let mut stream = Stream::new(Model::default());
    let mut ledgers = Ledgers::default();
    for act in acts {
        match act {
            Act::Kernel(step) => stream.source.run(&step),
            Act::Turn(limit, first, second) => {
                stream.source.between = [first, second];
                stream.turn(limit, |next| ledgers.apply(next));
                assert_eq!(ledgers.shown(PIDS[0]), Truth::default());
            }
        }
    }
    stream.turn(10, |next| ledgers.apply(next));
    assert_eq!(ledgers.shown(PIDS[0]), Truth::default());
    assert_eq!(ledgers.0[&PIDS[0]].notes().missed_frees, 0);
}
