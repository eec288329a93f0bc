//! The trace tier: probes in selected processes, their ledgers, what they cost, and profiles of them while it goes on.
//!
//! `engine` owns the kernel side, on a thread of its own; `cost` says what probes take; `governor` keeps that within
//! budgets.

pub mod cost;
pub mod engine;
pub mod governor;
