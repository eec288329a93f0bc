//! How a size went over some time: what kind of growth it is, if any.
//!
//! Pure. A leak goes on; a cache that fills is a step; a request's memory is freed again. Where the time was too short, or
//! the size went up and down, that is said instead.

/// A size at a moment: seconds since the begin, and bytes.
pub type Point = (f64, u64);

/// What kind of course it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It grew all the time.
    GrowsSteadily,
    /// It grew, with pauses or falls between.
    GrowsUnevenly,
    /// It grew once, and then stayed.
    OneStep,
    /// It did not change by much.
    Steady,
    /// It grew, and what came was given back.
    FreedAgain,
    /// It shrank.
    Shrinks,
    /// Too few looks to say.
    Unknown,
}

impl Verdict {
    /// Stable name, for programs.
    pub fn key(self) -> &'static str {
        match self {
            Self::GrowsSteadily => "grows_steadily",
            Self::GrowsUnevenly => "grows_unevenly",
            Self::OneStep => "one_step",
            Self::Steady => "steady",
            Self::FreedAgain => "freed_again",
            Self::Shrinks => "shrinks",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is growth that may go on.
    pub fn grows(self) -> bool {
        matches!(self, Self::GrowsSteadily | Self::GrowsUnevenly)
    }
}

/// Looks that it takes to say anything.
const MIN_POINTS: usize = 5;
/// Parts that the time is cut into.
const PARTS: usize = 4;
/// Smallest change that counts: the kernel's own count is that inexact.
const FLOOR: u64 = 256 << 10;
/// And the share of the size that counts, one in so many.
const FLOOR_SHARE: u64 = 2000;

/// Judges a course.
pub fn judge(points: &[Point]) -> Verdict {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Verdict::Unknown;
    };
    if points.len() < MIN_POINTS {
        return Verdict::Unknown;
    }
    let sizes = || points.iter().map(|(_, bytes)| *bytes);
    let highest = sizes().max().unwrap_or(0);
    let lowest = sizes().min().unwrap_or(0);
    let floor = FLOOR.max(first.1 / FLOOR_SHARE);
    if highest - lowest <= floor {
        return Verdict::Steady;
    }
    let peak = highest.saturating_sub(first.1);
    let net = last.1.saturating_sub(first.1);
    // A quarter of the way back up from where it came is noise of a size that comes and goes.
    if net <= floor.max(peak / 4) {
        return match (peak > floor, first.1.saturating_sub(last.1) > floor) {
            (true, false) => Verdict::FreedAgain,
            (_, true) => Verdict::Shrinks,
            (false, false) => Verdict::Steady,
        };
    }
    // It stood still from some moment on, for half of the time or more.
    let settled = points
        .iter()
        .rposition(|(_, bytes)| last.1.abs_diff(*bytes) > (net / 20).max(FLOOR / 8))
        .map_or(first.0, |index| points[index].0);
    let duration = last.0 - first.0;
    let risen = |(time, bytes): &&Point| *time <= first.0 + duration / 2.0 && bytes.saturating_sub(first.1) > net / 10;
    let began_early = points.iter().any(|point| risen(&point));
    if began_early && settled <= first.0 + duration / 2.0 || is_one_jump(points, net) {
        return Verdict::OneStep;
    }
    if rises_in_each_part(points, net) {
        Verdict::GrowsSteadily
    } else {
        Verdict::GrowsUnevenly
    }
}

/// Whether nearly all came between two looks, or in a tenth of the time, and the rest is noise.
fn is_one_jump(points: &[Point], net: u64) -> bool {
    let duration = points.last().map_or(0.0, |last| last.0) - points.first().map_or(0.0, |first| first.0);
    let window = duration / 10.0;
    points.iter().enumerate().any(|(index, (time, bytes))| {
        let after = points[index..]
            .iter()
            .enumerate()
            .take_while(|(steps, (later, _))| *steps <= 1 || later - time <= window);
        let highest = after.map(|(_, (_, bytes))| *bytes).max().unwrap_or(0);
        highest.saturating_sub(*bytes) >= net / 10 * 9
    })
}

/// Whether each part of the time ends higher than it began, and falls are small beside the growth.
fn rises_in_each_part(points: &[Point], net: u64) -> bool {
    let (first, last) = (points[0], points[points.len() - 1]);
    let at = |part: usize| {
        let time = first.0 + (last.0 - first.0) * part as f64 / PARTS as f64;
        let index = points.partition_point(|(moment, _)| *moment < time);
        points[index.min(points.len() - 1)].1
    };
    let falls: u64 = points
        .windows(2)
        .map(|pair| pair[0].1.saturating_sub(pair[1].1))
        .fold(0, u64::saturating_add);
    // Even growth gives each part a quarter.
    let least = net / PARTS as u64 / 5;
    (0..PARTS).all(|part| at(part + 1).saturating_sub(at(part)) > least) && falls <= net / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    /// 30 seconds, a look each.
    fn course(mebibytes: impl Fn(f64) -> f64) -> Verdict {
        let points: Vec<Point> = (0..=30)
            .map(|second| (f64::from(second), (mebibytes(f64::from(second)) * MIB) as u64))
            .collect();
        judge(&points)
    }

    #[test]
    fn a_leak_grows_steadily() {
        assert_eq!(course(|at| 100.0 + at), Verdict::GrowsSteadily);
        assert_eq!(course(|at| 10_000.0 + 3.0 * at), Verdict::GrowsSteadily);
        // In bursts, as allocators take memory.
        assert_eq!(course(|at| 100.0 + (at / 4.0).floor() * 8.0), Verdict::GrowsSteadily);
        // With a load that comes and goes on top.
        assert_eq!(course(|at| 100.0 + 4.0 * at + (at % 5.0) / 2.0), Verdict::GrowsSteadily);
    }

    #[test]
    fn what_does_not_go_on_is_no_leak() {
        assert_eq!(course(|_| 100.0), Verdict::Steady);
        assert_eq!(course(|at| 100.0 + (at % 3.0) / 100.0), Verdict::Steady);
        assert_eq!(course(|at| if at > 14.0 { 160.0 } else { 100.0 }), Verdict::OneStep);
        assert_eq!(course(|at| if at > 29.0 { 160.0 } else { 100.0 }), Verdict::OneStep);
        // A cache that fills, and is full after a third of the time.
        assert_eq!(course(|at| 100.0 + at.min(10.0) * 5.0), Verdict::OneStep);
        assert_eq!(
            course(|at| if (5.0..20.0).contains(&at) { 300.0 } else { 100.0 }),
            Verdict::FreedAgain
        );
        assert_eq!(course(|at| 100.0 + 20.0 * (at % 6.0)), Verdict::FreedAgain);
        assert_eq!(course(|at| 200.0 - at), Verdict::Shrinks);
    }

    #[test]
    fn growth_with_pauses_is_uneven() {
        assert_eq!(
            course(|at| if at < 20.0 { 100.0 } else { 100.0 + 5.0 * (at - 20.0) }),
            Verdict::GrowsUnevenly
        );
        assert_eq!(
            course(|at| 100.0
                + if at < 8.0 {
                    0.0
                } else if at < 25.0 {
                    30.0
                } else {
                    80.0
                }),
            Verdict::GrowsUnevenly
        );
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(judge(&[]), Verdict::Unknown);
        assert_eq!(judge(&[(0.0, 1), (1.0, 1 << 30)]), Verdict::Unknown);
    }

    proptest::proptest! {
        #[test]
        fn any_course_is_judged(sizes in proptest::collection::vec(proptest::num::u64::ANY, 0..40)) {
            let points: Vec<Point> = sizes.iter().enumerate().map(|(at, bytes)| (at as f64, *bytes)).collect();
            let verdict = judge(&points);
            // Growth is claimed only where there is some.
            if verdict.grows() {
                assert!(points[points.len() - 1].1 > points[0].1);
            }
        }
    }
}
