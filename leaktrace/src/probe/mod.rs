//! Probes: where in a function each one stands, and which are wanted for a process.
//!
//! Decides; attaching is `bpf`'s work.

pub mod plan;
pub mod returns;
pub mod site;
