//! Numbers, medians and goals of one run, as a table and as JSON.
//!
//! Invariant: a number in a table comes from this run; what did not run is named with its cause.

use std::fs;
use std::process::Command;

use serde::Serialize;

use super::tracer::Tracer;
use super::workload::Workload;
use crate::command;

/// Marks between which the tables stand in a document.
pub const TABLES: (&str, &str) = ("<!-- bench:begin -->", "<!-- bench:end -->");
/// Marks between which the selection of the README stands.
pub const SUMMARY: (&str, &str) = ("<!-- cost:begin -->", "<!-- cost:end -->");

/// One variant of one workload.
#[derive(Serialize)]
pub struct Row {
    /// What was done.
    pub workload: Workload,
    /// What watched.
    pub tracer: Tracer,
    /// One value for each round, in the workload's unit.
    pub values: Vec<f64>,
    /// Why it was not measured.
    pub failure: Option<String>,
}

impl Row {
    /// A row without values.
    pub fn new(workload: Workload, tracer: Tracer) -> Self {
        Self {
            workload,
            tracer,
            values: Vec::new(),
            failure: None,
        }
    }

    fn median(&self) -> Option<f64> {
        if self.failure.is_none() {
            median(&self.values)
        } else {
            None
        }
    }
}

/// A number with a limit.
#[derive(Serialize)]
pub struct Goal {
    name: String,
    value: Option<f64>,
    limit: f64,
    at_least: bool,
    failure: Option<String>,
    /// Spread, or what else belongs to the value.
    note: Option<String>,
}

impl Goal {
    /// A value that must not be above `limit`; `None` where it could not be measured.
    pub fn at_most(name: &str, value: Option<f64>, limit: f64) -> Self {
        Self {
            name: name.to_owned(),
            value,
            limit,
            at_least: false,
            failure: None,
            note: None,
        }
    }

    /// A value that must not be below `limit`; `None` where it could not be measured.
    pub fn at_least(name: &str, value: Option<f64>, limit: f64) -> Self {
        Self {
            at_least: true,
            ..Self::at_most(name, value, limit)
        }
    }

    /// A goal whose measurement failed.
    pub fn failed(name: &str, error: &anyhow::Error) -> Self {
        Self {
            failure: Some(format!("{error:#}")),
            ..Self::at_most(name, None, 0.0)
        }
    }

    /// The same with a spread, or what else belongs to the value, beside the verdict.
    pub fn noting(self, note: String) -> Self {
        Self {
            note: Some(note),
            ..self
        }
    }

    /// What is measured.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The measured value.
    pub fn value(&self) -> Option<f64> {
        self.value
    }

    fn reached(&self) -> Option<bool> {
        self.value.map(|value| {
            if self.at_least {
                value >= self.limit
            } else {
                value <= self.limit
            }
        })
    }
}

/// All that one run found.
#[derive(Serialize)]
pub struct Outcome {
    machine: String,
    rounds: usize,
    /// Measured variants.
    pub rows: Vec<Row>,
    /// Limits, and how they were met.
    pub goals: Vec<Goal>,
}

impl Outcome {
    /// Nothing measured yet, on this machine.
    pub fn new(rounds: usize) -> Self {
        Self {
            machine: machine(),
            rounds,
            rows: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// The median of a variant, in the workload's unit.
    pub fn median(&self, workload: Workload, tracer: Tracer) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.workload == workload && row.tracer == tracer)?
            .median()
    }

    /// Nanoseconds that a tracer adds to an operation: the median less the untraced one.
    pub fn cost(&self, workload: Workload, tracer: Tracer) -> Option<f64> {
        let cost = self.median(workload, tracer)? - self.median(workload, Tracer::Untraced)?;
        (cost > 0.0).then_some(cost)
    }

    /// Where and how it was measured.
    pub fn heading(&self) -> String {
        format!("Measured on {}; medians of {} rounds.", self.machine, self.rounds)
    }

    /// The tables, in Markdown.
    pub fn table(&self) -> String {
        let mut text = self.heading() + "\n";
        for workload in Workload::ALL {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.workload == workload).collect();
            if rows.is_empty() {
                continue;
            }
            text += &format!(
                "\n| {} | {} | against untraced | against bare probes |\n",
                workload.title(),
                workload.unit()
            );
            text += "|---|---:|---:|---:|\n";
            for row in rows {
                text += &self.line(row);
            }
        }
        if !self.goals.is_empty() {
            text += "\n| Goal | Limit | Measured | |\n|---|---:|---:|---|\n";
        }
        for goal in &self.goals {
            let sign = if goal.at_least { "≥" } else { "≤" };
            let value = goal.value.map_or("–".to_owned(), figure);
            let verdict = match (goal.reached(), &goal.failure) {
                (Some(true), _) => "reached".to_owned(),
                (Some(false), _) => "**missed**".to_owned(),
                (None, Some(failure)) => format!("not measured: {}", in_a_cell(failure)),
                (None, None) => "not measured".to_owned(),
            };
            let note = goal.note.as_deref().map_or(String::new(), |note| format!(" ({note})"));
            text += &format!(
                "| {} | {sign} {} | {value} | {verdict}{note} |\n",
                goal.name,
                figure(goal.limit)
            );
        }
        text
    }

    fn line(&self, row: &Row) -> String {
        let name = row.tracer.name();
        let Some(value) = row.median() else {
            let cause = row.failure.as_deref().unwrap_or("not measured");
            return format!("| {name} | does not run: {} | | |\n", in_a_cell(cause));
        };
        let against = |other: Tracer| {
            let other = self.median(row.workload, other).filter(|other| *other > 0.0);
            other.map_or(String::new(), |other| format!("× {}", figure(value / other)))
        };
        format!(
            "| {name} | {} | {} | {} |\n",
            figure(value),
            against(Tracer::Untraced),
            against(Tracer::Bare)
        )
    }
}

/// A message as it fits into a table's cell.
fn in_a_cell(message: &str) -> String {
    let line: String = message
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "/");
    if line.chars().count() > 120 {
        line.chars().take(119).chain(['…']).collect()
    } else {
        line
    }
}

/// Three figures, without an exponent.
pub(super) fn figure(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = command::answer(Command::new("uname").arg("-r")).unwrap_or_default();
    let date = command::answer(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
    format!("{model}, {cores} cores, Linux {kernel}, {date}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_variant_that_failed_has_no_number() {
        let mut outcome = Outcome::new(1);
        outcome.rows.push(Row {
            values: vec![10.0],
            ..Row::new(Workload::Pairs, Tracer::Untraced)
        });
        outcome.rows.push(Row {
            values: vec![30.0],
            ..Row::new(Workload::Pairs, Tracer::Exact)
        });
        let failure = Some("no such\nfile | folder".to_owned());
        outcome.rows.push(Row {
            failure,
            values: vec![5.0],
            ..Row::new(Workload::Pairs, Tracer::Memleak)
        });
        assert_eq!(outcome.cost(Workload::Pairs, Tracer::Exact), Some(20.0));
        assert_eq!(outcome.cost(Workload::Pairs, Tracer::Memleak), None);
        let table = outcome.table();
        assert!(table.contains("| leaktrace, exact | 30.0 | × 3.00 |"), "{table}");
        assert!(table.contains("does not run: no such file / folder"), "{table}");
    }

    #[test]
    fn goals_are_judged_by_their_direction() {
        assert_eq!(Goal::at_most("x", Some(1.5), 1.6).reached(), Some(true));
        assert_eq!(Goal::at_least("x", Some(4.9), 5.0).reached(), Some(false));
        assert_eq!(Goal::at_least("x", None, 5.0).reached(), None);
    }
}
