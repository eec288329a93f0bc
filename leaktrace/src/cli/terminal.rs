//! Standard output: how wide it is, and writing to it.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use crate::export::file::WriteError;

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

/// The first failure of [`write`], but for a reader that has gone.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// What `print!` of this program does: a reader that has seen enough (`| head`) is not an error, and another failure is
/// one in the end ([`written`]), not before the work is done.
pub fn write(text: fmt::Arguments<'_>) {
    note(io::stdout().lock().write_fmt(text));
}

/// Whether all that was printed could be written.
///
/// # Errors
/// As for a file that cannot be written.
pub fn written() -> anyhow::Result<()> {
    note(io::stdout().lock().flush());
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(source) => Err(WriteError {
            path: "/dev/stdout".into(),
            source,
        }
        .into()),
        None => Ok(()),
    }
}

fn note(result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
    }
}

/// Writes text. A reader that has seen enough (`| head`) is not an error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
