//! Building: first the kernel side, then the program that embeds it.
//!
//! Invariant: `target/bpf/leaktrace.bpf.o` is replaced only when its contents change, so that an unchanged kernel side
//! does not cause the program to be built anew.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{bpf_toolchain, command, workspace};

/// The kernel side's target: little-endian BPF.
const TARGET: &str = "bpfel-unknown-none";

/// Builds all; returns the program's path.
pub fn run() -> Result<PathBuf> {
    bpf("x86_64")?;
    command::run(command::cargo().args(["build", "--release", "--package", "leaktrace"]))?;
    Ok(workspace::program())
}

/// Builds the kernel side for programs running on `arch`, and for this machine's own puts it where the program's build
/// script looks for it.
pub fn bpf(arch: &str) -> Result<()> {
    let toolchain = bpf_toolchain::ensure()?;
    // One folder for each: the rustflags differ, and sharing one would build everything anew at each change.
    let directory = workspace::target().join(if arch == "x86_64" {
        "bpf".to_owned()
    } else {
        format!("bpf-{arch}")
    });
    let source = workspace::root().join("leaktrace-ebpf");
    let mut cargo = toolchain.cargo(arch);
    cargo.current_dir(&source).args([
        "build",
        "--release",
        "--locked",
        "-Z",
        "build-std=core",
        "--target",
        TARGET,
    ]);
    cargo.arg("--target-dir").arg(&directory);
    command::run(&mut cargo).with_context(|| format!("failed to build the eBPF crate for {arch}"))?;

    let built = directory.join(TARGET).join("release/leaktrace");
    let object = directory.join("leaktrace.bpf.o");
    let new = fs::read(&built).with_context(|| format!("failed to read `{}`", built.display()))?;
    if fs::read(&object).ok().as_ref() != Some(&new) {
        fs::write(&object, new).with_context(|| format!("failed to write `{}`", object.display()))?;
    }
    debug_assert!(arch != "x86_64" || object == workspace::bpf_object());
    Ok(())
}
