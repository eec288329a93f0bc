//! The result as a table: on standard output, in README between two marks, and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::guest::Outcome;

/// Markers in README, between which the table stands.
pub const MARKERS: (&str, &str) = ("<!-- kernels:begin -->", "<!-- kernels:end -->");

/// One boot.
#[derive(Serialize)]
pub struct Row {
    /// As on the command line: `6.12+full`.
    pub name: String,
    /// What is refused there, if anything is.
    pub refusal: Option<&'static str>,
    /// What came of it.
    pub outcome: Outcome,
}

/// The rows in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let head = "| kernel | preemption | mechanism | tests passed | result |\n|---|---|---|---|---|\n";
    let lines = rows.iter().map(|row| {
        let outcome = &row.outcome;
        format!(
            "| {} | {} | {} | {} of {} | {} |\n",
            outcome.release,
            or_dash(&outcome.preemption),
            if row.refusal.is_some() {
                "–"
            } else {
                or_dash(&outcome.mechanism)
            },
            outcome.passed,
            outcome.passed + outcome.failed.len(),
            result(row)
        )
    });
    std::iter::once(head.to_owned()).chain(lines).collect()
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

fn result(row: &Row) -> String {
    let outcome = &row.outcome;
    if outcome.is_success() {
        return row.refusal.unwrap_or("right").to_owned();
    }
    let failed = outcome.failed.iter().map(|name| format!("`{name}` failed"));
    let all: Vec<String> = failed.chain(outcome.troubles.iter().cloned()).collect();
    // A cell has no lines and no bars.
    all.join("; ").replace('|', "/")
}

/// Writes all that is known of each boot.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(path: &Path, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)?;
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(failed: &[&str], refusal: Option<&'static str>) -> Row {
        Row {
            name: "6.12".to_owned(),
            refusal,
            outcome: Outcome {
                release: "6.12.118".to_owned(),
                mechanism: "perf events".to_owned(),
                passed: 3,
                failed: failed.iter().map(|name| (*name).to_owned()).collect(),
                ..Outcome::default()
            },
        }
    }

    #[test]
    fn rows_say_what_passed_and_what_did_not() {
        let table = markdown(&[
            row(&[], None),
            row(&["truth::exact"], None),
            row(&[], Some("refused in words")),
        ]);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines[0], "| 6.12.118 | – | perf events | 3 of 3 | right |");
        assert_eq!(
            lines[1],
            "| 6.12.118 | – | perf events | 3 of 4 | `truth::exact` failed |"
        );
        assert_eq!(lines[2], "| 6.12.118 | – | – | 3 of 3 | refused in words |");
    }
}
