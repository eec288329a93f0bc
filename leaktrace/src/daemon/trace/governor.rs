//! Keeps what tracing costs within budgets: first by longer distances between samples, then by detaching.
//!
//! Pure: costs in, adjustments out. A longer distance makes programs cheaper and leaves the traps as they are; where the traps
//! alone are beyond the budget, no distance helps.

use super::cost::Cost;
use crate::model::ProcessKey;

/// Longest distance between samples that is tried.
const MAX_INTERVAL: u64 = 64 << 20;
/// Below this share of its budget a process gets shorter distances back.
const RELAXED: f64 = 0.25;

/// What may be spent, as shares of one CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// In one process.
    pub target: f64,
    /// In all of them.
    pub machine: f64,
}

/// A traced process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Which.
    pub key: ProcessKey,
    /// What it costs.
    pub cost: Cost,
    /// Distance between its samples.
    pub interval: u64,
    /// The one that it began with.
    pub wanted: u64,
}

/// What is to be done about a process.
#[derive(Clone, Debug, PartialEq)]
pub enum Adjustment {
    /// Another distance between samples.
    Interval {
        /// Of whom.
        key: ProcessKey,
        /// In bytes.
        interval: u64,
        /// Why.
        reason: String,
    },
    /// Take the probes away.
    Detach {
        /// Of whom.
        key: ProcessKey,
        /// Why.
        reason: String,
    },
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// Why a process costs too much, in its numbers.
fn reason(target: &Target, limit: f64, of: &str) -> String {
    format!(
        "{:.0} hits/s take {} of a CPU ({} of it in traps), the budget {of} is {}",
        target.cost.hits,
        percent(target.cost.total()),
        percent(target.cost.traps),
        percent(limit)
    )
}

/// Why growth sampling is to be paused, if it is: what that costs in all processes counts
/// against the budget of all together, and it is the first to go.
pub fn pause_growth_sampling(growth: Cost, targets: &[Target], budget: Budget) -> Option<String> {
    let probes: f64 = targets.iter().map(|target| target.cost.total()).sum();
    (growth.total() + probes > budget.machine).then(|| {
        format!(
            "{:.0} page faults and calls/s take {} of a CPU for growth sampling, {} for probes, the budget of all \
             together is {}",
            growth.hits,
            percent(growth.total()),
            percent(probes),
            percent(budget.machine)
        )
    })
}

/// Adjustments that bring the costs within the budget, or closer to it; to be called again after the next measurement.
///
/// The cheapest stay: processes are kept, by what their traps take, as long as all of these together fit.
pub fn govern(targets: &[Target], budget: Budget) -> Vec<Adjustment> {
    let mut targets = targets.to_vec();
    targets.sort_by(|a, b| a.cost.traps.total_cmp(&b.cost.traps).then(a.key.cmp(&b.key)));
    let mut adjustments = Vec::new();
    let mut kept = Vec::new();
    let mut traps = 0.0;
    for target in targets {
        let (limit, of) = if target.cost.traps > budget.target {
            (budget.target, "of a process")
        } else if traps + target.cost.traps > budget.machine {
            (budget.machine, "of all together")
        } else {
            traps += target.cost.traps;
            kept.push(target);
            continue;
        };
        adjustments.push(Adjustment::Detach {
            key: target.key,
            reason: reason(&target, limit, of) + "; a longer distance between samples would not help",
        });
    }
    let sum: f64 = kept.iter().map(|target| target.cost.total()).sum();
    for target in &kept {
        let total = target.cost.total();
        let over = if total > budget.target {
            Some((budget.target, "of a process"))
        } else {
            (sum > budget.machine).then_some((budget.machine, "of all together"))
        };
        if let Some((limit, of)) = over {
            adjustments.push(if target.interval < MAX_INTERVAL {
                // Programs take time in proportion to samples, roughly; twice the distance halves them.
                Adjustment::Interval {
                    key: target.key,
                    interval: (target.interval.max(16) * 2).min(MAX_INTERVAL),
                    reason: reason(target, limit, of),
                }
            } else {
                Adjustment::Detach {
                    key: target.key,
                    reason: reason(target, limit, of) + "; the distance between samples is the longest",
                }
            });
        } else if total < budget.target * RELAXED && sum < budget.machine * 0.5 && target.interval > target.wanted {
            adjustments.push(Adjustment::Interval {
                key: target.key,
                interval: (target.interval / 2).max(target.wanted),
                reason: format!("it takes {} of a CPU only", percent(total)),
            });
        }
    }
    adjustments
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        target: 0.05,
        machine: 0.04,
    };

    fn target(pid: u32, traps: f64, programs: f64, interval: u64) -> Target {
        Target {
            key: ProcessKey { pid, start_time: 1 },
            cost: Cost {
                hits: 1000.0,
                traps,
                programs,
            },
            interval,
            wanted: 64 << 10,
        }
    }

    fn apply(targets: &mut Vec<Target>, adjustments: Vec<Adjustment>) {
        for order in adjustments {
            match order {
                Adjustment::Detach { key, .. } => targets.retain(|target| target.key != key),
                Adjustment::Interval { key, interval, .. } => {
                    for target in targets.iter_mut().filter(|target| target.key == key) {
                        target.cost.programs *= target.interval as f64 / interval as f64;
                        target.interval = interval;
                    }
                }
            }
        }
    }

    #[test]
    fn within_the_budget_nothing_happens() {
        assert_eq!(govern(&[target(1, 0.01, 0.01, 64 << 10)], BUDGET), []);
        assert_eq!(govern(&[], BUDGET), []);
    }

    #[test]
    fn growth_is_followed_as_long_as_there_is_room() {
        let growth = |share: f64| Cost {
            hits: 20_000.0,
            traps: share / 2.0,
            programs: share / 2.0,
        };
        let targets = [target(1, 0.01, 0.01, 64 << 10)];
        assert_eq!(pause_growth_sampling(growth(0.019), &targets, BUDGET), None);
        assert_eq!(pause_growth_sampling(growth(0.039), &[], BUDGET), None);
        let reason = pause_growth_sampling(growth(0.03), &targets, BUDGET);
        let reason = reason.unwrap_or_default();
        assert!(
            reason.contains("20000 page faults") && reason.contains("3.00 % of a CPU") && reason.contains("4.00 %"),
            "{reason}"
        );
    }

    #[test]
    fn samples_get_rarer_before_anyone_is_detached() {
        let adjustments = govern(&[target(1, 0.02, 0.04, 64 << 10)], BUDGET);
        assert!(
            matches!(adjustments[..], [Adjustment::Interval { interval: 131_072, .. }]),
            "{adjustments:?}"
        );
        let adjustments = govern(&[target(1, 0.06, 0.0, 64 << 10)], BUDGET);
        assert!(
            matches!(adjustments[..], [Adjustment::Detach { .. }]),
            "{adjustments:?}"
        );
    }

    #[test]
    fn it_ends_within_the_budget_and_keeps_the_cheap_ones() {
        let mut targets: Vec<Target> = (1..=10)
            .map(|pid| target(pid, 0.005 * f64::from(pid), 0.01, 4096))
            .collect();
        for _ in 0..20 {
            let adjustments = govern(&targets, BUDGET);
            if adjustments.is_empty() {
                break;
            }
            apply(&mut targets, adjustments);
        }
        let sum: f64 = targets.iter().map(|target| target.cost.total()).sum();
        assert!(sum <= BUDGET.machine, "{sum}");
        assert!(targets.iter().any(|target| target.key.pid == 1));
        assert!(targets.iter().all(|target| target.cost.total() <= BUDGET.target));
    }

    #[test]
    fn what_became_cheap_gets_its_samples_back() {
        let adjustments = govern(&[target(1, 0.001, 0.001, 1 << 20)], BUDGET);
        assert!(
            matches!(adjustments[..], [Adjustment::Interval { interval: 524_288, .. }]),
            "{adjustments:?}"
        );
        assert_eq!(govern(&[target(1, 0.001, 0.001, 64 << 10)], BUDGET), []);
    }
}
