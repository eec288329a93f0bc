//! The thread that owns the kernel side: it attaches, follows, measures, copies ledgers and detaches, as it is told.
//!
//! The kernel side is loaded when the first process is to be traced, or its growth followed, and given up when none has
//! been for a while, so a daemon that only watches has no BPF program anywhere. Invariant: when the thread has ended, no probe is left.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use leaktrace_common::signature::Op;

use super::cost::{Activity, Cost, Price};
use crate::{
    bpf::usage::{Counting, Usage},
    daemon::service::lock,
    model::ProcessKey,
    report::loss::Losses,
    session::{
        live::{Live, Moment},
        profile,
        pump::Held,
        recording::RecordError,
    },
};

/// Bytes of the ring buffer: in sampled mode, a second of a hundred thousand records.
const RING_BYTES: u32 = 4 << 20;
/// How long runs are counted for one measurement.
const MEASURE: Duration = Duration::from_millis(250);
/// How long the kernel side stays when nothing is traced.
const LINGER: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long attaching may: a second or two with large libraries. The first loads the kernel side, too, and the verifier is
/// slow on an emulated processor.
const ATTACH_LIMIT: Duration = Duration::from_secs(120);

/// A traced process as of the last measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// What it costs; `None` until it was measured.
    pub cost: Option<Cost>,
    /// Mean bytes between its samples.
    pub interval: u64,
    /// Its outstanding bytes.
    pub live_bytes: u64,
}

/// What the thread tells from time to time.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Traced processes.
    pub targets: HashMap<ProcessKey, Reading>,
    /// What following growth without probes costs in all processes together; `None` while nobody's is followed.
    pub growth: Option<Cost>,
    /// Which measurement it was; 0 before the first.
    pub number: u64,
    /// Losses since the kernel side was loaded.
    pub losses: Losses,
    /// What traps are held to cost; `None` before something was traced or suspected.
    pub price: Option<Price>,
    /// Processes whose tracing has ended by itself and that were not released yet, and why.
    pub withdrawn: HashMap<ProcessKey, String>,
}

enum Command {
    Trace {
        key: ProcessKey,
        interval: u64,
        reply: Reply<Result<(), RecordError>>,
    },
    Suspect {
        key: ProcessKey,
        interval: u64,
        reply: Reply<Result<(), RecordError>>,
    },
    Leave(ProcessKey),
    Release(ProcessKey, mpsc::Sender<()>),
    Interval(ProcessKey, u64, String),
    Capture(ProcessKey, mpsc::Sender<Option<Moment>>),
    Measure,
    Stop,
}

/// Where an answer goes for which somebody waits only so long. Either it reaches who asked, or who answers knows that it
/// did not: nothing takes effect that nobody knows of.
struct Reply<T> {
    sender: mpsc::Sender<T>,
    /// By whoever comes first: the answer, or the end of waiting.
    is_settled: Arc<AtomicBool>,
}

/// Who waits for it.
struct Awaited<T> {
    receiver: mpsc::Receiver<T>,
    is_settled: Arc<AtomicBool>,
}

fn reply<T>() -> (Reply<T>, Awaited<T>) {
    let (sender, receiver) = mpsc::channel();
    let is_settled = Arc::new(AtomicBool::new(false));
    let awaited = Awaited {
        receiver,
        is_settled: Arc::clone(&is_settled),
    };
    (Reply { sender, is_settled }, awaited)
}

impl<T> Reply<T> {
    /// Whether the answer arrives.
    fn send(self, answer: T) -> bool {
        !self.is_settled.swap(true, Ordering::AcqRel) && self.sender.send(answer).is_ok()
    }
}

impl<T> Awaited<T> {
    /// The answer; `None` when there is none within `limit`, or never will be.
    fn wait(self, limit: Duration) -> Option<T> {
        match self.receiver.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            // It was settled at this very moment: the answer is on its way.
            Err(_) if self.is_settled.swap(true, Ordering::AcqRel) => self.receiver.recv().ok(),
            Err(_) => None,
        }
    }
}

/// A command that takes longer than this is stuck: all that may take long within one has limits of its own.
const STUCK: Duration = Duration::from_secs(60);

/// Since when the thread is at work on one command.
#[derive(Debug, Default)]
struct Busy(Mutex<Option<Instant>>);

impl Busy {
    fn set(&self, busy: bool) {
        *lock(&self.0) = busy.then(Instant::now);
    }
}

/// The engine as others see it.
pub struct Engine {
    busy: Arc<Busy>,
    commands: UnboundedSender<Command>,
    readings: Arc<Mutex<Arc<Readings>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread; nothing is loaded yet.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start() -> io::Result<Self> {
        let (commands, receiver) = unbounded_channel();
        let readings = Arc::new(Mutex::new(Arc::new(Readings::default())));
        let shared = Arc::clone(&readings);
        let busy = Arc::new(Busy::default());
        let own_busy = Arc::clone(&busy);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            let mut work = Work {
                live: None,
                idle_since: Instant::now(),
                keys: HashMap::new(),
                suspects: HashMap::new(),
                measuring: None,
                readings: shared,
                busy: own_busy,
                price: Price::default(),
            };
            runtime.block_on(work.run(receiver));
        })?;
        Ok(Self {
            busy,
            commands,
            readings,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// For how long the thread has been at one command; `None` if it waits for one.
    pub fn busy(&self) -> Option<Duration> {
        let since = *lock(&self.busy.0);
        since.map(|since| since.elapsed())
    }

    /// The same, if it is longer than any command may take.
    pub fn stuck(&self) -> Option<Duration> {
        self.busy().filter(|time| *time > STUCK)
    }

    /// Begins to trace a process.
    ///
    /// # Errors
    /// As [`Live::add`]; also when the thread does not answer.
    pub fn trace(&self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        self.attach(|reply| Command::Trace { key, interval, reply })
    }

    /// Begins to follow the growth of a process without probes. One that is traced goes on to be.
    ///
    /// # Errors
    /// As [`Live::add_growth`]; also when the thread does not answer.
    pub fn suspect(&self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        self.attach(|reply| Command::Suspect { key, interval, reply })
    }

    fn attach(&self, command: impl FnOnce(Reply<Result<(), RecordError>>) -> Command) -> Result<(), RecordError> {
        let (reply, answer) = reply();
        let _ = self.commands.send(command(reply));
        answer
            .wait(ATTACH_LIMIT)
            .unwrap_or(Err(RecordError::NoAnswer(ATTACH_LIMIT)))
    }

    /// Ends following the growth of a process; one that is traced goes on to be.
    pub fn leave(&self, key: ProcessKey) {
        let _ = self.commands.send(Command::Leave(key));
    }

    /// Ends tracing a process, or following its growth; waits until its probes are gone.
    pub fn release(&self, key: ProcessKey) {
        let (reply, answer) = mpsc::channel();
        let _ = self.commands.send(Command::Release(key, reply));
        let _ = answer.recv_timeout(ANSWER_LIMIT);
    }

    /// Changes the distance between samples of a process.
    pub fn set_interval(&self, key: ProcessKey, interval: u64, reason: String) {
        let _ = self.commands.send(Command::Interval(key, interval, reason));
    }

    /// Copies what a profile of a process is made of; `None` if it is neither traced nor its growth followed.
    pub fn capture(&self, key: ProcessKey) -> Option<Moment> {
        let (reply, answer) = mpsc::channel();
        self.commands.send(Command::Capture(key, reply)).ok()?;
        answer.recv_timeout(ANSWER_LIMIT).ok().flatten()
    }

    /// Begins a measurement; [`readings`](Self::readings) tells it a moment later.
    pub fn measure(&self) {
        let _ = self.commands.send(Command::Measure);
    }

    /// What was measured last.
    pub fn readings(&self) -> Arc<Readings> {
        Arc::clone(&lock(&self.readings))
    }

    /// Detaches everywhere and ends the thread.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Measuring {
    counting: Option<Counting>,
    since: Instant,
    before: HashMap<u32, (Usage, Held)>,
    growth_before: Option<(u64, Duration)>,
}

struct Work {
    live: Option<Live>,
    idle_since: Instant,
    /// Traced processes.
    keys: HashMap<u32, ProcessKey>,
    /// Processes whose growth is followed without probes.
    suspects: HashMap<u32, ProcessKey>,
    measuring: Option<Measuring>,
    readings: Arc<Mutex<Arc<Readings>>>,
    busy: Arc<Busy>,
    price: Price,
}

impl Work {
    async fn run(&mut self, mut commands: UnboundedReceiver<Command>) {
        loop {
            let noticed = self.live.as_ref().map(Live::noticed);
            let measured = self.measuring.as_ref().map(|measuring| measuring.since + MEASURE);
            let due = self.live.as_ref().and_then(Live::due);
            let unused = (self.live.is_some() && self.is_idle()).then_some(self.idle_since + LINGER);
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => {
                        self.busy.set(true);
                        self.obey(command);
                        self.busy.set(false);
                    }
                },
                () = wait_for(noticed) => self.look(Live::follow),
                () = sleep_until(due) => self.look(Live::catch_up),
                () = sleep_until(measured) => self.finish_measuring(),
                () = sleep_until(unused) => self.live = None,
            }
        }
        let suspects = std::mem::take(&mut self.suspects);
        for pid in std::mem::take(&mut self.keys).into_keys().chain(suspects.into_keys()) {
            if let Some(live) = &mut self.live {
                live.remove(pid);
            }
        }
        self.live = None;
    }

    /// Looks at traced processes, one of which may not answer.
    fn look(&mut self, look: impl FnOnce(&mut Live)) {
        if let Some(live) = &mut self.live {
            self.busy.set(true);
            look(live);
            let withdrawn = live.take_withdrawn();
            self.busy.set(false);
            if !withdrawn.is_empty() {
                self.tell(|readings| readings.withdrawn.extend(withdrawn));
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Trace { key, interval, reply } => {
                let result = self.trace(key, interval);
                self.answer(key, reply, result);
            }
            Command::Suspect { key, interval, reply } => {
                let result = self.suspect(key, interval);
                self.answer(key, reply, result);
            }
            Command::Leave(key) => {
                if self.suspects.get(&key.pid) == Some(&key) {
                    self.release(key);
                }
            }
            Command::Release(key, reply) => {
                self.release(key);
                let _ = reply.send(());
            }
            Command::Interval(key, interval, reason) => {
                if self.knows(key)
                    && let Some(live) = &mut self.live
                {
                    live.set_interval(key.pid, interval, &reason);
                }
            }
            Command::Capture(key, reply) => {
                let moment = if self.knows(key) || self.suspects.get(&key.pid) == Some(&key) {
                    self.live.as_mut().and_then(|live| live.capture(key.pid))
                } else {
                    None
                };
                let _ = reply.send(moment);
            }
            Command::Measure => self.begin_measuring(),
            Command::Stop => {}
        }
    }

    /// Undoes what was done for somebody who waits no longer.
    fn answer(&mut self, key: ProcessKey, reply: Reply<Result<(), RecordError>>, result: Result<(), RecordError>) {
        let is_done = result.is_ok();
        if !reply.send(result) && is_done {
            tracing::warn!("attaching to pid {} took longer than anybody waited: undone", key.pid);
            self.release(key);
        }
    }

    fn knows(&self, key: ProcessKey) -> bool {
        self.keys.get(&key.pid) == Some(&key)
    }

    fn is_idle(&self) -> bool {
        self.keys.is_empty() && self.suspects.is_empty()
    }

    /// The kernel side, loaded if it is not.
    fn live(&mut self) -> Result<&mut Live, RecordError> {
        let live = match self.live.take() {
            Some(live) => live,
            None => {
                self.idle_since = Instant::now();
                let live = Live::start(RING_BYTES)?;
                self.price = price(&live, self.price);
                self.tell(|readings| readings.price = Some(self.price));
                live
            }
        };
        Ok(self.live.insert(live))
    }

    fn suspect(&mut self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        if self.knows(key) {
            return Ok(());
        }
        self.live()?.add_growth(key, interval)?;
        self.suspects.insert(key.pid, key);
        Ok(())
    }

    fn trace(&mut self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        // One whose growth was followed is not any more, whatever comes of this.
        self.suspects.remove(&key.pid);
        self.live()?.add(key, interval)?;
        self.keys.insert(key.pid, key);
        self.tell(|readings| {
            readings.withdrawn.remove(&key);
            readings.targets.insert(
                key,
                Reading {
                    interval,
                    ..Reading::default()
                },
            );
        });
        Ok(())
    }

    fn release(&mut self, key: ProcessKey) {
        let suspected = self.suspects.get(&key.pid) == Some(&key);
        if !self.knows(key) && !suspected {
            return;
        }
        self.suspects.remove(&key.pid);
        self.keys.remove(&key.pid);
        if let Some(live) = &mut self.live {
            live.remove(key.pid);
        }
        if self.is_idle() {
            self.idle_since = Instant::now();
        }
        let followed = !self.suspects.is_empty();
        self.tell(|readings| {
            readings.targets.remove(&key);
            readings.withdrawn.remove(&key);
            readings.growth = readings.growth.filter(|_| followed);
        });
    }

    fn tell(&self, change: impl FnOnce(&mut Readings)) {
        change(Arc::make_mut(&mut lock(&self.readings)));
    }

    fn usages(&self) -> HashMap<u32, (Usage, Held)> {
        let Some(live) = &self.live else {
            return HashMap::new();
        };
        let held = live.held();
        let of = |pid: &u32| Some((*pid, (live.usage(*pid)?, held.get(pid).copied().unwrap_or_default())));
        self.keys.keys().filter_map(of).collect()
    }

    fn begin_measuring(&mut self) {
        if let Some(live) = &mut self.live {
            live.make_room_for_samples();
        }
        if let Some(live) = &self.live {
            self.suspects.keys().for_each(|pid| live.look_at_pages(*pid));
        }
        if self.measuring.is_some() || self.is_idle() {
            return;
        }
        let counting = Counting::begin()
            .inspect_err(|error| tracing::debug!("failed to count program runs: {error}"))
            .ok();
        self.measuring = Some(Measuring {
            counting,
            since: Instant::now(),
            before: self.usages(),
            growth_before: self.live.as_ref().and_then(Live::growth_usage),
        });
    }

    fn finish_measuring(&mut self) {
        let (Some(measuring), Some(live)) = (self.measuring.take(), &self.live) else {
            return;
        };
        let elapsed = measuring.since.elapsed();
        let usages = self.usages();
        let growth = measuring.growth_before.zip(live.growth_usage()).map(|(before, now)| {
            let (runs, time) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
            Cost::of_tracepoints(runs, time, elapsed)
        });
        drop(measuring.counting);
        let mut targets = HashMap::new();
        for (pid, key) in &self.keys {
            let now = usages.get(pid);
            let cost = measuring.before.get(pid).zip(now).map(|(before, now)| {
                let returns = now.1.returns.saturating_sub(before.1.returns);
                let activity = Activity {
                    usage: now.0.since(before.0),
                    sampled_returns: if live.skips_returns(*pid) { returns } else { 0 },
                    calls_stepped: live.is_stepped(*pid, Op::Alloc),
                    releases_stepped: live.is_stepped(*pid, Op::Free),
                    elapsed,
                };
                Cost::new(&activity, self.price)
            });
            targets.insert(
                *key,
                Reading {
                    cost,
                    interval: live.interval(*pid).unwrap_or(0),
                    live_bytes: now.map_or(0, |(_, held)| held.bytes as u64),
                },
            );
        }
        let (counters, undecodable) = live.losses();
        let losses = profile::kernel_losses(&counters, undecodable);
        self.tell(|readings| {
            *readings = Readings {
                targets,
                growth,
                number: readings.number + 1,
                losses,
                price: readings.price,
                withdrawn: std::mem::take(&mut readings.withdrawn),
            }
        });
    }
}

/// What traps cost here: as it is known, else measured, else what holds for all machines.
fn price(live: &Live, known: Price) -> Price {
    if known.is_measured {
        return known;
    }
    let measured = live.measure_traps().map_err(|error| error.to_string());
    match measured.and_then(Price::of) {
        Ok(price) => {
            tracing::info!(
                "a trap takes {:?} at an emulated instruction, {:?} at a single-stepped one, {:?} at a return",
                price.emulated,
                price.stepped,
                price.returned
            );
            price
        }
        Err(why) => {
            tracing::warn!("the price of a trap was not measured, what is usual stands in: {why}");
            Price::default()
        }
    }
}

async fn wait_for(notify: Option<Arc<tokio::sync::Notify>>) {
    match notify {
        Some(notify) => notify.notified().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_time_arrives() {
        let (reply, awaited) = reply();
        assert!(reply.send(7));
        assert_eq!(awaited.wait(Duration::from_secs(10)), Some(7));
    }

    #[test]
    fn who_answers_late_knows_that_nobody_waits() {
        let (reply, awaited) = reply();
        assert_eq!(awaited.wait(Duration::ZERO), None);
        assert!(!reply.send(7));
    }

    #[test]
    fn who_never_answers_ends_the_waiting() {
        let (reply, awaited) = reply::<u8>();
        drop(reply);
        assert_eq!(awaited.wait(Duration::from_secs(600)), None);
    }

    #[test]
    fn both_sides_agree_however_close_it_is() {
        for round in 0..2_000 {
            let (reply, awaited) = reply();
            let answering = std::thread::spawn(move || reply.send(round));
            let answer = awaited.wait(Duration::from_nanos(round % 64 * 500));
            let arrived = answering.join().expect("it does not panic");
            assert_eq!(arrived, answer.is_some(), "round {round}");
        }
    }
}
