//! The compiler for the kernel side: a nightly-capable rustc with the library sources, and `bpf-linker` on its LLVM.
//!
//! Two sets work: a rustup nightly with `rust-src`, or Debian's own compiler (`RUSTC_BOOTSTRAP=1` lets it use
//! `-Z build-std`). rustup's is taken where it is there already; only Debian's is installed, since its packages are
//! to be had wherever the test packages are.
//!
//! Invariant: a [`Toolchain`] that [`ensure`] returns has answered `--version` through each of its parts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, packages};

const BPF_LINKER: &str = "0.13.0";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_SOURCES: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";
/// The minor version of the oldest rustc that serves: its LLVM (21) is the oldest that this `bpf-linker` is built on.
const OLDEST_RUSTC: u32 = 91;
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// What compiles the eBPF crate.
pub struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    linker: PathBuf,
}

impl Toolchain {
    /// A cargo that compiles for `bpfel-unknown-none` as if run on `arch` (`x86_64` or `aarch64`).
    pub fn cargo(&self, arch: &str) -> Command {
        let rustflags = [
            format!("--cfg=bpf_target_arch=\"{arch}\""),
            format!("-Clinker={}", self.linker.display()),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
        ];
        let mut command = Command::new(&self.cargo);
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_BUILD_TARGET");
        command
    }
}

/// Finds the toolchain, and installs what it lacks.
///
/// # Errors
/// Where something is missing and cannot be installed, with the command to run by hand.
pub fn ensure() -> Result<Toolchain> {
    if let Some((rustc, cargo)) = rustup_nightly() {
        match linker(&rustc) {
            Ok(linker) => return Ok(Toolchain { rustc, cargo, linker }),
            // Its LLVM may be newer than any that Debian has.
            Err(error) => eprintln!("setup: rustup's nightly is passed over: {error:#}"),
        }
    }
    let (rustc, cargo) = debian()?;
    let linker = linker(&rustc)?;
    Ok(Toolchain { rustc, cargo, linker })
}

/// rustc and cargo of a rustup nightly that has the library sources.
fn rustup_nightly() -> Option<(PathBuf, PathBuf)> {
    let mut which = Command::new("rustup");
    // Asking for a toolchain must not install it.
    which
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["which", "--toolchain", "nightly", "rustc"]);
    let rustc = PathBuf::from(command::answer(&mut which)?);
    let bin = rustc.parent()?;
    let sources = bin.parent()?.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let cargo = bin.join("cargo");
    (sources.exists() && cargo.exists()).then_some((rustc, cargo))
}

/// Debian's rustc and cargo, installed if need be.
fn debian() -> Result<(PathBuf, PathBuf)> {
    // Debian 12's own rustc is of 2022; the packages whose names end in -web are kept up to date. Their first release, on
    // LLVM 19, may be installed: then they are upgraded.
    let recent = || {
        let version = command::answer(Command::new(DEBIAN_RUSTC).arg("--version"));
        version
            .as_deref()
            .and_then(minor_version)
            .is_some_and(|minor| minor >= OLDEST_RUSTC)
    };
    let there = || {
        [DEBIAN_CARGO, DEBIAN_SOURCES]
            .iter()
            .all(|path| Path::new(path).exists())
            && recent()
    };
    if !there() {
        packages::install_newest(DEBIAN_PACKAGES, "the eBPF compiler")
            .context("or, with rustup: rustup toolchain install nightly --component rust-src")?;
    }
    if !there() {
        bail!(
            "`{DEBIAN_RUSTC}` is older than 1.{OLDEST_RUSTC} or has no library sources, and this machine's package sources \
             (is bookworm-security among them?) have no newer one; or, with rustup: rustup toolchain install nightly \
             --component rust-src"
        );
    }
    Ok((DEBIAN_RUSTC.into(), DEBIAN_CARGO.into()))
}

/// A `bpf-linker` that runs, built on `rustc`'s LLVM if need be.
fn linker(rustc: &Path) -> Result<PathBuf> {
    let installed = cargo_home().join("bin/bpf-linker");
    for candidate in [installed.as_path(), Path::new("bpf-linker")] {
        if command::answer(Command::new(candidate).arg("--version")).is_some() {
            return Ok(candidate.into());
        }
    }
    let version = command::answer(Command::new(rustc).arg("-vV"))
        .with_context(|| format!("failed to run `{}`", rustc.display()))?;
    let Some(llvm) = llvm_major(&version) else {
        bail!("`{} -vV` names no LLVM version", rustc.display())
    };
    let package = format!("llvm-{llvm}-dev");
    packages::ensure(&[package.as_str(), "g++"], "bpf-linker")?;
    eprintln!("setup: installing bpf-linker {BPF_LINKER} on LLVM {llvm} with cargo install (some minutes)");
    let mut install = command::cargo();
    // Without the prefix its build script looks in /usr/lib64 and finds no LLVM.
    install.env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    install.args([
        "install",
        "bpf-linker",
        "--locked",
        "--force",
        "--version",
        BPF_LINKER,
        "--no-default-features",
        "--features",
    ]);
    install.arg(format!("llvm-{llvm}"));
    command::run(&mut install).context("bpf-linker could not be installed; run the command by hand to see why")?;
    if command::answer(Command::new(&installed).arg("--version")).is_none() {
        bail!(
            "`{}` was installed but does not run; try `{0} --version`",
            installed.display()
        );
    }
    Ok(installed)
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// `22` from the line `LLVM version: 22.1.4` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version:"))?;
    line.trim().split('.').next()?.parse().ok()
}

/// `96` from `rustc 1.96.0 (…)`.
fn minor_version(version: &str) -> Option<u32> {
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(minor_version("rustc 1.96.0 (ac68faa20 2026-05-25)"), Some(96));
        assert_eq!(minor_version("cargo 1.96.0"), None);
    }

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        assert_eq!(llvm_major("rustc 1.96.0\nhost: x\nLLVM version: 22.1.4\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
