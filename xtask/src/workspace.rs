//! Where things lie in the source tree.
//!
//! Invariant: every path is absolute, so that commands may run in any directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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

/// Puts text between two markers of a document.
///
/// # Errors
/// When the document has no such markers, or cannot be read or written.
pub fn write_between(path: &Path, markers: (&str, &str), text: &str) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let (begin, end) = markers;
    let new = replaced(&old, markers, text)
        .with_context(|| format!("`{}` has no lines `{begin}` and `{end}`", path.display()))?;
    fs::write(path, new).with_context(|| format!("failed to write `{}`", path.display()))
}

fn replaced(old: &str, (begin, end): (&str, &str), text: &str) -> Option<String> {
    let (before, rest) = old.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let markers = ("<!-- a -->", "<!-- b -->");
        assert_eq!(
            replaced("before\n<!-- a -->\nold\n<!-- b -->\nafter\n", markers, "new\n"),
            Some("before\n<!-- a -->\nnew\n<!-- b -->\nafter\n".to_owned())
        );
        assert_eq!(replaced("no markers", markers, "new\n"), None);
    }
}
