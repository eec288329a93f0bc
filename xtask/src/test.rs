//! `test`: unit tests of all crates, then the end-to-end tests on real processes.
//!
//! Invariant: end-to-end tests run one at a time: they probe the same libraries, and two cores are no place for more.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, command, workspace};

/// Arguments of `test`.
#[derive(Args)]
pub struct Options {
    /// Only the unit tests: needs neither root nor the traced packages.
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests.
    #[arg(long)]
    e2e: bool,
    /// Filters and options for the test programs.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command; its exit status is the tests'.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(if options.unit { Purpose::Build } else { Purpose::Test })?;
    build::run()?;
    if !options.e2e {
        let mut unit = command::cargo();
        unit.args([
            "test",
            "--workspace",
            "--exclude",
            "leaktrace-tests",
            "--no-fail-fast",
            "--",
        ])
        .args(&options.arguments);
        command::run(&mut unit)?;
    }
    if !options.unit {
        let mut e2e = command::cargo();
        e2e.env(
            "LEAKTRACE_BIN",
            std::env::var_os("LEAKTRACE_BIN").unwrap_or_else(|| workspace::program().into()),
        );
        e2e.env("RUST_TEST_THREADS", "1");
        e2e.args(["test", "--package", "leaktrace-tests", "--no-fail-fast", "--"])
            .args(&options.arguments);
        command::run(&mut e2e)?;
    }
    Ok(ExitCode::SUCCESS)
}
