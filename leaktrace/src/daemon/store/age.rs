//! How old a stored profile is, on a machine whose clock may jump.
//!
//! The rule: a profile ages only while the store is looked after, and what lies between two looks counts for at most
//! [`LONGEST_STEP`]. A clock that jumps forwards, a suspended machine and a daemon that was off each age the profiles by
//! an hour at most; a clock that jumps backwards ages them by nothing. So no jump alone can make profiles too old, at
//! the price that profiles are kept longer than told where the daemon does not run. Their order never depends on a
//! clock: it is that of their sequence numbers.

/// An hour, in nanoseconds: the most that one look adds.
pub(super) const LONGEST_STEP: u64 = 3_600_000_000_000;

/// Counts the nanoseconds for which the store has been looked after.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AgeClock {
    /// What has been counted, over the whole life of the store.
    pub value: u64,
    last: Option<u64>,
}

impl AgeClock {
    pub(super) fn at(value: u64) -> Self {
        Self { value, last: None }
    }

    /// Looks at the time of day, in nanoseconds since 1970.
    pub(super) fn look(&mut self, now: u64) {
        let Some(last) = self.last else {
            self.last = Some(now);
            return;
        };
        if now >= last {
            self.value = self.value.saturating_add((now - last).min(LONGEST_STEP));
            self.last = Some(now);
        } else if last - now > LONGEST_STEP {
            // The clock was set back. Less than that is callers who overtook each other: counting anew from the
            // earlier time would count the time between twice.
            self.last = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn ordinary_time_is_counted() {
        let mut clock = AgeClock::at(5);
        for minute in 100..=220 {
            clock.look(minute * MINUTE);
        }
        assert_eq!(clock.value, 5 + 120 * MINUTE);
    }

    #[test]
    fn a_jump_counts_for_an_hour_at_most() {
        let mut clock = AgeClock::default();
        let year = 365 * 24 * 60 * MINUTE;
        clock.look(50 * year);
        clock.look(60 * year);
        assert_eq!(clock.value, LONGEST_STEP, "forwards");
        clock.look(50 * year + MINUTE);
        assert_eq!(clock.value, LONGEST_STEP, "backwards");
        clock.look(50 * year + 2 * MINUTE);
        assert_eq!(clock.value, LONGEST_STEP + MINUTE, "and on from there");
        clock.look(0);
        clock.look(u64::MAX);
        assert_eq!(clock.value, 2 * LONGEST_STEP + MINUTE);
    }

    #[test]
    fn callers_that_overtake_each_other_count_no_time_twice() {
        let mut clock = AgeClock::default();
        for round in 0..1000 {
            clock.look(MINUTE * (100 + round % 2));
        }
        assert_eq!(clock.value, MINUTE);
    }
}
