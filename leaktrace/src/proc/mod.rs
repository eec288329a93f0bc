//! Processes as `/proc` shows them: mappings, identity, memory.

pub mod maps;
