//! What the daemon itself costs, and when that is too much.

use std::{
    collections::VecDeque,
    fs,
    time::{Duration, Instant},
};

use super::config::Budget;
use crate::{model::quantity::bytes, proc::footprint::Footprint};

/// Time that CPU use is told for.
const WINDOW: Duration = Duration::from_secs(60);
/// Time that CPU use is compared with its budget for; so long after a process was given up, its share is out of it.
const RECENT: Duration = Duration::from_secs(10);
/// How long the daemon may be beyond its own budget, for example while profiles are made or probes attached.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// The same over the last ten seconds.
    pub recent_cpu: f64,
    /// Resident bytes.
    pub rss: u64,
}

/// Which of its own budgets the daemon is beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Memory: mostly the ledgers'.
    Memory,
    /// CPU time: mostly for records.
    Cpu,
}

/// Compares the daemon's figures with its own budgets.
#[derive(Debug, Default)]
pub struct Keeper {
    /// Since when it is beyond one, which it is, and what was said of it.
    over: Option<(Instant, Excess, String)>,
    /// When something was given up last.
    gave_up: Option<Instant>,
}

impl Keeper {
    /// What is wrong, and if something is to be given up now, for the sake of which budget. One thing at a time: what it
    /// brings has to be in the figures before the next is given up.
    pub fn compare(&mut self, figures: Figures, budget: &Budget, now: Instant) -> (Option<&str>, Option<Excess>) {
        let excess = if figures.rss > budget.own_memory {
            Excess::Memory
        } else if figures.recent_cpu > budget.own_cpu {
            Excess::Cpu
        } else {
            *self = Self::default();
            return (None, None);
        };
        let said = || told(excess, figures, budget);
        let (since, of, what) = self.over.get_or_insert_with(|| (now, excess, said()));
        if *of != excess {
            (*of, *what) = (excess, said());
        }
        let due =
            now.duration_since(*since) >= PATIENCE && self.gave_up.is_none_or(|last| now.duration_since(last) > RECENT);
        if due {
            self.gave_up = Some(now);
        }
        (Some(what), due.then_some(excess))
    }
}

fn told(excess: Excess, figures: Figures, budget: &Budget) -> String {
    match excess {
        Excess::Memory => format!(
            "leaktrace takes {} of memory, its budget is {}",
            bytes(figures.rss as f64),
            bytes(budget.own_memory as f64)
        ),
        Excess::Cpu => format!(
            "leaktrace takes {:.1} % of a CPU, its budget is {:.1} %",
            figures.recent_cpu * 100.0,
            budget.own_cpu * 100.0
        ),
    }
}

impl Own {
    /// Looks now.
    pub fn look(&mut self) -> Figures {
        if self.footprint.is_none() {
            self.footprint = Footprint::open(std::process::id()).ok();
        }
        let rss = self.footprint.as_mut().and_then(|footprint| footprint.resident().ok());
        let now = Instant::now();
        self.looks.push_back((now, cpu_time()));
        while self.looks.len() > 2 && now.duration_since(self.looks[1].0) >= WINDOW {
            self.looks.pop_front();
        }
        Figures {
            cpu: self.share(WINDOW),
            recent_cpu: self.share(RECENT),
            rss: rss.map_or(0, |resident| resident.rss),
        }
    }

    /// Share of one CPU from the last look that is at least `window` ago, or the first.
    fn share(&self, window: Duration) -> f64 {
        let Some(last) = self.looks.back() else {
            return 0.0;
        };
        let first = self.looks.iter().rfind(|look| last.0.duration_since(look.0) >= window);
        match first.or(self.looks.front()) {
            Some(first) if last.0 > first.0 => {
                last.1.saturating_sub(first.1).as_secs_f64() / last.0.duration_since(first.0).as_secs_f64()
            }
            _ => 0.0,
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
    use crate::daemon::config::Config;

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

    #[test]
    fn the_recent_share_leaves_out_what_was_before() {
        let begin = Instant::now();
        let look = |second: u64, spent: u64| (begin + Duration::from_secs(second), Duration::from_secs(spent));
        let own = Own {
            footprint: None,
            looks: [look(0, 0), look(5, 5), look(10, 5), look(15, 6)].into(),
        };
        assert!((own.share(WINDOW) - 0.4).abs() < 1e-9);
        assert!((own.share(RECENT) - 0.1).abs() < 1e-9);
    }

    /// What a keeper says each second of figures, as text: `-` nothing, `!` too much, `M` and `C` give something up.
    fn kept(figures: impl IntoIterator<Item = (f64, u64)>) -> String {
        let budget = Budget {
            own_cpu: 0.1,
            own_memory: 100 << 20,
            ..Config::default().budget
        };
        let mut keeper = Keeper::default();
        let begin = Instant::now();
        let each = figures
            .into_iter()
            .zip(0u64..)
            .map(|((recent_cpu, mebibytes), second)| {
                let figures = Figures {
                    cpu: 1.0,
                    recent_cpu,
                    rss: mebibytes << 20,
                };
                match keeper.compare(figures, &budget, begin + Duration::from_secs(second)) {
                    (None, None) => '-',
                    (Some(_), None) => '!',
                    (Some(_), Some(Excess::Memory)) => 'M',
                    (Some(_), Some(Excess::Cpu)) => 'C',
                    (None, Some(_)) => '?',
                }
            });
        each.collect()
    }

    #[test]
    fn a_burst_takes_nothing_from_anybody() {
        let burst = [(0.9, 50); 29].into_iter().chain([(0.05, 50)]).chain([(0.9, 50); 29]);
        assert_eq!(kept(burst), format!("{}-{}", "!".repeat(29), "!".repeat(29)));
    }

    #[test]
    fn what_lasts_takes_one_after_the_other() {
        let lasting = [(0.11, 50); 43].into_iter().chain([(0.1, 50); 2]);
        assert_eq!(kept(lasting), format!("{}C{}C!--", "!".repeat(30), "!".repeat(10)));
        assert_eq!(kept([(0.0, 101); 31]), format!("{}M", "!".repeat(30)));
    }

    #[test]
    fn what_is_said_stays_as_long_as_it_lasts() {
        let budget = Config::default().budget;
        let mut keeper = Keeper::default();
        let figures = |recent_cpu| Figures {
            recent_cpu,
            ..Figures::default()
        };
        let now = Instant::now();
        let said = keeper.compare(figures(0.5), &budget, now).0.map(str::to_owned);
        assert_eq!(
            said.as_deref(),
            Some("leaktrace takes 50.0 % of a CPU, its budget is 10.0 %")
        );
        assert_eq!(keeper.compare(figures(0.6), &budget, now).0, said.as_deref());
        // Beyond the other budget it is another trouble.
        let large = Figures {
            rss: 200 << 20,
            ..figures(0.6)
        };
        assert_eq!(
            keeper.compare(large, &budget, now).0,
            Some("leaktrace takes 200 MiB of memory, its budget is 150 MiB")
        );
    }
}
