//! A function with those around it, and the outline of all stacks.

use ratatui::{Frame, layout::Rect, style::Style};

use super::{Theme, line, process::head, wrapped};
use crate::{
    cli::top::{
        calls::{Call, OutlineRow},
        state::{State, View},
        text,
        worker::Kind,
    },
    report::name::fit,
};

/// Deepest indentation that is drawn; below it rows stand under each other.
const MAX_INDENT: usize = 40;

/// Draws a function between its callers and its callees.
pub fn calls(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let Some(around) = title(frame, &mut area, state, theme)
        .then(|| state.neighbours())
        .flatten()
    else {
        return;
    };
    let Some(View::Calls { function, cursor }) = state.views.last_mut() else {
        return;
    };
    line(frame, &mut area, "   calls calls%  function", theme.strong());
    let columns = usize::from(area.width);
    let call = |sign: &str, call: &Call| {
        let name = fit(&call.function, columns.saturating_sub(20)).into_owned();
        format!(
            "{}{}  {sign} {name}",
            text::pad(&text::signed_total(call.weight), 8, true),
            text::pad(&text::share(call.weight, around.cumulative), 7, true)
        )
    };
    let mut rows: Vec<String> = around.callers.iter().map(|caller| call("↑", caller)).collect();
    rows.push(format!(
        "{}{}  {}  (flat {}, {})",
        text::pad(&text::signed_total(around.cumulative), 8, true),
        text::pad(&text::share(around.cumulative, around.total), 7, true),
        fit(function, columns.saturating_sub(20)),
        text::signed_total(around.flat),
        text::share(around.flat, around.total)
    ));
    let middle = around.callers.len();
    rows.extend(around.callees.iter().map(|callee| call("  ↓", callee)));
    let window = cursor.window(rows.len(), area.height.into());
    for index in window {
        let style = match index {
            _ if index == cursor.index() => theme.chosen(),
            _ if index == middle => theme.strong(),
            _ => Style::new(),
        };
        line(frame, &mut area, &text::pad(&rows[index], columns, false), style);
    }
}

/// Draws the outline.
pub fn outline(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let Some(rows) = title(frame, &mut area, state, theme).then(|| state.outline()).flatten() else {
        return;
    };
    let calls = state.subject.as_ref().and_then(|subject| subject.calls.as_ref());
    let total = calls.map_or(0, super::super::calls::CallTree::total);
    let Some(View::Outline { cursor, .. }) = state.views.last_mut() else {
        return;
    };
    line(frame, &mut area, "   total      %     own  function", theme.strong());
    let window = cursor.window(rows.len(), area.height.into());
    for index in window {
        let style = if index == cursor.index() {
            theme.chosen()
        } else {
            Style::new()
        };
        let columns = usize::from(area.width);
        let text = row(&rows[index], total, columns);
        line(frame, &mut area, &text::pad(&text, columns, false), style);
    }
}

fn row(row: &OutlineRow, total: i64, columns: usize) -> String {
    let sign = match row.open {
        Some(true) => "▾",
        Some(false) => "▸",
        None => "·",
    };
    let indent = row.depth.min(MAX_INDENT).min(columns.saturating_sub(45));
    let own = if row.own == 0 {
        String::new()
    } else {
        text::signed_total(row.own)
    };
    format!(
        "{}{}{}  {}{sign} {}",
        text::pad(&text::signed_total(row.total), 8, true),
        text::pad(&text::share(row.total, total), 7, true),
        text::pad(&own, 8, true),
        " ".repeat(indent),
        fit(&row.function, columns.saturating_sub(27 + indent))
    )
}

/// Head, title and remarks. Returns whether there are stacks.
fn title(frame: &mut Frame<'_>, area: &mut Rect, state: &State, theme: Theme) -> bool {
    let Some(subject) = &state.subject else { return false };
    head(frame, area, subject, theme);
    let kind = if state.query.allocated { "allocated" } else { "in use" };
    let title = format!("{kind}, {}", state.heap());
    let Some(calls) = &subject.calls else {
        let why = subject.failure(Kind::Stacks).unwrap_or("waiting for the stacks …");
        wrapped(frame, area, &format!("{title}: {why}"), theme.strong(), 3);
        return false;
    };
    let mut text = format!("{title}: {}", text::signed_total(calls.total()));
    if subject.folded > 0 {
        text += &format!("; {} small stacks are counted with their callers", subject.folded);
    }
    if let Some(comment) = subject.comments.first() {
        text += &format!("; {}", text::clean(comment));
    }
    line(frame, area, &text, theme.strong());
    true
}
