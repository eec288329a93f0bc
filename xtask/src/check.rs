//! `check`: formatting, lints, both eBPF targets and their frames, layering, dependencies.

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{bpf_frames, build, command, dependencies, layering, workspace};

/// Arguments of `check`.
#[derive(Args)]
pub struct Options {
    /// Only the module layering, which needs no compiler.
    #[arg(long)]
    layering: bool,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    let violations = layering::check(&workspace::root().join("leaktrace/src"))?;
    if !violations.is_empty() {
        let lines = violations
            .iter()
            .map(|violation| format!("\n  {violation}"))
            .collect::<String>();
        bail!(
            "{} violations of the layering (see xtask/src/layering.rs):{lines}",
            violations.len()
        );
    }
    eprintln!("check: layering holds");
    if options.layering {
        return Ok(());
    }
    dependencies::check()?;
    setup::ensure(Purpose::Build)?;
    command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
    let mut fmt = command::cargo();
    fmt.current_dir(workspace::root().join("leaktrace-ebpf"))
        .args(["fmt", "--all", "--check"]);
    command::run(&mut fmt)?;
    eprintln!("check: formatting holds");
    build::bpf("x86_64")?;
    build::bpf("aarch64")?;
    eprintln!("check: the eBPF crate compiles for programs on x86_64 and on aarch64");
    let (function, bytes) = bpf_frames::check(&workspace::bpf_object())?;
    eprintln!("check: no BPF frame is kept per CPU (the largest is {function}'s, {bytes} bytes)");
    command::run(command::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    eprintln!("check: clippy is content");
    Ok(())
}
