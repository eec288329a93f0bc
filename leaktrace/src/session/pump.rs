//! The thread that reads the stream of events ([`super::stream`]), applies it to the ledgers and answers requests.
//!
//! Invariant: it owns all ledgers. Between two requests it reads no more than one batch, and what a request has it read
//! before the answer is bounded by what was there when the request came, and by time.

use std::{
    collections::{BTreeSet, HashMap},
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

use super::{
    source::KernelSource,
    stack_memory::{StackBudget, StackMemory},
    stream::{Doubt, Ordered, Source, Stream},
};
use crate::{
    event::Event,
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
/// How long what was on the ring is read before a ledger is given up: less than [`ANSWER_LIMIT`].
const TAKE_LIMIT: Duration = Duration::from_secs(5);
/// The same at the end; a ring of 1 GiB that is full takes half of it.
const FINISH_LIMIT: Duration = Duration::from_secs(60);
/// How long a record that was reserved and is not written yet is waited for: its program was preempted.
const STALL_LIMIT: Duration = Duration::from_secs(1);
const STALL_WAIT: Duration = Duration::from_millis(1);

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
    /// A child of a process goes on using its memory.
    Sharer {
        /// The process.
        pid: u32,
        /// The child.
        sharer: u32,
        /// There was no room to note it: what it gives back is not seen.
        missed: bool,
    },
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

impl Notice {
    /// The process that it is about.
    pub fn pid(self) -> u32 {
        match self {
            Self::CodeMapped { pid, .. }
            | Self::Exec(pid)
            | Self::Sharer { pid, .. }
            | Self::Fork { pid, .. }
            | Self::ThreadExit { pid, .. } => pid,
        }
    }
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
    pub fn start(source: KernelSource, notices: NoticeSender, stacks: StackMemory) -> std::io::Result<Self> {
        let figures = Arc::new(Figures::default());
        let (requests, asked) = mpsc::channel();
        let mut state = State {
            stream: Stream::new(source),
            asked,
            figures: Arc::clone(&figures),
            books: Books {
                notices,
                started: Instant::now(),
                looked: monotonic(),
                ledgers: HashMap::new(),
                stacks: StackBudget::new(stacks),
                given_up: HashMap::new(),
                undecodable: 0,
            },
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

/// The ledgers, and what goes with applying events to them.
struct Books {
    notices: NoticeSender,
    started: Instant,
    /// When the turn before began, by the kernel's monotonic clock.
    looked: u64,
    ledgers: HashMap<u32, Ledger>,
    stacks: StackBudget,
    /// Processes whose ledger was given up before all was read of them: what stands before the position is not theirs who
    /// have the pid next.
    given_up: HashMap<u32, u64>,
    undecodable: u64,
}

impl Books {
    fn apply(&mut self, next: Ordered<'_>, now: u32) {
        match next {
            Ordered::Event { position, pid, event } => {
                if self.given_up.get(&pid).is_none_or(|until| position >= *until) {
                    self.apply_event(pid, event, now);
                }
            }
            Ordered::Undecodable => self.undecodable += 1,
            Ordered::NoticesLost => self.code_changed(),
            Ordered::Doubt(doubt) => self.leave_out(doubt),
        }
    }

    fn apply_event(&mut self, pid: u32, event: Event<'_>, now: u32) {
        match event {
            Event::CodeMapped(code) => self.notices.send(Notice::CodeMapped {
                pid,
                is_made: code.is_made,
            }),
            Event::Exec => self.notices.send(Notice::Exec(pid)),
            Event::Sharer { pid: sharer, missed } => self.notices.send(Notice::Sharer { pid, sharer, missed }),
            Event::Fork { child } => self.notices.send(Notice::Fork { pid, child }),
            Event::ThreadExit(tid) => self.notices.send(Notice::ThreadExit { pid, tid }),
            _ => {}
        }
        let ledger = self.ledgers.entry(pid).or_default();
        match event {
            Event::Stack { .. } | Event::Exec => self.stacks.account(ledger, |ledger| ledger.apply(event, now)),
            _ => ledger.apply(event, now),
        }
    }

    /// Code may have come to be anywhere in any process since the turn before.
    fn code_changed(&mut self) {
        for (pid, ledger) in &mut self.ledgers {
            ledger.code_changed_anywhere(self.looked, monotonic());
            self.notices.send(Notice::CodeMapped {
                pid: *pid,
                is_made: false,
            });
        }
    }

    fn leave_out(&mut self, doubt: &Doubt) {
        for (pid, ledger) in &mut self.ledgers {
            doubt.leave_out(*pid, ledger);
            if doubt.concerns_program(*pid) {
                self.notices.send(Notice::Exec(*pid));
            }
        }
    }

    fn now(&self) -> u32 {
        (self.started.elapsed().as_millis() / 10).min(u128::from(u32::MAX)) as u32
    }
}

struct State {
    stream: Stream<KernelSource>,
    asked: mpsc::Receiver<Request>,
    figures: Arc<Figures>,
    books: Books,
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
                let source = self.stream.source();
                source.wait(if quiet > 20 { IDLE_WAIT } else { BUSY_WAIT });
            }
        }
    }

    /// One batch. Returns how many records there were.
    fn turn(&mut self) -> usize {
        let now = self.books.now();
        let looked = monotonic();
        let books = &mut self.books;
        let count = self.stream.turn(BATCH, |next| books.apply(next, now));
        books.looked = looked;
        let reached = self.stream.position();
        self.books.given_up.retain(|_, until| *until > reached);
        self.events += count as u64;
        count
    }

    /// Reads what is on the ring at this moment, as far as the time suffices. Returns up to where that is.
    fn read_present(&mut self, limit: Duration) -> u64 {
        let until = self.stream.source().produced();
        let started = Instant::now();
        let mut moved = started;
        while self.stream.position() < until && started.elapsed() < limit {
            if self.turn() > 0 {
                moved = Instant::now();
            } else if moved.elapsed() >= STALL_LIMIT {
                break;
            } else {
                thread::sleep(STALL_WAIT);
            }
        }
        // What was given back meanwhile has no record that would bring a batch.
        self.turn();
        let left = until.saturating_sub(self.stream.position());
        if left > 0 {
            tracing::debug!("{left} bytes of records were not read in time");
        }
        until
    }

    /// Answers what was asked meanwhile. Who asked and went away gets nothing.
    fn answer(&mut self) {
        while let Ok(request) = self.asked.try_recv() {
            match request {
                Request::Capture(pid, reply) => {
                    let now = self.books.now();
                    let captured = self.books.ledgers.get(&pid).map(|ledger| Captured {
                        snapshot: ledger.snapshot(now),
                        notes: ledger.notes(),
                    });
                    let _ = reply.send(captured.unwrap_or_default());
                }
                Request::Take(pid, reply) => {
                    let until = self.read_present(TAKE_LIMIT);
                    if self.stream.position() < until {
                        self.books.given_up.insert(pid, until);
                    }
                    let ledger = self.books.ledgers.remove(&pid).unwrap_or_default();
                    self.books.stacks.release(&ledger);
                    let _ = reply.send(ledger);
                }
                Request::Pages(pid, reply) => {
                    let ledger = self.books.ledgers.get(&pid);
                    let _ = reply.send(ledger.map(Ledger::pages).unwrap_or_default());
                }
                Request::LeavePages(pid, gone, reply) => {
                    if let Some(ledger) = self.books.ledgers.get_mut(&pid) {
                        ledger.leave_pages(&gone);
                    }
                    let _ = reply.send(());
                }
                Request::Counters(reply) => {
                    let _ = reply.send((self.stream.source_mut().counters(), self.books.undecodable));
                }
                Request::Held(reply) => {
                    let held = self.books.ledgers.iter().map(|(pid, ledger)| {
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

    fn publish(&mut self) {
        let now = self.books.now();
        let mut live = 0.0;
        for ledger in self.books.ledgers.values_mut() {
            ledger.note_history(now);
            live += ledger.live_bytes();
        }
        self.figures.events.store(self.events, Ordering::Relaxed);
        self.figures.live_bytes.store(live as u64, Ordering::Relaxed);
        let lost = self.stream.source_mut().counters()[Counter::AllocLost as usize];
        self.figures.lost.store(lost, Ordering::Relaxed);
    }

    fn finish(mut self) -> Outcome {
        self.read_present(FINISH_LIMIT);
        let now = self.books.now();
        let books = &mut self.books;
        self.stream.finish(|next| books.apply(next, now));
        self.publish();
        self.books.ledgers.values_mut().for_each(Ledger::seal);
        Outcome {
            now: self.books.now(),
            counters: self.stream.source_mut().counters(),
            ledgers: self.books.ledgers,
            undecodable: self.books.undecodable,
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
