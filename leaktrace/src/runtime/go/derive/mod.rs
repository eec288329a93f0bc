//! What is made of what was read of a Go process: stacks, groups, profiles, dumps, and who may be leaking.

pub mod census;
pub mod dump;
pub mod groups;
pub mod leaks;
pub mod profile;
pub(super) mod read_heap;
pub mod stacks;
pub(super) mod tasks;
