//! The watch tier: every process, without any probe.

pub mod identity;
