//! `leaktrace record`: trace, write a profile, print the table.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    exit::Exit,
    progress::Progress,
    quantity,
    report::{Frames, top},
    resident::{self, Frame},
    target::TargetArgs,
    terminal,
};
use crate::{
    bpf::features,
    export::{self, file::Format},
    model::page_size,
    probe::plan::Plan,
    report::{graph::GraphOptions, loss::Losses, profile::Profile, table::TableOptions},
    runtime::Runtime,
    session::{
        recording::{Finished, Recording, Room, Target},
        signals,
        tracer::{MAX_INTERVAL, Settings},
    },
    symbolize::Symbolizer,
};

/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(50);
/// How often the progress line changes.
const PROGRESS: Duration = Duration::from_millis(500);
/// Default mean distance of samples.
const SAMPLE_INTERVAL: u64 = 512 << 10;
/// Highest number that a default file name gets.
const MAX_NUMBER: u32 = 9999;
/// Default size of the ring buffer: a second of a million events.
pub(super) const RING_BYTES: u32 = 64 << 20;

/// What fails where there are no descriptors for the event loop.
const WAITING: &str = "failed to prepare to wait for signals and the target's end";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Every allocation.
    Exact,
    /// A sample by bytes, scaled: for long recordings of busy processes.
    Sampled,
}

/// Arguments of `record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// How long to trace (30s, 5m); without it until the target ends or Ctrl-C.
    #[arg(short, long, value_parser = quantity::duration)]
    duration: Option<Duration>,
    /// Where the profile goes; its ending chooses the format: .pb.gz, .svg, .folded, .json
    /// [default: leaktrace.COMM.PID.pb.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take every allocation, or a sample by bytes.
    #[arg(long, value_enum, default_value = "exact")]
    mode: Mode,
    /// Mean bytes between samples in sampled mode [default: 512KiB]
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    sample_interval: Option<u64>,
    /// Leave smaller allocations out.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size, default_value = "0")]
    min_size: u64,
    /// Also write each outstanding block with its address, a JSON object a line: for a debugger or a core file.
    #[arg(long, value_name = "FILE")]
    blocks: Option<PathBuf>,
    /// Rows of the table.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Rows of sites (the program's own code nearest to each allocation), or of every function.
    #[arg(long, value_enum, default_value_t)]
    frames: Frames,
    /// Memory for stacks; what is allocated through further ones is one row, `[other stacks]`.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size, default_value = "128MiB")]
    stack_memory: u64,
    /// Bytes of the ring buffer, rounded up to a power of two.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size, default_value = "64MiB", hide = true)]
    ring_size: u64,
}

impl RecordArgs {
    fn settings(&self) -> Result<Settings> {
        ensure!(
            self.mode == Mode::Sampled || self.sample_interval.is_none(),
            "--sample-interval needs --mode sampled"
        );
        let interval = match self.mode {
            Mode::Exact => 0,
            Mode::Sampled => self.sample_interval.unwrap_or(SAMPLE_INTERVAL),
        };
        ensure!(
            interval == 0 || (16..=MAX_INTERVAL).contains(&interval),
            "--sample-interval must be 16B to 32GiB"
        );
        Ok(match interval {
            0 => Settings::exact(self.min_size),
            interval => Settings::sampled(interval, self.min_size),
        })
    }

    fn room(&self) -> Room {
        Room {
            ring_bytes: (self.ring_size.clamp(page_size(), 1 << 30) as u32).next_power_of_two(),
            stack_bytes: usize::try_from(self.stack_memory).unwrap_or(usize::MAX),
        }
    }
}

/// Runs `record`.
pub fn run(arguments: RecordArgs) -> Result<ExitCode> {
    let settings = arguments.settings()?;
    // Found out before anything is traced, not after an hour of it.
    Format::check(arguments.output.as_deref().unwrap_or(Path::new("leaktrace.pb.gz")))?;
    if let Some(path) = &arguments.blocks {
        export::file::check_writable(path)?;
    }
    let target = arguments.target.resolve("record")?;
    features::require()?;
    signals::check().context(WAITING)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(WAITING)?;
    let (finished, frame) = runtime.block_on(record(&arguments, &target, settings))?;
    write(&arguments, &finished, &frame)?;
    if finished.child.is_some() {
        eprintln!("leaktrace: the command runs on");
    }
    if let Some(losses) = finished.all_lost() {
        eprintln!(
            "leaktrace: all calls were lost, so this profile says nothing about the process; {}",
            lost(&losses)
        );
        return Ok(Exit::AllLost.into());
    }
    if let Some(cause) = finished.untraceable() {
        eprintln!("leaktrace: {cause}");
        return Ok(Exit::NoAllocator.into());
    }
    Ok(ExitCode::SUCCESS)
}

async fn record(arguments: &RecordArgs, target: &Target, settings: Settings) -> Result<(Finished, Frame)> {
    // Before anything is announced: who reads "tracing" may send the signal at once.
    let mut interrupt = signal(SignalKind::interrupt()).context(WAITING)?;
    let mut terminate = signal(SignalKind::terminate()).context(WAITING)?;
    let mut recording = Recording::start(target, settings, arguments.room())?;
    for process in recording.processes() {
        eprintln!(
            "tracing pid {} ({}): {}; {}",
            process.key.pid,
            process.comm.escape_debug(),
            describe(&process.plan, recording.runtime(process.key.pid)),
            match arguments.duration {
                Some(duration) => format!("for {}", humantime::format_duration(duration)),
                None => "Ctrl-C ends it".to_owned(),
            }
        );
    }
    let mut frame = Frame::start(recording.processes().map(|process| process.key));
    let mut progress = Progress::new();
    let mut tick = tokio::time::interval(TICK);
    let mut show = tokio::time::interval(PROGRESS);
    let end = tokio::time::sleep(arguments.duration.unwrap_or(Duration::from_secs(u64::from(u32::MAX))));
    tokio::pin!(end);
    let noticed = recording.noticed();
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = noticed.notified() => recording.follow(),
            _ = tick.tick() => {
                if recording.is_over() {
                    break;
                }
                recording.catch_up();
                recording.look_at_managed();
            }
            _ = show.tick() => {
                frame.update();
                progress.show(recording.elapsed(), recording.figures());
            }
        }
    }
    progress.clear();
    frame.update();
    Ok((recording.finish(), frame))
}

fn describe(plan: &Plan, runtime: Option<&'static dyn Runtime>) -> String {
    let probes = match plan.probes().count() {
        0 => "no probes (no native allocator)".to_owned(),
        1 => "1 probe in place".to_owned(),
        count => format!("{count} probes in place"),
    };
    let probes = match (plan.refused.len(), plan.refused.first()) {
        (count, Some(first)) if !plan.withdrawn.is_empty() => {
            format!("{probes}, {count} functions left out, such as {first}")
        }
        _ => probes,
    };
    match runtime {
        Some(runtime) => format!("{probes}, {} heap read at start and end", runtime.title()),
        None => probes,
    }
}

fn write(arguments: &RecordArgs, finished: &Finished, frame: &Frame) -> Result<()> {
    let symbolizer = Symbolizer::new();
    let mut failure = None;
    let profile = |only| {
        let mut profile = finished.profile(only, &symbolizer);
        let remark = frame.remark(only, &profile);
        profile.comments.extend(remark.map(|remark| remark.as_str().into()));
        profile
    };
    // Several processes share a file only if one was named; else each gets its own.
    match &arguments.output {
        Some(path) => show(arguments, path, profile(None), &mut failure)?,
        None => {
            for process in &finished.processes {
                let path = unused_name(&process.comm, process.key.pid);
                show(arguments, &path, profile(Some(process.key.pid)), &mut failure)?;
            }
        }
    }
    if let Some(path) = &arguments.blocks {
        super::blocks::write(path, finished)?;
        eprintln!("wrote {}", path.display());
    }
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Writes a profile and prints its table. A file that cannot be written keeps nothing else from being shown.
fn show(
    arguments: &RecordArgs,
    path: &Path,
    mut profile: Profile,
    failure: &mut Option<export::file::WriteError>,
) -> Result<()> {
    let sample_type = profile.sample_type(None)?;
    // Pictures of the table come without allocation functions. Of what is read again, whoever reads it leaves them out, or
    // does not.
    let is_picture = matches!(Format::of(path)?, Format::Svg | Format::Folded);
    if is_picture {
        crate::report::prune::prune(&mut profile)?;
    }
    let written = export::file::write(path, &profile, sample_type);
    if !is_picture {
        crate::report::prune::prune(&mut profile)?;
    }
    let graph = GraphOptions {
        top: arguments.top,
        ..GraphOptions::trimmed(sample_type)
    };
    let options = TableOptions {
        graph,
        width: terminal::width(),
    };
    print!("{}", top(&profile, &options, arguments.frames));
    if let Some(meaning) = resident::nothing_outstanding(&profile) {
        println!("{meaning}");
    }
    println!("{}", loss_line(&profile));
    match written {
        Ok(()) => eprintln!("wrote {}", path.display()),
        // The table is all that is left of this recording; the others may fit.
        Err(error) => {
            eprintln!("leaktrace: `{}` is lost but for the table", path.display());
            failure.get_or_insert(error);
        }
    }
    Ok(())
}

/// What was missed, in one line.
fn loss_line(profile: &Profile) -> String {
    let losses = &profile.metadata.losses;
    if losses.is_empty() {
        return "Losses: none".to_owned();
    }
    let list: Vec<String> = losses
        .iter()
        .map(|loss| format!("{} {} ({})", loss.count, loss.name, loss.meaning))
        .collect();
    format!("Losses: {}", list.join("; "))
}

/// What a recording without any of the calls lost, and what to do about it.
fn lost(losses: &Losses) -> String {
    let of_ring = losses.iter().any(|loss| loss.name == "alloc_lost");
    let remedy = if of_ring {
        "record by samples (--mode sampled), or with a larger --ring-size"
    } else {
        "leaktrace doctor tries what a recording needs"
    };
    let list: Vec<String> = losses
        .iter()
        .map(|loss| format!("{} {}", loss.count, loss.name))
        .collect();
    format!("lost: {}; {remedy}", list.join(", "))
}

/// The default name, or the first of `…-2.pb.gz` and so on that no file has: a recording never replaces another unasked.
fn unused_name(comm: &str, pid: u32) -> PathBuf {
    let name = default_name(comm, pid);
    let numbered = |number: u32| PathBuf::from(name.to_string_lossy().replace(".pb.gz", &format!("-{number}.pb.gz")));
    let later = (2..=MAX_NUMBER).map(numbered);
    let mut names = std::iter::once(name.clone()).chain(later);
    names.find(|name| !name.exists()).unwrap_or(name)
}

/// `leaktrace.COMM.PID.pb.gz`, with a sanitized name whatever the process calls itself.
fn default_name(comm: &str, pid: u32) -> PathBuf {
    let sanitized = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') {
            c
        } else {
            '_'
        }
    };
    let comm: String = comm.chars().map(sanitized).collect();
    PathBuf::from(format!("leaktrace.{comm}.{pid}.pb.gz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_comes_with_a_remedy() {
        let mut losses = Losses::new();
        losses.add("thread_table_full", 52208, "calls not seen");
        insta::assert_snapshot!(lost(&losses), @"lost: 52208 thread_table_full; leaktrace doctor tries what a recording needs");
        losses.add("alloc_lost", 3, "the ring buffer was full");
        assert!(lost(&losses).contains("--mode sampled"));
    }

    #[test]
    fn a_hostile_name_makes_a_harmless_file() {
        assert_eq!(
            default_name("../a b\n\u{1b}[31m", 7),
            PathBuf::from("leaktrace..._a_b___31m.7.pb.gz")
        );
    }
}
