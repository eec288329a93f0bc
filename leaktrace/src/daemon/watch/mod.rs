//! The watch tier: every process, without any probe.
//!
//! `table` looks at all of them; `series` keeps the course of each; `growth` says which of them grow; `identity` says who
//! they are; `collector` follows the collector of Go processes;
//! `suspects` says whose growth is followed by stack.

pub mod collector;
pub mod growth;
pub mod identity;
pub mod series;
pub mod suspects;
pub mod table;
