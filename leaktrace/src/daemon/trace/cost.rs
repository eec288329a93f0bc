//! What probes take in a process: hits, times the price of a hit, and the time of the programs behind them.

use std::time::Duration;

use crate::bpf::{trap::Traps, usage::Usage};

/// What a hit costs before any program runs: the trap, by where the probe stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// At an instruction that the kernel emulates.
    pub emulated: Duration,
    /// At one that it executes step by step.
    pub stepped: Duration,
    /// At a function's return.
    pub returned: Duration,
    /// It was measured on this machine.
    pub is_measured: bool,
}

impl Default for Price {
    /// Measured on a virtual machine, where traps are dear. On bare metal they cost a third; a cost that is told too high
    /// keeps the budget, one too low does not.
    fn default() -> Self {
        Self {
            emulated: Duration::from_nanos(650),
            stepped: Duration::from_nanos(9_300),
            returned: Duration::from_nanos(550),
            is_measured: false,
        }
    }
}

/// What prices can be: below, no kernel is entered; above, something else was measured. An emulated processor takes tens of
/// microseconds.
const EMULATED: (Duration, Duration) = (Duration::from_nanos(20), Duration::from_micros(500));
const STEPPED: (Duration, Duration) = (Duration::from_nanos(50), Duration::from_millis(2));
const RETURNED: (Duration, Duration) = (Duration::from_nanos(10), Duration::from_micros(500));

impl Price {
    /// What was measured, if it can be true.
    ///
    /// # Errors
    /// Which of the prices cannot.
    pub fn of(traps: Traps) -> Result<Self, String> {
        for (what, price, (least, most)) in [
            ("an emulated instruction", traps.emulated, EMULATED),
            ("a single-stepped instruction", traps.stepped, STEPPED),
            ("a return", traps.returned, RETURNED),
        ] {
            if !(least..=most).contains(&price) {
                return Err(format!(
                    "{price:?} for a trap at {what} is not between {least:?} and {most:?}"
                ));
            }
        }
        Ok(Self {
            emulated: traps.emulated,
            stepped: traps.stepped,
            returned: traps.returned,
            is_measured: true,
        })
    }

    fn entry(&self, is_stepped: bool) -> Duration {
        if is_stepped { self.stepped } else { self.emulated }
    }
}

/// What ran in a process while it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    /// Runs of its programs.
    pub usage: Usage,
    /// Calls whose return was asked for because they are samples: so many of `usage.calls` are returns.
    pub sampled_returns: u64,
    /// Calls that return a block are probed at single-stepped instructions.
    pub calls_stepped: bool,
    /// Calls that give one back are.
    pub releases_stepped: bool,
    /// How long that was.
    pub elapsed: Duration,
}

/// What tracing costs one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Hits a second.
    pub hits: f64,
    /// Share of one CPU that traps take: what no sampling interval changes.
    pub traps: f64,
    /// Share of one CPU that programs take, and the returns of samples: what fewer samples lessen.
    pub programs: f64,
}

/// What reaching a tracepoint's program costs beside the time of the program itself.
const TRACEPOINT: Duration = Duration::from_nanos(50);

impl Cost {
    /// What programs at tracepoints cost that ran so often, for so long.
    pub fn of_tracepoints(runs: u64, time: Duration, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-3);
        Self {
            hits: runs as f64 / seconds,
            traps: runs as f64 * TRACEPOINT.as_secs_f64() / seconds,
            programs: time.as_secs_f64() / seconds,
        }
    }

    /// What that costs.
    pub fn new(activity: &Activity, price: Price) -> Self {
        let Activity { usage, elapsed, .. } = *activity;
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let sampled = activity.sampled_returns.min(usage.calls);
        let take = |hits: u64, price: Duration| hits as f64 * price.as_secs_f64();
        let traps = take(usage.calls - sampled, price.entry(activity.calls_stepped))
            + take(usage.releases, price.entry(activity.releases_stepped))
            // No kernel emulates a return instruction.
            + take(usage.return_sites, price.stepped)
            + take(usage.returns, price.returned);
        let programs = usage.time.as_secs_f64() + take(sampled, price.returned);
        Self {
            hits: usage.runs() as f64 / seconds,
            traps: traps / seconds,
            programs: programs / seconds,
        }
    }

    /// Share of one CPU in all.
    pub fn total(self) -> f64 {
        self.traps + self.programs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        emulated: Duration::from_nanos(600),
        stepped: Duration::from_nanos(9_000),
        returned: Duration::from_nanos(400),
        is_measured: true,
    };

    fn activity(usage: Usage) -> Activity {
        Activity {
            usage,
            elapsed: Duration::from_millis(500),
            ..Activity::default()
        }
    }

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    #[test]
    fn tracepoints_cost_their_programs_time_and_the_way_there() {
        let cost = Cost::of_tracepoints(10_000, Duration::from_micros(500), Duration::from_millis(500));
        assert!(close(cost.hits, 20_000.0) && close(cost.programs, 0.001), "{cost:?}");
        assert!(
            close(cost.total(), 0.001 + 20_000.0 * TRACEPOINT.as_secs_f64()),
            "{cost:?}"
        );
    }

    #[test]
    fn a_cost_is_hits_times_price_and_program_time() {
        let usage = Usage {
            calls: 6_000,
            releases: 4_000,
            time: Duration::from_millis(2),
            ..Usage::default()
        };
        let cost = Cost::new(&activity(usage), PRICE);
        assert_eq!(cost.hits, 20_000.0);
        assert!(close(cost.traps, 0.012), "{cost:?}");
        assert!(close(cost.programs, 0.004), "{cost:?}");
        assert!(close(cost.total(), 0.016), "{cost:?}");
    }

    #[test]
    fn single_stepping_costs_only_where_it_happens() {
        let usage = Usage {
            calls: 1_000,
            releases: 1_000,
            ..Usage::default()
        };
        let stepped = Activity {
            releases_stepped: true,
            ..activity(usage)
        };
        assert!(close(Cost::new(&stepped, PRICE).traps, 2.0 * (0.0006 + 0.009)));
        let sites = Usage {
            calls: 1_000,
            return_sites: 1_000,
            ..Usage::default()
        };
        assert!(close(Cost::new(&activity(sites), PRICE).traps, 2.0 * (0.0006 + 0.009)));
    }

    #[test]
    fn returns_of_samples_cost_what_fewer_samples_save() {
        let usage = Usage {
            calls: 3_000,
            ..Usage::default()
        };
        let sampled = Activity {
            sampled_returns: 1_000,
            ..activity(usage)
        };
        let cost = Cost::new(&sampled, PRICE);
        assert!(close(cost.traps, 2.0 * 2_000.0 * 600e-9), "{cost:?}");
        assert!(close(cost.programs, 2.0 * 1_000.0 * 400e-9), "{cost:?}");
        // Where every call has its return, fewer samples save none.
        let all = Usage {
            calls: 2_000,
            returns: 2_000,
            ..Usage::default()
        };
        let cost = Cost::new(&activity(all), PRICE);
        assert!(close(cost.traps, 2.0 * 2_000.0 * 1_000e-9), "{cost:?}");
        assert_eq!(cost.programs, 0.0);
        // More were told than ran: what was on the ring before.
        let late = Activity {
            sampled_returns: 9_000,
            ..activity(usage)
        };
        assert_eq!(Cost::new(&late, PRICE).traps, 0.0);
    }

    #[test]
    fn what_cannot_be_true_is_no_price() {
        let traps = Traps {
            emulated: Duration::from_nanos(200),
            stepped: Duration::from_nanos(2_000),
            returned: Duration::from_nanos(150),
        };
        let price = Price::of(traps).expect("a machine of its own");
        assert_eq!((price.emulated, price.is_measured), (traps.emulated, true));
        for wrong in [
            Traps {
                emulated: Duration::ZERO,
                ..traps
            },
            Traps {
                emulated: Duration::from_millis(1),
                ..traps
            },
            Traps {
                stepped: Duration::from_secs(1),
                ..traps
            },
            Traps {
                stepped: Duration::from_nanos(49),
                ..traps
            },
            Traps {
                returned: Duration::from_millis(3),
                ..traps
            },
        ] {
            let error = Price::of(wrong).expect_err("cannot be");
            assert!(error.contains("is not between"), "{error}");
        }
        assert!(
            Price::of(Traps {
                stepped: STEPPED.1,
                ..traps
            })
            .is_ok()
        );
    }
}
