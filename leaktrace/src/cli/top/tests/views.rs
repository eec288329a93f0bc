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
    insta::assert_snapshot!(Stage::list().show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    4 of 4 processes, largest GROWTH/h first
      PID USER    COMM       RSS  ANON  SWAP GROWTH/h TRACKED GO HEAP STATE   TREND
    31337 service leaky    96.0M 48.0M     0   +48.0M   40.0M       - traced  ▁▃▅█
        1 service systemd  12.0M 6.00M     0        0       -       - watched ▁▃▅█
     4242 service gopher   64.0M 32.0M     0    -977K       -   20.0M watched ▁▃▅█
      666 \u{1b}… \u{1b}[… 3.00G 1.50G 1.00G        -       -       - refused ▁▃▅█
















    ? help  Enter process  s sort  r reverse  / filter  t trace  g goroutines  q qu…
    "###);
    insta::assert_snapshot!(Stage::list().show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    4 of 4 processes, largest GROWTH/h first
      PID USER         COMM                       RSS  ANON  SWAP GROWTH/h TRACKED GO HEAP STATE   TREND
    31337 service      leaky                    96.0M 48.0M     0   +48.0M   40.0M       - traced  ▁▃▅█
        1 service      systemd                  12.0M 6.00M     0        0       -       - watched ▁▃▅█
     4242 service      gopher                   64.0M 32.0M     0    -977K       -   20.0M watched ▁▃▅█
      666 \u{1b}[2J\u… \u{1b}[2J\u{7}a\u{a}b\u… 3.00G 1.50G 1.00G        -       -       - refused ▁▃▅█
































    ? help  Enter process  s sort  r reverse  / filter  t trace  g goroutines  q quit
    "###);
    insta::assert_snapshot!(Stage::list().show(20, 5), @r###"
    leaktrace host\u{1b…
    4 of 4 processes, l…
      PID GROWTH/h
    31337   +48.0M
    ? help  Enter proce…
    "###);
}

#[test]
fn process() {
    insta::assert_snapshot!(Stage::process(31337).show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2%
    cpu, a sample per 512K)
    • rss 89.5M  ⠒ anon 49.5M  ▀ tracked 14.8M  59m00s to now
    93.6M│                                                        ••••••••••••••••••
         │••••••••••••••••••••••••••••••••••••••••••••••••••••••••
         │                                                ⢀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⡠⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠒⠒
         │ ⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠔⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠁
    3.66M│⠉                                     ▄▄▄▄▄▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀
    in use, native and Go: 131B in 5 functions; \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}…
      flat flat%    cum  cum% function
      100B   76%   100B   76% cache  cache.c:12
       20B   15%    20B   15% grow\u{1b}[31m  cache.c:7
       10B  7.6%    30B   23% parse  cache.c:40
        1B  0.8%   131B  100% main  cache.c:3
         0    0%   130B   99% a_function_with_a_…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx



    ? help  Esc back  Enter function  v tree  / filter  c cum  h heap  a alloc  t t…
    "###);
    insta::assert_snapshot!(Stage::process(31337).show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2% cpu, a sample per 512K)
    • rss 89.5M  ⠒ anon 49.5M  ▀ tracked 14.8M  59m00s to now
    93.6M│
         │                                                                                  ••••••••••••••••••••••••••••••••
         │                                                    ••••••••••••••••••••••••••••••
         │                   •••••••••••••••••••••••••••••••••
         │•••••••••••••••••••
         │                                                                                                               ⣀⣀⣀
         │                                                                                ⢀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠤⠤⠤⠤⠔⠒⠒⠒⠒⠒⠒⠒⠊⠉⠉⠉⠉⠉⠉⠉
         │                                                   ⢀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠤⠤⠤⠤⠤⠒⠒⠒⠒⠒⠒⠒⠊⠉⠉⠉⠉⠉⠁
         │                      ⢀⣀⣀⣀⣀⣀⣀⣀⡠⠤⠤⠤⠤⠤⠒⠒⠒⠒⠒⠒⠒⠊⠉⠉⠉⠉⠉⠉⠉⠁
         │⠤⠤⠤⠤⠤⠤⠤⠒⠒⠒⠒⠒⠒⠒⠒⠉⠉⠉⠉⠉⠉⠉⠁
         │                                                                           ▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▀▀▀▀▀▀▀▀▀▀▀
    3.66M│                                                           ▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀
    in use, native and Go: 131B in 5 functions; \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m
      flat flat%    cum  cum% function
      100B   76%   100B   76% cache  cache.c:12
       20B   15%    20B   15% grow\u{1b}[31m  cache.c:7
       10B  7.6%    30B   23% parse  cache.c:40
        1B  0.8%   131B  100% main  cache.c:3
         0    0%   130B   99% a_function_with_a_very_long_nam…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx













    ? help  Esc back  Enter function  v tree  / filter  c cum  h heap  a alloc  t trace  q quit
    "###);
    insta::assert_snapshot!(Stage::process(31337).show(20, 5), @r###"
    leaktrace host\u{1b…
    pid 31337 leaky  us…
    rss 96.0M  anon 48.…
    traced: anonymous m…
    ? help  Esc back  E…
    "###);
    insta::assert_snapshot!(Stage::process(666).show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    pid 666 \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m  user \u{1b}[2J\u{7}a\u{a}b\u{202…
    /usr/bin/\u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m --serve
    /usr/bin/\u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m  unit \u{1b}[2J\u{7}a\u{a}b\u{20…
    rss 3.00G  anon 1.50G  swap 1.00G
    refused: \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}1m
    • rss 89.5M  ⠒ anon 49.5M  ▀ tracked 14.8M  59m00s to now
    93.6M│                                                        ••••••••••••••••••
         │••••••••••••••••••••••••••••••••••••••••••••••••••••••••
         │                                                ⢀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⡠⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠒⠒
         │ ⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠤⠔⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠒⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠁
    3.66M│⠉                                     ▄▄▄▄▄▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀▀
    in use, native and Go: 131B in 5 functions; \u{1b}[2J\u{7}a\u{a}b\u{202e}\u{9b}…
      flat flat%    cum  cum% function
      100B   76%   100B   76% cache  cache.c:12
       20B   15%    20B   15% grow\u{1b}[31m  cache.c:7
       10B  7.6%    30B   23% parse  cache.c:40
        1B  0.8%   131B  100% main  cache.c:3
         0    0%   130B   99% a_function_with_a_…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx




    ? help  Esc back  Enter function  v tree  / filter  c cum  h heap  a alloc  t t…
    "###);
}

#[test]
fn callers_and_callees() {
    insta::assert_snapshot!(calls().show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2%
    cpu, a sample per 512K)
    in use, native and Go: 131B
       calls calls%  function
         30B   100%  ↑ serve
         30B    23%  parse  (flat 10B, 7.6%)
         20B    67%    ↓ grow\u{1b}[31m











    ? help  Esc back  Enter follow  v tree  h heap  a allocated  q quit
    "###);
    insta::assert_snapshot!(calls().show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2% cpu, a sample per 512K)
    in use, native and Go: 131B
       calls calls%  function
         30B   100%  ↑ serve
         30B    23%  parse  (flat 10B, 7.6%)
         20B    67%    ↓ grow\u{1b}[31m




























    ? help  Esc back  Enter follow  v tree  h heap  a allocated  q quit
    "###);
    insta::assert_snapshot!(calls().show(20, 5), @r###"
    leaktrace host\u{1b…
    pid 31337 leaky  us…
    rss 96.0M  anon 48.…
    traced: anonymous m…
    ? help  Esc back  E…
    "###);
}

#[test]
fn tree() {
    insta::assert_snapshot!(outline().show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2%
    cpu, a sample per 512K)
    in use, native and Go: 131B
       total      %     own  function
        131B   100%      1B  ▾ main
        130B    99%           ▾ serve
        100B    76%            ▸ serve
         30B    23%     10B    ▾ parse
         20B    15%     20B     · grow\u{1b}[31m









    ? help  Esc back  → ← open, close  Enter callers  h heap  a allocated  q quit
    "###);
    insta::assert_snapshot!(outline().show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    pid 31337 leaky  user service  build 0123456789ab…
    /usr/bin/leaky --serve
    /usr/bin/leaky  unit leaky.service
    rss 96.0M  anon 48.0M  swap 0  growth +48.0M/h  tracked 40.0M
    traced: anonymous memory grew by 48 MiB an hour for 10 minutes (12.3k/s, 1.2% cpu, a sample per 512K)
    in use, native and Go: 131B
       total      %     own  function
        131B   100%      1B  ▾ main
        130B    99%           ▾ serve
        100B    76%            ▸ serve
         30B    23%     10B    ▾ parse
         20B    15%     20B     · grow\u{1b}[31m


























    ? help  Esc back  → ← open, close  Enter callers  h heap  a allocated  q quit
    "###);
    insta::assert_snapshot!(outline().show(20, 5), @r###"
    leaktrace host\u{1b…
    pid 31337 leaky  us…
    rss 96.0M  anon 48.…
    traced: anonymous m…
    ? help  Esc back  →…
    "###);
}

#[test]
fn groups_of_goroutines() {
    insta::assert_snapshot!(groups().show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    pid 4242 gopher  user service  go1.24.1  build 0123456789ab…
    /usr/bin/gopher --serve
    /usr/bin/gopher  unit gopher.service
    rss 64.0M  anon 32.0M  swap 0  growth -977K/h  go heap 20.0M  goroutines 1200
    watched: anonymous memory grew by 48 MiB an hour for 10 minutes
    1200 goroutines in 2 groups
      count  stacks    wait state            function
       1190   2.32M   1h02m chan receive     runtime.gopark
         10   20.0K   1h02m select           runtime.gopark






    1190 × chan receive on 0xc000012060, ids 18 19
      runtime.gopark  main.go:17
      main.worker  main.go:17
      created by main.main  main.go:17



    ? help  Esc back  ↑ ↓ group  q quit
    "###);
    insta::assert_snapshot!(groups().show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    pid 4242 gopher  user service  go1.24.1  build 0123456789ab…
    /usr/bin/gopher --serve
    /usr/bin/gopher  unit gopher.service
    rss 64.0M  anon 32.0M  swap 0  growth -977K/h  go heap 20.0M  goroutines 1200
    watched: anonymous memory grew by 48 MiB an hour for 10 minutes
    1200 goroutines in 2 groups
      count  stacks    wait state            function
       1190   2.32M   1h02m chan receive     runtime.gopark
         10   20.0K   1h02m select           runtime.gopark














    1190 × chan receive on 0xc000012060, ids 18 19
      runtime.gopark  main.go:17
      main.worker  main.go:17
      created by main.main  main.go:17











    ? help  Esc back  ↑ ↓ group  q quit
    "###);
    insta::assert_snapshot!(groups().show(20, 5), @r###"
    leaktrace host\u{1b…
    pid 4242 gopher  us…
    rss 64.0M  anon 32.…
    watched: anonymous …
    ? help  Esc back  ↑…
    "###);
}

#[test]
fn help_of_keys() {
    insta::assert_snapshot!(help().show(80, 24), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    ↑ ↓  k j      move
    PgUp PgDn     move by a page
    Home End      first, last
    Enter         into a process, a function, a call
    Esc Backspace back
    s  > <        sort by the next column, the one before
    r             reverse the order
    /             filter while typing; Enter keeps it, Esc drops it
    t             begin or end tracing of the process
    h             heap: native and Go, native, Go
    a             in use, or allocated since tracing began
    c             table by flat or by cumulative weight
    g             goroutines
    v             function: callers and callees, or the tree
    → ← Space     tree: open, close
    Ctrl-L        draw anew
    Ctrl-Z        back to the shell; `fg` returns
    ?             this help
    q  Ctrl-C     end
                  flat: held by the function itself; cum: with what it called


    any key: back
    "###);
    insta::assert_snapshot!(help().show(120, 40), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu 0.4% + 1.2% probes  38.0M
    ↑ ↓  k j      move
    PgUp PgDn     move by a page
    Home End      first, last
    Enter         into a process, a function, a call
    Esc Backspace back
    s  > <        sort by the next column, the one before
    r             reverse the order
    /             filter while typing; Enter keeps it, Esc drops it
    t             begin or end tracing of the process
    h             heap: native and Go, native, Go
    a             in use, or allocated since tracing began
    c             table by flat or by cumulative weight
    g             goroutines
    v             function: callers and callees, or the tree
    → ← Space     tree: open, close
    Ctrl-L        draw anew
    Ctrl-Z        back to the shell; `fg` returns
    ?             this help
    q  Ctrl-C     end
                  flat: held by the function itself; cum: with what it called


















    any key: back
    "###);
    insta::assert_snapshot!(help().show(20, 5), @r###"
    leaktrace host\u{1b…
    ↑ ↓  k j      move
    PgUp PgDn     move b
    Home End      first,
    any key: back
    "###);
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
    insta::assert_snapshot!(stage.show(80, 10), @r###"
    leaktrace host\u{1b}]0;x\u{7}  /run/leaktrace.sock  4 processes, 1 traced  cpu …
    ! what shows is old, connecting again: failed to get an answer from the daemon
    at `/run/leaktrace.sock`: connection closed before message completed
    4 of 4 processes, largest GROWTH/h first
      PID USER    COMM       RSS  ANON  SWAP GROWTH/h TRACKED GO HEAP STATE   TREND
    31337 service leaky    96.0M 48.0M     0   +48.0M   40.0M       - traced  ▁▃▅█
        1 service systemd  12.0M 6.00M     0        0       -       - watched ▁▃▅█
     4242 service gopher   64.0M 32.0M     0    -977K       -   20.0M watched ▁▃▅█
      666 \u{1b}… \u{1b}[… 3.00G 1.50G 1.00G        -       -       - refused ▁▃▅█
    ? help  Enter process  s sort  r reverse  / filter  t trace  g goroutines  q qu…
    "###);
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
