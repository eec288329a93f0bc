//! `leaktrace top`: all processes, or some, in the terminal.
//!
//! `source` says what can be asked, `daemon` and `local` answer it, `worker` asks on a thread of its own; `state` and
//! `keys` know what is shown, `draw` shows it, `screen` owns the terminal, `batch` writes plain text instead.
//! Invariant: only `worker` (and `batch`) waits for a source, and only `screen` changes the terminal.

mod batch;
mod calls;
mod columns;
mod cursor;
mod daemon;
mod draw;
mod keys;
mod local;
mod screen;
pub mod source;
mod state;
mod text;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::{
    columns::Column,
    draw::Theme,
    local::Tracing,
    screen::Screen,
    source::Source,
    state::{Effect, Event, State},
    worker::{Request, Worker},
};
use super::{quantity, terminal};
use crate::{daemon::config::Config, model::ProcessKey, monitor::Settings};

/// Columns of a line where nothing says how many fit.
const BATCH_WIDTH: usize = 132;
/// How long the source may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often time is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Events that are taken between two drawings.
const MAX_EVENTS: usize = 256;

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Look at this process without the daemon; may be repeated.
    #[arg(short, long = "pid", value_name = "PID", conflicts_with = "socket")]
    pids: Vec<u32>,
    /// Unix socket of the daemon.
    #[arg(long, value_name = "PATH", default_value = daemon::SOCKET)]
    socket: PathBuf,
    /// Time between two looks.
    #[arg(short, long, value_name = "DURATION", value_parser = quantity::duration, default_value = "2s")]
    interval: Duration,
    /// End after so many looks [default: 1 in a pipe or with --batch, else none]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Print plain tables, as is done anyway where the output is no terminal.
    #[arg(short, long)]
    batch: bool,
    /// Column to sort by at first.
    #[arg(long, value_enum, value_name = "COLUMN", default_value = "growth")]
    sort: Column,
    /// Only processes with this text in their name, arguments, user, unit, container or control group.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// With -p: mean bytes between samples.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size, default_value = "64KiB", requires = "pids")]
    sample_interval: u64,
    /// With -p: the daemon's configuration, whose `watch.growth_time` growth is measured over
    /// [default: /etc/leaktrace.toml, if it is there]
    #[arg(long, value_name = "FILE", requires = "pids")]
    config: Option<PathBuf>,
    /// With -p: look at memory only, until `t` is pressed.
    #[arg(long, requires = "pids")]
    no_trace: bool,
}

/// Runs `top`.
pub fn run(arguments: TopArgs) -> Result<ExitCode> {
    ensure!(
        (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&arguments.interval),
        "--interval must be 100ms to 1h"
    );
    ensure!(
        (16..=1 << 30).contains(&arguments.sample_interval),
        "--sample-interval must be 16B to 1GiB"
    );
    let keys = local::find(&arguments.pids)?;
    let settings = settings(&arguments)?;
    if arguments.batch || !stdout().is_terminal() {
        return print(&arguments, &keys, settings);
    }
    // A daemon that is not there is told on the shell's screen.
    let title = if keys.is_empty() {
        let mut daemon = daemon::Daemon::new(&arguments.socket)?;
        daemon.status()?;
        daemon.title()
    } else {
        "stand-alone".to_owned()
    };
    show(arguments, keys, settings, title)
}

/// What the monitor goes by: the same as the daemon's.
fn settings(arguments: &TopArgs) -> Result<Settings> {
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        // The daemon has read it.
        None if arguments.pids.is_empty() => Config::default(),
        // Who may not read it can look at processes of his own still.
        None => Config::load_default().unwrap_or_else(|error| {
            eprintln!("leaktrace: the configuration's defaults apply: {error}");
            Config::default()
        }),
    };
    Ok(config.watch.monitor())
}

fn source(
    arguments: &TopArgs,
    keys: &[ProcessKey],
    settings: Settings,
    trace: bool,
) -> Result<Box<dyn Source>, source::SourceError> {
    if keys.is_empty() {
        Ok(Box::new(daemon::Daemon::new(&arguments.socket)?))
    } else {
        let tracing = Tracing {
            at_once: trace,
            sample_interval: arguments.sample_interval,
        };
        Ok(Box::new(local::Local::new(keys, tracing, arguments.interval, settings)))
    }
}

/// Prints tables.
fn print(arguments: &TopArgs, keys: &[ProcessKey], settings: Settings) -> Result<ExitCode> {
    let iterations = arguments.iterations.unwrap_or(1);
    // One look sees nothing of what probes would tell.
    let mut source = source(arguments, keys, settings, iterations > 1 && !arguments.no_trace)?;
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let options = batch::Options {
        column: arguments.sort,
        filter: arguments.filter.clone(),
        width: terminal::width().or(columns).unwrap_or(BATCH_WIDTH),
    };
    for iteration in 0..iterations {
        if iteration > 0 {
            let begin = Instant::now();
            while begin.elapsed() < arguments.interval {
                source.tend();
                thread::sleep(TICK.min(arguments.interval.saturating_sub(begin.elapsed())));
            }
        }
        let page = batch::page(&mut *source, &options)?;
        let gap = if iteration == 0 { "" } else { "\n" };
        if !write(&format!("{gap}{page}"))? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output. Returns whether somebody still reads.
fn write(text: &str) -> Result<bool> {
    use std::io::{ErrorKind, Write};
    let mut output = stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("failed to write the table"),
    }
}

/// Shows the live view until somebody ends it.
fn show(arguments: TopArgs, keys: Vec<ProcessKey>, settings: Settings, title: String) -> Result<ExitCode> {
    let mut state = State::new(title, arguments.interval, arguments.iterations);
    state.column = arguments.sort;
    state.filter.clone_from(&arguments.filter);
    if let [key] = keys.as_slice() {
        state.enter(key.pid, key.start_time);
    }
    let theme = Theme {
        colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let (sender, events) = mpsc::channel();
    screen::wait_for_signals(sender.clone())?;
    let answers = sender.clone();
    // Made here for the daemon, where that can fail; on its thread for local ones, since probes stay on theirs.
    let worker = Worker::start(
        move || source(&arguments, &keys, settings, !arguments.no_trace),
        move |answer| answers.send(Event::Answer(answer)).is_ok(),
    )?;
    let mut screen = Screen::open().context("failed to take over the terminal; --batch prints plain text")?;
    let stop = Arc::new(AtomicBool::new(false));
    let keys = screen::read_keys(sender, Arc::clone(&stop));
    let result = match keys {
        Ok(_) => serve(&mut state, &mut screen, theme, &worker, &events),
        Err(error) => Err(error.into()),
    };
    stop.store(true, Ordering::Relaxed);
    drop(screen);
    worker.stop(PATIENCE);
    result
}

/// The loop: draw, wait for something, act.
fn serve(
    state: &mut State,
    screen: &mut Screen,
    theme: Theme,
    worker: &Worker,
    events: &Receiver<Event>,
) -> Result<ExitCode> {
    let lost = "failed to write to the terminal";
    let mut is_stale = true;
    loop {
        if screen::is_lost() {
            bail!("ended by an error in the program itself");
        }
        if is_stale {
            screen.draw(|frame| draw::draw(frame, state, theme)).context(lost)?;
        }
        let first = events.recv_timeout(TICK).unwrap_or(Event::Tick);
        is_stale = !matches!(first, Event::Tick);
        let more = events.try_iter().take(MAX_EVENTS);
        let mut effects = Vec::new();
        for event in [first, Event::Tick].into_iter().chain(more) {
            is_stale |= !matches!(event, Event::Tick);
            effects.extend(state.update(event, Instant::now()));
        }
        for effect in effects {
            match effect {
                Effect::Fetch(number, scene) => worker.ask(Request::Fetch(number, scene)),
                Effect::Trace { pid, on } => worker.ask(Request::Trace { pid, on }),
                Effect::Renew => screen.renew().context(lost)?,
                Effect::Suspend => screen.suspend().context(lost)?,
                Effect::Quit => return Ok(ExitCode::SUCCESS),
            }
        }
    }
}
