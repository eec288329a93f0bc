//! The file that makes a folder a store, and says in which format.

use std::io::Read as _;

use super::directory::{Directory, TEMPORARY};
use super::error::StoreError;

/// The format that this version reads and writes. To be raised when an older version could not read it.
pub(super) const FORMAT: u64 = 1;
/// Name of the file.
pub(super) const NAME: &str = "version";
/// Its first line.
const TITLE: &str = "leaktrace profile store";
/// Name of the file that the lock is on.
pub(super) const LOCK: &str = "lock";

/// Whether the folder is a store of this format; `false` if it is none yet.
pub(super) fn check(directory: &Directory) -> Result<bool, StoreError> {
    let no_store = |reason: &str| StoreError::NotAStore {
        path: directory.path().to_owned(),
        reason: reason.to_owned(),
    };
    let file = match directory.open_file(NAME) {
        Err(error) if error.is_missing() => return Ok(false),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(4096)
        .read_to_end(&mut text)
        .map_err(|source| directory.error("read", NAME, source))?;
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    if lines.next() != Some(TITLE) {
        return Err(no_store("its file `version` is not one of leaktrace, or damaged"));
    }
    let format = lines.next().and_then(|line| line.strip_prefix("format "));
    let Some(found) = format.and_then(|format| format.parse().ok()) else {
        return Err(no_store("its file `version` is damaged"));
    };
    if found != FORMAT {
        return Err(StoreError::OtherVersion {
            path: directory.path().to_owned(),
            found,
            known: FORMAT,
        });
    }
    Ok(true)
}

/// A folder may become a store if nothing is in it: the store deletes files.
pub(super) fn check_empty(directory: &Directory) -> Result<(), StoreError> {
    // What an earlier attempt leaves, and what is in the root of a file system.
    let harmless = |name: &String| name == LOCK || name == "lost+found" || name.starts_with(TEMPORARY);
    match directory.names()?.into_iter().find(|name| !harmless(name)) {
        None => Ok(()),
        Some(_) => Err(StoreError::NotAStore {
            path: directory.path().to_owned(),
            reason: "it is not empty and has no file `version`".to_owned(),
        }),
    }
}

/// Makes the folder a store.
pub(super) fn write(directory: &Directory) -> Result<(), StoreError> {
    let text = format!(
        "{TITLE}\nformat {FORMAT}\nmade by leaktrace {}\n",
        env!("CARGO_PKG_VERSION")
    );
    directory.replace(NAME, &[text.as_bytes()])
}
