//! Whether a value grows, and how fast: what the policy decides by, and what daemon and `top -p` show.
//!
//! A cache that is filled once is a step; a leak goes on. So the time is cut into four, and a value grows steadily if
//! each quarter's mean lies above the one before. How fast is told over the time that is known; steadily grows only what
//! was known for the whole window.

use super::series::Series;

/// Looks a quarter.
const LOOKS: u32 = 8;
/// Least seconds that growth is told over: what starts up grows for a moment.
const LEAST: u32 = 10;

/// How a value went over a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Units an hour, from the first to the last quarter; negative when it shrinks.
    pub per_hour: f64,
    /// Each quarter lies above the one before, and the whole window is known.
    pub steady: bool,
    /// Means of the quarters, oldest first.
    pub quarters: [f64; 4],
    /// Seconds that it was measured over.
    pub over: u32,
}

/// The growth over the last `window` seconds, or over all that is known if that is less; `None` if that is too little.
pub fn growth<T: Copy + PartialEq>(series: &Series<T>, window: u32, value: impl Fn(T) -> f64) -> Option<Growth> {
    let (first, last) = series.span()?;
    let window = window.max(4 * LOOKS);
    let over = window.min(last.saturating_sub(first));
    if over < LEAST {
        return None;
    }
    let begin = last - over;
    if series.is_steady_since(begin) {
        let steady = series.last().map_or(0.0, value);
        return Some(Growth {
            per_hour: 0.0,
            steady: false,
            quarters: [steady; 4],
            over,
        });
    }
    let mut quarters = [0.0; 4];
    for look in 0..4 * LOOKS {
        let at = begin + (u64::from(over) * u64::from(look + 1) / u64::from(4 * LOOKS)) as u32;
        quarters[(look / LOOKS) as usize] += value(series.at(at)?) / f64::from(LOOKS);
    }
    let per_hour = (quarters[3] - quarters[0]) / (0.75 * f64::from(over)) * 3600.0;
    Some(Growth {
        per_hour,
        steady: over == window && quarters.is_sorted_by(|before, after| before < after),
        quarters,
        over,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: impl Fn(u32) -> u64) -> Option<Growth> {
        let mut series = Series::default();
        for at in 0..=600 {
            series.push(at, value(at), 86_400);
        }
        growth(&series, 400, |value| value as f64)
    }

    #[test]
    fn a_leak_grows_a_cache_does_not() {
        let leak = run(|at| 1000 + u64::from(at)).expect("long enough");
        assert!(leak.steady && (leak.per_hour - 3600.0).abs() < 40.0, "{leak:?}");
        // A step in the middle, and one that is filled before.
        assert!(!run(|at| if at > 400 { 5000 } else { 10 }).expect("long enough").steady);
        assert_eq!(run(|at| u64::from(at.min(100))).expect("long enough").per_hour, 0.0);
        // A saw tooth that comes back.
        assert!(!run(|at| u64::from(at % 50)).expect("long enough").steady);
        assert!(run(|at| 10_000 - u64::from(at)).expect("long enough").per_hour < 0.0);
    }

    #[test]
    fn a_short_time_is_no_steady_growth_and_the_shortest_none() {
        let mut series = Series::default();
        for at in 0..LEAST {
            series.push(at, at, 86_400);
        }
        assert_eq!(growth(&series, 400, f64::from), None);
        for at in LEAST..399 {
            series.push(at, at, 86_400);
            let known = growth(&series, 400, f64::from).expect("long enough");
            assert!(!known.steady && known.over == at, "{known:?}");
            assert!((known.per_hour - 3600.0).abs() < 600.0, "{known:?}");
        }
        series.push(399, 399, 86_400);
        series.push(400, 400, 86_400);
        assert!(growth(&series, 400, f64::from).is_some_and(|growth| growth.steady && growth.over == 400));
    }
}
