//! Durations and sizes as people write them, and sizes as they read them.

pub use crate::model::quantity::{duration, size};

/// Bytes for people: `1.25 MiB`.
pub fn bytes(value: u64) -> String {
    crate::model::quantity::bytes(value as f64)
}
