//! The thread that owns what is done with processes: it looks at all of them, decides, tells the engine, and publishes.
//!
//! Nobody else changes the table ([`Control`]): callers of the API send messages and wait for the answer, the engine
//! answers by messages, everybody reads what was published last. Invariant: it never waits for the engine, so that looks
//! go on while a process is attached to.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    backend::{Failure, Snapshot},
    config::Config,
    control::{self, Command, Control, plan::Candidate, state::State},
    exporter::Job,
    own::{self, Excess, Keeper, Own},
    reply::Reply,
    service::{Published, Service, lock},
    trace::{
        engine::{Reading, Readings},
        governor::{self, Adjustment, Budget, Target},
    },
};
use crate::{
    api,
    model::ProcessKey,
    monitor::clock::{Now, seconds},
    proc::memory,
    session::{live::Moment, recording::RecordError},
};

/// Between two measurements of what tracing costs.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// Something that the controller is told.
pub enum Message {
    /// The configuration changed.
    Reload,
    /// End.
    Stop,
    /// Somebody asks for a process to be traced, with this sampling interval if given.
    Start(ProcessKey, Option<u64>, Answer),
    /// Somebody asks for a process not to be traced any more.
    End(ProcessKey, Answer),
    /// The engine has attached to a process, or failed to: the answer to the command of this number.
    Attached(ProcessKey, u64, Result<(), String>),
    /// The engine has detached from a process.
    Released(ProcessKey, u64),
}

/// Where a caller waits for what became of a process.
pub type Answer = Reply<Result<api::Tracing, Failure>>;

/// A caller that waits.
struct Waiting {
    key: ProcessKey,
    /// For the end of this command; `None`: until nothing is attached to.
    release: Option<u64>,
    answer: Answer,
}

/// The controller's state.
pub struct Controller {
    service: Arc<Service>,
    control: Control,
    /// Callers that wait until the engine has answered.
    waiting: Vec<Waiting>,
    /// What the engine is to do when it has attached, in this order: so that copies of ledgers need not wait for all of it.
    backlog: VecDeque<Command>,
    /// What it attaches to at the moment, by which command.
    attempt: Option<(ProcessKey, u64)>,
    /// What of the table was published.
    revision: u64,
    jobs: mpsc::Sender<Job>,
    own: Own,
    measured: Instant,
    /// The measurement that was acted on last.
    governed: u64,
    keeper: Keeper,
}

impl Controller {
    /// Begins with nothing; profiles of processes that end go to `jobs`.
    pub fn new(service: Arc<Service>, jobs: mpsc::Sender<Job>) -> Self {
        let settings = settings(&service.config());
        Self {
            service,
            control: Control::new(settings, std::process::id()),
            waiting: Vec::new(),
            backlog: VecDeque::new(),
            attempt: None,
            revision: 0,
            jobs,
            own: Own::default(),
            measured: Instant::now(),
            governed: 0,
            keeper: Keeper::default(),
        }
    }

    /// Works until told to stop.
    pub fn run(mut self, messages: &mpsc::Receiver<Message>) {
        let mut due = Instant::now();
        loop {
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(message) => {
                    self.take(message);
                    self.command();
                    self.answer();
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() >= due {
                let config = self.service.config();
                self.turn(&config);
                self.answer();
                // A turn that took long is not made up for.
                due = (due + config.watch.interval).max(Instant::now());
            }
        }
    }

    fn take(&mut self, message: Message) {
        let now = self.service.clock.now();
        match message {
            Message::Reload => {
                let config = self.service.config();
                lock(&self.service.monitor).configure(config.watch.monitor());
                self.control.configure(settings(&config));
            }
            Message::Stop => {}
            Message::Start(key, interval, answer) => match self.service.identity(key.pid) {
                Some((known, identity)) if known == key => {
                    self.control.start(key, &identity.comm, interval, now);
                    let release = None;
                    self.waiting.push(Waiting { key, release, answer });
                }
                _ => {
                    answer.send(Err(Failure::UnknownProcess(key.pid)));
                }
            },
            Message::End(key, answer) => match self.control.stop(key, now) {
                Some(number) => {
                    let release = Some(number);
                    self.waiting.push(Waiting { key, release, answer });
                }
                None => {
                    answer.send(Err(Failure::Nothing(format!("pid {} is not traced", key.pid))));
                }
            },
            Message::Attached(key, number, result) => self.control.attached(key, number, result, now),
            Message::Released(key, number) => {
                if self.control.released(key, number) {
                    let _ = self.jobs.send(Job::Gone(key));
                }
                for waiting in self
                    .waiting
                    .iter_mut()
                    .filter(|waiting| waiting.release == Some(number))
                {
                    waiting.release = None;
                }
            }
        }
    }

    /// Answers those whose process has come to a state. What they are told is published before.
    fn answer(&mut self) {
        self.republish();
        let is_settled = |waiting: &mut Waiting| {
            waiting.release.is_none() && !matches!(self.control.state(waiting.key), State::Attaching(_))
        };
        let settled: Vec<Waiting> = self.waiting.extract_if(.., is_settled).collect();
        for Waiting { key, answer, .. } in settled {
            let started = self
                .service
                .identity(key.pid)
                .map_or(0, |(_, identity)| identity.started);
            let tracing = self.tracing(key, started, &self.service.engine.readings());
            let told = match tracing.state {
                api::TraceState::Refused => Err(Failure::Refused(tracing.reason)),
                api::TraceState::Gone => Err(Failure::UnknownProcess(key.pid)),
                _ => Ok(tracing),
            };
            if !answer.send(told) && self.control.is_traced(key) {
                // Nobody would know of it.
                let reason = "who asked for it waits no longer".to_owned();
                self.control.release(key, reason, self.service.clock.now());
                self.command();
            }
        }
    }

    /// One look at everything.
    fn turn(&mut self, config: &Config) {
        let now = self.service.clock.now();
        let changes = lock(&self.service.monitor).look(now);
        for (key, _) in changes.gone {
            if !self.control.gone(key) {
                let _ = self.jobs.send(Job::Gone(key));
            }
        }
        let readings = self.service.engine.readings();
        lock(&self.service.monitor).note_tracked(now, |key| Some(readings.targets.get(&key)?.live_bytes));
        for (key, reason) in &readings.withdrawn {
            self.control.withdrawn(*key, reason.clone(), now);
        }
        self.plan(config, now);
        self.govern(config, now);
        let figures = self.own.look();
        *lock(&self.service.own) = figures;
        self.keep_own_budget(config, figures, now);
        self.command();
        self.publish(now);
    }

    /// Tells the engine what it is to do, no more than one attempt to attach at once.
    fn command(&mut self) {
        self.backlog.extend(self.control.commands());
        loop {
            if self
                .attempt
                .is_some_and(|(key, number)| self.control.is_attempting(key, number))
            {
                return;
            }
            let Some(command) = self.backlog.pop_front() else {
                return;
            };
            let messages = self.service.messages.clone();
            match command {
                Command::Attach {
                    key,
                    mode,
                    interval,
                    number,
                    settlement,
                } => {
                    if !self.control.is_attempting(key, number) {
                        // Something else was decided meanwhile.
                        continue;
                    }
                    self.attempt = Some((key, number));
                    self.control.begun(key, number, self.service.clock.now());
                    let done = move |result: Result<(), RecordError>| {
                        let result = result.map_err(|error| error.to_string());
                        let _ = messages.send(Message::Attached(key, number, result));
                    };
                    self.service
                        .engine
                        .attach(key, mode, interval, settlement, Box::new(done));
                }
                Command::Release {
                    key,
                    number,
                    last_profile,
                } => {
                    let identity = last_profile.then(|| self.identity(key)).flatten();
                    let jobs = self.jobs.clone();
                    let is_wanted = identity.is_some();
                    let done = move |moment: Option<Moment>| {
                        if let Some((identity, moment)) = identity.zip(moment) {
                            let _ = jobs.send(Job::Last(key, identity, Box::new(moment)));
                        }
                        let _ = messages.send(Message::Released(key, number));
                    };
                    self.service.engine.release(key, is_wanted, Box::new(done));
                }
                Command::Interval { key, interval, reason } => self.service.engine.set_interval(key, interval, reason),
            }
        }
    }

    /// Who a process is, or was.
    fn identity(&self, key: ProcessKey) -> Option<Arc<api::Identity>> {
        if let Some((known, identity)) = self.service.identity(key.pid)
            && known == key
        {
            return Some(identity);
        }
        let snapshot = self.service.snapshot();
        let row = snapshot
            .processes
            .iter()
            .find(|process| (process.identity.pid, process.identity.start_time) == (key.pid, key.start_time))?;
        Some(Arc::new(row.identity.clone()))
    }

    fn plan(&mut self, config: &Config, now: Now) {
        let monitor = lock(&self.service.monitor);
        let early = seconds(config.watch.growth_time / 4);
        let release = seconds(config.watch.release_time);
        let candidates: Vec<Candidate<'_>> = monitor
            .iter()
            .map(|watched| Candidate {
                key: watched.key,
                comm: &watched.identity.comm,
                uid: watched.identity.uid,
                rule: config
                    .trace
                    .rules
                    .iter()
                    .find(|rule| rule.matches(&watched.identity))
                    .map(|rule| (rule.name.as_str(), rule.sample_interval)),
                growth: watched.growth,
                early: watched.growth_over(early),
                recent: self
                    .control
                    .is_traced(watched.key)
                    .then(|| watched.growth_over(release))
                    .flatten(),
                has_own_profile: watched.identity.runtime.is_managed(),
            })
            .collect();
        self.control.plan(&candidates, now);
    }

    /// Acts on each measurement once, and begins the next: what an adjustment changed is in the one after it.
    fn govern(&mut self, config: &Config, now: Now) {
        let readings = self.service.engine.readings();
        if readings.number != self.governed {
            self.governed = readings.number;
            self.act_on(config, &readings, now);
        }
        if self.measured.elapsed() >= MEASURE_EVERY {
            self.measured = Instant::now();
            self.service.engine.measure();
        }
    }

    fn act_on(&mut self, config: &Config, readings: &Readings, now: Now) {
        let targets: Vec<Target> = readings
            .targets
            .iter()
            .filter_map(|(key, reading)| {
                Some(Target {
                    key: *key,
                    cost: reading.cost?,
                    interval: reading.interval,
                    wanted: self.control.wanted_interval(*key),
                })
            })
            .collect();
        let mut budget = Budget {
            target: config.budget.target_cpu,
            machine: config.budget.machine_cpu * super::cpus(),
        };
        if let Some(growth) = readings.growth {
            match governor::pause_growth_sampling(growth, &targets, budget) {
                Some(reason) => {
                    if self.control.pause_growth_sampling(now) {
                        tracing::warn!("growth sampling paused for 10 minutes: {reason}");
                    }
                }
                None => budget.machine -= growth.total(),
            }
        }
        for adjustment in governor::govern(&targets, budget) {
            match adjustment {
                Adjustment::Interval { key, interval, reason } => {
                    self.control.set_interval(key, interval, reason, now);
                }
                Adjustment::Detach { key, reason } => self.control.detach(key, reason, now),
            }
        }
    }

    /// Over a budget of its own, the daemon gives up the largest ledger or the most expensive records.
    fn keep_own_budget(&mut self, config: &Config, figures: own::Figures, now: Now) {
        let (what, excess) = self.keeper.compare(figures, &config.budget, Instant::now());
        let what = what.map(str::to_owned);
        if what.is_some() {
            memory::give_back();
        }
        if let (Some(what), Some(excess)) = (&what, excess) {
            let readings = self.service.engine.readings();
            let weight = |reading: &Reading| match excess {
                Excess::Memory => reading.live_bytes as f64 / reading.interval.max(1) as f64,
                Excess::Cpu => reading.cost.map_or(0.0, |cost| cost.programs),
            };
            let most_expensive = readings
                .targets
                .iter()
                .max_by(|(_, a), (_, b)| weight(a).total_cmp(&weight(b)));
            if let Some((key, _)) = most_expensive {
                self.control.detach(*key, what.clone(), now);
            }
        }
        self.service.trouble("own budget", what);
    }

    /// How a process stands, with what it costs.
    fn tracing(&self, key: ProcessKey, started: u64, readings: &Readings) -> api::Tracing {
        let mut tracing = self.control.tracing(key, started);
        if tracing.state == api::TraceState::Traced {
            let reading = readings.targets.get(&key).copied().unwrap_or_default();
            tracing.sample_interval = Some(reading.interval);
            tracing.cost = reading.cost.map(|cost| cost.total());
            tracing.hits = reading.cost.map(|cost| cost.hits);
        }
        tracing
    }

    fn publish(&mut self, now: Now) {
        let readings = self.service.engine.readings();
        let monitor = lock(&self.service.monitor);
        let mut processes: Vec<api::Process> = monitor
            .iter()
            .map(|watched| api::Process {
                identity: api::Identity::clone(&watched.identity),
                memory: watched.memory(),
                tracing: self.tracing(watched.key, watched.identity.started, &readings),
                spark: watched.spark(now.seconds),
            })
            .collect();
        let beyond = monitor.beyond();
        drop(monitor);
        processes.sort_by_key(|process| process.identity.pid);
        self.service.publish(Snapshot {
            time: now.wall,
            processes,
        });
        self.republish();
        self.service.trouble(
            "too many processes",
            (beyond > 0).then(|| format!("{beyond} processes are not watched: there are too many")),
        );
    }

    /// Publishes what was decided since, also between two looks.
    fn republish(&mut self) {
        let revision = self.control.revision();
        if std::mem::replace(&mut self.revision, revision) == revision {
            return;
        }
        let readings = self.service.engine.readings();
        self.service.republish(
            Published {
                decisions: self.control.decisions().cloned().collect(),
                observed: self
                    .control
                    .observed()
                    .filter(|(key, _)| !matches!(self.control.state(*key), State::Attaching(_)))
                    .collect(),
            },
            |process| {
                let key = ProcessKey {
                    pid: process.identity.pid,
                    start_time: process.identity.start_time,
                };
                process.tracing = self.tracing(key, process.identity.started, &readings);
            },
        );
    }
}

/// The part of the configuration that decisions go by.
fn settings(config: &Config) -> control::Settings {
    control::Settings {
        auto: config.trace.auto,
        max_processes: config.trace.max_processes,
        growth_slope: config.watch.growth_slope,
        growth_time: seconds(config.watch.growth_time),
        release_time: seconds(config.watch.release_time),
        sample_interval: config.trace.sample_interval,
        growth_samples: config.watch.suspects,
        growth_interval: config.watch.suspect_interval,
    }
}
