//! The ten rows of the README: what a user chooses by.
//!
//! Invariant: they are a selection of the same run's outcome, nothing is measured or rounded differently.

use super::outcome::Outcome;
use super::tracer::Tracer;
use super::workload::Workload;

/// Columns.
const WORKLOADS: [Workload; 3] = [Workload::Pairs, Workload::DeepPairs, Workload::Redis];
/// Rows.
const TRACERS: [Tracer; 7] = [
    Tracer::Untraced,
    Tracer::Exact,
    Tracer::Sampled,
    Tracer::Memleak,
    Tracer::Bpftrace,
    Tracer::HeaptrackPreload,
    Tracer::HeaptrackAttach,
];
/// Goals that become rows, by how their names begin, and what the row says.
const GOALS: [(&str, &str); 3] = [
    (
        "start to first event, 100 libraries, seconds",
        "`record`, a process of 100 libraries: seconds to its first event",
    ),
    (
        "resident bytes per outstanding allocation",
        "`record`: bytes of its own memory for each outstanding allocation",
    ),
    (
        "daemon, 1000 idle processes: % of a CPU",
        "`daemon`, 1,000 idle processes: % of a CPU",
    ),
];

/// The table, in Markdown.
pub fn table(outcome: &Outcome) -> String {
    let titles: String = WORKLOADS
        .iter()
        .map(|workload| format!(" {}: {} |", workload.title(), workload.unit()))
        .collect();
    let mut text = format!("{}\n\n| |{titles}\n|---|{}\n", outcome.heading(), "---:|".repeat(3));
    for tracer in TRACERS {
        let cells: String = WORKLOADS
            .iter()
            .map(|workload| {
                let median = outcome.median(*workload, tracer);
                format!(" {} |", median.map_or("–".to_owned(), super::outcome::figure))
            })
            .collect();
        text += &format!("| {} |{cells}\n", tracer.name());
    }
    text += "\n| | |\n|---|---:|\n";
    for (name, title) in GOALS {
        let value = outcome.goals.iter().find(|goal| goal.name().starts_with(name));
        let value = value.and_then(super::outcome::Goal::value);
        text += &format!(
            "| {title} | {} |\n",
            value.map_or("–".to_owned(), super::outcome::figure)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::outcome::{Goal, Row};
    use super::*;

    #[test]
    fn ten_rows_and_no_invented_number() {
        let mut outcome = Outcome::new(1);
        outcome.rows.push(Row {
            values: vec![1781.0],
            ..Row::new(Workload::Pairs, Tracer::Exact)
        });
        outcome.goals.push(Goal::at_most(
            "daemon, 1000 idle processes: % of a CPU",
            Some(0.28),
            1.5,
        ));
        let table = table(&outcome);
        assert!(table.contains("| leaktrace, exact | 1781 | – | – |"), "{table}");
        assert!(table.contains("1,000 idle processes: % of a CPU | 0.28 |"), "{table}");
        let rows = table.lines().filter(|line| line.starts_with("| ")).count();
        // With both heads.
        assert_eq!(rows, 10 + 2, "{table}");
    }
}
