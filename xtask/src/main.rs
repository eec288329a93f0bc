//! `cargo xtask`: everything that is done to the project rather than by it.
//!
//! This file owns the command line alone; each command has a file of its own. Every command brings about what it
//! needs (`setup` is never a thing to remember), and every step that changes the machine says so in one line.

mod bench;
mod bpf_frames;
mod bpf_toolchain;
mod build;
mod check;
mod command;
mod dependencies;
mod fuzz;
mod go_offsets;
mod go_toolchains;
mod layering;
mod matrix;
mod packages;
mod private_apt;
mod run;
mod setup;
mod test;
mod tracefs;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set up, build, run, test, measure and check leaktrace",
    version
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and measuring need; does nothing where it is there already.
    Setup(setup::Options),
    /// Build the eBPF object and target/release/leaktrace.
    Build,
    /// Build leaktrace and run it: `cargo xtask run -- record -p PID`.
    Run(run::Options),
    /// Build everything and run unit and end-to-end tests (as root), here or on other kernels; arguments are passed on as
    /// test filters.
    Test(test::Options),
    /// Hand hostile input to every parser, within limits of memory and time.
    Fuzz(fuzz::Options),
    /// Measure leaktrace beside its peers and write target/bench.json.
    Bench(bench::Options),
    /// Update the table of Go runtime offsets from a release's sources.
    GoOffsets(go_offsets::GoOffsetsArgs),
    /// rustfmt, clippy with warnings denied, both eBPF targets and their frames, the module layering, and what is depended
    /// on.
    Check(check::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(options) => setup::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Build => build::run().map(|_| ExitCode::SUCCESS),
        Task::Run(options) => run::run(&options),
        Task::Test(options) => test::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Fuzz(options) => fuzz::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Task::GoOffsets(options) => go_offsets::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Check(options) => check::run(&options).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
