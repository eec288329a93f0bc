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
use crate::probe::decoded::Decoded;

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
    /// All code that was walked.
    pub code: Vec<Decoded>,
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
/// A jump known at run time only is taken for one through a table if the function (of `size` bytes) has instructions that
/// nothing else leads to: those are walked then. `is_hooked` tells whether a function of another file has a return probe of its own.
pub fn find(
    image: &ElfImage,
    entry: ElfAddress,
    size: u64,
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
    let mut walked = Vec::new();
    let mut computed = None;
    let mut swept = false;
    let mut pending = vec![entry];
    loop {
        while let Some(start) = pending.pop() {
            let mut at = start;
            while visited.insert(at) {
                if visited.len() > MAX_STEPS {
                    return Err(ReturnsError::TooLarge);
                }
                let step = reader.step(at);
                walked.push((at, step.len));
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
                                computed.get_or_insert(at);
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
        let Some(jump) = computed.filter(|_| !swept) else { break };
        swept = true;
        match sweep(&mut reader, entry, size, &visited) {
            Some(unvisited) => pending.extend(unvisited),
            None => {
                incomplete.get_or_insert(Unfollowed::IndirectJump(jump));
            }
        }
    }
    if returns.is_empty() && leaves_to.is_empty() {
        return Err(ReturnsError::None(incomplete));
    }
    Ok(ReturnSites {
        offsets: returns.into_iter().collect(),
        leaves_to: leaves_to.into_iter().collect(),
        incomplete,
        code: Decoded::runs(image, walked),
    })
}

/// Instructions of a function that were not visited, found by decoding it from end to end. `None` if there are none, or if
/// the boundaries do not agree with those of the instructions that were visited (there may be data among the code).
fn sweep(
    reader: &mut CodeReader<'_>,
    entry: ElfAddress,
    size: u64,
    visited: &HashSet<ElfAddress>,
) -> Option<Vec<ElfAddress>> {
    let inside = |address: ElfAddress| address.0.checked_sub(entry.0).is_some_and(|distance| distance < size);
    let mut found = HashSet::new();
    let mut at = entry;
    while inside(at) && found.len() < MAX_STEPS {
        found.insert(at);
        at = reader.step(at).next();
    }
    let agrees = visited
        .iter()
        .filter(|address| inside(**address))
        .all(|address| found.contains(address));
    let mut unvisited: Vec<ElfAddress> = found.difference(visited).copied().collect();
    unvisited.sort_unstable();
    (agrees && !unvisited.is_empty()).then_some(unvisited)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::object::fixture;
    use proptest::prelude::*;

    fn returns(code: &[u8]) -> Result<ReturnSites, ReturnsError> {
        find(
            &fixture::code(code),
            ElfAddress(fixture::BASE),
            code.len() as u64,
            |_| false,
        )
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
    fn a_jump_through_a_table_is_swept() {
        // je +1; ret; jmp rax; (from the table:) nop; ret; call next; ret
        let found = returns(&[0x74, 0x01, 0xc3, 0xff, 0xe0, 0x90, 0xc3, 0xe8, 0, 0, 0, 0, 0xc3]).unwrap();
        assert_eq!(
            found.offsets,
            [FileOffset(0x1002), FileOffset(0x1006), FileOffset(0x100c)]
        );
        assert_eq!(found.incomplete, None);
        // Data that decodes across an instruction that is reached: nothing is taken from the sweep.
        // jmp +1; (mov eax, …); ret; je -3; jmp rax
        let found = returns(&[0xeb, 0x01, 0xb8, 0x74, 0x02, 0xff, 0xe0, 0xc3]).unwrap();
        assert_eq!(found.offsets, [FileOffset(0x1007)]);
        assert!(found.incomplete.is_some());
    }

    #[test]
    fn a_trap_and_a_loop_have_no_return() {
        assert_eq!(returns(&[0x0f, 0x0b, 0xc3]), Err(ReturnsError::None(None)));
        assert_eq!(returns(&[0xeb, 0xfe, 0xc3]), Err(ReturnsError::None(None)));
    }

    #[test]
    fn a_jump_to_before_the_code_takes_nothing_of_it_away() {
        // je -3; ret
        let found = returns(&[0x74, 0xfd, 0xc3]).unwrap();
        assert_eq!(found.offsets, [FileOffset(0x1002)]);
        assert!(
            found.code.iter().any(|run| run.has(FileOffset(0x1002))),
            "{:?}",
            found.code
        );
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
                    prop_assert!(found.code.iter().any(|run| run.has(offset)));
                    // Prefixes may stand in front of it.
                    let at = (offset.0 - 0x1000) as usize;
                    prop_assert!(code[at..].iter().take(15).any(|byte| matches!(byte, 0xc2 | 0xc3 | 0xca | 0xcb | 0xcf)));
                }
            }
        }
    }
}
