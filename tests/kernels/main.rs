//! What has to hold on every kernel. Runs on this machine like any other suite, and in the guests that
//! `cargo xtask test --kernel` boots: with programs that were built before, a processor that is emulated, and limits that
//! are scaled to it ([`leaktrace_tests::machine::scaled`]).
//!
//! Exact means exact: to the byte, and nothing lost. Only `refusal` runs on kernels that
//! are too old or restricted.

mod all_lost;
mod cpp;
mod doctor;
mod go;
mod growth;
mod lifecycle;
mod privileges;
mod refusal;
mod seccomp;
mod sigkill;
mod stacks;
mod stopping;
mod truth;
