//! Plain tables.

use super::{
    super::{
        batch::{Options, page},
        columns::{COLUMNS, Column, layout},
        source::{Order, Query, Source, SourceError},
    },
    HOSTILE, details, goroutines, process, processes, stacks, status, timeline, top,
};
use crate::api;

/// A source that knows everything.
pub(super) struct Fixed;

impl Source for Fixed {
    fn title(&self) -> String {
        "fixed".to_owned()
    }
    fn status(&mut self) -> Result<api::Status, SourceError> {
        Ok(api::Status {
            troubles: vec![HOSTILE.to_owned()],
            ..status()
        })
    }
    fn processes(&mut self, _: &Order) -> Result<api::Processes, SourceError> {
        Ok(processes())
    }
    fn details(&mut self, pid: u32) -> Result<api::Details, SourceError> {
        Ok(details(pid))
    }
    fn timeline(&mut self, _: u32) -> Result<api::Timeline, SourceError> {
        Ok(timeline())
    }
    fn top(&mut self, _: u32, _: &Query) -> Result<api::Top, SourceError> {
        Ok(top())
    }
    fn stacks(&mut self, _: u32, _: &Query) -> Result<api::Stacks, SourceError> {
        Ok(stacks())
    }
    fn goroutines(&mut self, _: u32) -> Result<api::Goroutines, SourceError> {
        Ok(goroutines())
    }
    fn trace(&mut self, _: u32, _: bool) -> Result<api::Tracing, SourceError> {
        Err(SourceError::Nothing("not here".to_owned()))
    }
}

#[test]
fn table() {
    let options = |width| Options {
        column: Column::Growth,
        filter: String::new(),
        width,
    };
    let text = page(&mut Fixed, &options(120)).expect("a source that never fails");
    insta::assert_snapshot!(text, @r###"
    host\u{1b}]0;x\u{7}: 4 of 4 processes, 1 traced; leaktrace takes 0.4% of a CPU, its probes 1.2%, 38.0M of memory
    ! \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m
      PID USER         COMM                       RSS  ANON  SWAP GROWTH/h TRACKED GO HEAP STATE   TREND
    31337 service      leaky                    96.0M 48.0M     0   +48.0M   40.0M       - traced  ▁▃▅█
        1 service      systemd                  12.0M 6.00M     0        0       -       - watched ▁▃▅█
     4242 service      gopher                   64.0M 32.0M     0    -977K       -   20.0M watched ▁▃▅█
      666 \u{1b}[2J\u… \u{1b}[2J\u{7}a\u{a}b\u… 3.00G 1.50G 1.00G        -       -       - refused ▁▃▅█
    "###);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
}

#[test]
fn columns_fit_any_width() {
    let mut long = process(
        4_194_304,
        &"λ".repeat(300),
        u64::MAX,
        Some(-1e18),
        api::TraceState::Detached,
    );
    long.identity.user = Some("名".repeat(90));
    let mut rows = processes().processes;
    rows.push(long);
    for width in 3..400 {
        let columns = layout(&rows, width);
        let used: usize = columns.iter().map(|(_, width)| width + 1).sum::<usize>() - 1;
        assert!(used <= width, "{used} > {width}");
    }
    assert_eq!(layout(&rows, 200).len(), COLUMNS.len());
    assert_eq!(
        layout(&processes().processes, 80).len(),
        COLUMNS.len(),
        "all columns fit an ordinary terminal"
    );
}
