//! leaktrace: which code holds the memory of a running process, is it growing, is it leaked?
//!
//! Modules depend downwards only (`cargo xtask check` enforces it):
//! `cli → daemon → {monitor api} → session → {probe event ledger unwind symbolize runtime verdict report export bpf}
//! → {allocator → object, proc} → model → leaktrace_common`.

/// As the standard one, but a reader that is gone (`2>&1 | head`) is no panic.
macro_rules! eprintln {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($argument)*);
    }};
}

pub mod allocator;
pub mod api;
pub mod bpf;
pub mod cli;
pub mod daemon;
pub mod event;
pub mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod ledger;
pub mod model;
pub mod monitor;
pub mod object;
pub mod probe;
pub mod proc;
pub mod report;
pub mod runtime;
pub mod session;
pub mod symbolize;
pub mod unwind;
