//! Walks of real processes, stopped deep in a chain of calls whose functions are known.

pub(super) const CHAIN: &str = include_str!("chain.c");
