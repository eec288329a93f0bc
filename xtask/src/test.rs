//! `test`: unit tests of all crates, end-to-end tests on real processes, and those for every kernel in guests.
//!
//! All come from one build: cargo unifies features over the packages that it is told of, so that it is told of all of
//! them each time, and the kinds are told apart by their targets. Invariant: end-to-end tests run one at a time: they probe
//! the same libraries, and two cores are no place for more. They mostly wait, though, and guests run on what they leave.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, command, matrix, workspace};

/// Arguments of `test`.
#[derive(Args)]
pub struct Options {
    /// The unit tests: need neither root nor the traced packages. Without `--unit`, `--e2e` and `--kernel`, unit and
    /// end-to-end tests run.
    #[arg(long)]
    unit: bool,
    /// The end-to-end tests.
    #[arg(long)]
    e2e: bool,
    /// The tests for every kernel, in guests: `all`, or names such as `6.1,6.12+full,newest+full+perf`.
    #[arg(long, value_name = "LIST")]
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

/// The command; fails if any test does, after all have run.
pub fn run(options: &Options) -> Result<()> {
    let is_default = !options.unit && !options.e2e && options.kernel.is_none();
    let (is_unit, is_e2e) = (options.unit || is_default, options.e2e || is_default);
    let needs_root = is_e2e || options.kernel.is_some();
    setup::ensure(if needs_root { Purpose::Test } else { Purpose::Build })?;
    // What somebody names is taken as it is.
    let program = match std::env::var_os("LEAKTRACE_BIN") {
        Some(path) => path.into(),
        None => build::run()?,
    };
    let mut results = Vec::new();
    if is_unit {
        results.push(timed("unit tests", || unit(&options.arguments)));
    }
    let end_to_end = || timed("end-to-end tests", || end_to_end(&program, &options.arguments));
    match &options.kernel {
        Some(list) => {
            let prepared = matrix::prepare(list, &program)?;
            let guests = |company| timed("guests", || matrix::run(&prepared, &of_guests(options, company)));
            if is_e2e {
                let (here, there) = beside(end_to_end, || guests(matrix::Company::BesideTests));
                results.extend([here, there]);
            } else {
                results.push(guests(matrix::Company::Alone));
            }
        }
        None if is_e2e => results.push(end_to_end()),
        None => {}
    }
    results.into_iter().collect()
}

fn of_guests(options: &Options, company: matrix::Company) -> matrix::Options<'_> {
    matrix::Options {
        company,
        repeat: options.repeat,
        write_table: options.write_table,
        arguments: &options.arguments,
    }
}

/// Both results; a panic of the second is one.
fn beside(first: impl FnOnce() -> Result<()>, second: impl FnOnce() -> Result<()> + Send) -> (Result<()>, Result<()>) {
    thread::scope(|scope| {
        let second = scope.spawn(second);
        let first = first();
        let second = second
            .join()
            .unwrap_or_else(|_| Err(anyhow!("a thread of the test run panicked")));
        (first, second)
    })
}

fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let begin = Instant::now();
    let result = run();
    let end = match &result {
        Ok(()) => String::new(),
        Err(error) => format!(": {error:#}"),
    };
    eprintln!("test: {what} took {:.0} s{end}", begin.elapsed().as_secs_f64());
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

/// Builds the program of a package's unit tests, from the same build as all tests.
pub fn unit_program(package: &str) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args([
        "test",
        "--workspace",
        "--lib",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let output = cargo
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{}`", command::shown(&cargo)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", command::shown(&cargo), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages.find_map(|message| {
        let wanted = message["target"]["name"] == package && message["profile"]["test"] == true;
        Some(PathBuf::from(message["executable"].as_str().filter(|_| wanted)?))
    });
    program.with_context(|| format!("`{}` built no tests of {package}", command::shown(&cargo)))
}

fn end_to_end(program: &Path, arguments: &[String]) -> Result<()> {
    let mut cargo = of_workspace();
    cargo.args(["--test", "kernels"]);
    for name in targets("tests/tests")? {
        cargo.args(["--test", &name]);
    }
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
