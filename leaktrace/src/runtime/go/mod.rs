//! Go processes, read from outside: heap profile, goroutines, collector, spans.
//!
//! Everything is read from `/proc/PID/mem` while the target runs on; nothing is stopped, and nothing is written
//! unless [`rate::ProfilingGuard`] is asked for. [`GoProcess::attach`] finds what the readers need in any binary of
//! Go 1.19 to 1.27, stripped or not, and in libraries of other programs; each reader takes a memory, the globals and a layout, so that it runs over a
//! recorded image just as well. What is read is consistent per structure, not as a whole: every snapshot counts what it
//! found torn.

pub mod buildinfo;
pub mod census;
pub mod check;
pub mod clock;
pub mod code;
pub mod collector;
pub mod dump;
pub mod dwarf;
pub mod error;
pub mod executable;
pub mod gc;
pub mod goroutines;
pub mod groups;
pub mod heap;
pub mod leaks;
mod library;
pub mod locate;
pub mod memory;
pub mod module;
pub mod objects;
pub mod offsets;
pub mod pace;
pub mod process;
pub mod profile;
pub mod rate;
pub mod recording;
pub mod residency;
pub mod spans;
pub mod stacks;
pub mod version;

pub use error::{Area, GoError};
pub use process::{GoProcess, Source};
pub use version::GoVersion;
