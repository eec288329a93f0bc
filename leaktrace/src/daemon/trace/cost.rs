//! What probes take in a process: hits, times the price of a hit, and the time of the programs behind them.

use std::time::Duration;

use crate::bpf::usage::Usage;

/// What a hit costs before any program runs: the trap, by where the probe stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// At an instruction that the kernel emulates.
    pub emulated: Duration,
    /// At one that it executes step by step.
    pub stepped: Duration,
}

impl Default for Price {
    /// Measured on a virtual machine, where traps are dear. On bare metal they cost a third; a cost that is told too high
    /// keeps the budget, one too low does not.
    fn default() -> Self {
        Self {
            emulated: Duration::from_nanos(650),
            stepped: Duration::from_nanos(9_300),
        }
    }
}

/// What tracing costs one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Hits a second.
    pub hits: f64,
    /// Share of one CPU that traps take: what no sampling interval changes.
    pub traps: f64,
    /// Share of one CPU that programs take.
    pub programs: f64,
}

impl Cost {
    /// From what ran in `elapsed`.
    pub fn new(usage: Usage, elapsed: Duration, price: Price, is_stepped: bool) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let trap = if is_stepped { price.stepped } else { price.emulated };
        Self {
            hits: usage.runs() as f64 / seconds,
            traps: usage.runs() as f64 * trap.as_secs_f64() / seconds,
            programs: usage.time.as_secs_f64() / seconds,
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

    #[test]
    fn a_cost_is_hits_times_price_and_program_time() {
        let usage = Usage {
            calls: 10_000,
            time: Duration::from_millis(2),
            ..Usage::default()
        };
        let cost = Cost::new(usage, Duration::from_millis(500), Price::default(), false);
        assert_eq!(cost.hits, 20_000.0);
        assert!((cost.traps - 0.013).abs() < 1e-9);
        assert!((cost.programs - 0.004).abs() < 1e-9);
        assert!(Cost::new(usage, Duration::from_millis(500), Price::default(), true).traps > 0.18);
    }
}
