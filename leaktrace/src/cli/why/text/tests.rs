use super::*;
use crate::cli::why::answer::{Change, Child, Goroutines, Loss, Native};

const MIB: i64 = 1 << 20;

fn change(before: i64, after: i64) -> Change {
    Change {
        before: before.unsigned_abs() << 20,
        after: after.unsigned_abs() << 20,
        growth: (after - before) * MIB,
        per_minute: (after - before) * 2 * MIB,
    }
}

fn row(kind: &str, title: &str, before: i64, after: i64) -> Row {
    Row {
        kind: kind.to_owned(),
        title: title.to_owned(),
        bytes: change(before, after),
    }
}

fn site(heap: &str, function: &str, bytes: i64) -> Site {
    Site {
        heap: heap.to_owned(),
        function: function.to_owned(),
        file: "/src/app.c".to_owned(),
        line: 12,
        module: "app".to_owned(),
        callers: vec!["handle_request".to_owned(), "main".to_owned()],
        bytes: bytes * MIB,
        objects: bytes,
        per_minute: bytes * 2 * MIB,
    }
}

fn leak() -> Answer {
    Answer {
        version: 1,
        pid: 7,
        comm: "app\u{1b}[2J".to_owned(),
        seconds: 30.0,
        ended: false,
        verdict: "grows_steadily",
        grows: true,
        resident: change(100, 180),
        peak: 181 << 20,
        explained_by_kind: Some(1.0),
        explained_by_stack: Some(0.97),
        kinds: vec![
            row("heap_brk", "native heap (brk)", 20, 99),
            row("thread_stacks", "thread stacks", 1, 2),
            row("file_clean", "files, unchanged", 79, 79),
        ],
        beside: vec![row("page_tables", "page tables", 1, 1)],
        native: Some(Native {
            outstanding: 78 * MIB,
            blocks: 78,
            held_at_least: None,
        }),
        runtime: None,
        sites: vec![
            site("native", "keep", 77),
            site("native", "other", 1),
            site("resident", "keep", 79),
        ],
        goroutines: Vec::new(),
        children: Vec::new(),
        losses: Vec::new(),
        notes: Vec::new(),
        next: "leaktrace record -p 7 -d 2m".to_owned(),
    }
}

#[test]
fn a_leak_on_one_screen() {
    insta::assert_snapshot!(text(&leak()), @r"
    pid 7 (app\u{1b}[2J): 30.0 s
    resident 100MB -> 180MB: +80MB (+160MB a minute), at most 181MB
    verdict: grows steadily: it went on for the whole time
    explained 100 % of the growth, 97 % of it with a stack

        GROWTH     A MINUTE        NOW  WHERE IT IS
         +79MB       +158MB       99MB  native heap (brk)
          +1MB         +2MB        2MB  thread stacks
             0            0       79MB  files, unchanged
             0            0        1MB  beside it: page tables

         BYTES     A MINUTE     BLOCKS  BY WHOM: allocated meanwhile and not freed (native)
         +77MB       +154MB         77  keep app.c:12 <- handle_request <- main
          +1MB         +2MB          1  other app.c:12 <- handle_request <- main

    Losses: none
    next: leaktrace record -p 7 -d 2m
    ");
}

#[test]
fn fragmentation_children_goroutines_and_losses_are_told() {
    let answer = Answer {
        verdict: "one_step",
        native: Some(Native {
            outstanding: 0,
            blocks: 0,
            held_at_least: Some(70 * MIB),
        }),
        sites: vec![site("resident", "load_batch", 79)],
        goroutines: vec![Goroutines {
            function: "main.serve".to_owned(),
            file: "/src/main.go".to_owned(),
            line: 40,
            count: 500,
            growth: 300,
        }],
        children: vec![Child {
            pid: 9,
            comm: "worker".to_owned(),
            resident: 300 << 20,
            growth: 200 * MIB,
            verdict: "grows_steadily",
        }],
        losses: vec![Loss {
            name: "alloc_lost".to_owned(),
            count: 3,
            meaning: "the ring buffer was full".to_owned(),
        }],
        notes: vec!["something".to_owned()],
        ..leak()
    };
    let text = text(&answer);
    for expected in [
        "of that at least 70MB is in no block: free, fragmented, or taken by brk itself",
        "BY WHOM: became resident (first touched) meanwhile",
        "load_batch app.c:12",
        "+300          500             main.serve main.go:40",
        "A CHILD GROWS MORE: pid 9 (worker) by +200MB, grows steadily",
        "note: something\nLosses: 3 alloc_lost (the ring buffer was full)\n",
        "verdict: one step",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn many_kinds_are_joined() {
    let kinds: Vec<Row> = (0..30)
        .map(|index| row(&format!("k{index}"), &format!("kind {index}"), index, index))
        .collect();
    let text = text(&Answer { kinds, ..leak() });
    assert!(text.contains("20 more kinds"), "{text}");
    assert!(text.lines().count() < 32, "one screen");
}
