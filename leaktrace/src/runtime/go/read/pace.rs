//! How long whoever follows a collector may wait for the next look.
//!
//! Waking up costs more than looking, so a look that has nothing to see is not worth its price. Counters and pauses are
//! kept by the runtime; phases, their clocks and heap sizes are there from a collection's end until the next one begins.
//! They are missed where a collection ends and the next begins between two looks, which takes memory: up to the trigger
//! of the first, and from its end up to that of the second. Collections that the program asks for need none and cannot
//! be foreseen. Where several end in the shortest time, no look catches the phases of more than the last: fewer looks lose
//! little then, as long as the runtime still has all pauses. Pure: glances in, times out. Invariant: what does not look like a runtime's numbers is looked at again
//! after the shortest time.

use std::time::Duration;

use super::gc::Glance;
use crate::runtime::go::check::PAUSES;

/// The longest wait, in shortest ones.
const STRETCH: u32 = 5;
/// So many times the speed of late is expected.
const CAUTION: f64 = 4.0;
/// Share of the highest speed that is forgotten at each look: half of it within 44.
const FORGOTTEN: f64 = 1.0 / 64.0;
/// Collections in the shortest time from which on there are too many for their phases.
const CROWD: f64 = 3.0;
/// Share of what was seen at this look in that number.
const NEWS: f64 = 0.25;
/// As many may end until the next look: half of those whose pauses the runtime keeps.
const EXPECTED: f64 = (PAUSES / 2) as f64;
/// `defaultHeapMinimum`: no trigger is below its part of the way to this, at a `GOGC` of 100.
const HEAP_MINIMUM: f64 = (4 << 20) as f64;
/// The runtime's earliest trigger, as a part of the way from the marked heap to the goal: 45/64, rounded down.
const EARLIEST: f64 = 0.7;
/// Heaps are smaller than what can be addressed.
const MOST_BYTES: u64 = 1 << 47;

/// Decides from glance to glance.
#[derive(Clone, Debug)]
pub struct Pace {
    shortest: Duration,
    longest: Duration,
    last: Option<Glance>,
    /// Bytes allocated a second: the most of late.
    speed: f64,
    /// Collections in the shortest time, of late.
    crowd: f64,
}

impl Pace {
    /// Waits between `shortest` and five times that, but for the sake of the pace not beyond `limit`.
    pub fn new(shortest: Duration, limit: Duration) -> Self {
        Self {
            shortest,
            longest: shortest.saturating_mul(STRETCH).min(limit).max(shortest),
            last: None,
            speed: 0.0,
            crowd: 0.0,
        }
    }

    /// The shortest wait.
    pub fn shortest(&self) -> Duration {
        self.shortest
    }

    /// How long to wait after this glance, which came `since` after the one before.
    pub fn next(&mut self, glance: &Glance, since: Duration) -> Duration {
        let Some(last) = self.last.replace(*glance) else {
            return self.shortest;
        };
        // Across a collection the live heap shrinks; what was allocated in all only grows.
        let grown = glance.total_alloc.saturating_sub(last.total_alloc);
        let grown = grown.max(glance.live.saturating_sub(last.live));
        let now = grown as f64 / since.max(Duration::from_micros(1)).as_secs_f64();
        self.speed = now.max(self.speed * (1.0 - FORGOTTEN));
        let ended = glance.finished.saturating_sub(last.finished) as f64;
        let ended = ended * self.shortest.as_secs_f64() / since.max(self.shortest).as_secs_f64();
        self.crowd += (ended - self.crowd) * NEWS;
        if self.crowd >= CROWD {
            let times = (EXPECTED / self.crowd.max(ended)).clamp(1.0, f64::from(STRETCH));
            let wait = Duration::try_from_secs_f64(self.shortest.as_secs_f64() * times);
            return wait.map_or(self.longest, |wait| wait.clamp(self.shortest, self.longest));
        }
        let Some(room) = room(glance) else {
            return self.shortest;
        };
        let seconds = room / (self.speed * CAUTION).max(f64::MIN_POSITIVE);
        if seconds >= self.longest.as_secs_f64() {
            return self.longest;
        }
        Duration::from_secs_f64(seconds.max(0.0)).max(self.shortest)
    }
}

/// Bytes that have to be allocated before phases can be lost; `None` where that cannot be told.
fn room(glance: &Glance) -> Option<f64> {
    let &Glance { live, marked, goal, .. } = glance;
    let sound = glance.started == glance.finished && marked < goal && live < goal && goal < MOST_BYTES;
    // The limit counts all of the runtime's memory: near it, the goal is lower than that by GOGC.
    if !sound || glance.memory_limit / 2 < goal {
        return None;
    }
    let percent = u32::try_from(glance.percent).ok().map(f64::from)?;
    let trigger = marked as f64 + (goal - marked) as f64 * EARLIEST;
    // From the next collection's end to the one behind it. The goal is the marked heap and its part by GOGC, or the least
    // goal, whichever is more; the way there is shortest where both are the same.
    let least_goal = HEAP_MINIMUM * percent / 100.0;
    let behind = (least_goal - least_goal / (1.0 + percent / 100.0)) * EARLIEST;
    Some((trigger - live as f64).max(0.0) + behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_millis(50);
    const MB: u64 = 1 << 20;

    /// 100 MB marked and live, the earliest trigger at 170.
    const FAR: Glance = Glance {
        finished: 7,
        started: 7,
        percent: 100,
        memory_limit: i64::MAX as u64,
        live: 100 * MB,
        marked: 100 * MB,
        goal: 200 * MB,
        total_alloc: 500 * MB,
    };

    fn pace() -> Pace {
        Pace::new(SHORT, Duration::from_secs(1))
    }

    /// The wait behind a look at `glance`, with so many bytes allocated in the 10 ms before it.
    fn wait(glance: Glance, grown: u64) -> Duration {
        let mut pace = pace();
        let before = Glance {
            live: glance.live.saturating_sub(grown),
            total_alloc: glance.total_alloc.saturating_sub(grown),
            ..glance
        };
        assert_eq!(pace.next(&before, SHORT), SHORT, "no speed is known yet");
        pace.next(&glance, SHORT)
    }

    #[test]
    fn long_far_from_the_trigger_and_short_near_it() {
        assert_eq!(wait(FAR, 0), LONG);
        // 300 MB/s: less than 60 MB in 50 ms, with caution.
        assert_eq!(wait(FAR, 3 * MB), LONG);
        let near = |live| Glance { live, ..FAR };
        assert_eq!(wait(near(165 * MB), 3 * MB), SHORT);
        // In between the time that it takes: 26.4 MB at 1.2 GB/s.
        let between = wait(near(145 * MB), 3 * MB);
        assert!(between > 2 * SHORT && between < 5 * SHORT, "{between:?}");
        // A collection may begin at any moment, but the next one behind it is far away at this speed.
        assert_eq!(wait(near(180 * MB), 0), LONG);
        assert_eq!(wait(near(180 * MB), 64 << 10), LONG);
        assert_eq!(wait(near(180 * MB), MB), SHORT);
    }

    #[test]
    fn short_during_a_collection() {
        let running = Glance { started: 8, ..FAR };
        assert_eq!(wait(running, 0), SHORT);
    }

    #[test]
    fn a_spurt_is_noticed_at_once_and_remembered_for_a_while() {
        let mut pace = pace();
        let mut glance = FAR;
        pace.next(&glance, SHORT);
        assert_eq!(pace.next(&glance, SHORT), LONG);
        // Most of it is garbage by then: the collection in between hides it from the live heap.
        glance.total_alloc += 300 * MB;
        glance.finished += 1;
        glance.started += 1;
        assert_eq!(pace.next(&glance, LONG), SHORT);
        let waits: Vec<Duration> = (0..500).map(|_| pace.next(&glance, SHORT)).collect();
        assert!(waits[..60].iter().all(|&wait| wait == SHORT));
        assert!(waits.is_sorted(), "slower and slower");
        assert_eq!(waits[499], LONG);
        // The live heap alone tells as well.
        glance.live += 60 * MB;
        assert_eq!(pace.next(&glance, LONG), SHORT);
    }

    #[test]
    fn long_where_collections_crowd_unless_pauses_would_be_lost() {
        // All of the heap is garbage and made anew between two looks: short by that alone.
        let crowd = |since: Duration, ended: u64| {
            let mut pace = pace();
            let mut busy = FAR;
            pace.next(&busy, SHORT);
            let mut wait = SHORT;
            for _ in 0..20 {
                busy.finished = busy.finished.saturating_add(ended);
                busy.started = busy.finished;
                busy.total_alloc = busy.total_alloc.saturating_add(ended.saturating_mul(100 * MB));
                wait = pace.next(&busy, since);
            }
            wait
        };
        assert_eq!(crowd(SHORT, 2), SHORT);
        assert_eq!(crowd(SHORT, 4), LONG);
        assert_eq!(crowd(LONG, 14), SHORT, "fewer than three in the shortest time");
        assert_eq!(crowd(LONG, 16), LONG);
        let some = crowd(SHORT, 64);
        assert!(some >= 2 * SHORT && some < 3 * SHORT, "{some:?}");
        assert_eq!(crowd(SHORT, 1000), SHORT);
        assert_eq!(crowd(SHORT, u64::MAX / 20), SHORT);
    }

    #[test]
    fn short_where_the_numbers_make_no_sense() {
        for nonsense in [
            Glance { goal: 0, ..FAR },
            Glance { goal: u64::MAX, ..FAR },
            Glance { live: 201 * MB, ..FAR },
            Glance { live: u64::MAX, ..FAR },
            Glance {
                marked: u64::MAX,
                ..FAR
            },
            Glance { percent: -1, ..FAR },
            Glance { started: 6, ..FAR },
            Glance { memory_limit: 0, ..FAR },
            Glance {
                memory_limit: 300 * MB,
                ..FAR
            },
            Glance::default(),
        ] {
            assert_eq!(wait(nonsense, 0), SHORT, "{nonsense:?}");
        }
        // Constant collection: nothing lies between two.
        let constant = Glance {
            percent: 0,
            live: 180 * MB,
            ..FAR
        };
        assert_eq!(wait(constant, 1), SHORT);
        let mut backwards = pace();
        backwards.next(&FAR, SHORT);
        assert_eq!(backwards.next(&Glance { total_alloc: 0, ..FAR }, Duration::ZERO), LONG);
        assert_eq!(backwards.next(&FAR, Duration::ZERO), SHORT);
    }

    #[test]
    fn no_wait_is_shorter_than_was_asked_or_longer_for_the_pace_than_the_limit() {
        for (shortest, longest) in [(1, 5), (300, 1000), (2000, 2000)] {
            let (shortest, longest) = (Duration::from_millis(shortest), Duration::from_millis(longest));
            let mut pace = Pace::new(shortest, Duration::from_secs(1));
            assert_eq!(pace.next(&FAR, shortest), shortest);
            assert_eq!(pace.next(&FAR, shortest), longest);
        }
        let mut endless = Pace::new(Duration::MAX, Duration::from_secs(1));
        endless.next(&FAR, SHORT);
        let many = Glance {
            finished: u64::MAX,
            ..FAR
        };
        assert_eq!(endless.clone().next(&many, SHORT), Duration::MAX);
        assert_eq!(endless.next(&FAR, SHORT), Duration::MAX);
    }
}
