//! What the probes do, a file per call family.

pub mod allocate;
pub mod feed;
pub mod growth;
pub mod lifecycle;
pub mod mapping;
pub mod release;
