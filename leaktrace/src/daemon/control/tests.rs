//! The table by examples, and against a model of the engine in random orders of events.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{plan::Candidate, *};
use crate::monitor::growth::Growth;

fn settings() -> Settings {
    Settings {
        auto: true,
        max_processes: 2,
        growth_slope: 1000.0,
        growth_time: 60,
        release_time: 120,
        sample_interval: 65_536,
        growth_samples: 0,
        growth_interval: 262_144,
    }
}

/// Growth sampling alone.
fn sampling() -> Settings {
    Settings {
        auto: false,
        release_time: 300,
        growth_samples: 2,
        ..settings()
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
        early: growth,
        recent: growth,
        has_own_profile: false,
    }
}

const fn now(seconds: u32) -> Now {
    Now {
        seconds,
        wall: seconds as u64 * 1_000_000_000,
    }
}

/// The table with an engine that does all at once, and lets nothing fail but what is said.
struct Table(Control);

impl Table {
    fn new(settings: Settings) -> Self {
        Self(Control::new(settings, 99))
    }

    /// The commands, in words; all of them are done.
    fn done(&mut self, at: u32, failure: Option<&str>) -> Vec<String> {
        let commands = self.0.commands();
        let word = |command: &Command| match command {
            Command::Attach {
                key, mode, interval, ..
            } => format!("{mode:?} {} {interval}", key.pid),
            Command::Release { key, .. } => format!("release {}", key.pid),
            Command::Interval { key, interval, .. } => format!("interval {} {interval}", key.pid),
        };
        let words = commands.iter().map(word).collect();
        for command in commands {
            match command {
                Command::Attach { key, number, .. } => {
                    let result = failure.map_or(Ok(()), |why| Err(why.to_owned()));
                    self.0.attached(key, number, result, now(at));
                }
                Command::Release { key, number, .. } => {
                    self.0.released(key, number);
                }
                Command::Interval { .. } => {}
            }
        }
        // What failed is released once more.
        self.0.commands();
        words
    }

    fn plan(&mut self, candidates: &[Candidate<'_>], at: u32) -> Vec<String> {
        self.0.plan(candidates, now(at));
        self.done(at, None)
    }

    fn traced(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.0.observed().map(|(key, _)| key.pid).collect();
        pids.sort_unstable();
        pids
    }
}

#[test]
fn what_grows_is_traced_fastest_first_and_released_when_it_stops() {
    let mut table = Table::new(settings());
    let candidates = [
        grows(1, 1500.0),
        grows(2, 10.0),
        grows(3, 5000.0),
        grows(4, 3000.0),
        grows(99, 9e9),
    ];
    assert_eq!(table.plan(&candidates, 100), ["Probes 3 65536", "Probes 4 65536"]);
    // There was no room for the third.
    assert_eq!(table.0.tracing(key(1), 0).state, api::TraceState::Refused);
    assert_eq!(table.traced(), [3, 4]);
    // It goes on growing, then stops; released only after the release time.
    assert!(table.plan(&[grows(3, 5000.0)], 300).is_empty());
    assert!(table.plan(&[grows(3, 0.0)], 150).is_empty());
    assert_eq!(table.plan(&[grows(3, 0.0)], 400), ["release 3"]);
    // It is left alone for a while.
    assert!(table.plan(&[grows(3, 5000.0)], 500).is_empty());
    assert_eq!(table.plan(&[grows(3, 5000.0)], 1100), ["Probes 3 65536"]);
}

#[test]
fn a_user_with_many_keeps_no_other_out() {
    let mut table = Table::new(settings());
    let mut candidates: Vec<Candidate<'_>> = (1..=5).map(|pid| grows(pid, 9000.0)).collect();
    assert_eq!(table.plan(&candidates, 0), ["Probes 1 65536", "Probes 2 65536"]);
    let other = Candidate {
        uid: 2,
        ..grows(9, 2000.0)
    };
    candidates.push(other);
    assert_eq!(table.plan(&candidates, 10), ["release 2"]);
    assert_eq!(table.plan(&candidates, 12), ["Probes 9 65536"]);
    // Each has one now.
    assert!(table.plan(&candidates, 2000).is_empty());
    assert_eq!(table.traced(), [1, 9]);
    // With room for both each gets one at once.
    let mut table = Table::new(settings());
    table.plan(&candidates, 0);
    assert_eq!(table.traced(), [1, 9]);
}

#[test]
fn what_lost_its_probes_is_shown_as_refused() {
    let mut table = Table::new(settings());
    table.plan(&[grows(3, 5000.0)], 100);
    table.0.withdrawn(key(3), "its code was changed".to_owned(), now(110));
    assert_eq!(table.done(110, None), ["release 3"]);
    let tracing = table.0.tracing(key(3), 0);
    assert_eq!(
        (tracing.state, tracing.reason.as_str()),
        (api::TraceState::Refused, "its code was changed")
    );
    // Not at once again.
    assert!(table.plan(&[grows(3, 5000.0)], 200).is_empty());
    assert_eq!(table.plan(&[grows(3, 5000.0)], 800), ["Probes 3 65536"]);
}

#[test]
fn what_was_known_for_too_short_a_time_has_not_stopped() {
    let mut table = Table::new(settings());
    table.plan(&[grows(3, 5000.0)], 100);
    let mut short = grows(3, 0.0);
    short.recent = short.recent.map(|growth| Growth { over: 119, ..growth });
    assert!(table.plan(&[short], 400).is_empty());
}

#[test]
fn a_rule_is_kept_until_it_does_not_match() {
    let mut table = Table::new(settings());
    let named = Candidate {
        rule: Some(("databases", Some(4096))),
        ..grows(5, 0.0)
    };
    assert_eq!(table.plan(std::slice::from_ref(&named), 0), ["Probes 5 4096"]);
    assert!(table.plan(std::slice::from_ref(&named), 10_000).is_empty());
    assert_eq!(table.plan(&[grows(5, 0.0)], 10_001), ["release 5"]);
}

#[test]
fn a_refusal_is_remembered_and_tried_again_later() {
    let mut table = Table::new(settings());
    table.0.plan(&[grows(1, 2000.0)], now(0));
    table.done(0, Some("no known allocator"));
    assert!(table.plan(&[grows(1, 2000.0)], 10).is_empty());
    assert_eq!(table.0.tracing(key(1), 0).reason, "no known allocator");
    assert_eq!(table.plan(&[grows(1, 2000.0)], 700), ["Probes 1 65536"]);
    assert!(table.0.decisions().any(|decision| decision.action == "refuse"));
}

#[test]
fn what_is_asked_for_by_hand_stays() {
    let mut table = Table::new(settings());
    table.0.start(key(7), "x", None, now(0));
    assert_eq!(table.done(0, None), ["Probes 7 65536"]);
    assert!(table.plan(&[grows(7, 0.0)], 100_000).is_empty());
    assert!(table.0.gone(key(7)));
    assert!(!table.0.gone(key(7)));
    assert_eq!(table.done(0, None), ["release 7"]);
    // What is stopped by hand is not begun again.
    table.0.start(key(8), "x", None, now(0));
    table.done(0, None);
    assert!(table.0.stop(key(8), now(1)).is_some() && table.0.stop(key(8), now(1)).is_none());
    // Nobody is told that its probes are gone before they are.
    assert_eq!(table.0.tracing(key(8), 0).state, api::TraceState::Traced);
    assert_eq!(table.done(0, None), ["release 8"]);
    assert_eq!(table.0.tracing(key(8), 0).state, api::TraceState::Watched);
    assert!(table.plan(&[grows(8, 5000.0)], 100_000).is_empty());
}

#[test]
fn an_attempt_that_took_too_long_is_undone_whenever_it_ends() {
    let mut control = Control::new(settings(), 99);
    control.start(key(1), "x", None, now(0));
    let attach = control.commands();
    let [Command::Attach { number, settlement, .. }] = &attach[..] else {
        panic!("{attach:?}");
    };
    // It waits for others first; its time begins when the engine is told.
    control.give_up(now(ATTACH_LIMIT));
    control.begun(key(1), *number, now(50));
    control.give_up(now(49 + ATTACH_LIMIT));
    assert!(matches!(control.state(key(1)), State::Attaching(_)));
    control.give_up(now(50 + ATTACH_LIMIT));
    let told = control.tracing(key(1), 0);
    assert_eq!(told.state, api::TraceState::Refused);
    assert!(told.reason.contains("longer than 120 s"), "{}", told.reason);
    // The engine comes to an end now: it learns that nobody waits, and whatever it answers changes nothing.
    assert!(!settlement.claim());
    control.attached(key(1), *number, Ok(()), now(200));
    assert!(!control.is_traced(key(1)));
    assert!(matches!(control.commands()[..], [Command::Release { .. }]));
}

#[test]
fn the_growth_of_what_grows_fastest_is_sampled_until_it_has_not_grown_for_a_while() {
    let mut table = Table::new(sampling());
    let all = [grows(1, 2000.0), grows(2, 900.0), grows(3, 9000.0), grows(4, 3000.0)];
    assert_eq!(table.plan(&all, 10), ["Growth 3 262144", "Growth 4 262144"]);
    let reason = table.0.tracing(key(3), 0).suspect;
    assert!(reason.is_some_and(|reason| reason.contains("an hour")));
    assert!(table.plan(&all, 20).is_empty());
    let stopped = [grows(1, 2000.0), grows(3, 0.0), grows(4, 3000.0)];
    assert!(table.plan(&stopped, 300).is_empty());
    // Its place is free for another.
    assert_eq!(table.plan(&stopped, 320), ["release 3", "Growth 1 262144"]);
    assert_eq!(table.0.tracing(key(3), 0).suspect, None);
}

#[test]
fn the_growth_of_what_is_traced_is_not_sampled() {
    let mut table = Table::new(sampling());
    assert_eq!(table.plan(&[grows(1, 2000.0)], 0), ["Growth 1 262144"]);
    table.0.start(key(1), "x", None, now(1));
    assert_eq!(table.done(1, None), ["Probes 1 65536"]);
    assert!(table.plan(&[grows(1, 2000.0)], 2).is_empty());
    assert_eq!(table.0.tracing(key(1), 0).suspect, None);
    // Nor that of what has a profile of its own: it may have become such a program.
    assert_eq!(table.plan(&[grows(2, 2000.0)], 0), ["Growth 2 262144"]);
    let own = Candidate {
        has_own_profile: true,
        ..grows(2, 2000.0)
    };
    assert_eq!(table.plan(&[own], 3), ["release 2"]);
}

#[test]
fn the_growth_of_what_cannot_be_traced_is_sampled_still() {
    let mut table = Table::new(sampling());
    table.0.start(key(1), "x", None, now(0));
    table.done(0, Some("no known allocator"));
    assert_eq!(table.plan(&[grows(1, 2000.0)], 1), ["Growth 1 262144"]);
    let told = table.0.tracing(key(1), 0);
    assert_eq!(
        (told.state, told.reason.as_str()),
        (api::TraceState::Refused, "no known allocator")
    );
    assert!(told.suspect.is_some());
}

#[test]
fn a_refusal_to_sample_growth_is_remembered_for_a_while() {
    let mut table = Table::new(sampling());
    let all = [grows(1, 2000.0)];
    table.0.plan(&all, now(0));
    assert_eq!(table.done(0, Some("gone")), ["Growth 1 262144"]);
    assert!(table.plan(&all, 1).is_empty());
    assert_eq!(table.plan(&all, 600), ["Growth 1 262144"]);
    assert!(table.0.gone(key(1)));
    assert!(!table.0.gone(key(1)));
}

#[test]
fn no_growth_is_sampled_for_a_while_after_it_cost_too_much() {
    let mut table = Table::new(sampling());
    table.plan(&[grows(1, 2000.0)], 0);
    assert!(table.0.pause_growth_sampling(now(5)));
    assert_eq!(table.done(5, None), ["release 1"]);
    let others = [grows(1, 2000.0), grows(2, 3000.0)];
    assert!(table.plan(&others, 604).is_empty());
    assert_eq!(table.plan(&others, 605), ["Growth 2 262144", "Growth 1 262144"]);
}

#[test]
fn a_lower_limit_of_growth_samples_holds_at_once() {
    let mut table = Table::new(sampling());
    table.plan(&[grows(1, 2000.0), grows(2, 3000.0)], 0);
    table.plan(&[grows(1, 2000.0), grows(2, 0.0)], 9);
    table.0.configure(Settings {
        growth_samples: 0,
        ..sampling()
    });
    assert_eq!(
        table.plan(&[grows(1, 2000.0), grows(2, 0.0)], 10),
        ["release 2", "release 1"]
    );
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A look, with the growth of each process and whether a rule names it.
    Plan([(f64, bool); PROCESSES]),
    Start(usize),
    Stop(usize),
    Gone(usize),
    Detach(usize),
    Interval(usize),
    PauseGrowth,
    Limits(usize, usize),
    /// The engine comes to the end of a command; what it attaches to is there, or not.
    Engine(bool),
    /// The controller hears an answer.
    Hear,
    Seconds(u32),
}

const PROCESSES: usize = 4;

fn event() -> impl Strategy<Value = Event> {
    let growth = prop_oneof![Just(0.0), Just(500.0), 2000.0..9000.0];
    let process = || 0..PROCESSES;
    prop_oneof![
        6 => prop::array::uniform4((growth, prop::bool::weighted(0.2))).prop_map(Event::Plan),
        3 => process().prop_map(Event::Start),
        2 => process().prop_map(Event::Stop),
        1 => process().prop_map(Event::Gone),
        1 => process().prop_map(Event::Detach),
        1 => process().prop_map(Event::Interval),
        1 => Just(Event::PauseGrowth),
        1 => (0usize..4, 0usize..4).prop_map(|(traced, sampled)| Event::Limits(traced, sampled)),
        8 => prop::bool::weighted(0.7).prop_map(Event::Engine),
        6 => Just(Event::Hear),
        4 => prop_oneof![0u32..40, 100u32..700].prop_map(Event::Seconds),
    ]
}

enum Answer {
    Attached(ProcessKey, u64, Result<(), String>),
    Released(ProcessKey, u64),
}

/// The table, and an engine that may be as slow as it likes.
struct World {
    control: Control,
    now: u32,
    /// Start times of the processes: another one takes the pid of one that is gone.
    alive: [u64; PROCESSES],
    commands: VecDeque<Command>,
    answers: VecDeque<Answer>,
    kernel: HashMap<ProcessKey, Mode>,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            growth_samples: 2,
            ..settings()
        };
        Self {
            control: Control::new(settings, 99),
            now: 0,
            alive: [1; PROCESSES],
            commands: VecDeque::new(),
            answers: VecDeque::new(),
            kernel: HashMap::new(),
        }
    }

    fn key(&self, process: usize) -> ProcessKey {
        ProcessKey {
            pid: process as u32,
            start_time: self.alive[process],
        }
    }

    fn happens(&mut self, event: Event) {
        let now = now(self.now);
        match event {
            Event::Plan(seen) => {
                let candidate = |(process, (per_hour, named)): (usize, (f64, bool))| Candidate {
                    key: self.key(process),
                    rule: named.then_some(("named", None)),
                    ..grows(0, per_hour)
                };
                let candidates: Vec<_> = seen.into_iter().enumerate().map(candidate).collect();
                self.control.plan(&candidates, now);
            }
            Event::Start(process) => self.control.start(self.key(process), "x", None, now),
            Event::Stop(process) => {
                self.control.stop(self.key(process), now);
            }
            Event::Gone(process) => {
                self.control.gone(self.key(process));
                self.alive[process] += 1;
            }
            Event::Detach(process) => self.control.detach(self.key(process), "expensive".to_owned(), now),
            Event::Interval(process) => {
                self.control
                    .set_interval(self.key(process), 4096, "expensive".to_owned(), now);
            }
            Event::PauseGrowth => {
                self.control.pause_growth_sampling(now);
            }
            Event::Limits(max_processes, growth_samples) => self.control.configure(Settings {
                max_processes,
                growth_samples,
                ..settings()
            }),
            Event::Engine(is_there) => self.engine(is_there),
            Event::Hear => match self.answers.pop_front() {
                Some(Answer::Attached(key, number, result)) => self.control.attached(key, number, result, now),
                Some(Answer::Released(key, number)) => {
                    self.control.released(key, number);
                }
                None => {}
            },
            Event::Seconds(seconds) => self.now += seconds,
        }
        for command in self.control.commands() {
            if let Command::Attach { key, number, .. } = &command {
                self.control.begun(*key, *number, now);
            }
            self.commands.push_back(command);
        }
    }

    /// As `trace::engine` does it.
    fn engine(&mut self, is_there: bool) {
        match self.commands.pop_front() {
            Some(Command::Attach {
                key,
                mode,
                number,
                settlement,
                ..
            }) => {
                let known = self.kernel.get(&key) == Some(&mode);
                if !known {
                    self.kernel.remove(&key);
                }
                let result = if known || is_there {
                    self.kernel.insert(key, mode);
                    Ok(())
                } else {
                    Err("it is not there".to_owned())
                };
                if settlement.claim() {
                    self.answers.push_back(Answer::Attached(key, number, result));
                } else {
                    self.kernel.remove(&key);
                }
            }
            Some(Command::Release { key, number, .. }) => {
                self.kernel.remove(&key);
                self.answers.push_back(Answer::Released(key, number));
            }
            Some(Command::Interval { key, .. }) => {
                assert_ne!(
                    self.kernel.get(&key),
                    Some(&Mode::Growth),
                    "only probes have an interval to change"
                );
            }
            None => {}
        }
    }

    /// What the kernel has of a process when the engine has done all commands, if attaching succeeds; and whether an
    /// attempt was answered already.
    fn to_come(&self, key: ProcessKey, attempt: u64) -> (Option<Mode>, bool) {
        let mut mode = self.kernel.get(&key).copied();
        for command in &self.commands {
            match command {
                Command::Attach {
                    key: of,
                    mode: wanted,
                    settlement,
                    ..
                } if *of == key => {
                    // Taken, it can only be by who gave it up.
                    mode = (!settlement.is_claimed()).then_some(*wanted);
                }
                Command::Release { key: of, .. } if *of == key => mode = None,
                _ => {}
            }
        }
        let is_it = |answer: &Answer| matches!(answer, Answer::Attached(_, number, _) if *number == attempt);
        (mode, self.answers.iter().any(is_it))
    }

    fn check(&self) {
        let mut keys: Vec<ProcessKey> = self.control.entries.keys().copied().collect();
        keys.extend(self.kernel.keys());
        for key in keys {
            let state = self.control.state(key);
            match state {
                State::Attaching(attempt) => {
                    let (mode, is_answered) = self.to_come(key, attempt.number);
                    assert!(
                        is_answered || mode == Some(attempt.mode),
                        "{key:?}: {state:?}, but {mode:?} in the kernel"
                    );
                }
                state => {
                    let (mode, _) = self.to_come(key, 0);
                    assert_eq!(state.mode(), mode, "{key:?}: {state:?}");
                }
            }
        }
        assert!(self.control.entries.keys().all(|key| key.pid != 99));
    }

    /// Until the engine has nothing to do, and all is heard.
    fn come_to_rest(&mut self) {
        while !(self.commands.is_empty() && self.answers.is_empty()) {
            self.happens(Event::Engine(true));
            self.happens(Event::Hear);
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_kernel_has_what_the_table_says_in_any_order_of_events(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in events {
            world.happens(event);
            world.check();
        }
        world.come_to_rest();
        let told: HashMap<ProcessKey, Mode> = world.control.observed().collect();
        prop_assert_eq!(&told, &world.kernel);
        // And when all have ended, nothing stays behind.
        (0..PROCESSES).for_each(|process| world.happens(Event::Gone(process)));
        world.come_to_rest();
        prop_assert!(world.kernel.is_empty());
        prop_assert!(world.control.entries.is_empty(), "{:?}", world.control.entries);
    }
}
