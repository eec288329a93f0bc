//! `leaktrace why`: why the resident memory of a process grows, and where.
//!
//! `session::why` watches; `answer` draws the conclusions, with `sites` for the code, and `text` shows them.

mod answer;
mod sites;
mod text;

use std::{
    ffi::OsString,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{exit::Exit, quantity};
use crate::{
    session::why::watch::{Findings, Target, Watch},
    symbolize::Symbolizer,
};

/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(25);
/// Less time says nothing.
const MIN_DURATION: Duration = Duration::from_secs(1);

/// Arguments of `why`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  leaktrace why -p 1234              # half a minute of a running process\n  \
                        leaktrace why -d 5m -- ./server    # a command, from its first instruction\n\n\
                        Exit status: 23 if it grows, 0 if it does not, others on failure."
)]
pub struct WhyArgs {
    /// The process.
    #[arg(
        short,
        long,
        value_name = "PID",
        required_unless_present = "command",
        conflicts_with = "command"
    )]
    pid: Option<u32>,
    /// How long to watch (30s, 5m).
    #[arg(short, long, value_name = "DURATION", value_parser = quantity::duration, default_value = "30s")]
    duration: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Command to start and watch from its first instruction.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs `why`.
pub fn run(arguments: &WhyArgs) -> Result<ExitCode> {
    ensure!(
        arguments.duration >= MIN_DURATION,
        "{} is too short to see growth; watch for a second at least",
        humantime::format_duration(arguments.duration)
    );
    let target = match arguments.pid {
        Some(pid) => Target::Process(pid),
        None => Target::Command(arguments.command.clone()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(watch(&target, arguments.duration))?;
    let words: Vec<_> = arguments.command.iter().map(|word| word.to_string_lossy()).collect();
    let command = (!words.is_empty()).then(|| words.join(" "));
    let answer = answer::answer(&findings, command.as_deref());
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        print!("{}", text::text(&answer));
    }
    if findings.child.is_some() {
        eprintln!("leaktrace: the command is still running");
    }
    Ok(if answer.grows {
        Exit::Grows.into()
    } else {
        ExitCode::SUCCESS
    })
}

async fn watch(target: &Target, duration: Duration) -> Result<Findings> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut watch = Watch::start(target, duration)?;
    let (probes, growth) = watch.follows();
    let followed = match (probes, growth) {
        (true, true) => "allocations and page faults by samples",
        (true, false) => "allocations by samples",
        (false, true) => "page faults by samples",
        (false, false) => "memory by kind alone",
    };
    eprintln!(
        "watching pid {} ({}) for {}: {followed}",
        watch.key.pid,
        watch.comm.escape_debug(),
        humantime::format_duration(duration)
    );
    let [first, second] = watch.noticed();
    let end = Instant::now() + duration;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = first.notified() => watch.follow(),
            () = second.notified() => watch.follow(),
            _ = tick.tick() => {
                if !watch.tick() || Instant::now() >= end {
                    break;
                }
            }
        }
    }
    Ok(watch.finish(&Symbolizer::new()))
}
