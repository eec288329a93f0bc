//! The answer of `leaktrace why` as text: one screen, the same in a terminal and in a pipe.
//!
//! Names come from the process and are made harmless. Pure.

use std::fmt::Write as _;

use super::{
    answer::{Answer, Row, WORTH, worst_child},
    sites::Site,
};
use crate::{
    model::HeapKind,
    report::{
        name::{base, fit, printable},
        unit::{Scale, label},
    },
};

/// Rows of kinds, and sites of each sort.
const MAX_KINDS: usize = 10;
const MAX_SITES: usize = 5;
const MAX_NOTES: usize = 6;
/// Columns of a site's function and of its callers.
const FUNCTION: usize = 44;
const CALLER: usize = 28;
const TITLE: usize = 60;
/// Share of the growth below which allocations do not explain it, and where it became resident is shown as well.
const EXPLAINS: f64 = 0.8;

fn bytes(value: i64) -> String {
    label(value, "bytes", &Scale::Auto)
}

fn signed(value: i64) -> String {
    if value > 0 {
        format!("+{}", bytes(value))
    } else {
        bytes(value)
    }
}

fn size(value: u64) -> String {
    bytes(i64::try_from(value).unwrap_or(i64::MAX))
}

/// What a verdict means.
fn words(verdict: &str) -> &'static str {
    match verdict {
        "grows_steadily" => "grows steadily: it went on for the whole time",
        "grows_unevenly" => "grows, with pauses",
        "one_step" => "one step: it grew once and then stayed, as a cache that fills does",
        "steady" => "steady: it does not grow",
        "freed_again" => "freed again: it grew, and gave back what came",
        "shrinks" => "shrinks",
        _ => "unknown: too little time to say",
    }
}

/// The whole text.
pub fn text(answer: &Answer) -> String {
    let mut text = String::new();
    head(&mut text, answer);
    kinds(&mut text, answer);
    code(&mut text, answer);
    children(&mut text, answer);
    for note in answer.notes.iter().take(MAX_NOTES) {
        let _ = writeln!(text, "note: {}", printable(note));
    }
    if answer.notes.len() > MAX_NOTES {
        let _ = writeln!(text, "note: {} more (--json has all)", answer.notes.len() - MAX_NOTES);
    }
    let losses: Vec<String> = answer
        .losses
        .iter()
        .map(|loss| format!("{} {} ({})", loss.count, loss.name, loss.meaning))
        .collect();
    let losses = if losses.is_empty() {
        "none".to_owned()
    } else {
        losses.join("; ")
    };
    let _ = writeln!(text, "Losses: {losses}");
    let _ = writeln!(text, "next: {}", printable(&answer.next));
    text
}

fn head(text: &mut String, answer: &Answer) {
    let ended = if answer.ended { ", which has ended" } else { "" };
    let _ = writeln!(
        text,
        "pid {} ({}){ended}: {:.1} s",
        answer.pid,
        printable(&answer.comm),
        answer.seconds
    );
    let change = &answer.resident;
    let _ = writeln!(
        text,
        "resident {} -> {}: {} ({} a minute), at most {}",
        size(change.before),
        size(change.after),
        if change.growth == 0 {
            "+0".to_owned()
        } else {
            signed(change.growth)
        },
        signed(change.per_minute),
        size(answer.peak)
    );
    let _ = writeln!(text, "verdict: {}", words(answer.verdict));
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    if let Some(by_kind) = answer.explained_by_kind {
        let by_stack = answer
            .explained_by_stack
            .map_or_else(String::new, |share| format!(", {} of it with a stack", percent(share)));
        let _ = writeln!(text, "explained {} of the growth{by_stack}", percent(by_kind));
    }
}

fn kinds(text: &mut String, answer: &Answer) {
    let _ = writeln!(text, "\n{:>10} {:>12} {:>10}  WHERE IT IS", "GROWTH", "A MINUTE", "NOW");
    let mut shown: Vec<&Row> = answer.kinds.iter().collect();
    // What changed, then what is large.
    let weight = |row: &Row| (row.bytes.growth.unsigned_abs(), row.bytes.after);
    shown.sort_by_key(|row| std::cmp::Reverse(weight(row)));
    let rest = shown.split_off(shown.len().min(MAX_KINDS));
    shown.sort_by_key(|row| (std::cmp::Reverse(row.bytes.growth), std::cmp::Reverse(row.bytes.after)));
    for row in shown {
        line(text, row);
        let native = answer.native.filter(|_| row.kind == "heap_brk");
        if let Some(held) = native.and_then(|native| native.held_at_least) {
            let free = format!(
                "of that at least {} is in no block: free, fragmented, or taken by brk itself",
                bytes(held)
            );
            let _ = writeln!(text, "{:>34}  {free}", "");
        }
    }
    if !rest.is_empty() {
        let sum = |value: fn(&Row) -> i64| rest.iter().map(|row| value(row)).fold(0, i64::saturating_add);
        let _ = writeln!(
            text,
            "{:>10} {:>12} {:>10}  {} more kinds",
            signed(sum(|row| row.bytes.growth)),
            signed(sum(|row| row.bytes.per_minute)),
            bytes(sum(|row| i64::try_from(row.bytes.after).unwrap_or(i64::MAX))),
            rest.len()
        );
    }
    for row in &answer.beside {
        let row = Row {
            title: format!("beside it: {}", row.title),
            ..row.clone()
        };
        line(text, &row);
    }
}

fn line(text: &mut String, row: &Row) {
    let title = printable(&row.title);
    let _ = writeln!(
        text,
        "{:>10} {:>12} {:>10}  {}",
        signed(row.bytes.growth),
        signed(row.bytes.per_minute),
        size(row.bytes.after),
        fit(&title, TITLE)
    );
}

fn code(text: &mut String, answer: &Answer) {
    let of = |kind: HeapKind| answer.sites.iter().filter(move |site| site.heap == kind.name());
    let sum = |kind| of(kind).fold(0i64, |sum, site| sum.saturating_add(site.bytes));
    if answer.native.is_some() {
        list(text, "allocated meanwhile and not freed (native)", of(HeapKind::Native));
    }
    list(text, "growth of the Go heap", of(HeapKind::Go));
    if !answer.goroutines.is_empty() {
        let _ = writeln!(text, "\n{:>10} {:>12}             GOROUTINES STARTED BY", "MORE", "NOW");
    }
    for group in &answer.goroutines {
        let place = place(&group.file, group.line);
        let function = printable(&group.function);
        let count = format!("+{}", group.growth);
        let _ = writeln!(
            text,
            "{count:>10} {:>12}             {}{place}",
            group.count,
            fit(&function, FUNCTION)
        );
    }
    let explained = (sum(HeapKind::Native).saturating_add(sum(HeapKind::Go))) as f64;
    if answer.resident.growth >= WORTH && explained < answer.resident.growth as f64 * EXPLAINS {
        list(
            text,
            "became resident (first touched) meanwhile",
            of(HeapKind::Resident),
        );
    }
}

fn list<'a>(text: &mut String, title: &str, sites: impl Iterator<Item = &'a Site>) {
    let sites: Vec<&Site> = sites.collect();
    let Some(first) = sites.first() else { return };
    let _ = writeln!(
        text,
        "\n{:>10} {:>12} {:>10}  BY WHOM: {title}",
        "BYTES", "A MINUTE", "BLOCKS"
    );
    // What is small beside the first says nothing.
    let shown = sites
        .iter()
        .filter(|site| site.bytes >= first.bytes / 100)
        .take(MAX_SITES);
    for site in shown {
        let function = printable(&site.function);
        let callers: String = site
            .callers
            .iter()
            .map(|caller| format!(" <- {}", fit(&printable(caller), CALLER)))
            .collect();
        let module = if site.file.is_empty() && !site.module.is_empty() {
            format!(" ({})", printable(&site.module))
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "{:>10} {:>12} {:>10}  {}{}{module}{callers}",
            signed(site.bytes),
            signed(site.per_minute),
            site.objects,
            fit(&function, FUNCTION),
            place(&site.file, site.line),
        );
    }
    if sites.len() > MAX_SITES {
        let _ = writeln!(text, "{:>34}  and {} more sites", "", sites.len() - MAX_SITES);
    }
}

fn place(file: &str, line: i64) -> String {
    match (file, line) {
        ("", _) => String::new(),
        (file, 0) => format!(" {}", printable(base(file))),
        (file, line) => format!(" {}:{line}", printable(base(file))),
    }
}

fn children(text: &mut String, answer: &Answer) {
    if answer.children.is_empty() {
        text.push('\n');
        return;
    }
    if let Some(child) = worst_child(answer) {
        let _ = writeln!(
            text,
            "\nA CHILD GROWS MORE: pid {} ({}) by {}, {}; leaktrace why -p {}",
            child.pid,
            printable(&child.comm),
            signed(child.growth),
            words(child.verdict),
            child.pid
        );
    } else {
        let _ = writeln!(
            text,
            "\n{} children; none grew by more than the process itself (their memory is not in the table)",
            answer.children.len()
        );
    }
}

#[cfg(test)]
mod tests;
