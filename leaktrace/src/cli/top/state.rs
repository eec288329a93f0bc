//! What is shown, and how keys and answers change it.
//!
//! Pure: [`State::update`] takes an event and returns what is to be done; it neither reads nor writes anything.
//! Invariant: the bottom of the stack of views is the list; all others are of `subject`.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crossterm::event::KeyEvent;

use super::{
    calls::{CallTree, Neighbours, OutlineRow},
    columns::{self, Column},
    cursor::Cursor,
    source::{Heap, Order, Query, SourceError},
    text,
    worker::{Answer, Kind, Part, Scene},
};
use crate::api;

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size.
    Redraw,
    /// The program was stopped, and goes on.
    Resumed,
    /// Time passed.
    Tick,
    /// The source has told something.
    Answer(Answer),
    /// A signal asks to end, or the terminal is gone.
    End,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the source.
    Fetch(u64, Scene),
    /// Begin or end tracing.
    Trace {
        /// Which process.
        pid: u32,
        /// Begin.
        on: bool,
    },
    /// Draw everything anew: somebody else may have used the terminal.
    Renew,
    /// Leave the terminal to the shell for a while.
    Suspend,
    /// End.
    Quit,
}

/// A view on top of others.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// All processes.
    List,
    /// One process with its table.
    Process,
    /// A function with its callers and callees.
    Calls {
        /// Its name, harmless.
        function: String,
        /// The row chosen: callers, the function, callees.
        cursor: Cursor,
    },
    /// An outline of all stacks.
    Outline {
        /// The function that it was opened for.
        function: Option<String>,
        /// Nodes that show what is below them; `None` until the stacks are there.
        open: Option<HashSet<usize>>,
        /// The row chosen.
        cursor: Cursor,
    },
    /// Groups of goroutines.
    Goroutines {
        /// The group chosen.
        cursor: Cursor,
    },
}

/// What is known of the process that is shown.
#[derive(Debug, Default)]
pub struct Subject {
    /// Who it is.
    pub pid: u32,
    /// And since when; 0 until it is known.
    pub start_time: u64,
    /// Its row and decisions.
    pub details: Option<api::Details>,
    /// Its course.
    pub timeline: Option<api::Timeline>,
    /// Its table.
    pub top: Option<api::Top>,
    /// Its stacks, ready for questions.
    pub calls: Option<CallTree>,
    /// What belongs to the stacks besides.
    pub comments: Vec<String>,
    /// Stacks that the source left out.
    pub folded: usize,
    /// Its goroutines.
    pub goroutines: Option<api::Goroutines>,
    /// Why a part is missing.
    pub failures: Vec<(Kind, String)>,
    /// The row of the table chosen.
    pub cursor: Cursor,
}

impl Subject {
    fn new(pid: u32, start_time: u64) -> Self {
        Self {
            pid,
            start_time,
            ..Self::default()
        }
    }

    /// Why a part is missing.
    pub fn failure(&self, kind: Kind) -> Option<&str> {
        self.failures
            .iter()
            .find(|(failed, _)| *failed == kind)
            .map(|(_, why)| why.as_str())
    }
}

/// Everything that is shown.
#[derive(Debug)]
pub struct State {
    /// Where the figures come from.
    pub title: String,
    /// Time between two looks.
    pub interval: Duration,
    /// How many looks are left, if they are counted.
    pub looks: Option<u64>,
    /// Views, the one that shows last.
    pub views: Vec<View>,
    /// How the source does.
    pub status: Option<api::Status>,
    /// All processes that the source told, sorted.
    pub processes: Vec<api::Process>,
    /// How many there are.
    pub total: usize,
    /// Positions in `processes` of those that match the filter.
    pub shown: Vec<usize>,
    /// Column sorted by.
    pub column: Column,
    /// The other way round than usual.
    pub reverse: bool,
    /// Filter of the list.
    pub filter: String,
    /// A filter is being typed.
    pub typing: bool,
    /// The row of the list chosen.
    pub cursor: Cursor,
    /// The process chosen, over all sorting.
    chosen: Option<(u32, u64)>,
    /// The process shown.
    pub subject: Option<Subject>,
    /// Which values of it.
    pub query: Query,
    /// Help is shown.
    pub help: bool,
    /// First line of the help shown.
    pub help_offset: usize,
    /// What to tell until the next key.
    pub message: Option<String>,
    /// Why the source cannot be reached.
    pub lost: Option<String>,
    /// Something came from the source already.
    pub heard: bool,
    /// No answer is awaited.
    idle: bool,
    /// Number of the last question.
    number: u64,
    asked: Option<Instant>,
}

impl State {
    /// Nothing known yet.
    pub fn new(title: String, interval: Duration, looks: Option<u64>) -> Self {
        Self {
            title,
            interval,
            looks,
            views: vec![View::List],
            status: None,
            processes: Vec::new(),
            total: 0,
            shown: Vec::new(),
            column: Column::Growth,
            reverse: false,
            filter: String::new(),
            typing: false,
            cursor: Cursor::default(),
            chosen: None,
            subject: None,
            query: Query::default(),
            help: false,
            help_offset: 0,
            message: None,
            lost: None,
            heard: false,
            idle: true,
            number: 0,
            asked: None,
        }
    }

    /// The view that shows.
    pub fn view(&self) -> &View {
        self.views.last().unwrap_or(&View::List)
    }

    /// Takes an event at a moment.
    pub fn update(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Key(key) => self.key(key, now),
            Event::Paste(text) => self.paste(&text, now),
            Event::Redraw => Vec::new(),
            Event::Resumed => vec![Effect::Renew],
            Event::Tick => match self.asked {
                Some(asked) if !self.idle || now.saturating_duration_since(asked) < self.interval => Vec::new(),
                _ => self.fetch(now),
            },
            Event::Answer(answer) => self.answer(answer),
            Event::End => vec![Effect::Quit],
        }
    }

    /// Asks for what the view needs; an answer under way to an older question is not taken any more.
    pub(super) fn fetch(&mut self, now: Instant) -> Vec<Effect> {
        self.number += 1;
        self.idle = false;
        self.asked = Some(now);
        vec![Effect::Fetch(self.number, self.scene())]
    }

    fn scene(&self) -> Scene {
        let order = || Order {
            sort: self.column.word(),
            ascending: self.column.is_name() != self.reverse,
            filter: self.filter.clone(),
        };
        let Some(subject) = &self.subject else {
            return Scene::List(order());
        };
        match self.view() {
            View::List => Scene::List(order()),
            View::Process => Scene::Process(subject.pid, self.query.clone()),
            View::Calls { .. } | View::Outline { .. } => Scene::Stacks(subject.pid, self.query.clone()),
            View::Goroutines { .. } => Scene::Goroutines(subject.pid),
        }
    }

    fn answer(&mut self, answer: Answer) -> Vec<Effect> {
        match answer {
            Answer::Part(number, part) if number == self.number => {
                self.heard = true;
                self.lost = None;
                self.part(*part);
            }
            Answer::Failed(number, kind, error) if number == self.number => self.failed(kind, &error),
            Answer::Done(number) if number == self.number => {
                self.idle = true;
                if let Some(looks) = &mut self.looks {
                    *looks = looks.saturating_sub(1);
                    if *looks == 0 {
                        return vec![Effect::Quit];
                    }
                }
            }
            Answer::Traced { pid, result } => self.traced(pid, result),
            _ => {}
        }
        Vec::new()
    }

    fn part(&mut self, part: Part) {
        match part {
            Part::Status(status) => self.status = Some(status),
            Part::Processes(answer) => {
                self.total = answer.total;
                self.processes = answer.processes;
                self.arrange();
            }
            part => self.subject_part(part),
        }
    }

    fn subject_part(&mut self, part: Part) {
        let Some(subject) = &mut self.subject else { return };
        match part {
            Part::Details(details) => {
                subject.failures.clear();
                let start_time = details.process.identity.start_time;
                if subject.start_time != 0 && subject.start_time != start_time {
                    *subject = Subject::new(subject.pid, start_time);
                    self.message = Some(format!("pid {} is another process now", subject.pid));
                }
                subject.start_time = start_time;
                subject.details = Some(*details);
            }
            Part::Timeline(timeline) => subject.timeline = Some(timeline),
            Part::Top(top) => {
                subject.top = Some(top);
                let rows = self.rows().len();
                if let Some(subject) = &mut self.subject {
                    subject.cursor.limit(rows);
                }
            }
            Part::Stacks(stacks) => {
                subject.calls = Some(CallTree::new(&stacks));
                subject.comments = stacks.comments;
                subject.folded = stacks.folded;
                self.reopen();
            }
            Part::Goroutines(goroutines) => {
                let groups = goroutines.groups.len();
                subject.goroutines = Some(goroutines);
                if let Some(View::Goroutines { cursor }) = self.views.last_mut() {
                    cursor.limit(groups);
                }
            }
            Part::Status(_) | Part::Processes(_) => {}
        }
    }

    fn failed(&mut self, kind: Kind, error: &SourceError) {
        let why = text::clean(&error.to_string());
        if error.is_connection() {
            self.lost = Some(why);
            return;
        }
        self.heard = true;
        self.lost = None;
        match kind {
            Kind::Status | Kind::Processes => self.message = Some(why),
            kind => {
                let Some(subject) = &mut self.subject else { return };
                match kind {
                    // What it was stays readable; a table of other values than the heading says would not be true.
                    Kind::Top => subject.top = None,
                    Kind::Stacks => subject.calls = None,
                    Kind::Details => {
                        subject.failures.clear();
                        if let Some(details) = &mut subject.details
                            && matches!(
                                error,
                                SourceError::Refused { status: 404, .. } | SourceError::Process(_)
                            )
                        {
                            details.process.tracing.state = api::TraceState::Gone;
                        }
                    }
                    _ => {}
                }
                subject.failures.retain(|(failed, _)| *failed != kind);
                subject.failures.push((kind, why));
            }
        }
    }

    fn traced(&mut self, pid: u32, result: Result<api::Tracing, SourceError>) {
        match result {
            Ok(tracing) => {
                self.message = Some(format!(
                    "pid {pid}: {}: {}",
                    columns::state(tracing.state),
                    text::clean(&tracing.reason)
                ));
                for process in self.processes.iter_mut().filter(|process| process.identity.pid == pid) {
                    process.tracing = tracing.clone();
                }
                if let Some(subject) = &mut self.subject
                    && subject.pid == pid
                    && let Some(details) = &mut subject.details
                {
                    details.process.tracing = tracing;
                }
            }
            Err(error) => self.message = Some(text::clean(&error.to_string())),
        }
    }

    /// Sorts and filters, and keeps the chosen process chosen.
    pub(super) fn arrange(&mut self) {
        columns::sort(&mut self.processes, self.column, self.reverse);
        let words = self.filter.to_lowercase();
        self.shown = (0..self.processes.len())
            .filter(|index| matches(&self.processes[*index], &words))
            .collect();
        let key = |process: &api::Process| (process.identity.pid, process.identity.start_time);
        let place = self.chosen.and_then(|chosen| {
            self.shown
                .iter()
                .position(|index| key(&self.processes[*index]) == chosen)
        });
        match place {
            Some(place) => self.cursor.at(place),
            None => self.cursor.limit(self.shown.len()),
        }
    }

    /// Notes which process the cursor is on. One that was never moved stays at the top, whoever is there.
    pub(super) fn choose(&mut self) {
        self.chosen = match self.cursor.index() {
            0 => None,
            _ => self
                .selected()
                .map(|process| (process.identity.pid, process.identity.start_time)),
        };
    }

    /// The process that the cursor is on.
    pub fn selected(&self) -> Option<&api::Process> {
        self.processes.get(*self.shown.get(self.cursor.index())?)
    }

    /// Rows of the table that match its filter.
    pub fn rows(&self) -> Vec<&api::TopRow> {
        let Some(top) = self.subject.as_ref().and_then(|subject| subject.top.as_ref()) else {
            return Vec::new();
        };
        let words = self.query.filter.to_lowercase();
        top.rows
            .iter()
            .filter(|row| contains(&row.frame.function, &words))
            .collect()
    }

    /// The function of a view of calls with those around it, once the stacks are there.
    pub fn neighbours(&self) -> Option<Neighbours> {
        let View::Calls { function, .. } = self.view() else {
            return None;
        };
        let calls = self.subject.as_ref()?.calls.as_ref()?;
        Some(calls.neighbours(function))
    }

    /// Rows of the outline, once the stacks are there.
    pub fn outline(&self) -> Option<Vec<OutlineRow>> {
        let View::Outline { open, .. } = self.view() else {
            return None;
        };
        let calls = self.subject.as_ref()?.calls.as_ref()?;
        Some(calls.outline(open.as_ref()?))
    }

    /// Brings the views of stacks in line with new stacks: nodes have new numbers.
    pub(super) fn reopen(&mut self) {
        let calls = self.subject.as_ref().and_then(|subject| subject.calls.as_ref());
        let Some(calls) = calls else { return };
        if let Some(View::Outline { function, open, cursor }) = self.views.last_mut() {
            let fresh = open.is_none();
            let nodes = open.get_or_insert_with(|| calls.heaviest_path(function.as_deref()));
            let rows = calls.outline(nodes);
            let wanted = function.as_deref().and_then(|function| calls.heaviest(function));
            match wanted {
                Some(wanted) if fresh => cursor.at(rows.iter().position(|row| row.node == wanted).unwrap_or(0)),
                _ => cursor.limit(rows.len()),
            }
        }
        let count = self
            .neighbours()
            .map(|around| around.callers.len() + 1 + around.callees.len());
        if let (Some(View::Calls { cursor, .. }), Some(count)) = (self.views.last_mut(), count) {
            cursor.limit(count);
        }
    }

    /// Shows a process.
    pub(super) fn enter(&mut self, pid: u32, start_time: u64) {
        self.subject = Some(Subject::new(pid, start_time));
        self.query.filter.clear();
        self.views.push(View::Process);
    }

    /// Throws away what was made with other values.
    pub(super) fn requery(&mut self) {
        if let Some(subject) = &mut self.subject {
            subject.top = None;
            subject.calls = None;
            subject.failures.clear();
        }
        for view in &mut self.views {
            if let View::Outline { open, .. } = view {
                *open = None;
            }
        }
    }

    /// What the heap in the title is called.
    pub fn heap(&self) -> &'static str {
        match self.query.heap {
            Heap::Both => "native and Go",
            Heap::Native => "native",
            Heap::Go => "Go",
        }
    }
}

/// Whether a process has to do with these (lower-case) words.
fn matches(process: &api::Process, words: &str) -> bool {
    if words.is_empty() {
        return true;
    }
    let who = &process.identity;
    let optional = [&who.user, &who.executable, &who.cgroup, &who.unit];
    contains(&who.comm, words)
        || who.pid.to_string().contains(words)
        || who.command_line.iter().any(|argument| contains(argument, words))
        || optional.into_iter().flatten().any(|text| contains(text, words))
        || who
            .container
            .as_ref()
            .is_some_and(|container| contains(&container.id, words))
        || columns::state(process.tracing.state) == words
}

fn contains(text: &str, words: &str) -> bool {
    words.is_empty() || text.to_lowercase().contains(words)
}
