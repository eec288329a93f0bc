//! The columns of the list: what they show, how they sort, how wide they are.
//!
//! Pure. Invariant: what [`layout`] returns fits the width that it was given, whatever the processes are called.

use std::cmp::Ordering;

use clap::ValueEnum;

use super::text;
use crate::api::{Process, TraceState};

/// A column of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// Pid.
    Pid,
    /// Name or number of the user.
    User,
    /// Command name.
    Comm,
    /// Resident bytes.
    Rss,
    /// Resident anonymous bytes.
    Anonymous,
    /// Swapped bytes.
    Swap,
    /// Growth an hour.
    Growth,
    /// Live bytes of native allocations since tracing began.
    Tracked,
    /// Live bytes of the Go heap.
    GoHeap,
    /// Whether it is traced.
    State,
    /// The course of anonymous and swapped bytes.
    #[value(skip)]
    Trend,
}

/// All columns, from left to right.
pub const COLUMNS: [Column; 11] = [
    Column::Pid,
    Column::User,
    Column::Comm,
    Column::Rss,
    Column::Anonymous,
    Column::Swap,
    Column::Growth,
    Column::Tracked,
    Column::GoHeap,
    Column::State,
    Column::Trend,
];

/// Columns that give way where there is no room, the first one first.
const SACRIFICE: [Column; 10] = [
    Column::Trend,
    Column::User,
    Column::Swap,
    Column::GoHeap,
    Column::Rss,
    Column::State,
    Column::Tracked,
    Column::Anonymous,
    Column::Comm,
    Column::Growth,
];

/// Least and most columns of the trend.
const TREND: (usize, usize) = (6, 30);

impl Column {
    /// Its heading.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Pid => "PID",
            Self::User => "USER",
            Self::Comm => "COMM",
            Self::Rss => "RSS",
            Self::Anonymous => "ANON",
            Self::Swap => "SWAP",
            Self::Growth => "GROWTH/h",
            Self::Tracked => "TRACKED",
            Self::GoHeap => "GO HEAP",
            Self::State => "STATE",
            Self::Trend => "TREND",
        }
    }

    /// The API's word for the figure. The trend has none: the source sorts by growth then.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Comm => "comm",
            Self::Rss => "rss",
            Self::Anonymous => "anonymous",
            Self::Tracked => "tracked",
            Self::GoHeap => "go_heap",
            Self::User => "user",
            Self::Swap => "swap",
            Self::State => "state",
            Self::Growth | Self::Trend => "growth",
        }
    }

    /// Whether its text stands at the right.
    pub fn is_number(self) -> bool {
        !matches!(self, Self::User | Self::Comm | Self::State | Self::Trend)
    }

    /// The column beside it that can be sorted by.
    pub fn beside(self, right: bool) -> Self {
        let sortable = COLUMNS.len() - 1;
        let at = COLUMNS.iter().position(|column| *column == self).unwrap_or(0);
        let next = if right { at + 1 } else { at + sortable - 1 };
        COLUMNS[next % sortable]
    }

    /// What it shows of a process; the trend in at most `columns`.
    pub fn text(self, process: &Process, columns: usize) -> String {
        let memory = &process.memory;
        match self {
            Self::Pid => process.identity.pid.to_string(),
            Self::User => user(process),
            Self::Comm => text::clean(&process.identity.comm),
            Self::Rss => text::size(Some(memory.rss)),
            Self::Anonymous => text::size(Some(memory.anonymous)),
            Self::Swap => text::size(Some(memory.swap)),
            Self::Growth => memory.growth.map_or_else(|| "-".to_owned(), text::signed),
            Self::Tracked => text::size(memory.tracked),
            Self::GoHeap => text::size(memory.go_heap),
            Self::State => state(process.tracing.state).to_owned(),
            Self::Trend => text::bars(&process.spark, columns),
        }
    }

    /// Whether sorting by it usually begins with the smallest: names do, figures begin with the largest.
    pub fn is_name(self) -> bool {
        matches!(self, Self::Pid | Self::User | Self::Comm)
    }

    /// Smallest first; what is not known is smaller than anything.
    fn compare(self, a: &Process, b: &Process) -> Ordering {
        let (left, right) = (&a.memory, &b.memory);
        match self {
            Self::Pid => a.identity.pid.cmp(&b.identity.pid),
            Self::User => user(a).cmp(&user(b)),
            Self::Comm => a.identity.comm.cmp(&b.identity.comm),
            Self::Rss => left.rss.cmp(&right.rss),
            Self::Anonymous => left.anonymous.cmp(&right.anonymous),
            Self::Swap => left.swap.cmp(&right.swap),
            Self::Growth | Self::Trend => {
                let growth =
                    |growth: Option<f64>| growth.filter(|growth| !growth.is_nan()).unwrap_or(f64::NEG_INFINITY);
                growth(left.growth).total_cmp(&growth(right.growth))
            }
            Self::Tracked => left.tracked.cmp(&right.tracked),
            Self::GoHeap => left.go_heap.cmp(&right.go_heap),
            Self::State => rank(a.tracing.state).cmp(&rank(b.tracing.state)),
        }
    }

    /// Least and most columns.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::Pid => (3, 10),
            Self::User => (5, 12),
            Self::Comm => (8, 24),
            Self::Trend => TREND,
            Self::State => (4, 8),
            _ => (self.heading().len(), 9),
        }
    }
}

/// The name of the user, or the number.
pub fn user(process: &Process) -> String {
    match &process.identity.user {
        Some(user) => text::clean(user),
        None => process.identity.uid.to_string(),
    }
}

/// The word for how a process stands.
pub fn state(state: TraceState) -> &'static str {
    match state {
        TraceState::Watched => "watched",
        TraceState::Traced => "traced",
        TraceState::Refused => "refused",
        TraceState::Detached => "detached",
        TraceState::Gone => "gone",
    }
}

/// Traced ones are the largest, so that they come first.
fn rank(state: TraceState) -> u8 {
    match state {
        TraceState::Gone => 0,
        TraceState::Watched => 1,
        TraceState::Refused => 2,
        TraceState::Detached => 3,
        TraceState::Traced => 4,
    }
}

/// Sorts by a column, or the other way round; equal ones by pid.
pub fn sort(processes: &mut [Process], column: Column, reverse: bool) {
    let ascending = column.is_name() != reverse;
    processes.sort_by(|a, b| {
        let order = column.compare(a, b);
        let order = if ascending { order } else { order.reverse() };
        order.then_with(|| a.identity.pid.cmp(&b.identity.pid))
    });
}

/// The columns that fit `width`, each with its own; one blank stands between two.
pub fn layout(processes: &[Process], width: usize) -> Vec<(Column, usize)> {
    let mut columns: Vec<(Column, usize)> = COLUMNS
        .iter()
        .map(|column| {
            let (least, most) = column.bounds();
            let natural = match column {
                Column::Trend => least,
                _ => processes
                    .iter()
                    .map(|process| text::width(&column.text(process, 0)))
                    .max()
                    .unwrap_or(0),
            };
            (*column, natural.max(column.heading().len()).clamp(least, most))
        })
        .collect();
    let needed = |columns: &[(Column, usize)]| {
        columns
            .iter()
            .map(|(_, width)| width + 1)
            .sum::<usize>()
            .saturating_sub(1)
    };
    for flexible in [Column::Comm, Column::User] {
        let excess = needed(&columns).saturating_sub(width);
        if let Some((column, size)) = columns.iter_mut().find(|(column, _)| *column == flexible) {
            *size = size.saturating_sub(excess).max(column.bounds().0);
        }
    }
    for sacrifice in SACRIFICE {
        if needed(&columns) > width {
            columns.retain(|(column, _)| *column != sacrifice);
        }
    }
    let spare = width.saturating_sub(needed(&columns));
    // What a dropped column leaves goes to the names first.
    let mut spare = spare;
    for (flexible, most) in [(Column::Comm, 16), (Column::Trend, TREND.1)] {
        if let Some((column, size)) = columns.iter_mut().find(|(column, _)| *column == flexible) {
            let wanted = match column {
                Column::Trend => most,
                _ => processes
                    .iter()
                    .map(|process| text::width(&column.text(process, 0)))
                    .max()
                    .unwrap_or(0)
                    .min(most),
            };
            let more = wanted.saturating_sub(*size).min(spare);
            *size += more;
            spare -= more;
        }
    }
    if let [(_, size)] = columns.as_mut_slice() {
        *size = (*size).min(width);
    }
    columns
}
