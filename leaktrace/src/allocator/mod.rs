//! Allocators: which functions of a process hand out and take back heap memory.
//!
//! Knows files and symbols; not how probes are placed on them (see `probe`).

pub mod catalog;
pub mod detect;
pub mod flow;
pub mod inspect;
pub mod partial;
pub mod shape;
