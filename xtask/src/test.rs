//! `test`: unit tests of all crates, then the end-to-end tests on real processes; or those for every kernel, in guests.
//!
//! Both come from one build: cargo unifies features over the packages that it is told of, so that it is told of all of
//! them each time, and the kinds are told apart by their targets. Invariant: end-to-end tests run one at a time: they probe
//! the same libraries, and two cores are no place for more.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, command, matrix, workspace};

/// Arguments of `test`.
#[derive(Args)]
pub struct Options {
    /// Only the unit tests: needs neither root nor the traced packages.
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests.
    #[arg(long)]
    e2e: bool,
    /// Only the tests for every kernel, in guests: `all`, or names such as `6.1,6.12+full,newest+full+perf`.
    #[arg(long, value_name = "LIST", conflicts_with_all = ["unit", "e2e"])]
    kernel: Option<String>,
    /// How often tests against known truth run in each guest.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "kernel", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Write the table of kernels to README.md.
    #[arg(long, requires = "kernel")]
    write_table: bool,
    /// Filters and options for the test programs.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command; its exit status is the tests'.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(if options.unit { Purpose::Build } else { Purpose::Test })?;
    if let Some(list) = &options.kernel {
        // What somebody names is taken as it is.
        let program = std::env::var_os("LEAKTRACE_BIN").map_or_else(build::run, |path| Ok(path.into()))?;
        return matrix::run(&matrix::Options {
            list,
            program: &program,
            repeat: options.repeat,
            write_table: options.write_table,
            arguments: &options.arguments,
        });
    }
    build::run()?;
    if !options.e2e {
        timed("unit tests", || unit(&options.arguments))?;
    }
    if !options.unit {
        timed("end-to-end tests", || end_to_end(&options.arguments))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    let result = run();
    eprintln!("test: {what} took {:.0} s", begin.elapsed().as_secs_f64());
    result
}

/// Tests beside the code, those in `leaktrace/tests`, and examples in documentation.
fn unit(arguments: &[String]) -> Result<()> {
    let mut cargo = of_workspace();
    cargo.args(["--lib", "--bins"]);
    for name in targets("leaktrace/tests")? {
        cargo.args(["--test", &name]);
    }
    command::run(cargo.arg("--").args(arguments))?;
    command::run(of_workspace().args(["--doc", "--"]).args(arguments))
}

fn end_to_end(arguments: &[String]) -> Result<()> {
    let mut cargo = of_workspace();
    cargo.args(["--test", "kernels"]);
    for name in targets("tests/tests")? {
        cargo.args(["--test", &name]);
    }
    let program = std::env::var_os("LEAKTRACE_BIN").unwrap_or_else(|| workspace::program().into());
    cargo.env("LEAKTRACE_BIN", program).env("RUST_TEST_THREADS", "1");
    command::run(cargo.arg("--").args(arguments))
}

fn of_workspace() -> Command {
    let mut cargo = command::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]);
    cargo
}

/// Test targets by cargo's rule: files, and folders with a `main.rs`.
fn targets(folder: &str) -> Result<BTreeSet<String>> {
    let folder = workspace::root().join(folder);
    let entries = fs::read_dir(&folder).with_context(|| format!("failed to read `{}`", folder.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        let is_target = path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").exists();
        if let (true, Some(name)) = (is_target, path.file_stem()) {
            names.insert(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_files_and_folders() -> Result<()> {
        let names = targets("tests/tests")?;
        assert!(names.contains("lifecycle") && names.contains("go_runtime"), "{names:?}");
        assert!(targets("leaktrace/tests")?.contains("real_allocators"));
        Ok(())
    }
}
