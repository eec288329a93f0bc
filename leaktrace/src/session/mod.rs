//! One tracing run: survey the target, attach, pump events into the ledger, make a profile of it.
//!
//! `survey` looks at a process without touching it, `tracer` owns the kernel side and keeps what it knows of each
//! process up to date, with its `code` (`code_spans` says which it has) in the kernel's arrays, of which each has a fair
//! part (`shares`). `stream` puts records and releases that did not fit among them into one order, `source` is the kernel
//! side as it sees it, `pump` is the thread that reads it (with `stack_memory` for its ledgers), `managed` reads the heap of a
//! managed runtime beside it, `profile` turns a ledger into a profile, `launch` starts a command under observation, and `recording`
//! runs them all; `self_test` runs them on this program itself.

pub mod address_space;
pub mod bare;
pub mod code;
pub mod code_spans;
pub mod feed;
pub mod jit_names;
pub mod launch;
pub mod live;
pub mod managed;
pub mod profile;
pub mod program;
pub mod pump;
pub mod recording;
pub mod self_test;
pub mod shares;
pub mod signals;
pub mod source;
pub mod stack_memory;
pub mod stream;
pub mod survey;
pub mod tracer;
pub mod why;

/// Held by tests that load the kernel side: threads are counted by their names, in the whole process.
#[cfg(test)]
static KERNEL_SIDE: std::sync::Mutex<()> = std::sync::Mutex::new(());
