//! Views, keys and sources, as a person meets them. Here are the processes that all of them show.

mod batch;
mod keys;
mod socket;
mod views;

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};

use super::{
    calls::tests::stacks,
    draw::{Theme, draw},
    state::{Effect, Event, State},
    worker::{Answer, Part},
};
use crate::api;

/// A name that tries everything.
const HOSTILE: &str = "\u{1b}[2J\u{7}a\nb\u{202e}\u{9b}1m";

fn process(pid: u32, comm: &str, rss: u64, growth: Option<f64>, state: api::TraceState) -> api::Process {
    api::Process {
        identity: api::Identity {
            pid,
            start_time: 100 + u64::from(pid),
            comm: comm.to_owned(),
            command_line: vec![format!("/usr/bin/{comm}"), "--serve".to_owned()],
            executable: Some(format!("/usr/bin/{comm}")),
            uid: 1000,
            user: Some("service".to_owned()),
            unit: Some(format!("{comm}.service")),
            build_id: Some("0123456789abcdef".to_owned()),
            ..api::Identity::default()
        },
        memory: api::Memory {
            rss,
            anonymous: rss / 2,
            swap: 0,
            growth,
            ..api::Memory::default()
        },
        tracing: api::Tracing {
            state,
            reason: "anonymous memory grew by 48 MiB an hour for 10 minutes".to_owned(),
            since: 0,
            sample_interval: None,
            cost: None,
            hits: None,
            suspect: None,
        },
        spark: vec![10 << 20, 20 << 20, 30 << 20, 40 << 20],
    }
}

fn processes() -> api::Processes {
    let mut leak = process(
        31337,
        "leaky",
        96 << 20,
        Some(48.0 * 1048576.0),
        api::TraceState::Traced,
    );
    leak.memory.tracked = Some(40 << 20);
    leak.tracing.hits = Some(12_345.0);
    leak.tracing.cost = Some(0.012);
    leak.tracing.sample_interval = Some(512 << 10);
    let mut gopher = process(4242, "gopher", 64 << 20, Some(-1e6), api::TraceState::Watched);
    gopher.identity.runtime = api::Runtime::Go;
    gopher.identity.runtime_version = Some("go1.24.1".to_owned());
    gopher.memory.go_heap = Some(20 << 20);
    gopher.memory.goroutines = Some(1200);
    let mut hostile = process(666, HOSTILE, 3 << 30, None, api::TraceState::Refused);
    hostile.identity.user = Some(HOSTILE.to_owned());
    hostile.identity.unit = Some(HOSTILE.to_owned());
    hostile.tracing.reason = HOSTILE.to_owned();
    hostile.memory.swap = 1 << 30;
    let processes = vec![
        process(1, "systemd", 12 << 20, Some(0.0), api::TraceState::Watched),
        hostile,
        gopher,
        leak,
    ];
    api::Processes {
        time: 0,
        total: processes.len(),
        processes,
    }
}

fn status() -> api::Status {
    api::Status {
        version: "0.1.0".to_owned(),
        host: "host\u{1b}]0;x\u{7}".to_owned(),
        processes: 4,
        traced: 1,
        own: api::Own {
            cpu: 0.004,
            rss: 38 << 20,
            probes: 0.012,
            ..api::Own::default()
        },
        ..api::Status::default()
    }
}

fn details(pid: u32) -> api::Details {
    let list = processes();
    let process = list.processes.into_iter().find(|process| process.identity.pid == pid);
    api::Details {
        process: process.expect("a process of the list"),
        decisions: Vec::new(),
    }
}

fn timeline() -> api::Timeline {
    let points = 0..60u64;
    let column = |value: fn(u64) -> u64| points.clone().map(value).collect::<Vec<u64>>();
    api::Timeline {
        time: column(|point| point * 60_000_000_000),
        rss: column(|point| (60 << 20) + (point << 19)),
        anonymous: column(|point| (20 << 20) + (point << 19)),
        swap: column(|_| 0),
        tracked: points
            .clone()
            .map(|point| (point > 30).then_some(point << 18))
            .collect(),
        go_heap: vec![None; 60],
        goroutines: vec![None; 60],
        collections: Vec::new(),
    }
}

fn top() -> api::Top {
    let row = |function: &str, line, flat, cum| api::TopRow {
        frame: api::Frame {
            function: function.to_owned(),
            file: Some("/src/cache.c".to_owned()),
            line: Some(line),
        },
        flat,
        cum,
    };
    api::Top {
        sample_type: "inuse_space".to_owned(),
        total: 131,
        rows_total: 5,
        rows: vec![
            row("cache", 12, 100, 100),
            row("grow\u{1b}[31m", 7, 20, 20),
            row("parse", 40, 10, 30),
            row("main", 3, 1, 131),
            row(
                &format!("a_function_with_a_very_long_name_{}", "x".repeat(100)),
                90,
                0,
                130,
            ),
        ],
        comments: vec![HOSTILE.to_owned()],
    }
}

fn goroutines() -> api::Goroutines {
    let frame = |function: &str| api::Frame {
        function: function.to_owned(),
        file: Some("/src/main.go".to_owned()),
        line: Some(17),
    };
    let group = |count, reason: &str, function: &str| api::GoroutineGroup {
        count,
        state: "waiting".to_owned(),
        wait_reason: Some(reason.to_owned()),
        longest_wait: Some(3_725_000_000_000),
        stack_bytes: count * 2048,
        channel: Some(0x00c0_0001_2060),
        stack: vec![frame("runtime.gopark"), frame(function)],
        created_by: Some(frame("main.main")),
        ids: vec![18, 19],
    };
    api::Goroutines {
        total: 1200,
        groups: vec![group(1190, "chan receive", "main.worker"), group(10, "select", HOSTILE)],
    }
}

/// Events to a state, as the program would bring them; time stands still.
struct Stage {
    state: State,
    begin: Instant,
    number: u64,
    effects: Vec<Effect>,
}

impl Stage {
    /// The list, answered.
    fn list() -> Self {
        let mut stage = Self {
            state: State::new("/run/leaktrace.sock".to_owned(), Duration::from_secs(2), None),
            begin: Instant::now(),
            number: 0,
            effects: Vec::new(),
        };
        stage.event(Event::Tick);
        stage.answer(vec![Part::Processes(processes()), Part::Status(status())]);
        stage
    }

    /// A process with everything about it, chosen from the list.
    fn process(pid: u32) -> Self {
        let mut stage = Self::list();
        stage.state.enter(pid, 100 + u64::from(pid));
        stage.event(Event::Key(KeyEvent::from(KeyCode::Char('a'))));
        stage.event(Event::Key(KeyEvent::from(KeyCode::Char('a'))));
        stage.answer(vec![
            Part::Details(Box::new(details(pid))),
            Part::Timeline(timeline()),
            Part::Top(top()),
            Part::Stacks(stacks()),
        ]);
        stage
    }

    fn event(&mut self, event: Event) -> &mut Self {
        let effects = self.state.update(event, self.begin);
        for effect in &effects {
            if let Effect::Fetch(number, _) = effect {
                self.number = *number;
            }
        }
        self.effects = effects;
        self
    }

    fn code(&mut self, code: KeyCode) -> &mut Self {
        self.event(Event::Key(KeyEvent::from(code)))
    }

    /// Types text, one key after the other.
    fn keys(&mut self, text: &str) -> &mut Self {
        text.chars().for_each(|c| {
            self.code(KeyCode::Char(c));
        });
        self
    }

    fn control(&mut self, c: char) -> &mut Self {
        self.event(Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)))
    }

    /// Answers the last question.
    fn answer(&mut self, parts: Vec<Part>) -> &mut Self {
        let number = self.number;
        for part in parts {
            self.event(Event::Answer(Answer::Part(number, Box::new(part))));
        }
        self.event(Event::Answer(Answer::Done(number)))
    }

    fn buffer(&mut self, columns: u16, rows: u16, colours: bool) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).expect("nothing can fail in memory");
        terminal
            .draw(|frame| draw(frame, &mut self.state, Theme { colours }))
            .expect("nothing can fail in memory");
        terminal.backend().buffer().clone()
    }

    /// What shows, without blanks at the ends.
    fn show(&mut self, columns: u16, rows: u16) -> String {
        let buffer = self.buffer(columns, rows, false);
        let lines: Vec<String> = (0..rows)
            .map(|row| {
                let line: String = (0..columns).map(|column| buffer[(column, row)].symbol()).collect();
                line.trim_end().to_owned()
            })
            .collect();
        lines.join("\n").trim_end().to_owned()
    }
}
