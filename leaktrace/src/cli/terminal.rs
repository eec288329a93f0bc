//! Standard output: how wide it is, and writing to it.

use std::io::{self, IsTerminal, Write};

/// Columns of the terminal on standard output; `None` for a pipe or a file.
pub fn width() -> Option<usize> {
    let output = io::stdout();
    if !output.is_terminal() {
        return None;
    }
    // `COLUMNS` is what shells and tests set; clap's own wrapping asks the terminal in the same order.
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns
        .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
        .or(Some(80))
}

/// Writes text. A reader that has seen enough (`| head`) is not an error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
