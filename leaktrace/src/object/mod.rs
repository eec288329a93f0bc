//! ELF files: layout, symbols, build IDs, relocations, and the control flow of their code.
//!
//! Knows nothing of processes or allocators. Files belong to the target and are hostile: every count is limited.

pub mod code;
#[cfg(test)]
pub(crate) mod fixture;
pub mod image;
pub mod mini;
pub mod symbols;
