//! `bench`: what recording costs, beside the peers, on this machine, in one run.
//!
//! Variants of one workload are measured in turn (A B C, A B C, …), so that what the machine does meanwhile hits all of
//! them; medians are compared. A peer that does not run is reported as that, never as a number.

mod daemon;
mod feats;
mod go;
mod outcome;
mod peers;
mod summary;
mod tracer;
mod workload;

use std::fs;

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, packages, workspace};
use outcome::{Goal, Outcome, Row};
use tracer::{Peers, Tracer};
use workload::Workload;

/// Arguments of `bench`.
#[derive(Args)]
pub struct Options {
    /// How often each variant is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A quick pass with little work: shows that all runs, its numbers mean little.
    #[arg(long)]
    smoke: bool,
    /// Only workloads and feats whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Leave out workloads and feats whose name contains this (`soak` takes eleven minutes); may be repeated.
    #[arg(long)]
    skip: Vec<String>,
    /// Leave the peers out.
    #[arg(long)]
    no_peers: bool,
    /// Write the tables into docs/benchmarks.md, and a selection into README.md.
    #[arg(long)]
    write: bool,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    anyhow::ensure!(packages::is_root(), "measuring needs root: it traces");
    setup::ensure(if options.no_peers {
        Purpose::Test
    } else {
        Purpose::Bench
    })?;
    build::run()?;
    let peers = if options.no_peers { Peers::none() } else { Peers::find() };
    let rounds = if options.smoke { 1 } else { options.rounds.max(1) };
    let wanted = |name: &str| {
        let only = options.only.as_deref().is_none_or(|word| name.contains(word));
        only && !options.skip.iter().any(|word| name.contains(word.as_str()))
    };

    let tracers: Vec<Tracer> = Tracer::ALL
        .into_iter()
        .filter(|tracer| !(options.no_peers && tracer.is_peer()))
        .collect();
    let mut outcome = Outcome::new(rounds);
    for workload in Workload::ALL.into_iter().filter(|workload| wanted(workload.name())) {
        let mut rows: Vec<Row> = tracers.iter().map(|tracer| Row::new(workload, *tracer)).collect();
        measure(&mut rows, rounds, options.smoke, &peers);
        outcome.rows.extend(rows);
    }
    for goal in goals(&outcome) {
        outcome.goals.push(goal);
    }
    for (name, feat) in feats::ALL.iter().filter(|(name, _)| wanted(name)) {
        eprintln!("bench: {name}");
        match feat(options.smoke) {
            Ok(goals) => outcome.goals.extend(goals),
            Err(error) => outcome.goals.push(Goal::failed(name, &error)),
        }
    }

    print!("{}", outcome.table());
    let path = workspace::target().join("bench.json");
    let json = serde_json::to_string_pretty(&outcome).context("failed to encode the outcome")?;
    fs::write(&path, json).with_context(|| format!("failed to write `{}`", path.display()))?;
    eprintln!("bench: written to {}", path.display());
    if options.write {
        let root = workspace::root();
        workspace::write_between(&root.join("docs/benchmarks.md"), outcome::TABLES, &outcome.table())?;
        workspace::write_between(&root.join("README.md"), outcome::SUMMARY, &summary::table(&outcome))?;
    }
    Ok(())
}

/// Measures all variants of a workload in turn; those that fail once are left out from then on.
fn measure(rows: &mut [Row], rounds: usize, smoke: bool, peers: &Peers) {
    for round in 1..=rounds {
        for row in rows.iter_mut().filter(|row| row.failure.is_none()) {
            let (workload, tracer) = (row.workload.name(), row.tracer.name());
            eprintln!("bench: {workload}, {tracer}, round {round} of {rounds}");
            match row.workload.run(row.tracer, peers, smoke) {
                Ok(value) => row.values.push(value),
                Err(error) => {
                    eprintln!("bench: {tracer} does not run on {workload}: {error:#}");
                    row.failure = Some(format!("{error:#}"));
                }
            }
        }
    }
}

/// What the measured rows have to show.
fn goals(outcome: &Outcome) -> Vec<Goal> {
    let cost = |workload, tracer| outcome.cost(workload, tracer);
    let ratio = |workload, a, b| Some(cost(workload, a)? / cost(workload, b)?);
    let rate = |tracer| outcome.median(Workload::Redis, tracer);
    let best_peer_rate = [Tracer::Memleak, Tracer::Bpftrace]
        .into_iter()
        .filter_map(rate)
        .reduce(f64::max);
    let pairs = Workload::Pairs;
    vec![
        Goal::at_most(
            "exact, a pair: share of memleak's",
            ratio(pairs, Tracer::Exact, Tracer::Memleak),
            0.2,
        ),
        Goal::at_most(
            "exact, a pair: times the bare probes",
            ratio(pairs, Tracer::Exact, Tracer::Bare),
            1.6,
        ),
        Goal::at_most(
            "exact, a pair at depth 30: times the bare probes",
            ratio(Workload::DeepPairs, Tracer::Exact, Tracer::Bare),
            3.0,
        ),
        Goal::at_most(
            "exact, live set at depth 30: times the bare probes",
            ratio(Workload::LiveSet, Tracer::Exact, Tracer::Bare),
            3.0,
        ),
        Goal::at_least(
            "exact, redis: times the requests/s of the faster peer",
            rate(Tracer::Exact)
                .zip(best_peer_rate)
                .map(|(ours, theirs)| ours / theirs),
            5.0,
        ),
        Goal::at_most(
            "sampled, a pair: times the bare entry probes",
            ratio(pairs, Tracer::Sampled, Tracer::BareEntry),
            1.15,
        ),
    ]
}
