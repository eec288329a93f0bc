//! cli

pub mod diff;
pub mod report;
pub mod terminal;
