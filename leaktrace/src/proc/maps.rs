//! `/proc/PID/maps`: what a process has mapped where.
//!
//! The parser is pure; names come from the target and may hold anything but a newline.

use std::path::PathBuf;

use crate::model::{FileOffset, ProcessAddress};

/// Which file is mapped: device and inode, the identity that uprobes go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number as `makedev` packs it.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: ProcessAddress,
    /// First address behind it.
    pub end: ProcessAddress,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Shared (`s`) rather than private (`p`).
    pub shared: bool,
    /// Position in the file where the mapping begins.
    pub offset: FileOffset,
    /// The mapped file; `None` for anonymous memory.
    pub file: Option<FileId>,
    /// Path as the target sees it (with ` (deleted)` cut off), or a name in brackets such as `[heap]`; empty if none.
    pub path: PathBuf,
    /// The file has no name any more.
    pub deleted: bool,
}
