//! The loop that looks at every process, lets the policy and the governor decide, and publishes what was seen.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    api,
    backend::Snapshot,
    config::Config,
    exporter::Job,
    own::{self, Excess, Keeper, Own},
    policy::Now,
    service::{Service, lock, policy_settings, seconds},
    trace::{
        engine::{Reading, Readings},
        governor::{self, Budget, Order, Target},
    },
};
use crate::{model::ProcessKey, proc::memory};

/// Between two measurements of what tracing costs.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at collectors.
const COLLECTORS_EVERY: Duration = Duration::from_secs(5);

/// Something that the loop is told.
#[derive(Debug)]
pub enum Message {
    /// The configuration changed.
    Reload,
    /// End.
    Stop,
}

/// The loop's state.
pub struct Watcher {
    service: Arc<Service>,
    jobs: mpsc::Sender<Job>,
    own: Own,
    measured: Instant,
    /// The measurement that was acted on last.
    governed: u64,
    collected: Instant,
    keeper: Keeper,
}

impl Watcher {
    /// Makes the loop; profiles of processes that end go to `jobs`.
    pub fn new(service: Arc<Service>, jobs: mpsc::Sender<Job>) -> Self {
        let begin = Instant::now();
        Self {
            service,
            jobs,
            own: Own::default(),
            measured: begin,
            governed: 0,
            collected: begin,
            keeper: Keeper::default(),
        }
    }

    /// Looks until told to stop.
    pub fn run(mut self, messages: &mpsc::Receiver<Message>) {
        let mut due = Instant::now();
        loop {
            let config = self.service.config();
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Reload) => {
                    lock(&self.service.table)
                        .configure(seconds(config.watch.history), seconds(config.watch.growth_time));
                    lock(&self.service.policy).configure(policy_settings(&config));
                }
                Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.turn(&config);
                    // A turn that took long (attaching) is not made up for.
                    due = (due + config.watch.interval).max(Instant::now());
                }
            }
        }
    }

    /// One look at everything.
    pub fn turn(&mut self, config: &Config) {
        let now = self.service.clock.now();
        let changes = lock(&self.service.table).look(now.seconds);
        for (key, identity) in changes.gone {
            self.end(key, identity);
        }
        for key in &changes.new {
            self.begin(*key);
        }
        if self.collected.elapsed() >= COLLECTORS_EVERY {
            self.collected = Instant::now();
            self.look_at_collectors(now);
        }
        self.note_tracked(now);
        self.detach_withdrawn();
        for wish in self.service.wishes(config, now) {
            self.service.fulfil(wish);
        }
        self.service.follow_suspects(config, now);
        self.govern(config);
        let figures = self.own.look();
        *lock(&self.service.own) = figures;
        self.keep_own_budget(config, figures);
        self.publish(now);
    }

    fn begin(&self, key: ProcessKey) {
        let identity = lock(&self.service.table)
            .get(key.pid)
            .filter(|watched| watched.key == key)
            .map(|watched| Arc::clone(&watched.identity));
        if identity.is_some_and(|identity| identity.runtime == api::Runtime::Go) {
            lock(&self.service.collectors).begin(key);
        } else {
            lock(&self.service.collectors).end(key);
        }
    }

    fn end(&self, key: ProcessKey, identity: Arc<api::Identity>) {
        lock(&self.service.collectors).end(key);
        let traced = lock(&self.service.policy).gone(key);
        let suspect = lock(&self.service.suspects).gone(key);
        if traced || suspect {
            // What it held at its end is worth a profile.
            if let Some(moment) = self.service.moment(key) {
                let _ = self.jobs.send(Job::Last(key, identity, Box::new(moment)));
            }
            self.service.engine.release(key);
        }
        let _ = self.jobs.send(Job::Gone(key));
    }

    fn look_at_collectors(&self, now: Now) {
        let keys: Vec<ProcessKey> = {
            let table = lock(&self.service.table);
            let collectors = lock(&self.service.collectors);
            table
                .iter()
                .map(|watched| watched.key)
                .filter(|key| collectors.follows(*key))
                .collect()
        };
        for key in keys {
            let live = lock(&self.service.collectors).look(key);
            lock(&self.service.table).note(key, now.seconds, |inside| inside.go_heap = live);
        }
    }

    fn note_tracked(&self, now: Now) {
        let readings = self.service.engine.readings();
        let mut table = lock(&self.service.table);
        for (key, reading) in &readings.targets {
            table.note(*key, now.seconds, |inside| inside.tracked = Some(reading.live_bytes));
        }
        let lost: Vec<ProcessKey> = table
            .iter()
            .filter(|watched| watched.is_tracked() && !readings.targets.contains_key(&watched.key))
            .map(|watched| watched.key)
            .collect();
        for key in lost {
            table.note(key, now.seconds, |inside| inside.tracked = None);
        }
    }

    /// Acts on each measurement once, and begins the next: what an order changed is in the one after it.
    fn govern(&mut self, config: &Config) {
        let readings = self.service.engine.readings();
        let is_new = readings.number != self.governed;
        if is_new {
            self.governed = readings.number;
            self.act_on(config, &readings);
        }
        if self.measured.elapsed() >= MEASURE_EVERY {
            self.measured = Instant::now();
            self.service.engine.measure();
        }
    }

    fn act_on(&self, config: &Config, readings: &Readings) {
        let targets: Vec<Target> = {
            let policy = lock(&self.service.policy);
            readings
                .targets
                .iter()
                .filter_map(|(key, reading)| {
                    Some(Target {
                        key: *key,
                        cost: reading.cost?,
                        interval: reading.interval,
                        wanted: policy.wanted_interval(*key),
                    })
                })
                .collect()
        };
        let mut budget = Budget {
            target: config.budget.target_cpu,
            machine: config.budget.machine_cpu * super::cpus(),
        };
        if let Some(growth) = readings.growth {
            match governor::forgo_growth(growth, &targets, budget) {
                Some(reason) => self.forgo_growth(&reason),
                None => budget.machine -= growth.total(),
            }
        }
        for order in governor::govern(&targets, budget) {
            let now = self.service.clock.now();
            match order {
                Order::Interval { key, interval, reason } => {
                    self.service.engine.set_interval(key, interval, reason.clone());
                    lock(&self.service.policy).interval(key, interval, &reason, now);
                }
                Order::Detach { key, reason } => self.detach(key, reason),
            }
        }
    }

    fn forgo_growth(&self, reason: &str) {
        let followed = lock(&self.service.suspects).forgo(self.service.clock.now().seconds);
        if !followed.is_empty() {
            tracing::warn!("the growth of processes is not followed by stack for ten minutes: {reason}");
        }
        for key in followed {
            self.service.engine.leave(key);
        }
    }

    /// What is not traced any more is not shown as if it were.
    fn detach_withdrawn(&self) {
        let readings = self.service.engine.readings();
        for (key, reason) in &readings.withdrawn {
            if lock(&self.service.policy).is_traced(*key) {
                self.service.engine.release(*key);
                lock(&self.service.policy).refused(*key, reason.clone(), self.service.clock.now());
            }
        }
    }

    fn detach(&self, key: ProcessKey, reason: String) {
        let identity = self.service.identity(key.pid).filter(|(known, _)| *known == key);
        if let Some((_, identity)) = identity
            && let Some(moment) = self.service.moment(key)
        {
            let _ = self.jobs.send(Job::Last(key, identity, Box::new(moment)));
        }
        self.service.engine.release(key);
        lock(&self.service.policy).detached(key, reason, self.service.clock.now());
    }

    /// Beyond a budget of its own, the daemon gives up the largest ledger or the dearest records.
    fn keep_own_budget(&mut self, config: &Config, figures: own::Figures) {
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
            let dearest = readings
                .targets
                .iter()
                .max_by(|(_, a), (_, b)| weight(a).total_cmp(&weight(b)));
            if let Some((key, _)) = dearest {
                self.detach(*key, what.clone());
            }
        }
        self.service.trouble("own budget", what);
    }

    fn publish(&self, now: Now) {
        let readings = self.service.engine.readings();
        let table = lock(&self.service.table);
        let policy = lock(&self.service.policy);
        let mut processes: Vec<api::Process> = table
            .iter()
            .map(|watched| api::Process {
                identity: api::Identity::clone(&watched.identity),
                memory: watched.memory(),
                tracing: self
                    .service
                    .tracing(&policy, watched.key, watched.identity.started, &readings),
                spark: watched.spark(now.seconds),
            })
            .collect();
        let beyond = table.beyond;
        drop(policy);
        drop(table);
        processes.sort_by_key(|process| process.identity.pid);
        self.service.publish(Snapshot {
            time: now.wall,
            processes,
        });
        self.service.trouble(
            "too many processes",
            (beyond > 0).then(|| format!("{beyond} processes are not watched: there are too many")),
        );
    }
}
