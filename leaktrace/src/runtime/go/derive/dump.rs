//! The goroutine dump in the text layout of the runtime's own (`runtime.Stack`, SIGQUIT).
//!
//! Arguments are not read: `(...)` stands for them, as the runtime itself prints for inlined calls.

use std::fmt::Write as _;

use super::stacks::Symbolizer;
use crate::proc::memory::MemoryReader;
use crate::runtime::go::goroutines::{Goroutine, StackState, Status};
use crate::runtime::go::pclntab::{PclnTable, without_type_arguments};
use crate::runtime::go::process::GoProcess;

/// Frames that are shown of one goroutine; half of them from each end.
const MAX_SHOWN: usize = 100;

/// The goroutine runs the runtime's own code only; dumps and profiles leave it out.
pub fn is_system(symbolizer: &Symbolizer<'_>, goroutine: &Goroutine) -> bool {
    let table = symbolizer.table();
    let Some(function) = table.function_at(goroutine.start_pc) else {
        return false;
    };
    let name = table.name(&function);
    let own = ["runtime.main", "runtime.handleAsyncEvent", "runtime.corostart"];
    name.starts_with("runtime.") && !own.contains(&&*name)
}

/// Words between the brackets: `chan receive, 5 minutes, locked to thread`. `now` is the monotonic clock.
pub fn status_text<M: MemoryReader>(process: &GoProcess<M>, goroutine: &Goroutine, now: u64) -> String {
    let mut text = process.wait_text(goroutine).to_owned();
    if goroutine.status == Status::Leaked {
        text += " (leaked)";
    }
    if goroutine.scanning {
        text += " (scan)";
    }
    let waits = matches!(goroutine.status, Status::Waiting | Status::Syscall) && goroutine.wait_since != 0;
    let minutes = now.saturating_sub(goroutine.wait_since) / 60_000_000_000;
    if waits && minutes >= 1 {
        let _ = write!(text, ", {minutes} minutes");
    }
    if goroutine.locked {
        text += ", locked to thread";
    }
    text
}

/// A function name as the runtime prints it.
pub fn function_text(name: &str) -> &str {
    if name == "runtime.gopanic" { "panic" } else { name }
}

/// Whether dumps show a frame.
fn is_shown(name: &str, first: bool) -> bool {
    if name == "runtime.gopanic" {
        return !first;
    }
    let exported = name
        .strip_prefix("runtime.")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    name.contains('.') && (!name.starts_with("runtime.") || exported)
}

/// One goroutine, with the blank line behind it.
pub fn write<M: MemoryReader>(
    out: &mut String,
    process: &GoProcess<M>,
    symbolizer: &mut Symbolizer<'_>,
    goroutine: &Goroutine,
    now: u64,
) {
    let _ = writeln!(
        out,
        "goroutine {} [{}]:",
        goroutine.id,
        status_text(process, goroutine, now)
    );
    match goroutine.state {
        StackState::Running => out.push_str("\tgoroutine running on other thread; stack unavailable\n"),
        StackState::Unsettled => out.push_str("\tgoroutine kept running while it was read; stack unavailable\n"),
        StackState::Unreadable => out.push_str("\tstack not readable\n"),
        StackState::Complete | StackState::Cut | StackState::Incomplete => {}
    }
    let table = symbolizer.table();
    let mut lines = Vec::new();
    for (place, &pc) in symbolizer
        .goroutine_stack(&goroutine.stack)
        .iter()
        .zip(&goroutine.stack)
    {
        for frame in &place.frames {
            if !is_shown(&frame.function, lines.is_empty()) {
                continue;
            }
            let mut line = format!(
                "{}(...)\n\t{}:{}",
                function_text(&frame.display()),
                frame.file,
                frame.line
            );
            let entry = table.function_at(place.address).map_or(pc, |function| function.entry);
            if !frame.inlined && pc > entry {
                let _ = write!(line, " +{:#x}", pc - entry);
            }
            lines.push(line);
        }
    }
    let (head, tail) = match lines.len() {
        all @ 0..=MAX_SHOWN => (all, 0),
        _ => (MAX_SHOWN / 2, MAX_SHOWN / 2),
    };
    for line in &lines[..head] {
        out.push_str(line);
        out.push('\n');
    }
    if tail > 0 {
        let _ = writeln!(out, "...{} frames elided...", lines.len() - head - tail);
        for line in &lines[lines.len() - tail..] {
            out.push_str(line);
            out.push('\n');
        }
    }
    if goroutine.state == StackState::Cut {
        out.push_str("...additional frames elided...\n");
    }
    write_creator(out, symbolizer, goroutine);
    out.push('\n');
}

fn write_creator(out: &mut String, symbolizer: &Symbolizer<'_>, goroutine: &Goroutine) {
    let table = symbolizer.table();
    let Some(function) = table.function_at(goroutine.creator_pc) else {
        return;
    };
    let name = table.name(&function);
    if goroutine.id == 1 || !is_shown(&name, false) {
        return;
    }
    let _ = write!(out, "created by {}", without_type_arguments(&name));
    if goroutine.parent != 0 {
        let _ = write!(out, " in goroutine {}", goroutine.parent);
    }
    let call = if goroutine.creator_pc > function.entry {
        goroutine.creator_pc - 1
    } else {
        function.entry
    };
    let (file, line) = table.position(&function, call);
    let _ = write!(out, "\n\t{file}:{line}");
    if goroutine.creator_pc > function.entry {
        let _ = write!(out, " +{:#x}", goroutine.creator_pc - function.entry);
    }
    out.push('\n');
}

/// The `go` statement behind a return address: `main.serve main.go:30`; `None` outside of the program's text.
pub fn creation_site(table: &PclnTable, creator_pc: u64) -> Option<String> {
    let function = table.function_at(creator_pc)?;
    let call = creator_pc.saturating_sub(u64::from(creator_pc > function.entry));
    let (file, line) = table.position(&function, call);
    Some(format!(
        "{} {file}:{line}",
        without_type_arguments(&table.name(&function))
    ))
}
