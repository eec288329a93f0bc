//! `leaktrace diff`: what grew between two profiles, per stack, largest first.

use std::path::PathBuf;

use clap::Args;

use super::report::{ReportError, ViewArgs, rows, sample_type, view};
use super::store::{self, StoreArgs};
use super::terminal;
use crate::export::file;
use crate::report::diff::diff;
use crate::report::stacks::{StackOptions, stacks};

/// Stacks on a terminal unless told otherwise; each takes several lines.
const TERMINAL_STACKS: usize = 5;

/// Arguments of `leaktrace diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The earlier profile: a file, or the id of a stored one
    pub base: PathBuf,
    /// The later profile
    pub new: PathBuf,
    /// Where ids lead
    #[command(flatten)]
    pub store: StoreArgs,
    /// What to show of the difference, and how
    #[command(flatten)]
    pub view: ViewArgs,
}

/// Runs `leaktrace diff`.
pub fn run(args: DiffArgs) -> anyhow::Result<()> {
    if let Some(output) = &args.view.output {
        file::Format::check(output).map_err(ReportError::from)?;
    }
    let (base, new) = (
        store::read(&args.base, &args.store)?,
        store::read(&args.new, &args.store)?,
    );
    let difference = diff(&base, &new).map_err(|source| ReportError::Incompatible {
        base: args.base.clone(),
        new: args.new.clone(),
        source,
    })?;
    let sample_type = sample_type(&difference, &args.new, &args.view)?;
    if let Some(output) = &args.view.output {
        file::write(output, &difference, sample_type).map_err(ReportError::from)?;
        eprintln!("wrote {}", output.display());
        return Ok(());
    }
    let mut text = String::new();
    if args.view.list.is_none() && !args.view.tree && !args.view.cum {
        let width = terminal::width();
        let top = args.view.top.unwrap_or(if width.is_some() {
            TERMINAL_STACKS
        } else {
            rows(&args.view, width)
        });
        text += &stacks(
            &difference,
            &StackOptions {
                sample_type,
                top,
                width,
            },
        );
        text.push('\n');
    }
    text += &view(&difference, &args.new, sample_type, &args.view)?;
    terminal::print(&text)
}
