//! Code as it was decoded when the place of a probe was chosen: its bytes, and where its instructions begin.
//!
//! Kept so that it can be compared with the file and with a process's memory before a probe is placed (`verify`).
//! Invariant: bytes and starts are those of one run of the file.

use crate::model::{ElfAddress, FileOffset};
use crate::object::image::ElfImage;

/// A run of decoded instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Where it begins in the file.
    pub offset: FileOffset,
    /// Its bytes.
    pub bytes: Box<[u8]>,
    /// Where each instruction begins, ascending.
    pub starts: Box<[u32]>,
}

impl Decoded {
    /// Instructions, given by address and length in any order, as runs. What is not in the file any more is left out.
    pub fn runs(image: &ElfImage, mut instructions: Vec<(ElfAddress, u8)>) -> Vec<Self> {
        instructions.sort_unstable();
        let mut runs: Vec<(ElfAddress, FileOffset, u64, Vec<u32>)> = Vec::new();
        for (address, len) in instructions {
            // A jump may lead to where there is no code.
            let Some(offset) = image.file_offset(address) else {
                continue;
            };
            let end = address.0.saturating_add(len.into());
            match runs.last_mut() {
                Some((start, first, last, starts))
                    if address.0 <= *last && offset.0.wrapping_sub(first.0) == address.0 - start.0 =>
                {
                    *last = (*last).max(end);
                    starts.extend(u32::try_from(address.0 - start.0));
                }
                _ => runs.push((address, offset, end, vec![0])),
            }
        }
        runs.into_iter()
            .filter_map(|(start, offset, end, starts)| {
                let len = usize::try_from(end - start.0).ok()?;
                Some(Self {
                    offset,
                    bytes: image.bytes_at(start, len).into(),
                    starts: starts.into(),
                })
            })
            .collect()
    }

    /// Whether an instruction of it begins at a position of the file, and is there whole as far as that is known.
    pub fn has(&self, offset: FileOffset) -> bool {
        let distance = offset.0.checked_sub(self.offset.0).and_then(|d| u32::try_from(d).ok());
        distance.is_some_and(|distance| {
            (distance as usize) < self.bytes.len() && self.starts.binary_search(&distance).is_ok()
        })
    }

    /// The part of it from one position in it to another.
    pub fn part(&self, start: usize, end: usize) -> Option<Self> {
        let (first, last) = (u32::try_from(start).ok()?, u32::try_from(end).ok()?);
        let starts = self.starts.iter().filter(|at| (first..last).contains(*at));
        Some(Self {
            offset: FileOffset(self.offset.0.checked_add(start as u64)?),
            bytes: self.bytes.get(start..end)?.into(),
            starts: starts.map(|at| at - first).collect(),
        })
    }

    /// The first position where other bytes of the same run are not the same code. A breakpoint (of a probe) may stand in
    /// the place of an instruction's first byte; `breakpoints` takes the positions of such. `is_trampoline` tells whether a
    /// distance from the end of a five-byte instruction leads to the kernel's trampoline of probes, which is called
    /// from the place of a probed NOP of that length.
    pub fn differs(
        &self,
        other: &[u8],
        is_trampoline: impl Fn(usize, i32) -> bool,
        breakpoints: &mut Vec<usize>,
    ) -> Option<usize> {
        if other.len() < self.bytes.len() {
            return Some(other.len());
        }
        let mut at = 0;
        while let Some(decoded) = self.bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let here = &other[at..];
            if decoded[0] == here[0] {
                at += 1;
                continue;
            }
            let begins = u32::try_from(at).is_ok_and(|at| self.starts.binary_search(&at).is_ok());
            if !begins {
                return Some(at);
            }
            let called = decoded.starts_with(&NOP) && (here[0] == CALL || here[0] == BREAKPOINT[0]);
            let distance = here
                .get(1..5)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_le_bytes);
            if called && distance.is_some_and(|distance| is_trampoline(at + NOP.len(), distance)) {
                breakpoints.push(at);
                at += NOP.len();
            } else if here.starts_with(BREAKPOINT) {
                breakpoints.push(at);
                at += BREAKPOINT.len();
            } else {
                return Some(at);
            }
        }
        None
    }
}

/// The NOP in whose place kernels from 6.18 on put a call.
const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `call` with a distance of 32 bits.
const CALL: u8 = 0xe8;

/// What the kernel writes in the place of a probed instruction: `int3`.
#[cfg(not(target_arch = "aarch64"))]
const BREAKPOINT: &[u8] = &[0xcc];
/// What the kernel writes in the place of a probed instruction: `brk #5`.
#[cfg(target_arch = "aarch64")]
const BREAKPOINT: &[u8] = &[0xa0, 0x00, 0x20, 0xd4];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::object::fixture;
    use proptest::prelude::*;

    /// push rbx; nop of five; mov rbx, rdi; ret
    const CODE: [u8; 10] = [0x53, 0x0f, 0x1f, 0x44, 0, 0, 0x48, 0x89, 0xfb, 0xc3];

    fn decoded() -> Decoded {
        let at = |distance: u64, len| (ElfAddress(fixture::BASE + distance), len);
        let image = fixture::code(&CODE);
        let mut runs = Decoded::runs(&image, vec![at(6, 3), at(0, 1), at(9, 1), at(1, 5)]);
        assert_eq!(runs.len(), 1);
        runs.pop().unwrap()
    }

    fn differs(other: &[u8]) -> Option<usize> {
        decoded().differs(other, |_, distance| distance == 7, &mut Vec::new())
    }

    #[test]
    fn instructions_become_runs() {
        let run = decoded();
        assert_eq!((run.offset, &*run.bytes), (FileOffset(0x1000), &CODE[..]));
        assert_eq!(&*run.starts, [0, 1, 6, 9]);
        assert!(run.has(FileOffset(0x1006)) && !run.has(FileOffset(0x1007)) && !run.has(FileOffset(0x100a)));
        let apart = vec![(ElfAddress(fixture::BASE), 1), (ElfAddress(fixture::BASE + 9), 1)];
        let runs = Decoded::runs(&fixture::code(&CODE), apart);
        assert_eq!(
            runs.iter().map(|run| run.offset.0).collect::<Vec<_>>(),
            [0x1000, 0x1009]
        );
        assert!(Decoded::runs(&fixture::code(&CODE), vec![(ElfAddress(8), 1)]).is_empty());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_breakpoint_where_an_instruction_begins_is_the_same_code() {
        let with = |changes: &[(usize, u8)]| {
            let mut code = CODE;
            changes.iter().for_each(|(at, byte)| code[*at] = *byte);
            differs(&code)
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[(0, 0xcc), (6, 0xcc), (9, 0xcc)]), None);
        // In the middle of one, it is none of a probe.
        assert_eq!(with(&[(7, 0xcc)]), Some(7));
        // A jump, as other tools put it there; and one whose rest alone is seen.
        assert_eq!(with(&[(0, 0xe9), (1, 1)]), Some(0));
        assert_eq!(with(&[(0, 0xcc), (1, 1)]), Some(1));
        assert_eq!(differs(&CODE[..4]), Some(4));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_of_the_kernels_trampoline_is_the_same_code() {
        let with = |first: u8, distance: i32| {
            let mut code = CODE;
            code[1] = first;
            code[2..6].copy_from_slice(&distance.to_le_bytes());
            differs(&code)
        };
        assert_eq!(with(0xe8, 7), None);
        // Half way there.
        assert_eq!(with(0xcc, 7), None);
        // Another tool's.
        assert_eq!(with(0xe8, 8), Some(1));
        assert_eq!(with(0xe9, 7), Some(1));
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_compared(other in proptest::collection::vec(any::<u8>(), 0..20), yes: bool) {
            let mut breakpoints = Vec::new();
            let run = decoded();
            if run.differs(&other, |_, _| yes, &mut breakpoints).is_none() {
                prop_assert!(breakpoints.iter().all(|at| run.has(FileOffset(run.offset.0 + *at as u64))));
            }
        }
    }
}
