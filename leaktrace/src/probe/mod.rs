//! Probes: where in a function each one stands, which are wanted for a process, and which may be placed.
//!
//! Decides; attaching is `bpf`'s work.

pub mod decoded;
pub mod plan;
pub mod returns;
pub mod site;
pub mod verify;
