//! The list of processes.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Modifier, Style},
    text::Span,
};

use super::{Theme, line, spans};
use crate::{
    api::{Process, TraceState},
    cli::top::{
        columns::{self, Column},
        state::State,
        text,
    },
};

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let shown: Vec<Process> = {
        let height = usize::from(area.height).saturating_sub(2);
        let window = state.cursor.window(state.shown.len(), height);
        state.shown[window]
            .iter()
            .map(|index| state.processes[*index].clone())
            .collect()
    };
    line(frame, &mut area, &summary(state), Style::new());
    let layout = columns::layout(&shown, area.width.into());
    let heading = layout
        .iter()
        .enumerate()
        .flat_map(|(place, (column, width))| {
            let mark = match *column == state.column {
                true => theme.heading().add_modifier(Modifier::UNDERLINED),
                false => theme.strong(),
            };
            let text = text::pad(column.heading(), *width, column.is_number());
            [gap(place), Span::styled(text, mark)]
        })
        .collect();
    spans(frame, &mut area, heading);
    if shown.is_empty() {
        let why = match (state.heard, state.processes.is_empty()) {
            (false, _) => "waiting for the first answer …",
            (true, true) => "no processes",
            (true, false) => "no process matches the filter; Esc drops it",
        };
        line(frame, &mut area, why, theme.faint());
    }
    let first = state.cursor.index();
    let chosen = state.selected().map(|process| process.identity.pid);
    for process in &shown {
        let is_chosen = chosen == Some(process.identity.pid) && first < state.shown.len();
        let cells = layout
            .iter()
            .enumerate()
            .flat_map(|(place, (column, width))| {
                let text = text::pad(&column.text(process, *width), *width, column.is_number());
                let style = if is_chosen {
                    theme.chosen()
                } else {
                    style(*column, process, theme)
                };
                let gap = if is_chosen {
                    gap(place).style(theme.chosen())
                } else {
                    gap(place)
                };
                [gap, Span::styled(text, style)]
            })
            .collect();
        spans(frame, &mut area, cells);
    }
}

fn gap(place: usize) -> Span<'static> {
    Span::raw(if place == 0 { "" } else { " " })
}

fn summary(state: &State) -> String {
    let mut text = format!("{} of {} processes", state.shown.len(), state.total);
    if !state.filter.is_empty() {
        text += &format!(" match `{}`", text::clean(&state.filter));
    }
    let direction = if state.column.is_name() != state.reverse {
        "smallest"
    } else {
        "largest"
    };
    text += &format!(", {direction} {} first", state.column.heading());
    text
}

fn style(column: Column, process: &Process, theme: Theme) -> Style {
    let grows = process.memory.growth.is_some_and(|growth| growth > 0.0);
    match column {
        Column::Growth if grows => theme.growing(),
        Column::Trend => theme.faint(),
        Column::State => match process.tracing.state {
            TraceState::Traced => theme.traced(),
            TraceState::Refused | TraceState::Detached => theme.alarm(),
            TraceState::Watched | TraceState::Gone => theme.faint(),
        },
        _ => Style::new(),
    }
}
