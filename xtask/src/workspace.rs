//! Where things lie in the source tree.
//!
//! Invariant: every path is absolute, so that commands may run in any directory.

use std::path::{Path, PathBuf};

/// Top of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the xtask package lies in the workspace's root")
}

/// Build products (git-ignored).
pub fn target() -> PathBuf {
    root().join("target")
}

/// The program that `build` makes.
pub fn program() -> PathBuf {
    target().join("release/leaktrace")
}

/// The eBPF object that `build` makes and `leaktrace/build.rs` embeds.
pub fn bpf_object() -> PathBuf {
    target().join("bpf/leaktrace.bpf.o")
}
