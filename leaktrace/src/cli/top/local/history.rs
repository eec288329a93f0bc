//! What a process held over time, and how fast that grows.
//!
//! Pure. Invariant: at most [`MAX_POINTS`] points, in the order of time, over an hour at most.

use std::collections::VecDeque;

use crate::daemon::api::Timeline;

/// Most points; beyond that every second one goes.
const MAX_POINTS: usize = 1200;
/// How far back it goes, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;
/// Growth is told from so many nanoseconds on: what starts up grows for a moment.
const LEAST: u64 = 5_000_000_000;
/// Growth is that of the last so many nanoseconds.
const WINDOW: u64 = 600_000_000_000;
/// Values of a spark line.
const SPARK: usize = 60;

/// One look at a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Resident bytes.
    pub rss: u64,
    /// Resident anonymous bytes.
    pub anonymous: u64,
    /// Swapped bytes.
    pub swap: u64,
    /// Live bytes of native allocations.
    pub tracked: Option<u64>,
    /// Live bytes of the Go heap.
    pub go_heap: Option<u64>,
}

impl Point {
    fn held(&self) -> u64 {
        self.anonymous.saturating_add(self.swap)
    }
}

/// The looks of the last hour.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<Point>,
    /// Least distance of points once there were too many.
    spacing: u64,
}

impl History {
    /// Adds a look. One that lies before the last (the clock was set back) begins a new history.
    pub fn add(&mut self, point: Point) {
        match self.points.back() {
            Some(last) if point.time < last.time => *self = Self::default(),
            // The newest point is always kept; it takes the place of one that is too near to its predecessor.
            Some(last) => {
                let before = self.points.iter().rev().nth(1);
                if before.is_some_and(|before| last.time - before.time < self.spacing) {
                    self.points.pop_back();
                }
            }
            None => {}
        }
        self.points.push_back(point);
        while self.points.front().is_some_and(|first| point.time - first.time > HOUR) {
            self.points.pop_front();
        }
        if self.points.len() > MAX_POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.spacing = HOUR / (MAX_POINTS as u64 / 2);
        }
    }

    /// Slope of anonymous and swapped bytes over the last ten minutes, in bytes an hour: least squares.
    pub fn growth(&self) -> Option<f64> {
        let last = self.points.back()?;
        let recent = || self.points.iter().filter(|point| last.time - point.time <= WINDOW);
        let first = recent().next()?;
        if last.time - first.time < LEAST {
            return None;
        }
        let count = recent().count() as f64;
        let hours = |point: &Point| (point.time - first.time) as f64 / HOUR as f64;
        let bytes = |point: &Point| point.held() as f64;
        let mean_hours = recent().map(hours).sum::<f64>() / count;
        let mean_bytes = recent().map(bytes).sum::<f64>() / count;
        let (mut products, mut squares) = (0.0, 0.0);
        for point in recent() {
            products += (hours(point) - mean_hours) * (bytes(point) - mean_bytes);
            squares += (hours(point) - mean_hours).powi(2);
        }
        (squares > 0.0).then(|| products / squares)
    }

    /// Anonymous and swapped bytes, equally spaced, oldest first.
    pub fn spark(&self) -> Vec<u64> {
        let (Some(first), Some(last)) = (self.points.front(), self.points.back()) else {
            return Vec::new();
        };
        let count = self.points.len().min(SPARK);
        if count < 2 {
            return vec![last.held()];
        }
        let span = last.time - first.time;
        let mut points = self.points.iter().peekable();
        let mut held = first.held();
        (0..count)
            .map(|step| {
                let at = first.time + (u128::from(span) * step as u128 / (count as u128 - 1)) as u64;
                while let Some(point) = points.next_if(|point| point.time <= at) {
                    held = point.held();
                }
                held
            })
            .collect()
    }

    /// All of it.
    pub fn timeline(&self) -> Timeline {
        let mut timeline = Timeline::default();
        for point in &self.points {
            timeline.time.push(point.time);
            timeline.rss.push(point.rss);
            timeline.anonymous.push(point.anonymous);
            timeline.swap.push(point.swap);
            timeline.tracked.push(point.tracked);
            timeline.go_heap.push(point.go_heap);
            timeline.goroutines.push(None);
        }
        timeline
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(seconds: u64, anonymous: u64) -> Point {
        Point {
            time: seconds * 1_000_000_000,
            anonymous,
            ..Point::default()
        }
    }

    #[test]
    fn growth_is_the_slope_an_hour() {
        let mut history = History::default();
        assert_eq!(history.growth(), None);
        (0..=4).for_each(|second| history.add(point(second, 1000)));
        assert_eq!(history.growth(), None);
        let mut history = History::default();
        (0..=100).for_each(|second| history.add(point(second, second * 1000)));
        let growth = history.growth().unwrap_or_default();
        assert!((growth - 3_600_000.0).abs() < 1.0, "{growth}");
        (101..=800).for_each(|second| history.add(point(second, 100_000)));
        let growth = history.growth().unwrap_or_default();
        assert!(growth.abs() < 1.0, "{growth}");
    }

    #[test]
    fn an_hour_of_looks_is_bounded_and_whole() {
        let mut history = History::default();
        (0..20_000).for_each(|second| history.add(point(second, second)));
        assert!(history.points.len() <= MAX_POINTS);
        let timeline = history.timeline();
        assert_eq!(timeline.time.last(), Some(&19_999_000_000_000));
        let first = timeline.time.first().copied().unwrap_or_default();
        assert!((16_390_000_000_000..16_420_000_000_000).contains(&first), "{first}");
        assert_eq!(history.spark().len(), SPARK);
        assert_eq!(history.spark().last(), Some(&19_999));
    }

    proptest! {
        #[test]
        fn any_clock_will_do(looks in prop::collection::vec((0u64..20_000, any::<u32>()), 0..200)) {
            let mut history = History::default();
            for (seconds, bytes) in looks {
                history.add(point(seconds, u64::from(bytes)));
                let timeline = history.timeline();
                prop_assert!(timeline.time.is_sorted());
                prop_assert!(history.spark().len() <= SPARK);
                let _ = history.growth();
            }
        }
    }
}
