//! Keys and answers, one after the other, and what becomes of the state.

use std::time::Duration;

use crossterm::event::KeyCode;
use proptest::prelude::*;

use super::{
    super::{
        columns::Column,
        source::{Heap, Order, SourceError},
        state::{Effect, Event, View},
        worker::{Answer, Kind, Part, Scene},
    },
    Stage, details, goroutines, process, processes, stacks, top,
};
use crate::api;

fn shown(stage: &Stage) -> Vec<u32> {
    let state = &stage.state;
    state
        .shown
        .iter()
        .map(|index| state.processes[*index].identity.pid)
        .collect()
}

fn scene(stage: &Stage) -> Option<&Scene> {
    stage.effects.iter().find_map(|effect| match effect {
        Effect::Fetch(_, scene) => Some(scene),
        _ => None,
    })
}

#[test]
fn the_fastest_growth_comes_first_and_the_unknown_last() {
    let mut stage = Stage::list();
    assert_eq!(shown(&stage), [31337, 1, 4242, 666]);
    stage.keys("r");
    assert_eq!(shown(&stage), [666, 4242, 1, 31337]);
}

#[test]
fn columns_to_sort_by() {
    let mut stage = Stage::list();
    stage.keys("<<<");
    assert_eq!(stage.state.column, Column::Rss);
    assert_eq!(shown(&stage), [666, 31337, 4242, 1]);
    let order = Order {
        sort: "rss",
        ascending: false,
        filter: String::new(),
    };
    assert_eq!(scene(&stage), Some(&Scene::List(order)));
    stage.keys("<");
    assert_eq!(stage.state.column, Column::Comm);
    assert_eq!(shown(&stage), [666, 4242, 31337, 1]);
    stage.keys("<<");
    assert_eq!(
        (stage.state.column, shown(&stage)),
        (Column::Pid, vec![1, 666, 4242, 31337])
    );
    stage.keys("<");
    assert_eq!((stage.state.column, shown(&stage)[0]), (Column::State, 31337));
    stage.keys("s");
    assert_eq!(stage.state.column, Column::Pid);
}

#[test]
fn the_cursor_stays_with_its_process() {
    let mut stage = Stage::list();
    stage.keys("jj");
    assert_eq!(stage.state.selected().map(|process| process.identity.pid), Some(4242));
    stage.keys("r");
    assert_eq!(stage.state.selected().map(|process| process.identity.pid), Some(4242));
    stage.keys("/gopher").code(KeyCode::Enter);
    assert_eq!(shown(&stage), [4242]);
    // Esc drops the filter, and goes no further.
    stage.code(KeyCode::Esc);
    assert_eq!(shown(&stage).len(), 4);
    assert_eq!(stage.state.selected().map(|process| process.identity.pid), Some(4242));
    stage.code(KeyCode::Home);
    stage.code(KeyCode::Up);
    assert_eq!(stage.state.cursor.index(), 0);
    stage.code(KeyCode::End);
    assert_eq!(stage.state.cursor.index(), 3);
    stage.code(KeyCode::PageUp);
    assert_eq!(
        stage.state.cursor.index(),
        2,
        "nothing is drawn yet, so a page is one row"
    );
}

#[test]
fn a_filter_is_typed_and_not_obeyed() {
    let mut stage = Stage::list();
    stage.keys("/q?rt");
    assert_eq!((stage.state.filter.as_str(), shown(&stage).len()), ("q?rt", 0));
    stage.code(KeyCode::Backspace);
    assert_eq!(stage.state.filter, "q?r");
    stage.control('u');
    stage.event(Event::Paste("leak\u{1b}y\n".to_owned()));
    assert_eq!((stage.state.filter.as_str(), shown(&stage)), ("leaky", vec![31337]));
    stage.code(KeyCode::Esc);
    assert_eq!((stage.state.filter.as_str(), stage.state.typing), ("", false));
    stage.event(Event::Paste("q".to_owned()));
    assert_eq!(stage.effects, [], "pasted text is no key");
    for words in ["31337", "SERVICE", "traced", "--serve"] {
        stage.keys("/").keys(words);
        assert!(!shown(&stage).is_empty(), "{words}");
        stage.code(KeyCode::Esc);
    }
}

#[test]
fn into_a_process_and_a_stack_and_back() {
    let mut stage = Stage::list();
    stage.code(KeyCode::Enter);
    assert!(matches!(scene(&stage), Some(Scene::Process(31337, _))));
    stage.answer(vec![Part::Details(Box::new(details(31337))), Part::Top(top())]);
    stage.code(KeyCode::Enter);
    assert!(matches!(scene(&stage), Some(Scene::Stacks(31337, _))));
    let function = |stage: &Stage| match stage.state.view() {
        View::Calls { function, .. } => function.clone(),
        other => format!("{other:?}"),
    };
    assert_eq!(function(&stage), "cache");
    stage.answer(vec![Part::Stacks(stacks())]);
    // Up is its caller; that one's callee is itself, further down.
    stage.code(KeyCode::Home).code(KeyCode::Enter);
    assert_eq!(function(&stage), "serve");
    stage.keys("j").code(KeyCode::Enter);
    assert_eq!(function(&stage), "cache");
    stage.code(KeyCode::Backspace).code(KeyCode::Backspace);
    assert_eq!(function(&stage), "cache");
    stage.code(KeyCode::Esc);
    assert_eq!(stage.state.view(), &View::Process);
    stage.code(KeyCode::Esc);
    assert_eq!(stage.state.view(), &View::List);
    assert!(stage.state.subject.is_none() && matches!(scene(&stage), Some(Scene::List(_))));
    stage.code(KeyCode::Esc);
    assert_eq!((stage.state.views.len(), stage.effects.len()), (1, 0));
}

#[test]
fn the_tree_opens_and_closes() {
    let mut stage = Stage::process(31337);
    stage.keys("jjv");
    let rows = |stage: &Stage| stage.state.outline().map_or(0, |rows| rows.len());
    let function = |stage: &Stage| {
        let View::Outline { cursor, .. } = stage.state.view() else {
            return String::new();
        };
        let rows = stage.state.outline().unwrap_or_default();
        rows.get(cursor.index())
            .map(|row| row.function.clone())
            .unwrap_or_default()
    };
    assert_eq!((rows(&stage), function(&stage)), (5, "parse".to_owned()));
    stage.code(KeyCode::Left);
    assert_eq!((rows(&stage), function(&stage)), (4, "parse".to_owned()));
    stage.code(KeyCode::Left);
    assert_eq!(function(&stage), "serve");
    stage.keys(" ");
    assert_eq!(rows(&stage), 2);
    stage.code(KeyCode::Right).code(KeyCode::Right);
    assert_eq!(rows(&stage), 4);
    stage.code(KeyCode::Enter);
    assert!(matches!(stage.state.view(), View::Calls { function, .. } if function == "serve"));
    stage.keys("v");
    assert!(matches!(stage.state.view(), View::Outline { function: Some(function), .. } if function == "serve"));
}

#[test]
fn heap_and_values_ask_anew() {
    let mut stage = Stage::process(31337);
    stage.keys("h");
    assert_eq!(stage.state.query.heap, Heap::Native);
    let Some(Scene::Process(31337, query)) = scene(&stage) else {
        panic!("{:?}", stage.effects)
    };
    assert_eq!((query.heap.name(), query.sample_type()), ("native", "inuse_space"));
    assert!(stage.state.rows().is_empty(), "a table of other values is not shown");
    stage.keys("ha");
    let Some(Scene::Process(31337, query)) = scene(&stage) else {
        panic!("{:?}", stage.effects)
    };
    assert_eq!((query.heap.name(), query.sample_type()), ("go", "alloc_space"));
    stage.keys("c");
    assert!(stage.state.query.cumulative);
}

#[test]
fn an_answer_to_an_older_question_is_not_taken() {
    let mut stage = Stage::process(31337);
    let old = stage.number;
    stage.keys("h");
    stage.event(Event::Answer(Answer::Part(old, Box::new(Part::Top(top())))));
    assert!(stage.state.rows().is_empty());
}

#[test]
fn tracing_is_toggled_and_told() {
    let mut stage = Stage::list();
    stage.keys("t");
    assert_eq!(stage.effects, [Effect::Trace { pid: 31337, on: false }]);
    stage.keys("jt");
    assert_eq!(stage.effects, [Effect::Trace { pid: 1, on: true }]);
    let tracing = api::Tracing {
        state: api::TraceState::Traced,
        reason: "by hand\u{1b}[2J".to_owned(),
        ..details(31337).process.tracing
    };
    stage.event(Event::Answer(Answer::Traced {
        pid: 1,
        result: Ok(tracing),
    }));
    assert_eq!(stage.state.message.as_deref(), Some("pid 1: traced: by hand\\u{1b}[2J"));
    assert_eq!(
        stage.state.selected().map(|process| process.tracing.state),
        Some(api::TraceState::Traced)
    );
    let refused = SourceError::Refused {
        status: 409,
        message: "the budget does not allow it".to_owned(),
    };
    stage.event(Event::Answer(Answer::Traced {
        pid: 1,
        result: Err(refused),
    }));
    assert_eq!(stage.state.message.as_deref(), Some("the budget does not allow it"));
}

#[test]
fn goroutines_of_go_processes_alone() {
    let mut stage = Stage::list();
    stage.keys("g");
    assert_eq!(
        stage.state.message.as_deref(),
        Some("pid 31337 is no Go process that can be read")
    );
    stage.keys("jjg");
    assert_eq!(scene(&stage), Some(&Scene::Goroutines(4242)));
    stage.answer(vec![
        Part::Details(Box::new(details(4242))),
        Part::Goroutines(goroutines()),
    ]);
    stage.keys("jjjj");
    assert!(matches!(stage.state.view(), View::Goroutines { cursor } if cursor.index() == 1));
    stage.code(KeyCode::Esc);
    assert_eq!(stage.state.view(), &View::Process);
}

#[test]
fn a_pid_that_went_to_another_process() {
    let mut stage = Stage::process(31337);
    stage.begin += Duration::from_secs(2);
    stage.event(Event::Tick);
    let mut other = details(31337);
    other.process.identity.start_time += 1;
    stage.answer(vec![Part::Details(Box::new(other))]);
    assert_eq!(stage.state.message.as_deref(), Some("pid 31337 is another process now"));
    assert!(stage.state.rows().is_empty());
}

#[test]
fn a_process_that_is_gone_stays_readable() {
    let mut stage = Stage::process(31337);
    stage.begin += Duration::from_secs(2);
    stage.event(Event::Tick);
    let error = SourceError::Refused {
        status: 404,
        message: "pid 31337 is not known".to_owned(),
    };
    let number = stage.number;
    stage.event(Event::Answer(Answer::Failed(number, Kind::Details, error)));
    let state = stage
        .state
        .subject
        .as_ref()
        .and_then(|subject| subject.details.as_ref());
    assert_eq!(
        state.map(|details| details.process.tracing.state),
        Some(api::TraceState::Gone)
    );
    assert_eq!(stage.state.rows().len(), 5);
    stage.keys("t");
    assert_eq!(stage.effects, []);
}

#[test]
fn time_asks_once_per_interval_and_not_before_the_answer() {
    let mut stage = Stage::list();
    stage.event(Event::Tick);
    assert_eq!(stage.effects, []);
    stage.begin += Duration::from_secs(2);
    stage.event(Event::Tick);
    assert!(scene(&stage).is_some());
    stage.begin += Duration::from_secs(20);
    stage.event(Event::Tick);
    assert_eq!(stage.effects, [], "the answer is still under way");
}

#[test]
fn ways_to_end() {
    assert_eq!(Stage::list().keys("q").effects, [Effect::Quit]);
    assert_eq!(Stage::list().keys("/").control('c').effects, [Effect::Quit]);
    assert_eq!(Stage::list().event(Event::End).effects, [Effect::Quit]);
    assert_eq!(Stage::list().control('z').effects, [Effect::Suspend]);
    assert_eq!(Stage::list().keys("?q").effects, [Effect::Quit]);
    let mut stage = Stage::list();
    stage.state.looks = Some(1);
    stage.begin += Duration::from_secs(2);
    stage.event(Event::Tick);
    stage.answer(vec![Part::Processes(processes())]);
    assert_eq!(stage.effects, [Effect::Quit]);
}

#[test]
fn many_processes_are_no_trouble() {
    let mut stage = Stage::list();
    stage.begin += Duration::from_secs(2);
    stage.event(Event::Tick);
    let many = (1..5000).map(|pid| process(pid, "p", u64::from(pid), Some(f64::NAN), api::TraceState::Watched));
    stage.answer(vec![Part::Processes(api::Processes {
        time: 0,
        total: 4999,
        processes: many.collect(),
    })]);
    stage.code(KeyCode::End);
    assert_eq!(stage.state.cursor.index(), 4998);
    assert!(stage.show(80, 24).contains("4999"));
}

/// Any key.
fn code() -> impl Strategy<Value = KeyCode> {
    let named = prop::sample::select(vec![
        KeyCode::Up,
        KeyCode::Down,
        KeyCode::Left,
        KeyCode::Right,
        KeyCode::PageUp,
        KeyCode::PageDown,
        KeyCode::Home,
        KeyCode::End,
        KeyCode::Enter,
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Backspace,
        KeyCode::Tab,
        KeyCode::F(1),
    ]);
    let characters = prop::sample::select("sr<>/thagvcjk? λ".chars().collect::<Vec<_>>());
    prop_oneof![named, characters.prop_map(KeyCode::Char)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_order_of_keys_does_harm(codes in prop::collection::vec(code(), 0..60), columns in 1u16..100, rows in 1u16..40) {
        let mut stage = Stage::list();
        for code in codes {
            stage.code(code);
            if let Some(scene) = scene(&stage).cloned() {
                let pid = match scene {
                    Scene::List(_) => 1,
                    Scene::Process(pid, _) | Scene::Stacks(pid, _) | Scene::Goroutines(pid) => pid,
                };
                stage.answer(vec![
                    Part::Processes(processes()),
                    Part::Details(Box::new(details(pid))),
                    Part::Top(top()),
                    Part::Stacks(stacks()),
                    Part::Goroutines(goroutines()),
                ]);
            }
            stage.show(columns, rows);
            prop_assert!(!stage.state.views.is_empty());
            prop_assert_eq!(stage.state.views.len() == 1, stage.state.subject.is_none());
        }
    }
}
