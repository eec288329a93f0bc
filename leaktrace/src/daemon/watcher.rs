//! The loop that looks at every process, lets the policy and the governor decide, and publishes what was seen.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use super::{
    backend::Snapshot,
    config::Config,
    exporter::Job,
    own::{self, Excess, Keeper, Own},
    service::{Service, lock, policy_settings},
    trace::{
        engine::{Reading, Readings},
        governor::{self, Budget, Order, Target},
    },
};
use crate::{api, model::ProcessKey, monitor::clock::Now, proc::memory};

/// Between two measurements of what tracing costs.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

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
    keeper: Keeper,
}

impl Watcher {
    /// Makes the loop; profiles of processes that end go to `jobs`.
    pub fn new(service: Arc<Service>, jobs: mpsc::Sender<Job>) -> Self {
        Self {
            service,
            jobs,
            own: Own::default(),
            measured: Instant::now(),
            governed: 0,
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
                    lock(&self.service.monitor).configure(config.watch.monitor());
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
        let changes = lock(&self.service.monitor).look(now);
        for (key, identity) in changes.gone {
            self.end(key, identity);
        }
        let readings = self.service.engine.readings();
        lock(&self.service.monitor).note_tracked(now, |key| Some(readings.targets.get(&key)?.live_bytes));
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

    fn end(&self, key: ProcessKey, identity: Arc<api::Identity>) {
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
        let monitor = lock(&self.service.monitor);
        let policy = lock(&self.service.policy);
        let mut processes: Vec<api::Process> = monitor
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
        let beyond = monitor.beyond();
        drop(policy);
        drop(monitor);
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
