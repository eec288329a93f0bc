//! One process: who it is, why it is traced or not, its course, its table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Chart, Dataset, GraphType},
};

use super::{Theme, line, spans, wrapped};
use crate::{
    api::{Details, Runtime, Timeline, TopRow},
    cli::top::{
        columns,
        state::{State, Subject},
        text,
        worker::Kind,
    },
};

/// Rows that the table needs before anything else gets one.
const TABLE: u16 = 6;
/// Least rows of the chart.
const CHART: u16 = 6;

/// Draws it.
pub fn draw(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let Some(subject) = &state.subject else { return };
    head(frame, &mut area, subject, theme);
    if area.height >= TABLE + CHART
        && let Some(timeline) = &subject.timeline
    {
        let height = ((area.height - TABLE) / 2).clamp(CHART, 16);
        chart(frame, Rect { height, ..area }, timeline, theme);
        area.y += height;
        area.height -= height;
    }
    table(frame, area, state, theme);
}

/// Who it is, and how it stands: up to seven rows, fewer where there is no room. Views below it begin with the same.
pub(super) fn head(frame: &mut Frame<'_>, area: &mut Rect, subject: &Subject, theme: Theme) {
    let Some(details) = &subject.details else {
        let why = subject.failure(Kind::Details).unwrap_or("waiting for the answer …");
        line(frame, area, &format!("pid {}: {why}", subject.pid), theme.strong());
        return;
    };
    let who = &details.process.identity;
    let roomy = area.height >= 14;
    let name = format!("pid {} {}", who.pid, text::clean(&who.comm));
    line(frame, area, &format!("{name}  {}", about(details)), theme.strong());
    if roomy {
        let command = who
            .command_line
            .iter()
            .map(|argument| text::clean(argument))
            .collect::<Vec<_>>();
        line(frame, area, &command.join(" "), theme.faint());
        let places = places(details);
        if !places.is_empty() {
            line(frame, area, &places, theme.faint());
        }
    }
    line(frame, area, &memory(details), Style::new());
    let tracing = &details.process.tracing;
    let reason = format!(
        "{}: {}{}",
        columns::state(tracing.state),
        text::clean(&tracing.reason),
        cost(details)
    );
    wrapped(frame, area, &reason, theme.traced(), if roomy { 2 } else { 1 });
    if roomy
        && let Some(decision) = details.decisions.first()
        && decision.reason != tracing.reason
    {
        let text = format!(
            "last decision {} ago: {}: {}",
            text::span(since(decision.time)),
            text::clean(&decision.action),
            text::clean(&decision.reason)
        );
        line(frame, area, &text, theme.faint());
    }
    if let Some(why) = subject.failure(Kind::Details) {
        line(frame, area, why, theme.alarm());
    }
}

fn since(nanoseconds: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(nanoseconds))
}

fn about(details: &Details) -> String {
    let who = &details.process.identity;
    let mut text = format!("user {}", columns::user(&details.process));
    if who.started > 0 {
        text += &format!("  up {}", text::span(since(who.started)));
    }
    match (who.runtime, &who.runtime_version) {
        (_, Some(version)) => text += &format!("  {}", text::clean(version)),
        (Runtime::Go, None) => text += "  Go",
        (Runtime::Native, None) => {}
    }
    if let Some(build_id) = &who.build_id {
        text += &format!("  build {}", text::cut(&text::clean(build_id), 13));
    }
    text
}

fn places(details: &Details) -> String {
    let who = &details.process.identity;
    let mut parts = Vec::new();
    if let Some(executable) = &who.executable {
        parts.push(text::clean(executable));
    }
    if let Some(unit) = &who.unit {
        parts.push(format!("unit {}", text::clean(unit)));
    }
    if let Some(container) = &who.container {
        let id: String = text::clean(&container.id).chars().take(12).collect();
        parts.push(format!("{} {id}", text::clean(&container.engine)));
    } else if let Some(cgroup) = who.cgroup.as_deref().filter(|cgroup| *cgroup != "/") {
        parts.push(format!("cgroup {}", text::clean(cgroup)));
    }
    parts.join("  ")
}

fn memory(details: &Details) -> String {
    let memory = &details.process.memory;
    let mut text = format!(
        "rss {}  anon {}  swap {}",
        text::size(Some(memory.rss)),
        text::size(Some(memory.anonymous)),
        text::size(Some(memory.swap))
    );
    if let Some(growth) = memory.growth {
        text += &format!("  growth {}/h", text::signed(growth));
    }
    if let Some(tracked) = memory.tracked {
        text += &format!("  tracked {}", text::size(Some(tracked)));
    }
    if let Some(heap) = memory.go_heap {
        text += &format!("  go heap {}", text::size(Some(heap)));
    }
    if let Some(goroutines) = memory.goroutines {
        text += &format!("  goroutines {goroutines}");
    }
    text
}

fn cost(details: &Details) -> String {
    let tracing = &details.process.tracing;
    let mut parts = Vec::new();
    if let Some(hits) = tracing.hits {
        parts.push(format!("{}/s", text::count(hits)));
    }
    if let Some(cost) = tracing.cost {
        parts.push(format!("{} cpu", text::percent(cost)));
    }
    match tracing.sample_interval {
        Some(0 | 1) => parts.push("every allocation".to_owned()),
        Some(interval) => parts.push(format!("a sample per {}", text::bytes(interval as f64))),
        None => {}
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}

fn chart(frame: &mut Frame<'_>, area: Rect, timeline: &Timeline, theme: Theme) {
    let (Some(first), Some(last)) = (timeline.time.first().copied(), timeline.time.last().copied()) else {
        let mut area = area;
        line(frame, &mut area, "no course yet", theme.faint());
        return;
    };
    // Seconds before the last point.
    let at = |time: u64| -(last.saturating_sub(time) as f64 / 1e9);
    let known = |values: &[u64]| -> Vec<(f64, f64)> {
        timeline
            .time
            .iter()
            .zip(values)
            .map(|(time, value)| (at(*time), *value as f64))
            .collect()
    };
    let perhaps = |values: &[Option<u64>]| -> Vec<(f64, f64)> {
        let points = timeline.time.iter().zip(values);
        points
            .filter_map(|(time, value)| Some((at(*time), (*value)? as f64)))
            .collect()
    };
    // Without colours the markers tell the lines apart.
    let lines = [
        ("rss", known(&timeline.rss), Color::Blue, Marker::Dot),
        ("anon", known(&timeline.anonymous), Color::Yellow, Marker::Braille),
        ("tracked", perhaps(&timeline.tracked), Color::Green, Marker::HalfBlock),
        ("go heap", perhaps(&timeline.go_heap), Color::Magenta, Marker::Block),
    ];
    let style = |colour| theme.colour(Style::new(), colour);
    let values = || {
        lines
            .iter()
            .flat_map(|(_, points, ..)| points.iter().map(|(_, value)| *value))
    };
    let high = values().fold(0.0, f64::max);
    let low = values().fold(high, f64::min);
    let margin = ((high - low) * 0.05).max(high * 0.01).max(1.0);
    let bounds = [(low - margin).max(0.0), high + margin];
    let mut rest = area;
    let mut legend = Vec::new();
    for (name, points, colour, marker) in &lines {
        if let Some((_, value)) = points.last() {
            let sign = match (theme.colours, marker) {
                (true, _) => "━",
                (false, Marker::Dot) => "•",
                (false, Marker::Braille) => "⠒",
                (false, Marker::HalfBlock) => "▀",
                (false, _) => "█",
            };
            legend.push(Span::styled(format!("{sign} "), style(*colour)));
            legend.push(Span::raw(format!("{name} {}  ", text::bytes(*value))));
        }
    }
    legend.push(Span::styled(
        format!(
            "{} to now",
            text::span(Duration::from_nanos(last.saturating_sub(first)))
        ),
        theme.faint(),
    ));
    spans(frame, &mut rest, legend);
    let datasets = lines
        .iter()
        .filter(|(_, points, ..)| !points.is_empty())
        .map(|(_, points, colour, marker)| {
            let marker = if theme.colours { Marker::Braille } else { *marker };
            Dataset::default()
                .marker(marker)
                .graph_type(GraphType::Line)
                .style(style(*colour))
                .data(points)
        })
        .collect();
    let labels = bounds.map(|bound| Line::from(text::pad(&text::bytes(bound), 5, true)));
    let chart = Chart::new(datasets)
        .x_axis(Axis::default().bounds([at(first).min(-1.0), 0.0]).style(theme.faint()))
        .y_axis(Axis::default().bounds(bounds).labels(labels).style(theme.faint()))
        .legend_position(None);
    frame.render_widget(chart, rest);
}

fn table(frame: &mut Frame<'_>, mut area: Rect, state: &mut State, theme: Theme) {
    let height = usize::from(area.height).saturating_sub(2);
    let rows: Vec<TopRow> = state.rows().into_iter().cloned().collect();
    let kind = if state.query.allocated { "allocated" } else { "in use" };
    let heap = state.heap();
    let filter = state.query.filter.clone();
    let Some(subject) = &mut state.subject else { return };
    let Some(top) = &subject.top else {
        let why = subject.failure(Kind::Top).unwrap_or("waiting for the table …");
        wrapped(frame, &mut area, &format!("{kind}, {heap}: {why}"), theme.strong(), 3);
        return;
    };
    let mut title = format!(
        "{kind}, {heap}: {} in {} functions",
        text::signed_total(top.total),
        top.rows_total
    );
    if !filter.is_empty() {
        title += &format!(", {} match `{}`", rows.len(), text::clean(&filter));
    }
    if let Some(comment) = top.comments.first() {
        title += &format!("; {}", text::clean(comment));
    }
    line(frame, &mut area, &title, theme.strong());
    let total = top.total;
    let mark = |on| if on { theme.heading() } else { theme.strong() };
    let heading = vec![
        Span::styled(text::pad("flat", 6, true), mark(!state.query.cumulative)),
        Span::styled(text::pad("flat%", 6, true), theme.strong()),
        Span::styled(text::pad("cum", 7, true), mark(state.query.cumulative)),
        Span::styled(text::pad("cum%", 6, true), theme.strong()),
        Span::styled(" function", theme.strong()),
    ];
    spans(frame, &mut area, heading);
    if rows.is_empty() {
        line(frame, &mut area, "nothing", theme.faint());
    }
    let window = subject.cursor.window(rows.len(), height);
    for (index, row) in rows.iter().enumerate().take(window.end).skip(window.start) {
        let figures = format!(
            "{}{}{}{}",
            text::pad(&text::signed_total(row.flat), 6, true),
            text::pad(&text::share(row.flat, total), 6, true),
            text::pad(&text::signed_total(row.cum), 7, true),
            text::pad(&text::share(row.cum, total), 6, true),
        );
        let room = usize::from(area.width).saturating_sub(26);
        let name = place(row, room);
        let style = if index == subject.cursor.index() {
            theme.chosen()
        } else {
            Style::new()
        };
        let text = text::pad(&format!("{figures} {name}"), area.width.into(), false);
        line(frame, &mut area, &text, style);
    }
}

/// The function and, where there is room, where it is.
fn place(row: &TopRow, columns: usize) -> String {
    let name = text::clean(&row.frame.function);
    let file = row
        .frame
        .file
        .as_deref()
        .map(|file| text::clean(crate::report::name::base(file)));
    let with_file = match (file, row.frame.line) {
        (Some(file), Some(line)) => format!("{name}  {file}:{line}"),
        (Some(file), None) => format!("{name}  {file}"),
        (None, _) => name.clone(),
    };
    if text::width(&with_file) <= columns {
        with_file
    } else {
        crate::report::name::fit(&name, columns).into_owned()
    }
}
