//! Unwind tables: how to get from a frame to its caller in code that keeps no frame pointer.
//!
//! [`compile`] turns the call-frame information of one ELF file into an [`UnwindTable`] of fixed-size rows that the
//! kernel side searches; [`TableCache`] shares tables between the processes that map the same file; [`replay`] walks a
//! stack in userspace by the very steps that the kernel side takes. Nothing here knows of processes or maps.
//! Where a file has no such information for much of its code (musl's), rules are derived from the code itself.
//! Invariant: every address below the end of a table has a rule, and where there is call-frame information, a rule that is
//! not exactly what it says is [`RULE_UNKNOWN`](leaktrace_common::unwind::RULE_UNKNOWN).
//!
//! ```no_run
//! use object::read::ReadCache;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cache = ReadCache::new(std::fs::File::open("/bin/ls")?);
//! let table = leaktrace::unwind::compile(&object::File::parse(&cache)?, &[])?;
//! println!("{} rows, {:?}", table.rows.len(), table.stats);
//! # Ok(())
//! # }
//! ```

mod aarch64;
mod cache;

mod cfi;
mod compact;
mod derived;
mod program;
mod replay;
mod rule;

mod sections;
mod uncovered;
mod x86_64;

#[cfg(test)]
mod tests;

pub use cache::{CompileJob, TableCache, TableResult};
pub use cfi::{CompileError, ForcedRule, compile};
pub use compact::{TableStats, UnwindTable};
pub use replay::{
    Code, FirstPc, MAX_FRAMES, MAX_WALK, Mapping, OMITTED_FRAMES, Registers, Truncation, Walk, WalkEnd, replay,
};
pub use rule::UnknownReason;

/// Instruction sets whose call-frame information can be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// AMD64, System V ABI.
    X86_64,
    /// ARM64, AAPCS64.
    Aarch64,
}
