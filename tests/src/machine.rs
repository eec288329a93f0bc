//! The machine as a resource: tests trace shared libraries, so only one runs at a time, and as root.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static MACHINE: Mutex<()> = Mutex::new(());

/// Held by a test while it runs.
pub struct Machine {
    _lock: MutexGuard<'static, ()>,
}

/// The machine for one test; `None`, with a line that says why, where tests on real processes cannot run.
pub fn exclusive() -> Option<Machine> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: tracing other processes needs root");
        return None;
    }
    // A test that failed while holding it leaves nothing behind that matters to the next.
    Some(Machine {
        _lock: MACHINE.lock().unwrap_or_else(PoisonError::into_inner),
    })
}

/// Top of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests package lies in the workspace's root")
}

/// The program under test: `LEAKTRACE_BIN`, or what `cargo xtask build` made.
pub fn leaktrace() -> PathBuf {
    std::env::var_os("LEAKTRACE_BIN").map_or_else(|| root().join("target/release/leaktrace"), PathBuf::from)
}
