//! Profiles as files: one module per format, and [`file`] to choose among them.
//!
//! Sees the result model alone. Output is deterministic: equal profiles give equal bytes.

pub mod file;
pub mod folded;
pub mod json;
pub mod pprof;
pub mod svg;
