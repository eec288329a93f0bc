//! Readers of a Go process: each takes a memory, the runtime's globals and a layout, and gives what it found at one moment.
//!
//! What is read is consistent per structure, not as a whole: every snapshot counts what it found torn.

pub mod clock;
pub(super) mod collector;
pub mod gc;
pub mod goroutines;
pub mod heap;
pub mod memory;
pub mod objects;
pub mod pace;
pub mod rate;
pub mod residency;
pub mod spans;
