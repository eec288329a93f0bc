//! Where in a function's prologue its entry probe stands.
//!
//! A uprobe on an instruction that the kernel emulates costs a fraction of one that it must single-step, so the probe goes
//! to the first such instruction that every call of the function passes exactly once, while the argument registers that
//! the [`Signature`] names still hold the arguments. Invariant: up to the site there is no way in or out but the entry.

mod aarch64;
mod x86_64;

use leaktrace_common::signature::Signature;

use crate::model::{ElfAddress, FileOffset};
use crate::object::image::{ElfImage, Machine};

/// What a site has to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Argument registers that the probe reads.
    pub signature: Signature,
    /// A return probe goes with it: the kernel replaces the return address at the stack pointer, which must not have moved.
    pub return_probe: bool,
    /// The kernel emulates long NOPs (Linux 6.16 and later), not only the one-byte NOP.
    pub long_nops: bool,
}

/// A place for an entry probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Position in the file: what the probe is attached by.
    pub offset: FileOffset,
    /// Address of the instruction.
    pub address: ElfAddress,
    /// Bytes from the function's entry.
    pub distance: u32,
    /// The instruction, roughly as an assembler writes it.
    pub instruction: String,
    /// Bytes between the stack pointer and the return address when the probe fires.
    pub stack_offset: u32,
    /// The kernel emulates the instruction (cheap) rather than single-stepping it.
    pub emulated: bool,
    /// Why here.
    pub reason: String,
}

/// There is no place for a probe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The symbol's address has no code in the file.
    #[error("no code at {0} in the file")]
    NoCode(ElfAddress),
}

/// Chooses the site of a function.
pub fn choose(image: &ElfImage, entry: ElfAddress, demand: Demand) -> Result<Site, SiteError> {
    let offset = image
        .file_offset(entry)
        .filter(|_| image.is_code(entry))
        .ok_or(SiteError::NoCode(entry))?;
    Ok(match image.machine() {
        Machine::X86_64 => x86_64::choose(image, entry, offset, demand),
        Machine::Aarch64 => aarch64::choose(entry, offset),
    })
}

/// The entry itself, for the reason given.
fn at_entry(entry: ElfAddress, offset: FileOffset, instruction: String, reason: String) -> Site {
    Site {
        offset,
        address: entry,
        distance: 0,
        instruction,
        stack_offset: 0,
        emulated: false,
        reason,
    }
}
