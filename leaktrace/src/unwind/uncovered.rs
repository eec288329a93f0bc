//! Code without call-frame information that keeps frame pointers, as its own prologues tell: V8's builtins in `node` and
//! browsers, what an assembler or another compiler made. Frame pointers lead on where the walk would end.
//!
//! It decides for a whole gap between two entries, by a part of its bytes.
//! Invariant: no more than [`MAX_GAPS`] times [`MAX_READ`] bytes are read, whatever the file claims.

use std::ops::Range;

use object::{Object, ObjectSegment, ReadRef};

use super::{Machine, aarch64, x86_64};

/// Smaller gaps are padding, stubs and single functions.
const MIN_GAP: u64 = 4 << 10;
/// Most gaps that are looked at, the first ones.
const MAX_GAPS: usize = 64;
/// What is read of a gap, from its start.
const MAX_READ: u64 = 256 << 10;
/// Bytes of code that a prologue stands for at most. V8's builtins have one in 860 bytes; code that keeps no frame
/// pointers has next to none.
const BYTES_A_PROLOGUE: usize = 2 << 10;

/// The gaps in `covered` whose code keeps frame pointers. Both are sorted; nothing overlaps.
pub(super) fn keeping_frame_pointers<'data, R: ReadRef<'data>>(
    file: &object::File<'data, R>,
    machine: Machine,
    text: &[Range<u64>],
    covered: impl Iterator<Item = Range<u64>>,
) -> Vec<Range<u64>> {
    let prologue = match machine {
        Machine::X86_64 => &x86_64::PROLOGUE,
        Machine::Aarch64 => &aarch64::PROLOGUE,
    };
    gaps(text, covered)
        .into_iter()
        .filter(|gap| {
            let bytes = bytes_at(file, gap);
            let prologues = bytes
                .windows(prologue.len())
                .filter(|window| window == prologue)
                .count();
            prologues > 0 && bytes.len() <= prologues * BYTES_A_PROLOGUE
        })
        .collect()
}

fn gaps(text: &[Range<u64>], covered: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut covered = covered.peekable();
    for segment in text {
        let mut at = segment.start;
        while at < segment.end && gaps.len() < MAX_GAPS {
            // What ends before the segment is another's.
            if covered.next_if(|range| range.end <= at).is_some() {
                continue;
            }
            let next = covered.peek().filter(|range| range.start < segment.end);
            let end = next.map_or(segment.end, |range| range.start);
            if end.saturating_sub(at) >= MIN_GAP {
                gaps.push(at..end);
            }
            at = next.map_or(segment.end, |range| range.end);
        }
    }
    gaps
}

/// The first bytes of a range; none where the file does not hold it.
fn bytes_at<'data, R: ReadRef<'data>>(file: &object::File<'data, R>, range: &Range<u64>) -> &'data [u8] {
    let segment = file
        .segments()
        .find(|segment| (segment.address()..segment.address().saturating_add(segment.size())).contains(&range.start));
    let Some(segment) = segment else {
        return &[];
    };
    let (_, in_file) = segment.file_range();
    let left = segment.address().saturating_add(in_file).saturating_sub(range.start);
    let wanted = (range.end - range.start).min(left).min(MAX_READ);
    segment
        .data_range(range.start, wanted)
        .ok()
        .flatten()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_what_is_covered_and_within_text() {
        let text = [0x1000..0x9000, 0x20000..0x30000];
        let covered = [
            0x500..0x800,
            0x1000..0x1400,
            0x1500..0x2000,
            0x4000..0x8800,
            0x20000..0x2e000,
        ];
        assert_eq!(gaps(&text, covered.into_iter()), [0x2000..0x4000, 0x2e000..0x30000]);
        assert_eq!(gaps(&text, std::iter::empty()), text);
        // An entry that reaches from before a segment into it.
        assert_eq!(
            gaps(&text, std::iter::once(0x800..0x2000)),
            [0x2000..0x9000, 0x20000..0x30000]
        );
        let many: Vec<Range<u64>> = (0..1000).map(|index| index * 0x2000..index * 0x2000 + 0x1000).collect();
        assert_eq!(
            gaps(std::slice::from_ref(&(0..1000 * 0x2000)), many.into_iter()).len(),
            MAX_GAPS
        );
    }
}
