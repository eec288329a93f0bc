//! The command line: arguments to settings, results to text, errors to exit codes. A file per command.

/// As the standard one, but what cannot be written is no panic; see [`terminal::write`].
macro_rules! print {
    ($($argument:tt)*) => { $crate::cli::terminal::write(format_args!($($argument)*)) };
}

/// As [`print!`], with a newline.
macro_rules! println {
    () => { $crate::cli::terminal::write(format_args!("\n")) };
    ($($argument:tt)*) => { $crate::cli::terminal::write(format_args!("{}\n", format_args!($($argument)*))) };
}

pub mod blocks;
mod daemon;
mod debug;
pub mod diff;
mod doctor;
pub mod exit;
pub mod go;
mod progress;
mod quantity;
mod record;
pub mod report;
mod resident;
pub mod store;
mod target;
pub mod terminal;
mod top;
mod why;

use std::{ffi::OsString, io::IsTerminal as _, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{proc::copy, session::launch};

/// Which code holds the memory of a running process, is it growing, is it leaked?
///
/// Traces allocations of any process from outside, through eBPF, without restarting or changing it.
#[derive(Debug, Parser)]
#[command(name = "leaktrace", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trace a process (or a command) and write a heap profile.
    Record(record::RecordArgs),
    /// Say why the memory of a process grows, and where.
    Why(why::WhyArgs),
    /// Print tables and source listings of a profile.
    Report(report::ReportArgs),
    /// Show what grew between two profiles.
    Diff(diff::DiffArgs),
    /// Watch every process, trace those that grow, export profiles; with an API and a page.
    Daemon(daemon::DaemonArgs),
    /// List the profiles that the daemon stored.
    List(store::ListArgs),
    /// Print tables and source listings of a stored profile.
    Show(store::ShowArgs),
    /// Copy a stored profile to a file.
    Fetch(store::FetchArgs),
    /// Read what the runtime of a Go process knows: heap, goroutines, collector.
    Go(go::GoArgs),
    /// Watch processes live in the terminal, by what grows.
    Top(top::TopArgs),
    /// Say what this kernel, these privileges and a target allow.
    Doctor(doctor::DoctorArgs),
    /// Tools for measuring leaktrace itself.
    #[command(hide = true)]
    Debug(debug::DebugArgs),
    /// Stop, then become the command (used by `record -- COMMAND`).
    #[command(name = launch::EXEC_STOPPED, hide = true)]
    ExecStopped {
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

/// Runs the program: parse, dispatch, exit code.
pub fn main() -> ExitCode {
    // Not of the command line: this program runs itself so, for each file that it reads apart.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|command| command == copy::COMMAND) {
        return copy::main(&arguments.collect::<Vec<_>>());
    }
    copy::enable();
    let cli = Cli::parse();
    // A daemon says what it decides; everything else is quiet unless asked.
    let quiet = match cli.command {
        Command::Daemon(_) => "leaktrace=info,warn",
        _ => "error",
    };
    let filter = std::env::var("LEAKTRACE_LOG").unwrap_or_else(|_| quiet.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Record(arguments) => record::run(arguments),
        Command::Why(arguments) => why::run(&arguments),
        Command::Report(arguments) => report::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Diff(arguments) => diff::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Daemon(arguments) => daemon::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::List(arguments) => store::list(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Show(arguments) => store::show(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Fetch(arguments) => store::fetch(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Go(arguments) => arguments.run().map(|()| ExitCode::SUCCESS),
        Command::Top(arguments) => top::run(arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Debug(arguments) => debug::run(&arguments),
        Command::ExecStopped { command } => {
            // Who started this tells the user.
            return launch::exec_stopped(&command);
        }
    };
    match result.and_then(|code| terminal::written().map(|()| code)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("leaktrace: {}", exit::message(&error));
            exit::code(&error)
        }
    }
}
