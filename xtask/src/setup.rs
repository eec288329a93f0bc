//! `setup`: all that building, testing and measuring need on a Debian machine, brought about.
//!
//! Invariant: each step looks first, does nothing where its thing is there, and else announces itself in one line.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{bpf_toolchain, go_toolchains, packages, tracefs};

/// What to set up for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// Only what `build` needs.
    Build,
    /// What `build` and `run` need.
    Run,
    /// What `test` needs too.
    Test,
    /// What `bench` needs too.
    Bench,
}

/// Arguments of `setup`.
#[derive(Args)]
pub struct Options {
    /// How much to set up; each includes those before it.
    #[arg(long = "for", value_enum, default_value = "test")]
    purpose: Purpose,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    ensure(options.purpose)?;
    eprintln!("setup: everything is there");
    Ok(())
}

/// Brings about all that `purpose` needs.
pub fn ensure(purpose: Purpose) -> Result<()> {
    bpf_toolchain::ensure()?;
    if purpose >= Purpose::Test {
        packages::ensure(packages::TEST, "the tests")?;
        go_toolchains::ensure_all()?;
    }
    if purpose >= Purpose::Bench {
        packages::ensure(packages::BENCH, "the benchmarks")?;
    }
    if purpose >= Purpose::Run {
        tracefs::ensure()?;
    }
    Ok(())
}
