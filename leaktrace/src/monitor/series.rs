//! The course of a value over time, in bounded memory: a point where it changed, dense in the last quarter of an hour,
//! thinned out before.

use std::collections::VecDeque;

/// How long every change is kept, in seconds.
const FINE_SPAN: u32 = 15 * 60;
/// Afterwards one value in this many seconds.
const COARSE_STEP: u32 = 60;
/// Points kept at most of each kind, whatever the time between looks.
const MAX_FINE: usize = 1024;

/// A step function of time. Times are seconds of the own clock and never go back.
#[derive(Clone, Debug, Default)]
pub struct Series<T> {
    fine: VecDeque<(u32, T)>,
    coarse: VecDeque<(u32, T)>,
    /// The last time at which the value was looked at.
    seen: u32,
}

impl<T: Copy + PartialEq> Series<T> {
    /// Notes the value at a time; keeps `history` seconds. Of several looks within one second the last counts.
    pub fn push(&mut self, at: u32, value: T, history: u32) {
        self.seen = at;
        match self.fine.back_mut() {
            Some((_, last)) if *last == value => {}
            Some((time, last)) if *time == at => *last = value,
            _ => self.fine.push_back((at, value)),
        }
        while self.fine.len() > 1 && (self.fine[0].0.saturating_add(FINE_SPAN) < at || self.fine.len() > MAX_FINE) {
            let Some((time, value)) = self.fine.pop_front() else {
                break;
            };
            let far = |last: &(u32, T)| last.0.saturating_add(COARSE_STEP) <= time;
            if self.coarse.back().is_none_or(far) {
                self.coarse.push_back((time, value));
            }
        }
        while self.coarse.len() > 1 && self.coarse[1].0.saturating_add(history) < at {
            self.coarse.pop_front();
        }
    }

    /// The value at a time; `None` before the first.
    pub fn at(&self, time: u32) -> Option<T> {
        let within = |points: &VecDeque<(u32, T)>| {
            let behind = points.partition_point(|(at, _)| *at <= time);
            behind.checked_sub(1).map(|index| points[index].1)
        };
        within(&self.fine).or_else(|| within(&self.coarse))
    }

    /// The last value.
    pub fn last(&self) -> Option<T> {
        self.fine.back().map(|(_, value)| *value)
    }

    /// First and last time at which it was looked at.
    pub fn span(&self) -> Option<(u32, u32)> {
        let first = self.coarse.front().or_else(|| self.fine.front())?;
        Some((first.0, self.seen))
    }

    /// Whether it was the same at any time from `time` on.
    pub fn is_steady_since(&self, time: u32) -> bool {
        self.fine.back().is_none_or(|(at, _)| *at <= time)
    }

    /// Times of change between two times, the later one included.
    pub fn changes(&self, since: u32, until: u32) -> impl Iterator<Item = u32> + '_ {
        self.coarse
            .iter()
            .chain(&self.fine)
            .map(|(at, _)| *at)
            .filter(move |at| *at > since && *at <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_take_memory() {
        let mut series = Series::default();
        for at in 0..10_000 {
            series.push(at, at / 2000, 86_400);
        }
        assert!(series.fine.len() + series.coarse.len() <= 6);
        assert_eq!(series.span(), Some((0, 9999)));
        assert_eq!(series.at(1999), Some(0));
        assert_eq!(series.at(2000), Some(1));
        assert_eq!(series.at(9999), Some(4));
        assert!(series.is_steady_since(8000));
        assert!(!series.is_steady_since(7999));
    }

    #[test]
    fn a_value_that_always_changes_is_thinned_out_and_ends() {
        let mut series = Series::default();
        let history = 3 * 3600;
        for at in 0..86_400u32 {
            series.push(at, at, history);
        }
        assert!(series.fine.len() <= MAX_FINE);
        assert!(series.coarse.len() <= (history / COARSE_STEP) as usize + 2);
        let (first, last) = series.span().expect("it has points");
        assert_eq!(last, 86_399);
        assert!(last - first <= history + 2 * COARSE_STEP + FINE_SPAN);
        for age in [0, 10, FINE_SPAN - 1, FINE_SPAN + 100, history - 100] {
            let value = series.at(last - age).expect("it is kept");
            let error = (last - age) - value;
            assert!(error <= if age < FINE_SPAN { 0 } else { COARSE_STEP }, "{age}: {error}");
        }
        assert_eq!(series.at(0), None);
    }
}
