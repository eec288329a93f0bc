//! The machine as a resource: tests trace shared libraries, so only one runs at a time, and as root.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

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

/// How many times slower than the machines that the suite's limits were made for this one is, by
/// `LEAKTRACE_TEST_SLOWNESS`: an emulated processor is.
static SLOWNESS: LazyLock<u32> = LazyLock::new(|| number("LEAKTRACE_TEST_SLOWNESS"));

/// How many times slower this machine is.
pub fn slowness() -> u32 {
    *SLOWNESS
}

/// How long something may take here that may take `limit` on other machines. The harness does this with each limit that
/// it is given; a test does it with those that it keeps itself.
pub fn scaled(limit: Duration) -> Duration {
    limit * *SLOWNESS
}

/// How long to leave something alone whose end nothing tells, where a second does on other machines. Much shorter than a
/// [`scaled`] limit, since it is waited for each time.
pub fn pause() {
    std::thread::sleep(Duration::from_secs(1) * SLOWNESS.div_ceil(6));
}

/// How often a test against known truth is run, by `LEAKTRACE_TEST_REPEAT`: a race shows seldom.
pub fn repetitions() -> u32 {
    number("LEAKTRACE_TEST_REPEAT")
}

/// How often leaktrace is killed in a test that does it at random moments, by `LEAKTRACE_TEST_KILLS`.
pub fn kills() -> u32 {
    number_or("LEAKTRACE_TEST_KILLS", 100)
}

/// How many faults a test injects that has more of them, by `LEAKTRACE_TEST_FAULTS`: evenly chosen, `all` for all.
pub fn faults(of: usize) -> usize {
    const VARIABLE: &str = "LEAKTRACE_TEST_FAULTS";
    match std::env::var(VARIABLE) {
        Ok(all) if all == "all" => of,
        _ => of.min(number_or(VARIABLE, 20) as usize),
    }
}

/// A whole number from the environment, 1 where there is none.
fn number(variable: &str) -> u32 {
    number_or(variable, 1)
}

fn number_or(variable: &str, default: u32) -> u32 {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_string());
    match text.parse() {
        Ok(number) if number > 0 => number,
        _ => panic!("{variable} is `{text}`: no whole number above 0"),
    }
}

/// Version and patch level of the running kernel: `(6, 12)`.
///
/// # Errors
/// When the kernel does not tell, or tells something else.
pub fn kernel() -> Result<(u32, u32)> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    let release = std::fs::read_to_string(RELEASE).with_context(|| format!("failed to read `{RELEASE}`"))?;
    version(&release).with_context(|| format!("`{}` is no kernel's version", release.trim()))
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels_are_read() {
        assert_eq!(version("6.12.118+deb13-cloud-amd64\n"), Some((6, 12)));
        assert_eq!(version("5.10.0-46-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("linux"), None);
    }
}
