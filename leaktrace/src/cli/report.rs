//! `leaktrace report`: a profile file as a table, a tree, a source listing, or another format.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use regex::Regex;

use crate::cli::terminal;
use crate::export::file::WriteError;
use crate::export::{file, pprof};
use crate::report::diff::IncompatibleProfiles;
use crate::report::graph::GraphOptions;
use crate::report::profile::UnknownSampleType;
use crate::report::sites::{self, SiteOptions};
use crate::report::table::{TableOptions, table};
use crate::report::tree::tree;
use crate::report::{Profile, list, prune};

/// Largest source file that `--list` reads.
const MAX_SOURCE: u64 = 16 << 20;
/// Rows on a terminal unless told otherwise. A pipe gets all of them.
const TERMINAL_ROWS: usize = 30;

/// Arguments of `leaktrace report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Profile to read: leaktrace's, Go's, or any other pprof file
    pub file: PathBuf,
    /// What to show of it, and how
    #[command(flatten)]
    pub view: ViewArgs,
}

/// Which frames get rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Frames {
    /// The first of each stack that is the program's own: not of an allocator, runtime, standard library or libc.
    #[default]
    Own,
    /// All, by flat and cumulative weight.
    All,
}

/// What `report` and `diff` have in common.
#[derive(Args, Clone, Debug, Default)]
pub struct ViewArgs {
    /// Show at most so many rows [default: 30 on a terminal, all in a pipe]
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Sample type to show, such as inuse_space or alloc_objects [default: the profile's own]
    #[arg(long, value_name = "TYPE")]
    pub sample_type: Option<String>,
    /// Sort by cumulative weight: with all that a function calls
    #[arg(long)]
    pub cum: bool,
    /// Show the source lines of the functions that match, with their bytes
    #[arg(long, value_name = "REGEX", conflicts_with_all = ["cum", "tree"])]
    pub list: Option<String>,
    /// Show sites (the program's own code nearest to each allocation), or every function as `go tool pprof -top` does
    #[arg(long, value_enum, default_value_t)]
    pub frames: Frames,
    /// Show each function between its callers and its callees
    #[arg(long)]
    pub tree: bool,
    /// Write the profile to a file instead: .svg (flame graph), .folded, .json, .pb.gz by its ending
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Why a profile cannot be shown. Each has its own exit status.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is no such file.
    #[error("failed to read `{}`: no such file", .0.display())]
    NotFound(PathBuf),
    /// The file cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The file is no profile, or a damaged one.
    #[error("failed to read `{}`: corrupt profile: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The profile does not have the sample type asked for.
    #[error("failed to show `{}`: {source}", path.display())]
    UnknownSampleType {
        /// The file.
        path: PathBuf,
        /// Asked for, and present.
        source: UnknownSampleType,
    },
    /// `--list` is not a regular expression.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    BadRegex {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No function matches `--list`.
    #[error("no function in `{}` matches `{pattern}`", path.display())]
    NoMatch {
        /// The file.
        path: PathBuf,
        /// What was given.
        pattern: String,
    },
    /// The two profiles of a difference do not measure the same things.
    #[error("failed to compare `{}` with `{}`: {source}", base.display(), new.display())]
    Incompatible {
        /// The base profile.
        base: PathBuf,
        /// The new profile.
        new: PathBuf,
        /// How they differ.
        source: IncompatibleProfiles,
    },
    /// The output file cannot be written.
    #[error(transparent)]
    Unwritable(#[from] WriteError),
}

/// Runs `leaktrace report`.
pub fn run(args: ReportArgs) -> anyhow::Result<()> {
    if let Some(output) = &args.view.output {
        file::Format::check(output).map_err(ReportError::from)?;
    }
    show(&read(&args.file)?, &args.file, "", &args.view)
}

/// Shows a profile as the arguments ask for, below a heading, or writes it to a file. Errors call it `path`.
pub(super) fn show(profile: &Profile, path: &Path, heading: &str, args: &ViewArgs) -> anyhow::Result<()> {
    let sample_type = sample_type(profile, path, args)?;
    if let Some(output) = &args.output {
        file::write(output, profile, sample_type).map_err(ReportError::from)?;
        eprintln!("wrote {}", output.display());
        return Ok(());
    }
    terminal::print(&format!("{heading}{}", view(profile, path, sample_type, args)?))
}

/// Reads a profile and leaves out the frames that it asks to leave out.
pub fn read(path: &Path) -> Result<Profile, ReportError> {
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ReportError::NotFound(path.to_owned()),
        _ => ReportError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    let input = File::open(path).map_err(unreadable)?;
    decode(path, std::io::BufReader::new(input))
}

/// The same of a profile that is read from elsewhere. Errors call it `path`.
pub(super) fn decode(path: &Path, input: impl std::io::Read) -> Result<Profile, ReportError> {
    let mut profile = pprof::read(input).map_err(|error| match error {
        pprof::DecodeError::Read(source) => ReportError::Unreadable {
            path: path.to_owned(),
            source,
        },
        other => ReportError::Corrupt {
            path: path.to_owned(),
            reason: other.to_string(),
        },
    })?;
    prune::prune(&mut profile).map_err(|error| ReportError::Corrupt {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(profile)
}

/// Position of the sample type that the arguments ask for.
pub(super) fn sample_type(profile: &Profile, path: &Path, view: &ViewArgs) -> Result<usize, ReportError> {
    profile
        .sample_type(view.sample_type.as_deref())
        .map_err(|source| ReportError::UnknownSampleType {
            path: path.to_owned(),
            source,
        })
}

/// Rows to show: as told, else few on a terminal and all in a pipe. 0 is all.
pub(super) fn rows(view: &ViewArgs, width: Option<usize>) -> usize {
    view.top.unwrap_or(if width.is_some() { TERMINAL_ROWS } else { 0 })
}

/// The text that the arguments ask for: table, tree or source listing.
pub(super) fn view(profile: &Profile, path: &Path, sample_type: usize, view: &ViewArgs) -> Result<String, ReportError> {
    if let Some(pattern) = &view.list {
        let regex = Regex::new(pattern).map_err(|error| ReportError::BadRegex {
            pattern: pattern.clone(),
            // The last line says what is wrong, the others draw where.
            reason: error
                .to_string()
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned(),
        })?;
        return list::list(profile, sample_type, &regex, source).ok_or_else(|| ReportError::NoMatch {
            path: path.to_owned(),
            pattern: pattern.clone(),
        });
    }
    let width = terminal::width();
    let graph = GraphOptions {
        cumulative: view.cum,
        top: rows(view, width),
        ..GraphOptions::trimmed(sample_type)
    };
    let options = TableOptions { graph, width };
    let mut text = if view.tree {
        tree(profile, &options)
    } else {
        top(profile, &options, view.frames)
    };
    if !profile.metadata.losses.is_empty() {
        text += &format!("{}\n", profile.metadata.losses);
    }
    Ok(text)
}

/// The table of sites or of functions. By cumulative weight there are functions alone.
pub(super) fn top(profile: &Profile, options: &TableOptions, frames: Frames) -> String {
    if frames == Frames::All || options.graph.cumulative {
        return table(profile, options);
    }
    let graph = &options.graph;
    sites::table(
        profile,
        &SiteOptions {
            sample_type: graph.sample_type,
            top: graph.top,
            fraction: graph.node_fraction,
            width: options.width,
        },
    )
}

/// Text of a source file of this machine. Its path comes from the profile: only regular files of bearable size.
fn source(path: &str) -> Result<String, String> {
    let path = Path::new(path);
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_SOURCE)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
