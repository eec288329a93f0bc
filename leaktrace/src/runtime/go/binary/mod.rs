//! What a Go binary says of itself: its form, its tables, its release, and where the runtime keeps what.
//!
//! Reads files, and of a process at most what leads to its module. Everything that a file states is checked before it is
//! believed.

pub mod buildinfo;
pub mod check;
pub mod code;
pub mod dwarf;
pub mod executable;
pub(super) mod library;
pub mod locate;
pub mod module;
pub mod offsets;
pub mod pclntab;
pub(super) mod rules;
pub mod version;
