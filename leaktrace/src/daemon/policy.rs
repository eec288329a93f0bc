//! Which processes are traced, and why: rules, growth, and what was asked by hand.
//!
//! Pure: looks in, wishes out; what became of a wish is told back. Every change is a decision with its reason.
//! Invariant: this process itself is never traced; what it does when it reads its own events would feed on itself.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::{
    api,
    model::{
        ProcessKey,
        quantity::{bytes, signed},
    },
    monitor::{clock::Now, growth::Growth},
};

/// Decisions that are remembered.
const MAX_DECISIONS: usize = 2000;
/// How long a process that could not be traced, or was too dear, is left alone; in seconds.
const RETRY_AFTER: u32 = 600;

/// How the policy decides.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Trace what grows.
    pub auto: bool,
    /// Most processes at once.
    pub max_processes: usize,
    /// Growth in bytes an hour from which on a process is traced.
    pub growth_slope: f64,
    /// How long it must grow, in seconds.
    pub growth_time: u32,
    /// How long it must not, until it is released, in seconds.
    pub release_time: u32,
    /// Mean bytes between samples.
    pub sample_interval: u64,
}

/// A process at one look.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Which.
    pub key: ProcessKey,
    /// Its name.
    pub comm: &'a str,
    /// Its user.
    pub uid: u32,
    /// The rule that it matches, and the rule's distance between samples.
    pub rule: Option<(&'a str, Option<u64>)>,
    /// Growth over `growth_time`.
    pub growth: Option<Growth>,
    /// Growth over `release_time`.
    pub lately: Option<Growth>,
}

/// A process that is to be traced.
struct Wanted<'a> {
    rank: f64,
    candidate: &'a Candidate<'a>,
    by: By,
    interval: u64,
    reason: String,
}

/// Whose turn it is: the first process of the user who has fewest.
fn next_of_all_users(wanted: &[Wanted<'_>], users: &BTreeMap<u32, Vec<ProcessKey>>) -> Option<usize> {
    let count = |wanted: &Wanted<'_>| users.get(&wanted.candidate.uid).map_or(0, Vec::len);
    (0..wanted.len()).min_by_key(|index| count(&wanted[*index]))
}

/// Who wants a process traced.
#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Rule(String),
    Growth,
    Hand,
}

#[derive(Clone, Debug)]
struct Standing {
    state: api::TraceState,
    reason: String,
    /// Nanoseconds since 1970.
    since: u64,
    /// Seconds of the daemon's own time.
    at: u32,
    by: Option<By>,
    wanted: u64,
    comm: String,
    /// Stopped by hand: not traced again until asked.
    held: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// Attach to a process.
    Trace {
        /// Which.
        key: ProcessKey,
        /// Mean bytes between samples.
        interval: u64,
        /// Why.
        reason: String,
    },
    /// Detach from it.
    Release {
        /// Which.
        key: ProcessKey,
        /// Why.
        reason: String,
    },
}

/// What was decided about each process.
pub struct Policy {
    settings: Settings,
    own_pid: u32,
    standings: HashMap<ProcessKey, Standing>,
    decisions: VecDeque<api::Decision>,
}

impl Policy {
    /// Knows nothing yet.
    pub fn new(settings: Settings, own_pid: u32) -> Self {
        Self {
            settings,
            own_pid,
            standings: HashMap::new(),
            decisions: VecDeque::new(),
        }
    }

    /// Other settings from now on. What is traced by a rule that is gone is released at the next look.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Processes that are traced.
    pub fn traced(&self) -> impl Iterator<Item = ProcessKey> + '_ {
        let traced = |standing: &Standing| standing.state == api::TraceState::Traced;
        self.standings
            .iter()
            .filter(move |(_, standing)| traced(standing))
            .map(|(key, _)| *key)
    }

    /// Looks at every process and says what is to be done.
    pub fn look(&mut self, candidates: &[Candidate<'_>], now: Now) -> Vec<Wish> {
        let mut wishes = Vec::new();
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for candidate in candidates.iter().filter(|candidate| candidate.key.pid != self.own_pid) {
            let standing = self.standings.get(&candidate.key);
            if standing.is_some_and(|standing| standing.state == api::TraceState::Traced) {
                if let Some(reason) = self.release_reason(candidate, now) {
                    wishes.push(Wish::Release {
                        key: candidate.key,
                        reason,
                    });
                }
                continue;
            }
            // Refused, detached or stopped by hand: not again at once.
            if standing.is_some_and(|standing| standing.held || now.seconds < standing.at.saturating_add(RETRY_AFTER)) {
                continue;
            }
            if let Some((by, interval, reason)) = self.wish(candidate) {
                let rank = match by {
                    By::Growth => candidate.growth.map_or(0.0, |growth| growth.per_hour),
                    By::Rule(_) | By::Hand => f64::INFINITY,
                };
                wanted.push(Wanted {
                    rank,
                    candidate,
                    by,
                    interval,
                    reason,
                });
            }
        }
        wanted.sort_by(|a, b| b.rank.total_cmp(&a.rank).then(a.candidate.key.cmp(&b.candidate.key)));
        let mut users = self.traced_by_user(candidates);
        let mut room = self.settings.max_processes.saturating_sub(self.traced().count());
        while let Some(index) = next_of_all_users(&wanted, &users) {
            let next = wanted.remove(index);
            let (key, comm, uid) = (next.candidate.key, next.candidate.comm, next.candidate.uid);
            if room == 0 {
                let reason = format!(
                    "{}; but {} processes are traced already: raise `trace.max_processes` or stop one",
                    next.reason, self.settings.max_processes
                );
                self.stand(key, comm, api::TraceState::Refused, "refuse", reason, now);
                // Whoever has most gives up one; there is room for somebody else's at the next look.
                if let Some((victim, count)) = self.one_of_most(&mut users, uid, &wishes) {
                    let limit = self.settings.max_processes;
                    let reason =
                        format!("its user has {count} of the {limit} traced processes, and another one has fewer");
                    wishes.push(Wish::Release { key: victim, reason });
                    self.standings.remove(&key);
                }
                continue;
            }
            room -= 1;
            users.entry(uid).or_default().push(key);
            self.begin(key, comm, next.by, next.interval, now);
            wishes.push(Wish::Trace {
                key,
                interval: next.interval,
                reason: next.reason,
            });
        }
        wishes
    }

    /// Which processes of each user are traced.
    fn traced_by_user(&self, candidates: &[Candidate<'_>]) -> BTreeMap<u32, Vec<ProcessKey>> {
        let mut users: BTreeMap<u32, Vec<ProcessKey>> = BTreeMap::new();
        let traced = candidates.iter().filter(|candidate| self.is_traced(candidate.key));
        traced.for_each(|candidate| users.entry(candidate.uid).or_default().push(candidate.key));
        users
    }

    /// Takes a process from the user who has most of them traced, if that is more than `user` would have with one more; not
    /// one that was asked for by hand. Also tells how many that user has.
    fn one_of_most(
        &self,
        users: &mut BTreeMap<u32, Vec<ProcessKey>>,
        user: u32,
        wishes: &[Wish],
    ) -> Option<(ProcessKey, usize)> {
        let own = users.get(&user).map_or(0, Vec::len);
        let (_, most) = users.iter_mut().max_by_key(|(_, processes)| processes.len())?;
        let count = most.len();
        let may_go = |key: &ProcessKey| {
            let by = self.standings.get(key).and_then(|standing| standing.by.as_ref());
            self.is_traced(*key)
                && by.is_some_and(|by| *by != By::Hand)
                && !wishes
                    .iter()
                    .any(|wish| matches!(wish, Wish::Release { key: other, .. } if other == key))
        };
        let newest = |key: &ProcessKey| self.standings.get(key).map_or(0, |standing| standing.at);
        let going = most.iter().copied().filter(may_go).max_by_key(newest)?;
        if count <= own + 1 {
            return None;
        }
        most.retain(|key| *key != going);
        Some((going, count))
    }

    fn wish(&self, candidate: &Candidate<'_>) -> Option<(By, u64, String)> {
        if let Some((name, interval)) = candidate.rule {
            let interval = interval.unwrap_or(self.settings.sample_interval);
            return Some((By::Rule(name.to_owned()), interval, format!("rule `{name}`")));
        }
        let growth = candidate.growth.filter(|_| self.settings.auto)?;
        if !growth.steady || growth.per_hour < self.settings.growth_slope {
            return None;
        }
        let reason = format!(
            "anonymous memory grew for {} by {} an hour, from {} to {}; the limit is {} an hour",
            humantime::format_duration(std::time::Duration::from_secs(self.settings.growth_time.into())),
            bytes(growth.per_hour),
            bytes(growth.quarters[0]),
            bytes(growth.quarters[3]),
            bytes(self.settings.growth_slope)
        );
        Some((By::Growth, self.settings.sample_interval, reason))
    }

    fn release_reason(&self, candidate: &Candidate<'_>, now: Now) -> Option<String> {
        let standing = self.standings.get(&candidate.key)?;
        match standing.by.as_ref()? {
            By::Hand => None,
            By::Rule(name) => match candidate.rule {
                Some(_) => None,
                None => Some(format!("rule `{name}` does not match any more")),
            },
            By::Growth => {
                let time = self.settings.release_time;
                let long_enough = now.seconds >= standing.at.saturating_add(time);
                let lately = candidate.lately.filter(|growth| long_enough && growth.over >= time)?;
                (!lately.steady || lately.per_hour < self.settings.growth_slope / 2.0).then(|| {
                    format!(
                        "growth has stopped: {} an hour over the last {}",
                        signed(lately.per_hour),
                        humantime::format_duration(std::time::Duration::from_secs(time.into()))
                    )
                })
            }
        }
    }

    fn begin(&mut self, key: ProcessKey, comm: &str, by: By, wanted: u64, now: Now) {
        self.standings.insert(
            key,
            Standing {
                state: api::TraceState::Watched,
                reason: String::new(),
                since: now.wall,
                at: now.seconds,
                by: Some(by),
                wanted,
                comm: comm.to_owned(),
                held: false,
            },
        );
    }

    fn stand(&mut self, key: ProcessKey, comm: &str, state: api::TraceState, action: &str, reason: String, now: Now) {
        let standing = self.standings.entry(key).or_insert_with(|| Standing {
            state,
            reason: String::new(),
            since: now.wall,
            at: now.seconds,
            by: None,
            wanted: self.settings.sample_interval,
            comm: comm.to_owned(),
            held: false,
        });
        standing.state = state;
        standing.reason.clone_from(&reason);
        standing.since = now.wall;
        standing.at = now.seconds;
        let comm = standing.comm.clone();
        self.decide(key, comm, action, reason, now);
    }

    fn decide(&mut self, key: ProcessKey, comm: String, action: &str, reason: String, now: Now) {
        tracing::info!("{action} pid {} ({}): {reason}", key.pid, comm.escape_debug());
        if self.decisions.len() >= MAX_DECISIONS {
            self.decisions.pop_back();
        }
        self.decisions.push_front(api::Decision {
            time: now.wall,
            process: api::Key {
                pid: key.pid,
                start_time: key.start_time,
            },
            comm,
            action: action.to_owned(),
            reason,
        });
    }

    /// Somebody asks for a process to be traced.
    pub fn ask(&mut self, key: ProcessKey, comm: &str, interval: Option<u64>, now: Now) -> Wish {
        let interval = interval.unwrap_or(self.settings.sample_interval);
        self.begin(key, comm, By::Hand, interval, now);
        Wish::Trace {
            key,
            interval,
            reason: "asked for by hand".to_owned(),
        }
    }

    /// A process is traced now.
    pub fn traces(&mut self, key: ProcessKey, reason: String, now: Now) {
        self.stand(key, "", api::TraceState::Traced, "trace", reason, now);
    }

    /// A process could not be traced.
    pub fn refused(&mut self, key: ProcessKey, reason: String, now: Now) {
        self.stand(key, "", api::TraceState::Refused, "refuse", reason, now);
    }

    /// A process is not traced any more.
    pub fn released(&mut self, key: ProcessKey, reason: String, now: Now) {
        self.stand(key, "", api::TraceState::Watched, "release", reason, now);
    }

    /// Somebody asked for a process not to be traced any more.
    pub fn stopped(&mut self, key: ProcessKey, now: Now) {
        self.stand(
            key,
            "",
            api::TraceState::Watched,
            "release",
            "stopped by hand; it is not traced again until asked for".to_owned(),
            now,
        );
        if let Some(standing) = self.standings.get_mut(&key) {
            standing.held = true;
        }
    }

    /// Whether a process is traced.
    pub fn is_traced(&self, key: ProcessKey) -> bool {
        self.standings
            .get(&key)
            .is_some_and(|standing| standing.state == api::TraceState::Traced)
    }

    /// The governor took the probes away.
    pub fn detached(&mut self, key: ProcessKey, reason: String, now: Now) {
        self.stand(key, "", api::TraceState::Detached, "detach", reason, now);
    }

    /// The governor changed the distance between samples.
    pub fn interval(&mut self, key: ProcessKey, interval: u64, reason: &str, now: Now) {
        if let Some(standing) = self.standings.get(&key) {
            let comm = standing.comm.clone();
            self.decide(key, comm, "interval", format!("now {interval} bytes: {reason}"), now);
        }
    }

    /// A process ended. Returns whether it was traced.
    pub fn gone(&mut self, key: ProcessKey) -> bool {
        let standing = self.standings.remove(&key);
        standing.is_some_and(|standing| standing.state == api::TraceState::Traced)
    }

    /// The distance between samples that a process began with.
    pub fn wanted_interval(&self, key: ProcessKey) -> u64 {
        self.standings
            .get(&key)
            .map_or(self.settings.sample_interval, |standing| standing.wanted)
    }

    /// How a process stands. Cost and distance are not known here.
    pub fn tracing(&self, key: ProcessKey, started: u64) -> api::Tracing {
        let standing = self.standings.get(&key);
        api::Tracing {
            state: standing.map_or(api::TraceState::Watched, |standing| standing.state),
            reason: standing
                .map(|standing| standing.reason.clone())
                .filter(|reason| !reason.is_empty())
                .unwrap_or_else(|| "its memory does not grow steadily, and no rule names it".to_owned()),
            since: standing.map_or(started, |standing| standing.since),
            sample_interval: None,
            cost: None,
            hits: None,
            suspect: None,
        }
    }

    /// Decisions, newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &api::Decision> {
        self.decisions.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            auto: true,
            max_processes: 2,
            growth_slope: 1000.0,
            growth_time: 60,
            release_time: 120,
            sample_interval: 65_536,
        }
    }

    const fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: 1 }
    }

    fn grows(pid: u32, per_hour: f64) -> Candidate<'static> {
        let growth = Some(Growth {
            per_hour,
            steady: per_hour > 0.0,
            quarters: [1.0, 2.0, 3.0, 4.0],
            over: 120,
        });
        Candidate {
            key: key(pid),
            comm: "leaky",
            uid: 1,
            rule: None,
            growth,
            lately: growth,
        }
    }

    const fn now(seconds: u32) -> Now {
        Now {
            seconds,
            wall: seconds as u64 * 1_000_000_000,
        }
    }

    fn traced_by(wishes: &[Wish]) -> Vec<u32> {
        wishes
            .iter()
            .filter_map(|wish| match wish {
                Wish::Trace { key, .. } => Some(key.pid),
                Wish::Release { .. } => None,
            })
            .collect()
    }

    #[test]
    fn what_grows_is_traced_fastest_first_and_released_when_it_stops() {
        let mut policy = Policy::new(settings(), 99);
        let wishes = policy.look(
            &[
                grows(1, 1500.0),
                grows(2, 10.0),
                grows(3, 5000.0),
                grows(4, 3000.0),
                grows(99, 9e9),
            ],
            now(100),
        );
        assert_eq!(traced_by(&wishes), [3, 4]);
        // There was no room for the third.
        assert_eq!(policy.tracing(key(1), 0).state, api::TraceState::Refused);
        policy.traces(key(3), "because".to_owned(), now(100));
        assert_eq!(policy.traced().collect::<Vec<_>>(), [key(3)]);
        // It goes on growing, then stops; released only after the release time.
        assert_eq!(policy.look(&[grows(3, 5000.0)], now(300)), []);
        assert_eq!(policy.look(&[grows(3, 0.0)], now(150)), []);
        let wishes = policy.look(&[grows(3, 0.0)], now(400));
        assert!(
            matches!(&wishes[..], [Wish::Release { key, .. }] if key.pid == 3),
            "{wishes:?}"
        );
        policy.released(key(3), "stopped".to_owned(), now(400));
        // It is left alone for a while.
        assert_eq!(policy.look(&[grows(3, 5000.0)], now(500)), []);
        assert_eq!(traced_by(&policy.look(&[grows(3, 5000.0)], now(1100))), [3]);
    }

    #[test]
    fn a_user_with_many_keeps_no_other_out() {
        let mut policy = Policy::new(settings(), 99);
        let mut candidates: Vec<Candidate<'_>> = (1..=5).map(|pid| grows(pid, 9000.0)).collect();
        assert_eq!(traced_by(&policy.look(&candidates, now(0))), [1, 2]);
        policy.traces(key(1), "because".to_owned(), now(0));
        policy.traces(key(2), "because".to_owned(), now(1));
        let other = Candidate {
            uid: 2,
            ..grows(9, 2000.0)
        };
        candidates.push(other.clone());
        let wishes = policy.look(&candidates, now(10));
        assert!(
            matches!(&wishes[..], [Wish::Release { key, .. }] if key.pid == 2),
            "{wishes:?}"
        );
        policy.released(key(2), "most".to_owned(), now(10));
        assert_eq!(traced_by(&policy.look(&candidates, now(12))), [9]);
        policy.traces(key(9), "because".to_owned(), now(12));
        // Each has one now.
        assert_eq!(policy.look(&candidates, now(2000)), []);
        // With room for both each gets one at once.
        let mut policy = Policy::new(settings(), 99);
        assert_eq!(traced_by(&policy.look(&candidates, now(0))), [1, 9]);
    }

    #[test]
    fn a_rule_is_kept_until_it_does_not_match() {
        let mut policy = Policy::new(settings(), 99);
        let named = Candidate {
            rule: Some(("databases", Some(4096))),
            ..grows(5, 0.0)
        };
        let wishes = policy.look(std::slice::from_ref(&named), now(0));
        assert!(
            matches!(&wishes[..], [Wish::Trace { interval: 4096, .. }]),
            "{wishes:?}"
        );
        policy.traces(key(5), "rule".to_owned(), now(0));
        assert_eq!(policy.look(std::slice::from_ref(&named), now(10_000)), []);
        let wishes = policy.look(&[grows(5, 0.0)], now(10_001));
        assert!(matches!(&wishes[..], [Wish::Release { .. }]), "{wishes:?}");
    }

    #[test]
    fn a_refusal_is_remembered_and_tried_again_later() {
        let mut policy = Policy::new(settings(), 99);
        assert_eq!(traced_by(&policy.look(&[grows(1, 2000.0)], now(0))), [1]);
        policy.refused(key(1), "no known allocator".to_owned(), now(0));
        assert_eq!(policy.look(&[grows(1, 2000.0)], now(10)), []);
        assert_eq!(policy.tracing(key(1), 0).reason, "no known allocator");
        assert_eq!(traced_by(&policy.look(&[grows(1, 2000.0)], now(700))), [1]);
        assert!(policy.decisions().any(|decision| decision.action == "refuse"));
    }

    #[test]
    fn what_is_asked_for_by_hand_stays() {
        let mut policy = Policy::new(settings(), 99);
        let wish = policy.ask(key(7), "x", None, now(0));
        assert_eq!(traced_by(std::slice::from_ref(&wish)), [7]);
        policy.traces(key(7), "asked".to_owned(), now(0));
        assert_eq!(policy.look(&[grows(7, 0.0)], now(100_000)), []);
        assert!(policy.gone(key(7)));
        assert!(!policy.gone(key(7)));
    }
}
