//! The list as plain text, for pipes and files.

use super::{
    columns::{self, Column},
    source::{Order, Source, SourceError},
    text,
};
use crate::api;

/// What to print.
#[derive(Clone, Debug)]
pub struct Options {
    /// Column sorted by.
    pub column: Column,
    /// Only processes that contain this.
    pub filter: String,
    /// Columns of a line.
    pub width: usize,
}

/// One look at everything.
///
/// # Errors
/// When the source cannot be reached.
pub fn page(source: &mut dyn Source, options: &Options) -> Result<String, SourceError> {
    let order = Order {
        sort: options.column.word(),
        ascending: options.column.is_name(),
        filter: options.filter.clone(),
    };
    let mut answer = source.processes(&order)?;
    let status = source.status()?;
    columns::sort(&mut answer.processes, options.column, false);
    Ok(table(&status, &answer, options))
}

fn table(status: &api::Status, answer: &api::Processes, options: &Options) -> String {
    let mut result = format!(
        "{}: {} of {} processes, {} traced; leaktrace takes {} of a CPU, its probes {}, {} of memory\n",
        text::clean(&status.host),
        answer.processes.len(),
        status.processes,
        status.traced,
        text::percent(status.own.cpu),
        text::percent(status.own.probes),
        text::bytes(status.own.rss as f64),
    );
    for trouble in &status.troubles {
        result += &format!("! {}\n", text::clean(trouble));
    }
    for loss in status.losses.iter().filter(|loss| loss.count > 0) {
        result += &format!(
            "! {} {}: {}\n",
            loss.count,
            text::clean(&loss.name),
            text::clean(&loss.meaning)
        );
    }
    let layout = columns::layout(&answer.processes, options.width);
    let mut add = |cell: &dyn Fn(Column, usize) -> String| {
        let cells: Vec<String> = layout
            .iter()
            .map(|(column, width)| text::pad(&cell(*column, *width), *width, column.is_number()))
            .collect();
        result += cells.join(" ").trim_end();
        result.push('\n');
    };
    add(&|column, _| column.heading().to_owned());
    for process in &answer.processes {
        add(&|column, width| column.text(process, width));
    }
    result
}
