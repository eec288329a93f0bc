//! Plain data shared by leaktrace's kernel and user side.
//!
//! Every type that crosses the border is defined here once: `repr(C)`, integers only, explicit padding, with its size
//! and offsets asserted at compile time. Nothing here allocates or knows of maps, files or processes.
#![no_std]

pub mod config;
pub mod event;
pub mod reason;
pub mod signature;
pub mod unwind;
