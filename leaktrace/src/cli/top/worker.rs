//! The thread that asks the source, so that the screen never waits.
//!
//! Only the latest question counts: while an answer takes its time, older questions are dropped. Commands are not.
//! Invariant: every question that is not dropped ends with [`Answer::Done`].

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::source::{Order, Query, Source, SourceError};
use crate::api;

/// How often the source may do what it has to do in between.
const TEND: Duration = Duration::from_millis(100);

/// What a view needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scene {
    /// The list of processes.
    List(Order),
    /// A process with its table.
    Process(u32, Query),
    /// A process with its stacks.
    Stacks(u32, Query),
    /// A process with its goroutines.
    Goroutines(u32),
}

/// What the worker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fetch what a view needs; the number comes back with the answers.
    Fetch(u64, Scene),
    /// Begin or end tracing.
    Trace {
        /// Which process.
        pid: u32,
        /// Begin.
        on: bool,
    },
}

/// A part of a scene.
#[derive(Clone, Debug)]
pub enum Part {
    /// How the source does.
    Status(api::Status),
    /// The list.
    Processes(api::Processes),
    /// One process.
    Details(Box<api::Details>),
    /// Its course.
    Timeline(api::Timeline),
    /// Its table.
    Top(api::Top),
    /// Its stacks.
    Stacks(api::Stacks),
    /// Its goroutines.
    Goroutines(api::Goroutines),
}

/// Which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Part::Status`].
    Status,
    /// [`Part::Processes`].
    Processes,
    /// [`Part::Details`].
    Details,
    /// [`Part::Timeline`].
    Timeline,
    /// [`Part::Top`].
    Top,
    /// [`Part::Stacks`].
    Stacks,
    /// [`Part::Goroutines`].
    Goroutines,
}

/// What the worker tells.
#[derive(Debug)]
pub enum Answer {
    /// A part of a scene.
    Part(u64, Box<Part>),
    /// A part that is not to be had.
    Failed(u64, Kind, SourceError),
    /// The scene is complete.
    Done(u64),
    /// Tracing began or ended, or could not.
    Traced {
        /// Which process.
        pid: u32,
        /// How it stands now.
        result: Result<api::Tracing, SourceError>,
    },
}

/// The running thread.
pub struct Worker {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread. It makes its source itself, since not every source may change threads. Answers go to `tell`,
    /// which says whether somebody still listens.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        make: impl FnOnce() -> Result<Box<dyn Source>, SourceError> + Send + 'static,
        tell: impl Fn(Answer) -> bool + Send + 'static,
    ) -> Result<Self, SourceError> {
        let (sender, requests) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || match make() {
                Ok(mut source) => serve(&mut *source, &requests, &tell),
                Err(error) => refuse(&error.to_string(), &requests, &tell),
            })
            .map_err(SourceError::Thread)?;
        Ok(Self {
            requests: Some(sender),
            thread: Some(thread),
        })
    }

    /// Hands a request over.
    pub fn ask(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // A worker that is gone has told why, or panicked; the screen stays usable.
            let _ = requests.send(request);
        }
    }

    /// Ends the thread once its current question is answered, or leaves it behind if that takes longer than `patience`.
    pub fn stop(mut self, patience: Duration) {
        self.requests = None;
        let Some(thread) = self.thread.take() else { return };
        let step = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        while !thread.is_finished() && waited < patience {
            thread::sleep(step);
            waited += step;
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

/// Answers every question with the reason why there is no source.
fn refuse(why: &str, requests: &Receiver<Request>, tell: &dyn Fn(Answer) -> bool) {
    let error = || SourceError::Nothing(why.to_owned());
    while let Ok(request) = requests.recv() {
        let listens = match request {
            Request::Fetch(number, _) => {
                tell(Answer::Failed(number, Kind::Status, error())) && tell(Answer::Done(number))
            }
            Request::Trace { pid, .. } => tell(Answer::Traced {
                pid,
                result: Err(error()),
            }),
        };
        if !listens {
            return;
        }
    }
}

fn serve(source: &mut dyn Source, requests: &Receiver<Request>, tell: &dyn Fn(Answer) -> bool) {
    loop {
        let first = match requests.recv_timeout(TEND) {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        source.tend();
        let mut latest = None;
        for request in first.into_iter().chain(requests.try_iter()) {
            match request {
                Request::Fetch(number, scene) => latest = Some((number, scene)),
                Request::Trace { pid, on } => {
                    let result = source.trace(pid, on);
                    if !tell(Answer::Traced { pid, result }) {
                        return;
                    }
                }
            }
        }
        if let Some((number, scene)) = latest
            && !fetch(source, number, &scene, tell)
        {
            return;
        }
    }
}

/// Fetches a scene, part by part. Returns whether somebody still listens.
pub fn fetch(source: &mut dyn Source, number: u64, scene: &Scene, tell: &dyn Fn(Answer) -> bool) -> bool {
    type Question<'q> = (Kind, Box<dyn Fn(&mut dyn Source) -> Result<Part, SourceError> + 'q>);
    fn details<'q>(pid: u32) -> Question<'q> {
        let ask = move |source: &mut dyn Source| Ok(Part::Details(Box::new(source.details(pid)?)));
        (Kind::Details, Box::new(ask))
    }
    let status: Question<'_> = (Kind::Status, Box::new(|source| source.status().map(Part::Status)));
    let questions: Vec<Question<'_>> = match scene {
        Scene::List(order) => vec![
            (
                Kind::Processes,
                Box::new(|source| source.processes(order).map(Part::Processes)),
            ),
            status,
        ],
        Scene::Process(pid, query) => vec![
            details(*pid),
            (
                Kind::Timeline,
                Box::new(|source| source.timeline(*pid).map(Part::Timeline)),
            ),
            (Kind::Top, Box::new(|source| source.top(*pid, query).map(Part::Top))),
        ],
        Scene::Stacks(pid, query) => vec![
            details(*pid),
            (
                Kind::Stacks,
                Box::new(|source| source.stacks(*pid, query).map(Part::Stacks)),
            ),
        ],
        Scene::Goroutines(pid) => vec![
            details(*pid),
            (
                Kind::Goroutines,
                Box::new(|source| source.goroutines(*pid).map(Part::Goroutines)),
            ),
        ],
    };
    for (kind, ask) in questions {
        let (answer, lost) = match ask(source) {
            Ok(part) => (Answer::Part(number, Box::new(part)), false),
            Err(error) => {
                let lost = error.is_connection();
                (Answer::Failed(number, kind, error), lost)
            }
        };
        if !tell(answer) {
            return false;
        }
        if lost {
            break;
        }
        source.tend();
    }
    tell(Answer::Done(number))
}
