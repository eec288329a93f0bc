//! One target: its queue, its counters, and the task that sends.
//!
//! Owns when an attempt is made and what follows from its outcome. Invariant: each profile that was offered is in the
//! queue, in flight, or counted as sent or dropped.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    Export,
    backoff::{Backoff, Pace},
    failure::{Failure, Receipt},
    grpc::Caller,
    http::Poster,
    otlp, pyroscope,
    queue::{Item, Queue},
    settings::{Kind, SettingsError, TargetSettings},
    token,
};
use crate::api::PushFigures;

/// Failures in a row after which a target is not waited for any longer while the daemon ends.
const MOST_LAST_FAILURES: u32 = 3;

/// Wait between attempts while the daemon ends.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// One target.
#[derive(Debug)]
pub(super) struct Target {
    settings: TargetSettings,
    host: Arc<str>,
    pace: Pace,
    state: Mutex<State>,
    wake: Notify,
}

/// What changes.
#[derive(Debug)]
struct State {
    queue: Queue,
    in_flight: Option<Item>,
    sent: u64,
    failed: u64,
    dropped: u64,
    error: Option<String>,
    /// The daemon ends: what waits is sent without delay, and nothing more is taken.
    closing: bool,
}

/// What is left of a target that is no more.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// Profiles that wait, oldest first.
    pub items: Vec<Item>,
    sent: u64,
    failed: u64,
    dropped: u64,
}

/// What the task does next.
enum Step {
    Send,
    End,
}

impl Target {
    /// A target that takes over what is left of another.
    pub(super) fn new(settings: TargetSettings, host: Arc<str>, pace: Pace, remains: Remains) -> Self {
        let target = Self {
            state: Mutex::new(State {
                queue: Queue::new(settings.queue_profiles, settings.queue_bytes),
                in_flight: None,
                sent: remains.sent,
                failed: remains.failed,
                dropped: remains.dropped,
                error: None,
                closing: false,
            }),
            settings,
            host,
            pace,
            wake: Notify::new(),
        };
        for item in remains.items {
            target.offer(Item { attempts: 0, ..item });
        }
        target
    }

    /// What it was made of.
    pub(super) const fn settings(&self) -> &TargetSettings {
        &self.settings
    }

    /// Adds a profile to the queue.
    pub(super) fn offer(&self, item: Item) {
        let mut state = self.state();
        state.dropped += if state.closing { 1 } else { state.queue.push(item) };
        drop(state);
        self.wake.notify_one();
    }

    /// How it does.
    pub(super) fn figures(&self) -> PushFigures {
        let state = self.state();
        PushFigures {
            name: self.settings.name.clone(),
            sent: state.sent,
            failed: state.failed,
            dropped: state.dropped,
            queued: state.queue.len() as u64 + u64::from(state.in_flight.is_some()),
            error: state.error.clone(),
        }
    }

    /// Nothing more is taken, and the task ends when nothing waits or the receiver fails.
    pub(super) fn close(&self) {
        self.state().closing = true;
        self.wake.notify_one();
    }

    /// Counts what still waits as dropped; returns how much that was.
    pub(super) fn give_up(&self) -> u64 {
        let mut state = self.state();
        let mut left = u64::from(state.in_flight.take().is_some());
        while state.queue.pop().is_some() {
            left += 1;
        }
        state.dropped += left;
        left
    }

    /// Takes everything out, for the target that follows. What an attempt on its way still meets is not counted.
    pub(super) fn dissolve(&self) -> Remains {
        let mut state = self.state();
        state.closing = true;
        let mut items: Vec<_> = state.in_flight.take().into_iter().collect();
        while let Some(item) = state.queue.pop() {
            items.push(item);
        }
        Remains {
            items,
            sent: state.sent,
            failed: state.failed,
            dropped: state.dropped,
        }
    }

    /// The task: sends what waits, one after the other, until [`close`](Self::close).
    pub(super) async fn run(self: Arc<Self>) {
        let mut sender = Sender::new(&self.settings);
        let mut backoff = Backoff::new(self.pace);
        let mut not_before = None;
        while matches!(self.next_step(not_before, &backoff).await, Step::Send) {
            let Some(export) = self.take() else { continue };
            let outcome = match &mut sender {
                Ok(sender) => self.attempt(sender, &export).await,
                Err(error) => Err(Failure::Permanent(format!("failed to use its settings: {error}"))),
            };
            let wait = self.settle(outcome, &mut backoff);
            not_before = wait.map(|wait| Instant::now() + wait);
        }
    }

    /// Waits until there is something to send and it may be sent.
    async fn next_step(&self, not_before: Option<Instant>, backoff: &Backoff) -> Step {
        loop {
            let (empty, closing) = {
                let state = self.state();
                (state.queue.is_empty(), state.closing)
            };
            if closing && (empty || backoff.failures() >= MOST_LAST_FAILURES) {
                return Step::End;
            }
            let not_before = if closing {
                not_before.map(|time| time.min(Instant::now() + LAST_WAIT))
            } else {
                not_before
            };
            let due = not_before.is_none_or(|time| time <= Instant::now());
            match (empty, due, not_before) {
                (true, ..) => self.wake.notified().await,
                (false, false, Some(time)) if closing => {
                    tokio::time::sleep_until(time).await;
                    return Step::Send;
                }
                (false, false, Some(time)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(time) => return Step::Send,
                        () = self.wake.notified() => {}
                    }
                }
                (false, ..) => return Step::Send,
            }
        }
    }

    /// Takes the oldest profile out of the queue, to be sent.
    fn take(&self) -> Option<Export> {
        let mut state = self.state();
        state.in_flight = state.queue.pop();
        state.in_flight.as_ref().map(|item| item.export.clone())
    }

    async fn attempt(&self, sender: &mut Sender, export: &Export) -> Result<Receipt, Failure> {
        let limit = self.settings.timeout;
        let sent = timeout(limit, sender.send(export, &self.host, self.settings.original_payload)).await;
        sent.unwrap_or_else(|_| {
            Err(Failure::Later {
                message: format!(
                    "the receiver did not answer within {}",
                    humantime::format_duration(limit)
                ),
                after: None,
            })
        })
    }

    /// Counts an outcome. Returns how long to wait before the next attempt.
    fn settle(&self, outcome: Result<Receipt, Failure>, backoff: &mut Backoff) -> Option<Duration> {
        let mut state = self.state();
        // It was taken away meanwhile, and whoever did that accounts for it.
        let mut item = state.in_flight.take()?;
        let pid = item.export.identity.pid;
        let failure = match outcome {
            Ok(receipt) => {
                backoff.reset();
                let all = receipt.parts > 0 && receipt.rejected >= receipt.parts;
                state.sent += u64::from(!all);
                state.dropped += u64::from(all);
                state.failed += u64::from(receipt.rejected > 0);
                let error = (receipt.rejected > 0).then(|| {
                    let Receipt { parts, rejected, note } = &receipt;
                    self.describe(
                        pid,
                        &format!("the receiver rejected {rejected} of its {parts} parts: {note}"),
                    )
                });
                self.tell(&mut state, error);
                return None;
            }
            Err(failure) => failure,
        };
        state.failed += 1;
        let error = self.describe(pid, failure.message());
        let wait = match &failure {
            Failure::Permanent(_) => {
                // The receiver is there; the next profile may fare better.
                backoff.reset();
                state.dropped += 1;
                None
            }
            Failure::Unreachable(_) => {
                state.dropped += u64::from(!state.queue.put_back(item));
                Some(backoff.next(None))
            }
            Failure::Later { after, .. } => {
                item.attempts += 1;
                let kept = item.attempts < self.pace.attempts && state.queue.put_back(item);
                state.dropped += u64::from(!kept);
                Some(backoff.next(*after))
            }
        };
        self.tell(&mut state, Some(error));
        wait
    }

    fn describe(&self, pid: u32, what: &str) -> String {
        format!(
            "failed to send the profile of pid {pid} to `{}`: {what}",
            self.settings.name
        )
    }

    /// Notes how the last attempt went; the log tells changes alone.
    fn tell(&self, state: &mut State, error: Option<String>) {
        match (&state.error, &error) {
            (None, Some(error)) => tracing::warn!("{error}"),
            (Some(_), None) => tracing::info!("profiles arrive at `{}` again", self.settings.name),
            _ => {}
        }
        state.error = error;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What speaks to a target.
#[derive(Debug)]
enum Sender {
    OtlpGrpc(Caller),
    OtlpHttp(Poster),
    Pyroscope(Poster),
}

impl Sender {
    fn new(settings: &TargetSettings) -> Result<Self, String> {
        Ok(match settings.kind {
            Kind::OtlpGrpc => Self::OtlpGrpc(Caller::new(settings)?),
            Kind::OtlpHttp => Self::OtlpHttp(Poster::new(settings)?),
            Kind::Pyroscope => Self::Pyroscope(Poster::new(settings)?),
        })
    }

    async fn send(&mut self, export: &Export, host: &Arc<str>, original: bool) -> Result<Receipt, Failure> {
        let convert = |export: Export| {
            let host = Arc::clone(host);
            move || otlp::request(&export, &host, original)
        };
        // Nothing in it: there is nothing to tell, and receivers refuse to be told so.
        let nothing = Ok(Receipt::default());
        match self {
            Self::OtlpGrpc(caller) => match apart(convert(export.clone())).await? {
                Some(request) => caller.call(request).await,
                None => nothing,
            },
            Self::OtlpHttp(poster) => {
                let convert = convert(export.clone());
                let body = move || convert().map(|request| (otlp::parts(&request), otlp::body(&request)));
                match apart(body).await? {
                    Some((parts, body)) => otlp::post(poster, body?, parts).await,
                    None => nothing,
                }
            }
            Self::Pyroscope(poster) => pyroscope::post(poster, export, host).await,
        }
    }
}

/// Whether a target can be sent to, as far as this machine is concerned: makes what would send, and reads the token.
/// Connects to nothing.
///
/// # Errors
/// The first thing that cannot be meant, or that is not there.
pub fn try_out(settings: &TargetSettings) -> Result<(), SettingsError> {
    settings.check()?;
    if let Some(path) = &settings.token_file {
        token::read_value(path)?;
    }
    let machine = |error: String| SettingsError::Machine(error);
    // A channel wants a runtime around it, although nothing runs.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| machine(error.to_string()))?;
    let _inside = runtime.enter();
    Sender::new(settings).map(drop).map_err(machine)
}

/// Does work that takes long on a thread that may take long.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::Permanent(format!("failed to convert the profile: {error}")))
}
