//! Rules for code without call-frame information, derived from the code itself: musl, which is built without, and what an
//! assembler made.
//!
//! Every function that is called, named or whose address is taken (`starts`) is walked along all its ways (`walk`), with
//! the distance of the stack pointer from the CFA and the place of the caller's frame pointer (`state`). Where all ways to an
//! instruction agree it has a rule. Anything else has none: an instruction that is not reached, that is reached with
//! different stacks or by the middle of another instruction, all of a function that does what cannot be followed.
//! Invariant: the code that is walked, and the instructions that are, are bounded; beyond that nothing is derived.

mod starts;
mod state;
mod tables;
mod walk;

use std::ops::Range;

use object::{Object, ObjectSegment, ObjectSymbol, ReadRef};

use self::starts::piece;
use self::state::State;
use self::walk::{Bytes, Walker};
use super::rule::Rule;
use super::sections::MAX_SEGMENTS;

/// Gaps that together are smaller, and less than an eighth of the code, are stubs and single functions.
const MIN_CODE: u64 = 4 << 10;
/// Largest code that is analysed. musl has 400 KB.
const MAX_CODE: u64 = 4 << 20;
/// Smaller gaps are padding.
const MIN_GAP: u64 = 16;
/// Most gaps.
const MAX_GAPS: usize = 1 << 14;

/// A rule for a range of addresses.
pub(super) type Derived = (Range<u64>, Rule);

/// What was found for an instruction: none if it contradicts itself.
type Found = (Range<u64>, Option<Rule>);
/// An instruction: address, length, the stack before it.
type Walked = (u64, u8, State);

/// Rules for the code in `text` that `covered` leaves out, by address, not overlapping. Both are sorted.
pub(super) fn rules<'data, R: ReadRef<'data>>(
    file: &object::File<'data, R>,
    text: &[Range<u64>],
    covered: impl Iterator<Item = Range<u64>>,
) -> Vec<Derived> {
    let Some((states, signals)) = analyse(file, text, covered) else {
        return Vec::new();
    };
    let states = states.into_iter();
    let mut found: Vec<Found> = states
        .map(|(at, len, state)| (at..at + u64::from(len), state.rule()))
        .collect();
    found.extend(signals.into_iter().map(|(range, rule)| (range, Some(rule))));
    settle(found)
}

/// Sorts what was found and leaves out what contradicts.
fn settle(mut found: Vec<Found>) -> Vec<Derived> {
    found.sort_unstable_by_key(|(range, _)| (range.start, range.end));
    found.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same && next.1 != kept.1 {
            kept.1 = None;
        }
        same
    });
    // What overlaps is not understood, neither the one nor the other.
    let mut last: Option<usize> = None;
    for index in 0..found.len() {
        let Range { start, end } = found[index].0;
        let reaches = last.map_or(0, |last| found[last].0.end);
        if start < reaches {
            found[index].1 = None;
            last.into_iter().for_each(|last| found[last].1 = None);
        }
        if end >= reaches {
            last = Some(index);
        }
    }
    let mut derived: Vec<Derived> = Vec::new();
    for (range, rule) in found {
        let Some(rule) = rule else { continue };
        match derived.last_mut() {
            Some((before, last)) if before.end == range.start && *last == rule => before.end = range.end,
            _ => derived.push((range, rule)),
        }
    }
    derived
}

/// Walks the code: instructions, and the trampolines of signal handlers.
fn analyse<'data, R: ReadRef<'data>>(
    file: &object::File<'data, R>,
    text: &[Range<u64>],
    covered: impl Iterator<Item = Range<u64>>,
) -> Option<(Vec<Walked>, Vec<Derived>)> {
    let gaps = gaps(text, covered)?;
    let pieces: Vec<(u64, &[u8])> = gaps
        .iter()
        .filter_map(|gap| Some((gap.start, bytes_at(file, gap.start, gap.end - gap.start)?)))
        .collect();
    let code = Code { file, pieces };
    let starts = starts::find(file, &code.pieces, text)?;
    let mut symbols = file.dynamic_symbols();
    let imports = symbols.any(|symbol| symbol.is_undefined() && !symbol.is_weak() && symbol.index().0 != 0);
    let mut walker = Walker::new(&code, imports);
    walker.know(&starts.likely);
    walker.walk(&starts.known, false).ok()?;
    let reached = walker.reached();
    let more: Vec<u64> = starts.likely.into_iter().filter(|at| !reached.contains(at)).collect();
    walker.walk(&more, true).ok()?;
    let mut trampolines = std::mem::take(&mut walker.trampolines);
    trampolines.sort_unstable();
    trampolines.dedup();
    let signals = trampolines.into_iter().map(|(at, len)| {
        // A handler returns to the trampoline's first byte, and its row is looked for one byte before.
        let padded = code.code(at.wrapping_sub(1), 1) == [0x90];
        (at - u64::from(padded)..at + u64::from(len), Rule::SIGNAL)
    });
    Some((walker.states(), signals.collect()))
}

/// What lies between what is covered, if it is worth the work and not too much.
fn gaps(text: &[Range<u64>], covered: impl Iterator<Item = Range<u64>>) -> Option<Vec<Range<u64>>> {
    let mut gaps = Vec::new();
    let mut covered = covered.peekable();
    for segment in text {
        let mut at = segment.start;
        while at < segment.end {
            if covered.next_if(|range| range.end <= at).is_some() {
                continue;
            }
            let next = covered.peek().filter(|range| range.start < segment.end);
            let end = next.map_or(segment.end, |range| range.start);
            if end.saturating_sub(at) >= MIN_GAP {
                if gaps.len() == MAX_GAPS {
                    return None;
                }
                gaps.push(at..end);
            }
            at = next.map_or(segment.end, |range| range.end);
        }
    }
    let sum = |ranges: &[Range<u64>]| -> u64 { ranges.iter().map(|range| range.end - range.start).sum() };
    let (size, all) = (sum(&gaps), sum(text));
    (size >= MIN_CODE.min(all / 8) && size <= MAX_CODE).then_some(gaps)
}

struct Code<'a, 'data, R: ReadRef<'data>> {
    file: &'a object::File<'data, R>,
    pieces: Vec<(u64, &'data [u8])>,
}

impl<'data, R: ReadRef<'data>> Bytes for Code<'_, 'data, R> {
    fn code(&self, address: u64, max: usize) -> &[u8] {
        let Some((start, bytes)) = piece(&self.pieces, address) else {
            return &[];
        };
        let rest = bytes.get((address - start) as usize..).unwrap_or_default();
        rest.get(..max.min(rest.len())).unwrap_or_default()
    }

    fn data(&self, address: u64, len: usize) -> Option<&[u8]> {
        bytes_at(self.file, address, len as u64).filter(|bytes| bytes.len() == len)
    }
}

/// Up to `len` bytes of a segment.
fn bytes_at<'data, R: ReadRef<'data>>(file: &object::File<'data, R>, address: u64, len: u64) -> Option<&'data [u8]> {
    let segment = file.segments().take(MAX_SEGMENTS).find(|segment| {
        address
            .checked_sub(segment.address())
            .is_some_and(|skipped| skipped < segment.size())
    })?;
    let (_, in_file) = segment.file_range();
    let left = in_file.checked_sub(address - segment.address())?;
    segment.data_range(address, len.min(left)).ok().flatten()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
