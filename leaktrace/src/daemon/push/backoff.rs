//! How long to wait before the next attempt.
//!
//! Owns the pace, not the waiting. Invariant: no wait is longer than [`Pace::most`], or [`Pace::asked`] when the
//! receiver asked for it.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Waits between attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// After the first failure; doubled after each further one.
    pub first: Duration,
    /// At most.
    pub most: Duration,
    /// At most, when the receiver names a time.
    pub asked: Duration,
    /// Attempts that a receiver may answer with "later", or not at all, before a profile is given up: it may be what
    /// the receiver cannot swallow. A receiver that cannot be reached does not count.
    pub attempts: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            most: Duration::from_secs(60),
            asked: Duration::from_secs(600),
            attempts: 20,
        }
    }
}

/// Failures in a row, and what follows from them.
#[derive(Debug)]
pub(super) struct Backoff {
    pace: Pace,
    failures: u32,
}

impl Backoff {
    /// Nothing failed yet.
    pub(super) const fn new(pace: Pace) -> Self {
        Self { pace, failures: 0 }
    }

    /// It worked.
    pub(super) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait after one more failure. `asked` is what the receiver wants at least.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let random = RandomState::new().build_hasher().finish();
        self.next_with(asked, random)
    }

    fn next_with(&mut self, asked: Option<Duration>, random: u64) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let whole = doubled.min(self.pace.most);
        // Between half and whole, so that many daemons do not come back at the same moment.
        let part = (random >> 11) as f64 / (1u64 << 53) as f64;
        let wait = whole.mul_f64(0.5 + part / 2.0);
        match asked {
            // Never earlier than asked; the random part comes on top.
            Some(asked) => asked.min(self.pace.asked) + wait.min(self.pace.first),
            None => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_limit() {
        let mut backoff = Backoff::new(Pace::default());
        let waits: Vec<_> = (0..9)
            .map(|_| backoff.next_with(None, u64::MAX).as_secs_f64().round())
            .collect();
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
        for _ in 0..100 {
            backoff.next(None);
        }
        assert_eq!(backoff.next_with(None, 0), Duration::from_secs(30));
        backoff.reset();
        assert_eq!(backoff.next_with(None, 0), Duration::from_millis(500));
    }

    #[test]
    fn waits_differ() {
        let wait = || Backoff::new(Pace::default()).next(None);
        let first = wait();
        assert!((0..64).any(|_| wait() != first));
    }

    #[test]
    fn what_the_receiver_asks_for_holds_within_reason() {
        let mut backoff = Backoff::new(Pace::default());
        let wait = backoff.next(Some(Duration::from_secs(30)));
        assert!((30.0..=31.0).contains(&wait.as_secs_f64()));
        assert!(backoff.next(Some(Duration::from_secs(u64::MAX / 2))) <= Duration::from_secs(601));
    }
}
