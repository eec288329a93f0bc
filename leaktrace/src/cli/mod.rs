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
    #[command(
        after_help = "Examples:\n  leaktrace record -p 1234 -d 60s        # a minute of a running process\n  leaktrace record -- ./server --port 80  # a command, from its first instruction"
    )]
    Record(record::RecordArgs),
    /// Say why the memory of a process grows, and where.
    Why(why::WhyArgs),
    /// Print tables and source listings of a profile.
    #[command(
        after_help = "Examples:\n  leaktrace report app.pb.gz --top 10          # the ten largest sites\n  leaktrace report app.pb.gz --list 'cache_.*'  # source lines of functions, with their bytes"
    )]
    Report(report::ReportArgs),
    /// Show what grew between two profiles.
    #[command(
        after_help = "Examples:\n  leaktrace diff before.pb.gz after.pb.gz           # what grew, largest first\n  leaktrace diff before.pb.gz after.pb.gz -o x.svg  # the same as a flame graph"
    )]
    Diff(diff::DiffArgs),
    /// Watch every process, trace those that grow, export profiles; with an API and a page.
    #[command(
        after_help = "Examples:\n  leaktrace daemon                                        # with the defaults, or /etc/leaktrace.toml\n  leaktrace daemon --check --config ./leaktrace.toml      # what is wrong with a configuration"
    )]
    Daemon(daemon::DaemonArgs),
    /// List the profiles that the daemon stored.
    #[command(
        after_help = "Examples:\n  leaktrace list -p 1234               # those of one process\n  leaktrace list --since 2h --json     # of the last two hours, for a program"
    )]
    List(store::ListArgs),
    /// Print tables and source listings of a stored profile.
    #[command(
        after_help = "Examples:\n  leaktrace show 1234-567-8                # the table of one of them\n  leaktrace show 1234-567-8 --frames all   # with every function"
    )]
    Show(store::ShowArgs),
    /// Copy a stored profile to a file.
    #[command(
        after_help = "Examples:\n  leaktrace fetch 1234-567-8 -o app.pb.gz     # a copy, for go tool pprof\n  leaktrace fetch 1234-567-8                  # to 1234-567-8.pb.gz"
    )]
    Fetch(store::FetchArgs),
    /// Read what the runtime of a Go process knows: heap, goroutines, collector.
    Go(go::GoArgs),
    /// Watch processes live in the terminal, by what grows.
    #[command(
        after_help = "Examples:\n  leaktrace top             # all processes, as the daemon sees them\n  leaktrace top -p 1234     # one process, traced from here"
    )]
    Top(top::TopArgs),
    /// Say what this kernel, these privileges and a target allow.
    #[command(
        after_help = "Examples:\n  leaktrace doctor             # what this kernel and these privileges allow\n  leaktrace doctor -p 1234     # what a recording of this process would do"
    )]
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn visit(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            if sub.has_subcommands() {
                visit(sub, &path, found);
            } else {
                let text = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                found.push((path, text));
            }
        }
    }

    #[test]
    fn each_command_has_two_examples_that_it_understands() {
        let mut found = Vec::new();
        visit(&Cli::command(), "leaktrace", &mut found);
        assert!(found.len() > 10);
        for (path, text) in found {
            let examples: Vec<&str> = text
                .lines()
                .filter(|line| line.trim().starts_with("leaktrace "))
                .collect();
            assert!(examples.len() >= 2, "{path}: {text}");
            for example in examples {
                let line = example.split("  #").next().unwrap_or(example).trim();
                assert!(line.starts_with(&path), "{path}: {line}");
                let words = line.split_whitespace().map(|word| word.trim_matches('\''));
                let parsed = Cli::try_parse_from(words);
                assert!(
                    parsed.is_ok(),
                    "{line}: {:?}",
                    parsed.err().map(|error| error.to_string())
                );
            }
        }
    }
}
