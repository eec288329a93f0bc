//! Durations and sizes as people write them, and sizes as they read them.

pub use crate::model::quantity::{duration, size};

/// Bytes for people: `1.25MB`, in pprof's units.
pub fn bytes(value: u64) -> String {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    crate::report::unit::label(value, "bytes", &crate::report::unit::Scale::Auto)
}
