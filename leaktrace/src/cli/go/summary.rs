//! What a watch of any length keeps of its collections: percentiles of pauses, and the trend of the live heap.
//!
//! Invariant: memory does not depend on how many values were added, and no value is left out.

/// Steps of each power of two: a value is told at most 1/128 too high.
const STEPS_LOG2: u32 = 7;
const STEPS: usize = 1 << STEPS_LOG2;
/// Values below twice [`STEPS`] have a bucket each, then come 56 powers of two.
const BUCKETS: usize = STEPS * (65 - STEPS_LOG2 as usize);

/// How often values occurred, in 7,424 buckets that grow with the value.
#[derive(Clone, Debug)]
pub struct Percentiles {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Default for Percentiles {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            max: 0,
        }
    }
}

fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEPS_LOG2 + 1);
    shift as usize * STEPS + (value >> shift) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1) as u32;
    let begin = (bucket - shift as usize * STEPS) as u64;
    // Of the last bucket it is the largest number.
    (begin << shift) + ((1 << shift) - 1)
}

impl Percentiles {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.total += 1;
        self.max = self.max.max(value);
    }

    /// Values added.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The largest; 0 without any.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that this share of all values (0 to 1) does not exceed: exact below 256, else up to 0.8 % more.
    pub fn at(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(bucket).min(self.max);
            }
        }
        self.max
    }
}

impl Extend<u64> for Percentiles {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.add(value));
    }
}

/// The line through points, by least squares; sums are kept, no points.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    count: f64,
    mean: (f64, f64),
    spread: f64,
    joint: f64,
}

impl Trend {
    /// Adds a point.
    pub fn add(&mut self, x: f64, y: f64) {
        self.count += 1.0;
        let before = x - self.mean.0;
        self.mean.0 += before / self.count;
        self.mean.1 += (y - self.mean.1) / self.count;
        self.spread += before * (x - self.mean.0);
        self.joint += before * (y - self.mean.1);
    }

    /// How much y grows where x grows by one; `None` for fewer than two different x.
    pub fn slope(&self) -> Option<f64> {
        (self.count > 1.0 && self.spread > 0.0).then(|| self.joint / self.spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn growth_is_a_line_through_the_points() {
        let slope = |points: &[(f64, f64)]| {
            let mut trend = Trend::default();
            points.iter().for_each(|&(x, y)| trend.add(x, y));
            trend.slope()
        };
        assert_eq!(slope(&[(0.0, 10.0), (1.0, 12.0), (2.0, 14.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 10.0)]), None);
        assert_eq!(slope(&[]), None);
        assert_eq!(slope(&[(1.0, 10.0), (1.0, 12.0)]), None);
    }

    #[test]
    fn buckets_follow_each_other() {
        let mut last = 0;
        for next in 1..BUCKETS {
            assert_eq!(bucket(upper(next)), next);
            assert!(upper(next) > last, "{next}");
            assert_eq!(bucket(last + 1), next);
            last = upper(next);
        }
        assert_eq!(last, u64::MAX);
        let none = Percentiles::default();
        assert_eq!((none.at(0.5), none.max(), none.total()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_a_sorted_list(
            mut values in prop::collection::vec(prop_oneof![0u64..300, any::<u32>().prop_map(u64::from), any::<u64>()], 1..400),
            share in 0.0f64..=1.0,
        ) {
            let mut percentiles = Percentiles::default();
            values.iter().for_each(|&value| percentiles.add(value));
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
            let (exact, told) = (values[rank - 1], percentiles.at(share));
            prop_assert!(told >= exact && told - exact <= exact / 128, "{exact} {told}");
            prop_assert_eq!(percentiles.at(1.0), *values.last().unwrap_or(&0));
            if exact < 256 {
                prop_assert_eq!(told, exact);
            }
        }

        #[test]
        fn a_trend_is_that_of_all_points(points in prop::collection::vec((0.0f64..1e5, 0.0f64..1e12), 2..200)) {
            let mut trend = Trend::default();
            points.iter().for_each(|&(x, y)| trend.add(x, y));
            let count = points.len() as f64;
            let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
            let (x, y) = (mean(|point| point.0), mean(|point| point.1));
            let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
            let joint: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
            prop_assume!(spread > 1.0);
            let (exact, told) = (joint / spread, trend.slope().unwrap_or(f64::NAN));
            // By how much one point alone could tilt the line.
            let scale = 1e12 / spread.sqrt();
            prop_assert!((told - exact).abs() <= scale * 1e-6, "{exact} {told}");
        }
    }
}
