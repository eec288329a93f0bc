//! The readers of Go processes against what the programs say of themselves at the same moment, for each Go release that
//! is there and each way of building. Needs root (other processes' memory) and the Go toolchains that
//! `cargo xtask setup` unpacks; a release that is missing is skipped with a printed reason, 1.19 and 1.23 never.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod churn;
mod collector;
mod command_line;
mod field_leaks;
mod foreign;
mod goroutines;
mod heap;
mod hostile;
mod library;
mod locate;
mod seeds;
mod spans;
mod speed;
mod support;
