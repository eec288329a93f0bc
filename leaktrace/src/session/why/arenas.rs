//! Heaps of glibc's arenas, recognised by their headers.
//!
//! Each begins at a multiple of 64 MiB with its arena's address, the heap before it, its size and how much of it is
//! accessible. What the header says decides about a label only, so a program that forges one fools nobody but its owner.

use super::kinds::Range;
use crate::{
    model::ProcessAddress,
    proc::{
        memory::{MemoryReader, ReadRequest},
        smaps::Area,
    },
};

/// Size and alignment of a heap on machines of 64 bits.
const HEAP: u64 = 64 << 20;
/// Bytes of the header that are looked at.
const HEADER: usize = 32;
/// Places that are looked at.
const MAX_PLACES: usize = 4096;

/// The accessible part of the heap whose header this is, if it is one.
fn heap(header: &[u8; HEADER], at: u64) -> Option<Range> {
    let word = |index: usize| {
        let bytes = header.get(index * 8..index * 8 + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    };
    let (arena, before, size, accessible) = (word(0)?, word(1)?, word(2)?, word(3)?);
    let base = arena / HEAP * HEAP;
    let is_first = base == at && before == 0;
    let is_further = base != at && base != 0 && before != 0 && before % HEAP == 0 && before != at;
    let fits = (1..=HEAP).contains(&accessible) && size > 0 && size <= accessible && accessible % 4096 == 0;
    // The arena's own description stands behind the header of its first heap.
    let behind = (HEADER as u64..=64).contains(&(arena - base)) && arena.is_multiple_of(16);
    (fits && behind && (is_first || is_further)).then_some(at..at.checked_add(accessible)?)
}

/// The heaps in these areas, each with its area's index, ascending.
pub fn find<M: MemoryReader>(areas: &[Area], memory: &M) -> Vec<(usize, Range)> {
    let candidates = areas.iter().enumerate().filter(|(_, area)| {
        let is_heap = area.is_plain() || area.name == "[anon: glibc: malloc arena]";
        is_heap && area.write && area.rss > 0 && !area.served
    });
    let places: Vec<(usize, u64)> = candidates
        .flat_map(|(index, area)| {
            let first = area.start.checked_next_multiple_of(HEAP);
            std::iter::successors(first, |place| place.checked_add(HEAP))
                .take_while(|place| *place < area.end)
                .map(move |place| (index, place))
        })
        .take(MAX_PLACES)
        .collect();
    let mut headers = vec![[0; HEADER]; places.len()];
    let mut requests: Vec<ReadRequest<'_>> = places
        .iter()
        .zip(&mut headers)
        .map(|((_, place), header)| ReadRequest {
            address: ProcessAddress(*place),
            buffer: header,
            filled: false,
        })
        .collect();
    if memory.read_many(&mut requests).is_err() {
        return Vec::new();
    }
    let filled: Vec<bool> = requests.iter().map(|request| request.filled).collect();
    places
        .iter()
        .zip(&headers)
        .zip(filled)
        .filter(|(_, filled)| *filled)
        .filter_map(|(((index, place), header), _)| {
            let heap = heap(header, *place)?;
            let end = areas.get(*index)?.end.min(heap.end);
            Some((*index, heap.start..end))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(words: [u64; 4]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (chunk, word) in bytes.chunks_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_heap_is_known_by_its_header() {
        let at = 0x7f00_0000_0000;
        let first = header([at + 0x30, 0, 0x21000, 0x21000]);
        assert_eq!(heap(&first, at), Some(at..at + 0x21000));
        let second = header([at + 0x30, at, 0x100_0000, 0x100_0000]);
        let next = at + HEAP;
        assert_eq!(heap(&second, next), Some(next..next + 0x100_0000));
        for wrong in [
            header([0; 4]),
            // A pointer to somewhere else.
            header([at + 0x1230, 0, 0x21000, 0x21000]),
            header([at + 0x30, 0, HEAP + 1, HEAP + 4096]),
            header([at + 0x30, 0x1234, 0x21000, 0x21000]),
            header([u64::MAX; 4]),
        ] {
            assert_eq!(heap(&wrong, at), None);
        }
        assert_eq!(heap(&header([0x30, 0, 4096, 4096]), next), None);
    }

    #[test]
    fn only_multiples_of_the_size_are_looked_at() {
        use crate::runtime::go::memory::MemoryImage;
        let at = 0x7f00_0000_0000;
        let mut memory = MemoryImage::new();
        memory.insert(at, header([at + 0x30, 0, 0x21000, 0x21000]).to_vec());
        let area = |start, end| Area {
            start,
            end,
            write: true,
            accessible: true,
            rss: 4096,
            ..Area::default()
        };
        let areas = [area(at - 0x5000, at + 0x21000), area(at + 0x100_0000, at + 0x200_0000)];
        assert_eq!(find(&areas, &memory), [(0, at..at + 0x21000)]);
    }
}
