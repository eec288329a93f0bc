//! What keys do.

use std::time::Instant;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    cursor::Cursor,
    state::{Effect, State, View},
};
use crate::api::TraceState;

/// Longest filter.
const MAX_FILTER: usize = 200;

/// Keys and what they do, for the help.
pub const HELP: [(&str, &str); 20] = [
    ("↑ ↓  k j", "move"),
    ("PgUp PgDn", "move by a page"),
    ("Home End", "first, last"),
    ("Enter", "into a process, a function, a call"),
    ("Esc Backspace", "back"),
    ("s  > <", "sort by the next column, the one before"),
    ("r", "reverse the order"),
    ("/", "filter while typing; Enter keeps it, Esc drops it"),
    ("t", "begin or end tracing of the process"),
    ("h", "heap: native and Go, native, Go"),
    ("a", "in use, or allocated since tracing began"),
    ("c", "table by flat or by cumulative weight"),
    ("g", "goroutines"),
    ("v", "function: callers and callees, or the tree"),
    ("→ ← Space", "tree: open, close"),
    ("Ctrl-L", "draw anew"),
    ("Ctrl-Z", "back to the shell; `fg` returns"),
    ("?", "this help"),
    ("q  Ctrl-C", "end"),
    ("", "flat: held by the function itself; cum: with what it called"),
];

impl State {
    /// Takes a key.
    pub(super) fn key(&mut self, key: KeyEvent, now: Instant) -> Vec<Effect> {
        if key.kind == KeyEventKind::Release {
            return Vec::new();
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => vec![Effect::Quit],
                KeyCode::Char('z') => vec![Effect::Suspend],
                KeyCode::Char('l') => vec![Effect::Renew],
                KeyCode::Char('u') if self.typing => self.edit(now, String::clear),
                KeyCode::Char('h') => self.back(now),
                _ => Vec::new(),
            };
        }
        self.message = None;
        if self.typing {
            return self.type_key(key.code, now);
        }
        if self.help {
            return self.help_key(key.code);
        }
        match key.code {
            KeyCode::Char('q') => return vec![Effect::Quit],
            KeyCode::Char('?') => {
                self.help = true;
                self.help_offset = 0;
            }
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp | KeyCode::PageDown => {
                let page = self.page();
                self.step(if key.code == KeyCode::PageUp { -page } else { page });
            }
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Enter => return self.enter_row(now),
            KeyCode::Esc | KeyCode::Backspace => return self.back(now),
            KeyCode::Char('/') => self.typing = matches!(self.view(), View::List | View::Process),
            KeyCode::Char('t') => return self.toggle_trace(),
            KeyCode::Char('h') => {
                self.query.heap = self.query.heap.next();
                return self.requeried(now);
            }
            KeyCode::Char('a') => {
                self.query.allocated = !self.query.allocated;
                return self.requeried(now);
            }
            KeyCode::Char('g') => return self.goroutines(now),
            KeyCode::Char('v') => return self.other_view(now),
            code => return self.view_key(code, now),
        }
        Vec::new()
    }

    /// Keys of single views.
    fn view_key(&mut self, code: KeyCode, now: Instant) -> Vec<Effect> {
        match (self.view(), code) {
            (View::List, KeyCode::Char('s' | '>')) => self.column = self.column.beside(true),
            (View::List, KeyCode::Char('<')) => self.column = self.column.beside(false),
            (View::List, KeyCode::Char('r')) => self.reverse = !self.reverse,
            (View::Process, KeyCode::Char('c' | 's' | '<' | '>')) => {
                self.query.cumulative = !self.query.cumulative;
                return self.requeried(now);
            }
            (View::Outline { .. }, KeyCode::Right) => return self.open(Some(true)),
            (View::Outline { .. }, KeyCode::Left) => return self.open(Some(false)),
            (View::Outline { .. }, KeyCode::Char(' ')) => return self.open(None),
            _ => return Vec::new(),
        }
        self.arrange();
        self.fetch(now)
    }

    fn help_key(&mut self, code: KeyCode) -> Vec<Effect> {
        match code {
            KeyCode::Char('q') => return vec![Effect::Quit],
            KeyCode::Down | KeyCode::Char('j') | KeyCode::PageDown => {
                self.help_offset = (self.help_offset + 1).min(HELP.len() - 1);
            }
            KeyCode::Up | KeyCode::Char('k') | KeyCode::PageUp => self.help_offset = self.help_offset.saturating_sub(1),
            _ => self.help = false,
        }
        Vec::new()
    }

    fn type_key(&mut self, code: KeyCode, now: Instant) -> Vec<Effect> {
        match code {
            KeyCode::Char(c) => self.edit(now, |filter| {
                if filter.chars().count() < MAX_FILTER {
                    filter.push(c);
                }
            }),
            KeyCode::Backspace => self.edit(now, |filter| {
                filter.pop();
            }),
            KeyCode::Esc => {
                self.typing = false;
                self.edit(now, String::clear)
            }
            KeyCode::Enter => {
                self.typing = false;
                Vec::new()
            }
            KeyCode::Up | KeyCode::Down => {
                self.step(if code == KeyCode::Up { -1 } else { 1 });
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Takes pasted text: into a filter, else nowhere (it must not act as keys).
    pub(super) fn paste(&mut self, text: &str, now: Instant) -> Vec<Effect> {
        if !self.typing {
            return Vec::new();
        }
        let line: String = text.chars().filter(|c| !c.is_control()).take(MAX_FILTER).collect();
        self.edit(now, |filter| {
            let room = MAX_FILTER.saturating_sub(filter.chars().count());
            filter.extend(line.chars().take(room));
        })
    }

    /// Changes the filter of the view. The source is asked too, since it may know more than is shown.
    fn edit(&mut self, now: Instant, change: impl FnOnce(&mut String)) -> Vec<Effect> {
        match self.view() {
            View::List => {
                change(&mut self.filter);
                self.arrange();
            }
            _ => {
                change(&mut self.query.filter);
                let rows = self.rows().len();
                if let Some(subject) = &mut self.subject {
                    subject.cursor.limit(rows);
                }
            }
        }
        self.fetch(now)
    }

    fn requeried(&mut self, now: Instant) -> Vec<Effect> {
        if matches!(self.view(), View::List) {
            return Vec::new();
        }
        self.requery();
        self.fetch(now)
    }

    fn back(&mut self, now: Instant) -> Vec<Effect> {
        if self.help {
            self.help = false;
            return Vec::new();
        }
        if self.typing {
            return self.type_key(KeyCode::Backspace, now);
        }
        let filter = match self.view() {
            View::List => &mut self.filter,
            View::Process => &mut self.query.filter,
            _ => &mut String::new(),
        };
        if !filter.is_empty() {
            return self.edit(now, String::clear);
        }
        if self.views.len() == 1 {
            return Vec::new();
        }
        self.views.pop();
        if matches!(self.view(), View::List) {
            self.subject = None;
        }
        self.reopen();
        self.fetch(now)
    }

    fn enter_row(&mut self, now: Instant) -> Vec<Effect> {
        match self.view() {
            View::List => {
                let Some(process) = self.selected() else {
                    return Vec::new();
                };
                let (pid, start_time) = (process.identity.pid, process.identity.start_time);
                self.enter(pid, start_time);
                self.fetch(now)
            }
            View::Process => {
                let row = self.subject.as_ref().map_or(0, |subject| subject.cursor.index());
                let function = self.rows().get(row).map(|row| super::text::clean(&row.frame.function));
                self.show_calls(function, now)
            }
            View::Calls { cursor, .. } => {
                let row = cursor.index();
                let around = self.neighbours().unwrap_or_default();
                let callees = row.checked_sub(around.callers.len() + 1);
                let call = match callees {
                    Some(row) => around.callees.get(row),
                    None => around.callers.get(row),
                };
                self.show_calls(call.map(|call| call.function.clone()), now)
            }
            View::Outline { cursor, .. } => {
                let row = cursor.index();
                let function = self.outline().and_then(|rows| Some(rows.get(row)?.function.clone()));
                self.show_calls(function, now)
            }
            View::Goroutines { .. } => Vec::new(),
        }
    }

    fn show_calls(&mut self, function: Option<String>, now: Instant) -> Vec<Effect> {
        /// A chain of calls that somebody follows by hand is shorter; the way back stays bounded.
        const MAX_VIEWS: usize = 200;
        let Some(function) = function else { return Vec::new() };
        if self.views.len() >= MAX_VIEWS {
            self.views.remove(2);
        }
        self.views.push(View::Calls {
            function,
            cursor: Cursor::default(),
        });
        // The cursor begins on the function itself.
        if let Some(around) = self.neighbours()
            && let Some(View::Calls { cursor, .. }) = self.views.last_mut()
        {
            cursor.at(around.callers.len());
        }
        self.fetch(now)
    }

    /// Switches between calls and outline.
    fn other_view(&mut self, now: Instant) -> Vec<Effect> {
        let outline = |function| View::Outline {
            function,
            open: None,
            cursor: Cursor::default(),
        };
        match self.view().clone() {
            View::List | View::Goroutines { .. } => return Vec::new(),
            View::Process => {
                let row = self.subject.as_ref().map_or(0, |subject| subject.cursor.index());
                let function = self.rows().get(row).map(|row| super::text::clean(&row.frame.function));
                self.views.push(outline(function));
            }
            View::Calls { function, .. } => {
                self.views.pop();
                self.views.push(outline(Some(function)));
            }
            View::Outline { cursor, function, .. } => {
                let chosen = self
                    .outline()
                    .and_then(|rows| Some(rows.get(cursor.index())?.function.clone()));
                let Some(function) = chosen.or(function) else {
                    return Vec::new();
                };
                self.views.pop();
                return self.show_calls(Some(function), now);
            }
        }
        self.reopen();
        self.fetch(now)
    }

    fn goroutines(&mut self, now: Instant) -> Vec<Effect> {
        if matches!(self.view(), View::Goroutines { .. }) {
            return Vec::new();
        }
        if matches!(self.view(), View::List) {
            let Some(process) = self.selected() else {
                return Vec::new();
            };
            let who = &process.identity;
            if !who.runtime.is_managed() {
                self.message = Some(format!("pid {} is no Go process that can be read", who.pid));
                return Vec::new();
            }
            let (pid, start_time) = (who.pid, who.start_time);
            self.enter(pid, start_time);
        }
        self.views.push(View::Goroutines {
            cursor: Cursor::default(),
        });
        self.fetch(now)
    }

    fn toggle_trace(&mut self) -> Vec<Effect> {
        let process = match &self.subject {
            Some(subject) => subject.details.as_ref().map(|details| &details.process),
            None => self.selected(),
        };
        let Some(process) = process else { return Vec::new() };
        let (pid, state) = (process.identity.pid, process.tracing.state);
        let on = state != TraceState::Traced;
        if state == TraceState::Gone {
            self.message = Some(format!("pid {pid} is gone"));
            return Vec::new();
        }
        self.message = Some(format!("pid {pid}: {}", if on { "attaching …" } else { "detaching …" }));
        vec![Effect::Trace { pid, on }]
    }

    /// Opens or closes the row of the outline; `None` for the other of both.
    fn open(&mut self, wanted: Option<bool>) -> Vec<Effect> {
        let rows = self.outline().unwrap_or_default();
        let parent = |node| self.subject.as_ref()?.calls.as_ref()?.parent(node);
        let Some(View::Outline { cursor, .. }) = self.views.last() else {
            return Vec::new();
        };
        let Some(row) = rows.get(cursor.index()) else {
            return Vec::new();
        };
        let parent = parent(row.node);
        let Some(View::Outline {
            open: Some(open),
            cursor,
            ..
        }) = self.views.last_mut()
        else {
            return Vec::new();
        };
        match (row.open, wanted) {
            (Some(true), Some(false) | None) => {
                open.remove(&row.node);
            }
            (Some(false), Some(true) | None) => {
                open.insert(row.node);
            }
            (_, Some(false)) => {
                if let Some(place) = rows.iter().position(|row| Some(row.node) == parent) {
                    cursor.at(place);
                }
            }
            (Some(true), Some(true)) => cursor.step(1, rows.len()),
            (None, _) => {}
        }
        Vec::new()
    }

    fn step(&mut self, rows: isize) {
        let count = match self.view() {
            View::List => self.shown.len(),
            View::Process => self.rows().len(),
            View::Calls { .. } => self
                .neighbours()
                .map_or(0, |around| around.callers.len() + 1 + around.callees.len()),
            View::Outline { .. } => self.outline().map_or(0, |rows| rows.len()),
            View::Goroutines { .. } => self
                .subject
                .as_ref()
                .and_then(|subject| subject.goroutines.as_ref())
                .map_or(0, |goroutines| goroutines.groups.len()),
        };
        if let Some(cursor) = self.row() {
            cursor.step(rows, count);
        }
        if matches!(self.view(), View::List) {
            self.choose();
        }
    }

    fn row(&mut self) -> Option<&mut Cursor> {
        match self.views.last_mut()? {
            View::List => Some(&mut self.cursor),
            View::Process => self.subject.as_mut().map(|subject| &mut subject.cursor),
            View::Calls { cursor, .. } | View::Outline { cursor, .. } | View::Goroutines { cursor } => Some(cursor),
        }
    }

    fn page(&mut self) -> isize {
        self.row().map_or(1, |cursor| cursor.page().cast_signed())
    }
}
