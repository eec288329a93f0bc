//! Every view at every size.

use crossterm::event::KeyCode;
use ratatui::style::Color;

use super::{
    super::source::SourceError,
    super::worker::{Answer, Kind, Part},
    Stage, goroutines,
};
use crate::cli::top::state::Event;

fn calls() -> Stage {
    let mut stage = Stage::process(31337);
    stage.keys("jj").code(KeyCode::Enter);
    stage
}

fn outline() -> Stage {
    let mut stage = Stage::process(31337);
    stage.keys("jv");
    stage
}

fn groups() -> Stage {
    let mut stage = Stage::process(4242);
    stage.keys("g").answer(vec![Part::Goroutines(goroutines())]);
    stage
}

fn help() -> Stage {
    let mut stage = Stage::list();
    stage.keys("?");
    stage
}

#[test]
fn list() {
    insta::assert_snapshot!(Stage::list().show(80, 24), @"");
    insta::assert_snapshot!(Stage::list().show(120, 40), @"");
    insta::assert_snapshot!(Stage::list().show(20, 5), @"");
}

#[test]
fn process() {
    insta::assert_snapshot!(Stage::process(31337).show(80, 24), @"");
    insta::assert_snapshot!(Stage::process(31337).show(120, 40), @"");
    insta::assert_snapshot!(Stage::process(31337).show(20, 5), @"");
    insta::assert_snapshot!(Stage::process(666).show(80, 24), @"");
}

#[test]
fn callers_and_callees() {
    insta::assert_snapshot!(calls().show(80, 24), @"");
    insta::assert_snapshot!(calls().show(120, 40), @"");
    insta::assert_snapshot!(calls().show(20, 5), @"");
}

#[test]
fn tree() {
    insta::assert_snapshot!(outline().show(80, 24), @"");
    insta::assert_snapshot!(outline().show(120, 40), @"");
    insta::assert_snapshot!(outline().show(20, 5), @"");
}

#[test]
fn groups_of_goroutines() {
    insta::assert_snapshot!(groups().show(80, 24), @"");
    insta::assert_snapshot!(groups().show(120, 40), @"");
    insta::assert_snapshot!(groups().show(20, 5), @"");
}

#[test]
fn help_of_keys() {
    insta::assert_snapshot!(help().show(80, 24), @"");
    insta::assert_snapshot!(help().show(120, 40), @"");
    insta::assert_snapshot!(help().show(20, 5), @"");
}

#[test]
fn a_daemon_that_went_away() {
    let mut stage = Stage::list();
    stage.control('l');
    let later = stage.begin + stage.state.interval;
    stage.begin = later;
    stage.event(Event::Tick);
    let error = SourceError::Silent {
        socket: "/run/leaktrace.sock".into(),
        cause: "connection closed before message completed".to_owned(),
    };
    let number = stage.number;
    stage.event(Event::Answer(Answer::Failed(number, Kind::Processes, error)));
    insta::assert_snapshot!(stage.show(80, 10), @"");
    stage.event(Event::Answer(Answer::Done(number)));
    stage.begin += stage.state.interval;
    stage.event(Event::Tick);
    assert!(stage.number > number, "asked again");
    stage.answer(vec![Part::Status(super::status())]);
    assert_eq!(stage.state.lost, None);
}

#[test]
fn troubles_of_the_daemon_show() {
    let mut stage = Stage::list();
    stage.begin += stage.state.interval;
    stage.event(Event::Tick);
    let mut status = super::status();
    status.troubles = vec!["the disk is full\u{1b}[2J".to_owned(), "another".to_owned()];
    stage.answer(vec![Part::Status(status)]);
    let shown = stage.show(80, 10);
    assert!(shown.contains("! the disk is full\\u{1b}[2J (and 1 more)"), "{shown}");
}

#[test]
fn no_size_and_no_name_does_harm() {
    let stages: [fn() -> Stage; 8] = [
        Stage::list,
        || Stage::process(31337),
        || Stage::process(666),
        || Stage::process(4242),
        calls,
        outline,
        groups,
        help,
    ];
    for make in stages {
        let mut stage = make();
        for columns in (1..40).chain([79, 80, 81, 119, 200, 400]) {
            for rows in (1..30).chain([50, 100]) {
                let buffer = stage.buffer(columns, rows, true);
                for cell in buffer.content() {
                    let harmful = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}');
                    assert!(!cell.symbol().contains(harmful), "{:?}", cell.symbol());
                }
            }
        }
    }
}

#[test]
fn without_colours_there_are_none() {
    let mut stage = Stage::process(31337);
    let coloured = |stage: &mut Stage, colours| {
        let buffer = stage.buffer(100, 30, colours);
        let plain = |colour| matches!(colour, Color::Reset);
        buffer
            .content()
            .iter()
            .filter(|cell| !plain(cell.fg) || !plain(cell.bg))
            .count()
    };
    assert_eq!(coloured(&mut stage, false), 0);
    assert!(coloured(&mut stage, true) > 0);
}

#[test]
fn what_is_typed_shows() {
    let mut stage = Stage::list();
    stage.keys("/leak");
    let shown = stage.show(60, 8);
    assert!(shown.contains("1 of 4 processes match `leak`"), "{shown}");
    assert!(shown.ends_with("/leak█"), "{shown}");
}
