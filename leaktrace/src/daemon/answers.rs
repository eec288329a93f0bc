//! Answers to the HTTP side.

use std::{sync::Arc, time::Duration};

use super::{
    backend::{Backend, Failure, ProfileKind, Snapshot},
    control::{ATTACH_LIMIT, state::Mode},
    controller::{Answer, Message},
    reply::reply,
    service::{Service, lock, profile_of},
    store::{Filter, StoreError},
    trace::cost::{Cost, Price},
};
use crate::{
    api,
    model::ProcessKey,
    monitor::{clock::wall, goroutines::Goroutines},
    report::profile::Profile,
    runtime::{self, RuntimeError},
};

/// How long the controller may take to answer, over the time of attaching.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Decisions in one answer.
const MAX_DECISIONS: usize = 500;

impl Service {
    fn known(&self, pid: u32) -> Result<(ProcessKey, Arc<api::Identity>), Failure> {
        self.identity(pid).ok_or(Failure::UnknownProcess(pid))
    }

    /// Asks the controller. Who waits no longer has not got what was asked for: the controller undoes it.
    fn ask(&self, limit: Duration, message: impl FnOnce(Answer) -> Message) -> Result<api::Tracing, Failure> {
        let (answer, awaited) = reply();
        let _ = self.messages.send(message(answer));
        let silent = || {
            Err(Failure::Failed(format!(
                "no answer within {} s: given up",
                limit.as_secs()
            )))
        };
        awaited.wait(limit).unwrap_or_else(silent)
    }

    fn goroutines_of<T>(&self, pid: u32, answer: impl FnOnce(&Goroutines) -> T) -> Result<T, Failure> {
        self.known(pid)?;
        let process = runtime::attach(pid).map_err(|error| of_runtime(&error))?;
        let goroutines = Goroutines::read(process.as_ref()).map_err(|error| of_runtime(&error))?;
        Ok(answer(&goroutines))
    }

    fn heap(&self, pid: u32) -> Result<Profile, Failure> {
        let (key, identity) = self.known(pid)?;
        let tracing = self.tracing(key);
        let is_traced = tracing
            .as_ref()
            .is_some_and(|tracing| tracing.state == api::TraceState::Traced);
        if !identity.runtime.is_managed() || is_traced {
            if let Some(moment) = self.moment(key) {
                return Ok(profile_of(moment, None).0);
            }
        } else {
            let heap = runtime::attach(pid).and_then(|process| process.heap());
            let profile = heap.map(|heap| heap.profile(wall() as i64));
            return profile.map_err(|error| Failure::Failed(error.to_string()));
        }
        Err(Failure::Nothing(format!(
            "pid {pid} ({}) is not traced: {}; POST /api/v1/processes/{pid}/trace begins to trace it",
            identity.comm.escape_debug(),
            tracing.map_or_else(|| "nothing was decided yet".to_owned(), |tracing| tracing.reason)
        )))
    }
}

fn of_runtime(error: &RuntimeError) -> Failure {
    match error {
        RuntimeError::Foreign(_) => Failure::Nothing(error.to_string()),
        error => Failure::Failed(error.to_string()),
    }
}

fn traps(price: Price) -> api::Traps {
    let nanos = |price: Duration| u64::try_from(price.as_nanos()).unwrap_or(u64::MAX);
    api::Traps {
        emulated: nanos(price.emulated),
        stepped: nanos(price.stepped),
        returned: nanos(price.returned),
        measured: price.is_measured,
    }
}

impl Backend for Service {
    fn stuck(&self) -> Option<String> {
        Self::stuck(self)
    }

    fn processes(&self) -> Arc<Snapshot> {
        self.snapshot()
    }

    fn decisions(&self, pid: Option<u32>) -> Vec<api::Decision> {
        let decided = self.decided();
        let wanted = decided.decisions.iter();
        wanted
            .filter(|decision| pid.is_none_or(|pid| decision.process.pid == pid))
            .take(MAX_DECISIONS)
            .cloned()
            .collect()
    }

    fn timeline(&self, pid: u32, since: u64, until: u64) -> Result<api::Timeline, Failure> {
        let timeline = lock(&self.monitor).timeline(pid, since, until, self.clock.now());
        timeline.ok_or(Failure::UnknownProcess(pid))
    }

    fn profile(&self, pid: u32, kind: ProfileKind) -> Result<Profile, Failure> {
        match kind {
            ProfileKind::Heap => self.heap(pid),
            ProfileKind::Goroutines => self.goroutines_of(pid, |goroutines| goroutines.profile()),
        }
    }

    fn goroutines(&self, pid: u32, min_wait: Duration) -> Result<api::Goroutines, Failure> {
        self.goroutines_of(pid, |goroutines| goroutines.groups(min_wait))
    }

    fn goroutine_dump(&self, pid: u32) -> Result<String, Failure> {
        self.goroutines_of(pid, |goroutines| goroutines.dump())
    }

    fn gc(&self, pid: u32) -> Result<api::Gc, Failure> {
        let (key, _) = self.known(pid)?;
        lock(&self.monitor)
            .gc(key)
            .ok_or_else(|| Failure::Nothing(format!("pid {pid} is no Go program whose collector can be read")))
    }

    fn stored(&self, pid: Option<u32>) -> Result<Vec<api::StoredProfile>, Failure> {
        let filter = Filter {
            pid,
            ..Filter::default()
        };
        Ok(lock(&self.store).reader().list(&filter))
    }

    fn stored_profile(&self, id: &str) -> Result<Vec<u8>, Failure> {
        let opened = lock(&self.store).reader().open_profile(id);
        let read = opened.and_then(|profile| profile.read());
        read.map_err(|error| match error {
            StoreError::NoSuchProfile { .. } => Failure::UnknownProfile(id.to_owned()),
            error => Failure::Failed(error.to_string()),
        })
    }

    fn start_trace(&self, pid: u32, interval: Option<u64>) -> Result<api::Tracing, Failure> {
        let (key, _) = self.known(pid)?;
        if pid == std::process::id() {
            return Err(Failure::Refused("leaktrace does not trace itself".to_owned()));
        }
        let limit = Duration::from_secs(ATTACH_LIMIT.into()) + ANSWER_LIMIT;
        self.ask(limit, |answer| Message::Start(key, interval, answer))
    }

    fn stop_trace(&self, pid: u32) -> Result<api::Tracing, Failure> {
        let (key, _) = self.known(pid)?;
        self.ask(ANSWER_LIMIT, |answer| Message::End(key, answer))
    }

    fn status(&self) -> api::Status {
        let config = self.config();
        let snapshot = self.snapshot();
        let readings = self.engine.readings();
        let own = *lock(&self.own);
        let (figures, paused) = {
            let store = lock(&self.store);
            (store.figures(), store.paused().map(str::to_owned))
        };
        let mut troubles: Vec<String> = lock(&self.troubles).values().cloned().collect();
        troubles.extend(paused);
        troubles.sort();
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.clone(),
            started: self.started,
            processes: snapshot.processes.len(),
            traced: self.count(Mode::Probes),
            suspects: self.count(Mode::Growth),
            own: api::Own {
                cpu: own.cpu,
                cpu_budget: config.budget.own_cpu,
                rss: own.rss,
                rss_budget: config.budget.own_memory,
                probes: readings
                    .targets
                    .values()
                    .filter_map(|reading| reading.cost)
                    .fold(0.0, |sum, cost| sum + cost.total()),
                growth: readings.growth.map_or(0.0, Cost::total),
                probes_budget: config.budget.machine_cpu * super::cpus(),
            },
            traps: readings.price.map(traps),
            losses: readings
                .losses
                .iter()
                .map(|loss| api::Loss {
                    name: loss.name.clone(),
                    count: loss.count,
                    meaning: loss.meaning.clone(),
                })
                .collect(),
            troubles,
            store: figures,
            push: self.pusher.figures(),
        }
    }
}
