//! What the daemon itself costs.

use std::{
    collections::VecDeque,
    fs,
    time::{Duration, Instant},
};

use crate::proc::footprint::Footprint;

/// Time that CPU use is told for.
const WINDOW: Duration = Duration::from_secs(60);

/// CPU time and memory of this process.
#[derive(Debug, Default)]
pub struct Own {
    footprint: Option<Footprint>,
    looks: VecDeque<(Instant, Duration)>,
}

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Share of one CPU over the last minute.
    pub cpu: f64,
    /// Resident bytes.
    pub rss: u64,
}

impl Own {
    /// Looks now.
    pub fn look(&mut self) -> Figures {
        if self.footprint.is_none() {
            self.footprint = Footprint::open(std::process::id()).ok();
        }
        let rss = self.footprint.as_ref().and_then(|footprint| footprint.resident().ok());
        let now = Instant::now();
        self.looks.push_back((now, cpu_time()));
        while self.looks.len() > 2 && now.duration_since(self.looks[1].0) >= WINDOW {
            self.looks.pop_front();
        }
        let cpu = match (self.looks.front(), self.looks.back()) {
            (Some(first), Some(last)) if last.0 > first.0 => {
                last.1.saturating_sub(first.1).as_secs_f64() / last.0.duration_since(first.0).as_secs_f64()
            }
            _ => 0.0,
        };
        Figures {
            cpu,
            rss: rss.map_or(0, |resident| resident.rss),
        }
    }
}

/// CPU time of all threads, those that ended included; from `stat`, in clock ticks of 10 ms.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let Some((_, rest)) = text.rsplit_once(')') else {
        return Duration::ZERO;
    };
    // `rest` begins with field 3; user and system time are 14 and 15.
    let ticks = |field: usize| -> u64 {
        let number = rest.split_ascii_whitespace().nth(field - 3);
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Duration::from_millis((ticks(14) + ticks(15)) * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_is_seen_to_be_busy() {
        let mut own = Own::default();
        own.look();
        let begin = Instant::now();
        let mut sum = 0u64;
        while begin.elapsed() < Duration::from_millis(300) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        std::hint::black_box(sum);
        let figures = own.look();
        assert!(figures.cpu > 0.01 && figures.rss > 1 << 20, "{figures:?}");
    }
}
