//! The return instructions of a function, for probes that stand on them instead of a uretprobe.
//!
//! Needed where the return address must not be replaced: functions that can throw, seccomp-filtered targets on some kernels.
//! Invariant: every address returned was decoded from the function's entry on; a wrong one would put a breakpoint into the
//! middle of an instruction.

use std::collections::{BTreeSet, HashSet};

use crate::allocator::flow::{never_returns, runs_on};
use crate::model::{ElfAddress, FileOffset};
use crate::object::code::{Callee, CodeReader, Flow, Target};
use crate::object::image::ElfImage;

/// Most instructions that are walked.
const MAX_STEPS: usize = 20_000;
/// Most return instructions that are worth a probe each.
const MAX_RETURNS: usize = 64;

/// Where a function returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnSites {
    /// The return instructions, ascending. Some may be shared with other functions that end in the same tail, so a probe
    /// has to compare the stack pointer with that of the entry.
    pub offsets: Vec<FileOffset>,
    /// Names of hooked functions of other files that this one may end in by a tail call: they return in its place.
    pub leaves_to: Vec<String>,
}

/// Why the returns cannot all be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReturnsError {
    /// The architecture's code is not decoded.
    #[error("code of this architecture is not decoded")]
    NotDecoded,
    /// A jump whose target is known at run time only.
    #[error("the jump at {0} goes to a place known at run time only")]
    IndirectJump(ElfAddress),
    /// A tail call of a function that is not hooked, in another file.
    #[error("it ends in a jump to `{0}`, which is not hooked")]
    LeavesTo(String),
    /// Too much code.
    #[error("more than {MAX_STEPS} instructions")]
    TooLarge,
    /// Too many returns.
    #[error("more than {MAX_RETURNS} return instructions")]
    TooMany,
    /// No return was found.
    #[error("no return instruction was found")]
    None,
}

/// Finds the return instructions reachable from an entry: branches and tail calls are followed, calls are stepped over.
/// `is_hooked` tells whether a function of another file has a return probe of its own.
pub fn find(
    image: &ElfImage,
    entry: ElfAddress,
    mut is_hooked: impl FnMut(&[u8]) -> bool,
) -> Result<ReturnSites, ReturnsError> {
    if !crate::object::code::can_decode(image.machine()) {
        return Err(ReturnsError::NotDecoded);
    }
    let mut reader = CodeReader::new(image);
    let mut returns = BTreeSet::new();
    let mut leaves_to = BTreeSet::new();
    let mut visited = HashSet::new();
    let mut pending = vec![entry];
    while let Some(start) = pending.pop() {
        let mut at = start;
        while visited.insert(at) {
            if visited.len() > MAX_STEPS {
                return Err(ReturnsError::TooLarge);
            }
            let step = reader.step(at);
            match step.flow {
                Flow::Next => {}
                Flow::Stop => break,
                Flow::Return => {
                    returns.extend(image.file_offset(at));
                    if returns.len() > MAX_RETURNS {
                        return Err(ReturnsError::TooMany);
                    }
                    break;
                }
                Flow::Branch(target) => pending.push(target),
                Flow::Call(target) => {
                    if matches!(reader.callee(target), Callee::Symbol(name) if never_returns(&name)) {
                        break;
                    }
                }
                Flow::Jump(target) => {
                    match reader.callee(target) {
                        Callee::Local(address) if target != Target::Computed => pending.push(address),
                        Callee::Symbol(name) if never_returns(&name) => {}
                        Callee::Symbol(name) if is_hooked(&name) => {
                            leaves_to.insert(String::from_utf8_lossy(&name).into_owned());
                        }
                        Callee::Symbol(name) => {
                            return Err(ReturnsError::LeavesTo(String::from_utf8_lossy(&name).into_owned()));
                        }
                        _ => return Err(ReturnsError::IndirectJump(at)),
                    }
                    break;
                }
            }
            if !runs_on(image, &step) {
                break;
            }
            at = step.next();
        }
    }
    if returns.is_empty() && leaves_to.is_empty() {
        return Err(ReturnsError::None);
    }
    Ok(ReturnSites {
        offsets: returns.into_iter().collect(),
        leaves_to: leaves_to.into_iter().collect(),
    })
}
