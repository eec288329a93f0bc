//! Debian packages: which are there, and installing those that are not.
//!
//! Never starts a service: a package that brings one (redis-server) is unpacked with a policy that forbids it.
//! Invariant: nothing is asked of the network while all packages of a set are there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context, Result, bail};

use crate::command;

/// Programs that the end-to-end tests trace or read profiles with, and what builds the test programs.
pub const TEST: &[&str] = &[
    "gcc",
    "g++",
    "libc6-dev",
    "musl-tools",
    "make",
    "redis-server",
    "redis-tools",
    "curl",
    "openssl",
    "python3",
    "sqlite3",
    "golang",
    "prometheus",
    "etcd-server",
    "caddy",
    "libjemalloc2",
    "binutils",
    "xz-utils",
    "util-linux",
    "chromium",
    "chromium-driver",
];

/// Programs that `bench` measures leaktrace against, beside those of [`TEST`].
pub const BENCH: &[&str] = &["bpftrace", "heaptrack", "gdb", "libllvm14"];

/// What `test --kernel` boots other kernels with.
pub const GUESTS: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "cpio",
    "e2fsprogs",
    "kmod",
    "dpkg",
    "xz-utils",
    "util-linux",
    "binutils",
    "debian-archive-keyring",
];

/// Consulted by Debian's maintainer scripts before they start a service: 101 is "forbidden".
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Those of `names` that are not installed.
pub fn missing<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| !installed(name)).collect()
}

fn installed(name: &str) -> bool {
    command::answer(Command::new("dpkg-query").args(["-W", "-f", "${Status}", name]))
        .is_some_and(|status| status.ends_with("ok installed"))
}

/// Installs those of `names` that are missing; `purpose` says in the announcement what for.
///
/// # Errors
/// Where that cannot be done (no root, no apt, no network), with the command to run by hand.
pub fn ensure(names: &[&str], purpose: &str) -> Result<()> {
    match missing(names) {
        wanted if wanted.is_empty() => Ok(()),
        wanted => install_newest(&wanted, purpose),
    }
}

/// Installs `wanted`, or upgrades what is there already.
///
/// # Errors
/// As [`ensure`].
pub fn install_newest(wanted: &[&str], purpose: &str) -> Result<()> {
    let by_hand = format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        wanted.join(" ")
    );
    eprintln!("setup: installing Debian packages for {purpose}: {}", wanted.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "no apt-get here; install what corresponds to these Debian packages: {}",
            wanted.join(" ")
        );
    }
    if !is_root() {
        bail!("installing packages needs root; run by hand: sudo sh -c '{by_hand}'");
    }
    let _policy = ServicePolicy::forbid()?;
    update_lists();
    install(wanted).with_context(|| format!("run by hand: {by_hand}"))
}

/// Once in a run: lists may be absent, or old, or those of a new machine, which know no security updates and so no recent
/// compiler. Where some cannot be had the others serve.
fn update_lists() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        if let Err(error) = command::run(apt_get().args(["update", "-q"])) {
            eprintln!("setup: going on with the package lists that are there: {error:#}");
        }
    });
}

/// True when this process may install packages and mount file systems.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // New machines update themselves after their first start, and hold the lock for minutes.
    command.args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn install(names: &[&str]) -> Result<()> {
    command::run(
        apt_get()
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(names),
    )
}

/// Forbids package scripts to start services for as long as it lives, unless a policy is there already.
struct ServicePolicy {
    written: bool,
}

impl ServicePolicy {
    fn forbid() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { written: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("failed to write `{POLICY}`"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("failed to make `{POLICY}` executable"))?;
        Ok(Self { written: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.written
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("setup: `{POLICY}` is left behind and keeps services from starting: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_does_not_exist_is_missing() {
        assert_eq!(missing(&["no-such-package-of-debian"]), ["no-such-package-of-debian"]);
    }
}
