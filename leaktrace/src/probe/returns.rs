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
use crate::object::symbols::find_definition;

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
    /// Names of hooked functions that this one may end in by a tail call through the linkage table: they return in its place.
    pub leaves_to: Vec<String>,
    /// A way out that could not be followed: calls that take it are not seen to return.
    pub incomplete: Option<Unfollowed>,
}

/// A way out of a function that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfollowed {
    /// A jump whose target is known at run time only.
    #[error("the jump at {0} goes to a place known at run time only")]
    IndirectJump(ElfAddress),
    /// A tail call of a function of another file that is not hooked.
    #[error("it may end in `{0}`, which is not hooked")]
    LeavesTo(String),
}

/// Why the returns cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReturnsError {
    /// The architecture's code is not decoded.
    #[error("code of this architecture is not decoded")]
    NotDecoded,
    /// Too much code.
    #[error("more than {MAX_STEPS} instructions")]
    TooLarge,
    /// Too many returns.
    #[error("more than {MAX_RETURNS} return instructions")]
    TooMany,
    /// No return was found.
    #[error("no return instruction was found{}", .0.as_ref().map(|way| format!(": {way}")).unwrap_or_default())]
    None(Option<Unfollowed>),
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
    let mut incomplete = None;
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
                        // Not hooked, but maybe defined here: the loader nearly always binds it to that.
                        Callee::Symbol(name) => match find_definition(image, &name) {
                            Some(address) => pending.push(address),
                            None => {
                                let name = String::from_utf8_lossy(&name).into_owned();
                                incomplete.get_or_insert(Unfollowed::LeavesTo(name));
                            }
                        },
                        _ => {
                            incomplete.get_or_insert(Unfollowed::IndirectJump(at));
                        }
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
        return Err(ReturnsError::None(incomplete));
    }
    Ok(ReturnSites {
        offsets: returns.into_iter().collect(),
        leaves_to: leaves_to.into_iter().collect(),
        incomplete,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::object::image::fixture;
    use proptest::prelude::*;

    fn returns(code: &[u8]) -> Result<ReturnSites, ReturnsError> {
        find(&fixture::code(code), ElfAddress(fixture::BASE), |_| false)
    }

    #[test]
    fn both_arms_and_a_tail_call() {
        // je +1; ret; jmp +1; (data); call next; ret
        let code = [0x74, 0x01, 0xc3, 0xeb, 0x01, 0xff, 0xe8, 0, 0, 0, 0, 0xc3];
        let found = returns(&code).unwrap();
        assert_eq!(found.offsets, [FileOffset(0x1002), FileOffset(0x100b)]);
        assert_eq!(found.incomplete, None);
    }

    #[test]
    fn an_indirect_jump_is_told() {
        // je +1; ret; jmp rax
        let found = returns(&[0x74, 0x01, 0xc3, 0xff, 0xe0]).unwrap();
        assert_eq!(found.offsets, [FileOffset(0x1002)]);
        assert_eq!(
            found.incomplete,
            Some(Unfollowed::IndirectJump(ElfAddress(fixture::BASE + 3)))
        );
        assert!(matches!(returns(&[0xff, 0xe0]), Err(ReturnsError::None(Some(_)))));
    }

    #[test]
    fn a_trap_and_a_loop_have_no_return() {
        assert_eq!(returns(&[0x0f, 0x0b, 0xc3]), Err(ReturnsError::None(None)));
        assert_eq!(returns(&[0xeb, 0xfe, 0xc3]), Err(ReturnsError::None(None)));
    }

    #[test]
    fn too_many_returns() {
        let code: Vec<u8> = std::iter::repeat_n([0x74, 0x01, 0xc3], MAX_RETURNS + 1)
            .flatten()
            .collect();
        assert_eq!(returns(&code), Err(ReturnsError::TooMany));
    }

    proptest! {
        #[test]
        fn each_is_a_return(code in proptest::collection::vec(prop_oneof![Just(0xc3u8), Just(0x74), Just(0x02), any::<u8>()], 1..200)) {
            if let Ok(found) = returns(&code) {
                for offset in found.offsets {
                    // Prefixes may stand in front of it.
                    let at = (offset.0 - 0x1000) as usize;
                    prop_assert!(code[at..].iter().take(15).any(|byte| matches!(byte, 0xc2 | 0xc3 | 0xca | 0xcb | 0xcf)));
                }
            }
        }
    }
}
