//! Groups of goroutines, and the stack of the one chosen.

use std::time::Duration;

use ratatui::{Frame, layout::Rect, style::Style};

use super::{Theme, line, process::head, wrapped};
use crate::{
    api::{Frame as Place, GoroutineGroup},
    cli::top::{
        state::{State, View},
        text,
        worker::Kind,
    },
    report::name::base,
};

/// Draws them.
pub fn draw(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let Some(subject) = &state.subject else { return };
    head(frame, &mut area, subject, theme);
    let Some(goroutines) = &subject.goroutines else {
        let why = subject
            .failure(Kind::Goroutines)
            .unwrap_or("waiting for the goroutines …");
        wrapped(frame, &mut area, &format!("goroutines: {why}"), theme.strong(), 3);
        return;
    };
    let Some(View::Goroutines { cursor }) = state.views.last_mut() else {
        return;
    };
    let groups = &goroutines.groups;
    let title = format!("{} goroutines in {} groups", goroutines.total, groups.len());
    line(frame, &mut area, &title, theme.strong());
    if let Some(why) = subject.failure(Kind::Goroutines) {
        line(frame, &mut area, why, theme.alarm());
    }
    line(
        frame,
        &mut area,
        "  count  stacks    wait state            function",
        theme.strong(),
    );
    // The stack of the chosen group takes the lower half where there is one.
    let below = if area.height >= 8 { area.height / 2 } else { 0 };
    let mut stack = Rect {
        y: area.y + area.height - below,
        height: below,
        ..area
    };
    area.height -= below;
    let window = cursor.window(groups.len(), area.height.into());
    for index in window {
        let style = if index == cursor.index() {
            theme.chosen()
        } else {
            Style::new()
        };
        let text = text::pad(&row(&groups[index]), area.width.into(), false);
        line(frame, &mut area, &text, style);
    }
    if let Some(group) = groups.get(cursor.index()) {
        detail(frame, &mut stack, group, theme);
    }
}

fn wait(group: &GoroutineGroup) -> String {
    group
        .longest_wait
        .map_or_else(|| "-".to_owned(), |wait| text::span(Duration::from_nanos(wait)))
}

fn state_of(group: &GoroutineGroup) -> String {
    text::clean(
        group
            .wait_reason
            .as_deref()
            .filter(|why| !why.is_empty())
            .unwrap_or(&group.state),
    )
}

fn row(group: &GoroutineGroup) -> String {
    let function = group
        .stack
        .first()
        .map(|frame| text::clean(&frame.function))
        .unwrap_or_default();
    format!(
        "{}{}{} {} {function}",
        text::pad(&group.count.to_string(), 7, true),
        text::pad(&text::bytes(group.stack_bytes as f64), 8, true),
        text::pad(&wait(group), 8, true),
        text::pad(&state_of(group), 16, false),
    )
}

fn detail(frame: &mut Frame<'_>, area: &mut Rect, group: &GoroutineGroup, theme: Theme) {
    let ids: Vec<String> = group.ids.iter().take(8).map(u64::to_string).collect();
    let mut title = format!("{} × {}", group.count, state_of(group));
    if let Some(channel) = group.channel {
        title += &format!(" on {channel:#x}");
    }
    if !ids.is_empty() {
        title += &format!(", ids {}", ids.join(" "));
    }
    line(frame, area, &title, theme.heading());
    for place in &group.stack {
        line(frame, area, &format!("  {}", at(place)), Style::new());
    }
    if let Some(creator) = &group.created_by {
        line(frame, area, &format!("  created by {}", at(creator)), theme.faint());
    }
}

fn at(place: &Place) -> String {
    let function = text::clean(&place.function);
    match (&place.file, place.line) {
        (Some(file), Some(line)) => format!("{function}  {}:{line}", text::clean(base(file))),
        _ => function,
    }
}
