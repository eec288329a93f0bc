//! Go processes, read from outside: heap profile, goroutines, collector, spans.
//!
//! Everything is read from `/proc/PID/mem` while the target runs on; nothing is stopped, and nothing is written
//! unless [`rate::ProfilingGuard`] is asked for. [`GoProcess::attach`] finds what the readers need in any binary of
//! Go 1.19 to 1.27, stripped or not, and in libraries of other programs; each reader takes a memory, the globals and a layout, so that it runs over a
//! recorded image just as well. `binary/` has what the file says, `read/` the readers, `derive/` what is made of what they
//! found. What is read is consistent per structure, not as a whole: every snapshot counts what it
//! found torn.

mod binary;
mod derive;
pub mod error;
pub mod process;
mod read;
pub mod recording;
mod runtime;

pub use binary::{buildinfo, check, code, dwarf, executable, locate, module, offsets, pclntab, version};
use binary::{library, rules};
pub use derive::{census, dump, groups, leaks, profile, stacks};
use derive::{read_heap, tasks};
pub use error::{Area, GoError};
pub use process::{GoProcess, Source};
use read::collector;
pub use read::{clock, gc, goroutines, heap, memory, objects, pace, rate, residency, spans};
pub use runtime::Go;
pub use version::GoVersion;
