//! The thread that reads records and applies them to the ledgers.
//!
//! Frees that did not fit into the ring come from a set beside it, each with its position in the stream. They are put
//! back into their place like this: a batch of records is copied off the ring first, the set is read then, and only
//! then is the batch applied, with each free before the first record behind its position. A later allocation at the same
//! address can be in the batch only if the free was in the set by the time it was read, so none is applied too late.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use leaktrace_common::reason::Counter;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use crate::{
    bpf::{counters::Counters, deferred::DeferredFrees, ring::Ring},
    event::{self, Event},
    ledger::{Ledger, Notes, Snapshot},
    model::ProcessAddress,
};

/// Records copied off the ring at once.
const BATCH: usize = 16 * 1024;
/// How long the reader sleeps while records come; at a million events of 48 bytes a second, half a megabyte passes.
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// How long it sleeps while none come.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// How often the figures for the progress line are brought up to date.
const FIGURES_INTERVAL: Duration = Duration::from_millis(200);
/// Deferred frees taken out of the set at once.
const DEFERRED_BATCH: usize = 1 << 20;

/// Something that the session has to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// Code came to be in a process.
    CodeMapped {
        /// The process.
        pid: u32,
        /// All of it is in memory without a file, which the program fills itself.
        is_made: bool,
    },
    /// A process runs another program.
    Exec(u32),
    /// A process has a new thread or a child.
    Fork {
        /// The process.
        pid: u32,
        /// The thread or child.
        child: u32,
    },
    /// A thread of a process ended.
    ThreadExit {
        /// The process.
        pid: u32,
        /// The thread.
        tid: u32,
    },
}

/// Where notices go, and whom to wake for them.
pub struct NoticeSender {
    channel: mpsc::Sender<Notice>,
    wake: Arc<Notify>,
}

/// Where notices come from.
pub struct NoticeReceiver {
    channel: mpsc::Receiver<Notice>,
    wake: Arc<Notify>,
}

/// A channel for notices. It has no limit, but what it carries is as rare as programs, libraries and threads.
pub fn notice_channel() -> (NoticeSender, NoticeReceiver) {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(Notify::new());
    (
        NoticeSender {
            channel: sender,
            wake: Arc::clone(&wake),
        },
        NoticeReceiver {
            channel: receiver,
            wake,
        },
    )
}

impl NoticeSender {
    /// A receiver that is gone has no use for it.
    fn send(&self, notice: Notice) {
        if self.channel.send(notice).is_ok() {
            self.wake.notify_one();
        }
    }
}

impl NoticeReceiver {
    /// The notices that came since the last time; a burst of the same (many libraries) is one.
    pub fn take(&self) -> BTreeSet<Notice> {
        self.channel.try_iter().collect()
    }

    /// Tells when there is something to take.
    pub fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }
}

/// Figures that others may read at any time.
#[derive(Debug, Default)]
pub struct Figures {
    /// Records applied.
    pub events: AtomicU64,
    /// Outstanding bytes over all processes.
    pub live_bytes: AtomicU64,
    /// Allocations lost.
    pub lost: AtomicU64,
    stop: AtomicBool,
}

/// A ledger's content at one moment.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// All stacks.
    pub snapshot: Snapshot,
    /// What the ledger noticed.
    pub notes: Notes,
}

/// What a process holds at one moment, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// Outstanding bytes.
    pub bytes: f64,
    /// Calls whose return was told so far.
    pub returns: u64,
}

/// Something asked of the running thread.
enum Request {
    /// The content of a process's ledger.
    Capture(u32, mpsc::Sender<Captured>),
    /// A process's ledger itself, which the thread gives up. Everything is read first that is on the ring.
    Take(u32, mpsc::Sender<Ledger>),
    /// Pages of a process that samples of growth were taken at.
    Pages(u32, mpsc::Sender<Vec<ProcessAddress>>),
    /// Those of them that are not resident any more.
    LeavePages(u32, Vec<ProcessAddress>, mpsc::Sender<()>),
    /// Counters, and records that could not be decoded.
    Counters(mpsc::Sender<([u64; Counter::COUNT], u64)>),
    /// What each process holds.
    Held(mpsc::Sender<HashMap<u32, Held>>),
}

/// How long an answer may take: the thread answers between two batches.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the thread leaves.
pub struct Outcome {
    /// Ledgers by pid.
    pub ledgers: HashMap<u32, Ledger>,
    /// Hundredths of a second since the beginning: the time that ages refer to.
    pub now: u32,
    /// The kernel side's counters.
    pub counters: [u64; Counter::COUNT],
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// CPU time that the thread took.
    pub cpu: Duration,
}

impl Outcome {
    /// The content of a process's ledger; empty for one that is not known.
    pub fn capture(&self, pid: u32) -> Captured {
        self.ledgers
            .get(&pid)
            .map_or_else(Captured::default, |ledger| Captured {
                snapshot: ledger.snapshot(self.now),
                notes: ledger.notes(),
            })
    }
}

/// The running thread. Dropping it ends the thread.
pub struct Pump {
    figures: Arc<Figures>,
    requests: mpsc::Sender<Request>,
    /// `None` once it was ended.
    thread: Option<JoinHandle<Outcome>>,
}

impl Pump {
    /// Starts the thread. Notices go to `notices`.
    pub fn start(
        ring: Ring,
        deferred: DeferredFrees,
        counters: Counters,
        notices: NoticeSender,
    ) -> std::io::Result<Self> {
        let figures = Arc::new(Figures::default());
        let (requests, asked) = mpsc::channel();
        let mut state = State {
            ring,
            deferred,
            counters,
            notices,
            asked,
            figures: Arc::clone(&figures),
            started: Instant::now(),
            batch: Batch::default(),
            waiting: BinaryHeap::new(),
            deferred_seen: 0,
            notices_lost: (0, monotonic()),
            ledgers: HashMap::new(),
            undecodable: 0,
            events: 0,
        };
        let thread = thread::Builder::new().name("pump".to_owned()).spawn(move || {
            state.run();
            state.finish()
        })?;
        Ok(Self {
            figures,
            requests,
            thread: Some(thread),
        })
    }

    /// Figures for the progress line.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// The content of a process's ledger now; empty for one that is not known. `None` if the thread does not answer.
    pub fn capture(&self, pid: u32) -> Option<Captured> {
        self.ask(|reply| Request::Capture(pid, reply))
    }

    /// Gives up the ledger of a process. To be called when nothing is attached to it any more.
    pub fn take(&self, pid: u32) -> Option<Ledger> {
        self.ask(|reply| Request::Take(pid, reply))
    }

    /// Pages of a process that samples of growth were taken at, and that are held to be resident.
    pub fn pages(&self, pid: u32) -> Option<Vec<ProcessAddress>> {
        self.ask(|reply| Request::Pages(pid, reply))
    }

    /// Says which of them are not.
    pub fn leave_pages(&self, pid: u32, gone: Vec<ProcessAddress>) {
        self.ask(|reply| Request::LeavePages(pid, gone, reply));
    }

    /// The kernel side's counters and the records that could not be decoded, so far.
    pub fn counters(&self) -> Option<([u64; Counter::COUNT], u64)> {
        self.ask(Request::Counters)
    }

    /// What each process holds.
    pub fn held(&self) -> Option<HashMap<u32, Held>> {
        self.ask(Request::Held)
    }

    fn ask<T>(&self, request: impl FnOnce(mpsc::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        self.requests.send(request(reply)).ok()?;
        answer.recv_timeout(ANSWER_LIMIT).ok()
    }

    /// Reads what is left and hands the ledgers over. To be called when nothing is attached any more.
    ///
    /// # Panics
    /// If the thread did.
    pub fn stop(mut self) -> Outcome {
        match self.end() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn end(&mut self) -> thread::Result<Outcome> {
        self.figures.stop.store(true, Ordering::Release);
        match self.thread.take() {
            Some(thread) => thread.join(),
            None => Err(Box::new("the pump was ended before")),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        // It would go on to read a ring that nobody fills, and keep its maps.
        let _ = self.end();
    }
}

/// Records copied off the ring: their bytes, and for each its position and end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    records: Vec<(u64, u32)>,
}

impl Batch {
    fn fill(&mut self, ring: &mut Ring) -> usize {
        self.bytes.clear();
        self.records.clear();
        ring.drain(BATCH, |position, record| {
            self.bytes.extend_from_slice(record);
            self.records.push((position, self.bytes.len() as u32));
        })
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.records.iter().map(move |(position, end)| {
            let record = &self.bytes[start..*end as usize];
            start = *end as usize;
            (*position, record)
        })
    }
}

struct State {
    ring: Ring,
    deferred: DeferredFrees,
    counters: Counters,
    notices: NoticeSender,
    asked: mpsc::Receiver<Request>,
    figures: Arc<Figures>,
    started: Instant,
    batch: Batch,
    /// Deferred frees whose position is not reached: (position, pid, address), earliest first.
    waiting: BinaryHeap<Reverse<(u64, u32, u64)>>,
    /// Deferrals counted by the kernel side when the set was last read.
    deferred_seen: u64,
    /// Notices lost, as counted when that was last looked at, and when that was.
    notices_lost: (u64, u64),
    ledgers: HashMap<u32, Ledger>,
    undecodable: u64,
    events: u64,
}

impl State {
    fn run(&mut self) {
        let mut figures_at = Instant::now();
        let mut quiet = 0;
        while !self.figures.stop.load(Ordering::Acquire) {
            let count = self.turn();
            self.answer();
            if figures_at.elapsed() >= FIGURES_INTERVAL {
                figures_at = Instant::now();
                self.publish();
            }
            quiet = if count == 0 { quiet + 1 } else { 0 };
            if count < BATCH {
                self.ring.wait(if quiet > 20 { IDLE_WAIT } else { BUSY_WAIT });
            }
        }
    }

    /// One batch. Returns how many records there were.
    fn turn(&mut self) -> usize {
        let count = self.batch.fill(&mut self.ring);
        let counters = self.counters.read();
        self.read_deferred(&counters);
        let now = self.now();
        let lost = self.lost_notices(&counters);
        if let Some((begun, done)) = lost {
            self.code_changed(begun, done);
        }
        let batch = std::mem::take(&mut self.batch);
        for (position, record) in batch.iter() {
            self.apply_deferred(position);
            match event::decode(record) {
                Some((pid, event)) => self.apply(pid, event, now),
                None => self.undecodable += 1,
            }
        }
        self.batch = batch;
        self.events += count as u64;
        // What was lost was somewhere among these records: of those stacks nothing can be said.
        if let Some((begun, _)) = lost {
            self.code_changed(begun, monotonic());
        }
        count
    }

    /// When notices of new code may have been lost, if some were.
    fn lost_notices(&mut self, counters: &[u64; Counter::COUNT]) -> Option<(u64, u64)> {
        let (before, since) = self.notices_lost;
        let now = (counters[Counter::NoticeLost as usize], monotonic());
        self.notices_lost = now;
        (now.0 != before).then_some((since, now.1))
    }

    /// Code may have come to be anywhere in any process.
    fn code_changed(&mut self, begun: u64, done: u64) {
        for (pid, ledger) in &mut self.ledgers {
            ledger.code_changed_anywhere(begun, done);
            self.notices.send(Notice::CodeMapped {
                pid: *pid,
                is_made: false,
            });
        }
    }

    /// Answers what was asked meanwhile. Who asked and went away gets nothing.
    fn answer(&mut self) {
        while let Ok(request) = self.asked.try_recv() {
            match request {
                Request::Capture(pid, reply) => {
                    let now = self.now();
                    let captured = self.ledgers.get(&pid).map(|ledger| Captured {
                        snapshot: ledger.snapshot(now),
                        notes: ledger.notes(),
                    });
                    let _ = reply.send(captured.unwrap_or_default());
                }
                Request::Take(pid, reply) => {
                    while self.turn() > 0 {}
                    let _ = reply.send(self.ledgers.remove(&pid).unwrap_or_default());
                }
                Request::Pages(pid, reply) => {
                    let _ = reply.send(self.ledgers.get(&pid).map(Ledger::pages).unwrap_or_default());
                }
                Request::LeavePages(pid, gone, reply) => {
                    if let Some(ledger) = self.ledgers.get_mut(&pid) {
                        ledger.leave_pages(&gone);
                    }
                    let _ = reply.send(());
                }
                Request::Counters(reply) => {
                    let _ = reply.send((self.counters.read(), self.undecodable));
                }
                Request::Held(reply) => {
                    let held = self.ledgers.iter().map(|(pid, ledger)| {
                        let held = Held {
                            bytes: ledger.live_bytes(),
                            returns: ledger.notes().returns,
                        };
                        (*pid, held)
                    });
                    let _ = reply.send(held.collect());
                }
            }
        }
    }

    fn apply(&mut self, pid: u32, event: Event<'_>, now: u32) {
        match event {
            Event::CodeMapped(code) => self.notices.send(Notice::CodeMapped {
                pid,
                is_made: code.is_made,
            }),
            Event::Exec => self.notices.send(Notice::Exec(pid)),
            Event::Fork { child } => self.notices.send(Notice::Fork { pid, child }),
            Event::ThreadExit(tid) => self.notices.send(Notice::ThreadExit { pid, tid }),
            _ => {}
        }
        self.ledgers.entry(pid).or_default().apply(event, now);
    }

    fn read_deferred(&mut self, counters: &[u64; Counter::COUNT]) {
        let count = counters[Counter::FreeDeferred as usize] + counters[Counter::ReallocBeginDeferred as usize];
        if count == self.deferred_seen {
            return;
        }
        self.deferred_seen = count;
        let frees = self.deferred.take(DEFERRED_BATCH);
        self.waiting.extend(
            frees
                .into_iter()
                .map(|free| Reverse((free.position, free.pid, free.address))),
        );
    }

    /// Applies the frees that happened before the record at `position`.
    fn apply_deferred(&mut self, position: u64) {
        while let Some(Reverse((at, pid, address))) = self.waiting.peek().copied()
            && at <= position
        {
            self.waiting.pop();
            self.ledgers.entry(pid).or_default().free(ProcessAddress(address));
        }
    }

    fn now(&self) -> u32 {
        (self.started.elapsed().as_millis() / 10).min(u128::from(u32::MAX)) as u32
    }

    fn publish(&mut self) {
        let now = self.now();
        let mut live = 0.0;
        for ledger in self.ledgers.values_mut() {
            ledger.note_history(now);
            live += ledger.live_bytes();
        }
        self.figures.events.store(self.events, Ordering::Relaxed);
        self.figures.live_bytes.store(live as u64, Ordering::Relaxed);
        self.figures
            .lost
            .store(self.counters.read()[Counter::AllocLost as usize], Ordering::Relaxed);
    }

    fn finish(mut self) -> Outcome {
        while self.turn() > 0 {}
        let counters = self.counters.read();
        self.read_deferred(&counters);
        self.apply_deferred(u64::MAX);
        self.publish();
        Outcome {
            now: self.now(),
            counters: self.counters.read(),
            ledgers: self.ledgers,
            undecodable: self.undecodable,
            cpu: own_cpu_time(),
        }
    }
}

/// The clock that the kernel side tells times by, in nanoseconds.
pub(super) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// CPU time of the calling thread: the first number of its `schedstat`, in nanoseconds.
fn own_cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split_ascii_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
