//! The only user of aya: loads the kernel side, attaches it, reads and writes its maps.
//!
//! It knows records and map values as bytes and plain data, not what they mean.

pub mod btf;
pub mod capability;
pub mod counters;
pub mod deferred;
pub mod features;
pub mod feed;
pub mod grace;
pub mod growth;
pub mod kernel;
pub mod links;
pub mod log;
pub mod lost;
pub mod own_code;
pub mod processes;
pub mod program_set;
pub mod requirements;
pub mod ring;
pub mod sampled;
pub mod self_test;
pub mod syscall;
pub mod tables;
pub mod tracefs;
pub mod trap;
pub mod usage;

mod perf_event;
mod private_stack;
mod program;
