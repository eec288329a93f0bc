//! Harness of the end-to-end tests: real programs, a real tracer, and what the one says about the other.
//!
//! A test builds a program ([`programs`]), starts it ([`process`]), records it ([`recording`]) and compares the profile
//! ([`profile`]) with what the program itself knows. Nothing here knows leaktrace's insides: it runs the built program
//! and reads its files. Invariant: no wait is without a limit, and no process outlives its test.

pub mod breakpoints;
pub mod daemon;
pub mod elf;
pub mod golang;
pub mod losses;
pub mod machine;
pub mod pprof;
pub mod process;
pub mod profile;
pub mod programs;
pub mod receiver;
pub mod recording;
pub mod redis;
pub mod scenario;
pub mod user;
