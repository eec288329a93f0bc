//! Spans: the runs of pages that the heap and the stacks consist of, and the sampled objects that hang on them.
//!
//! Memory is bounded by the number of spans (of 8 KB each at least) and by a limit on objects. Spans that are handed
//! out or freed while they are read are seen in one state or the other; what contradicts itself is counted as torn.

use hashbrown::HashSet;

use super::memory::{BATCH, Range, Target, word};
use crate::proc::memory::{MemoryError, MemoryReader};
use crate::runtime::go::check::MAX_SPANS;
use crate::runtime::go::locate::Globals;
use crate::runtime::go::offsets::Layout;

/// Bytes of a page of the Go heap.
pub const PAGE: u64 = 8192;
/// Most sampled objects that are followed.
const MAX_OBJECTS: usize = 1 << 22;
/// Most objects in one span's list.
const MAX_LIST: usize = 1 << 16;
/// Most bytes of allocation bits that are read of one span: 8 KB of pages hold no more than 1,024 objects.
const MAX_BITS: usize = 1 << 12;

/// What a span is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpanUse {
    /// Objects.
    Heap,
    /// Stacks, and a few tables of the runtime.
    Manual,
}

/// A span in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Pages of [`PAGE`] bytes.
    pub pages: u64,
    /// What for.
    pub usage: SpanUse,
    /// Size class; 0 for one large object.
    pub class: u8,
    /// Objects here hold no pointers.
    pub no_scan: bool,
    /// Bytes of one object.
    pub element_size: u64,
    /// Objects that there is room for.
    pub elements: u64,
    /// Objects allocated; those that died since the last collection are among them, and in a span that is not swept
    /// yet those that died before.
    pub allocated: u64,
    specials: u64,
    alloc_bits: u64,
}

impl Span {
    /// Bytes of all its pages.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE
    }
}

/// All spans in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanSnapshot {
    /// In the order of the runtime's list.
    pub spans: Vec<Span>,
    /// Free structures in the list.
    pub unused: u64,
    /// Contradictory ones; left out.
    pub torn: u64,
    /// Addresses of the list itself and of the first and last structure: where the runtime keeps such things.
    pub landmarks: Vec<u64>,
}

/// A sampled object that is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledObject {
    /// Its address.
    pub address: u64,
    /// The heap bucket that counts it.
    pub bucket: u64,
    /// It was there at the last collection that its span was swept after.
    pub survived: bool,
}

/// All sampled objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectSnapshot {
    /// In the order of spans.
    pub objects: Vec<SampledObject>,
    /// Lists that changed while they were followed; their rest is missing.
    pub torn: u64,
    /// The limit on objects was reached.
    pub cut: bool,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SpanError {
    /// The list was not found, or its length is absurd.
    #[error("the list of spans is not usable: {0}")]
    List(String),
    /// A read failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Reads all spans.
pub fn read<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Result<SpanSnapshot, SpanError> {
    let heap = globals
        .heap
        .ok_or_else(|| SpanError::List("it was not found".to_owned()))?;
    let header = memory.bytes_at(heap.wrapping_add(layout.heap.spans.offset as u64), 16)?;
    let (array, count) = (word(&header, 0), word(&header, 8));
    if count > MAX_SPANS {
        return Err(SpanError::List(format!("it has {count} entries")));
    }
    let size = layout.span.size.offset;
    let mut snapshot = SpanSnapshot {
        landmarks: vec![array],
        ..SpanSnapshot::default()
    };
    let mut bytes = Vec::new();
    let mut index = 0;
    while index < count {
        let batch = (count - index).min(BATCH as u64);
        let pointers = memory.bytes_at(array.wrapping_add(index * 8), batch as usize * 8)?;
        let ranges: Vec<Range> = pointers
            .chunks_exact(8)
            .map(|pointer| Range {
                address: word(pointer, 0),
                len: size,
            })
            .collect();
        let filled = memory.read_ranges(&ranges, &mut bytes)?;
        for (bytes, filled) in bytes.chunks_exact(size).zip(filled) {
            match (filled, layout.span.state.get(bytes)) {
                (true, 0) => snapshot.unused += 1,
                (true, 1 | 2) => match span(layout, bytes) {
                    Some(span) => snapshot.spans.push(span),
                    None => snapshot.torn += 1,
                },
                _ => snapshot.torn += 1,
            }
        }
        snapshot.landmarks.extend(
            [ranges.first(), ranges.last()]
                .into_iter()
                .flatten()
                .map(|range| range.address),
        );
        index += batch;
    }
    Ok(snapshot)
}

fn span(layout: &Layout, bytes: &[u8]) -> Option<Span> {
    let fields = &layout.span;
    let class = fields.class.get(bytes) as u8;
    let span = Span {
        start: fields.start.get(bytes),
        pages: fields.pages.get(bytes),
        usage: if fields.state.get(bytes) == 1 {
            SpanUse::Heap
        } else {
            SpanUse::Manual
        },
        class: class >> 1,
        no_scan: class & 1 != 0,
        element_size: fields.element_size.get(bytes),
        elements: fields.elements.get(bytes),
        allocated: fields.allocated.get(bytes),
        specials: fields.specials.get(bytes),
        alloc_bits: fields.alloc_bits.get(bytes),
    };
    let plausible = span.start.is_multiple_of(PAGE)
        && (1..1 << 34).contains(&span.pages)
        && (span.usage == SpanUse::Manual || span.allocated <= span.elements)
        && span.elements <= span.pages * PAGE;
    plausible.then_some(span)
}

/// Reads the sampled objects of all spans. `buckets` are the heap's: what refers to none of them is something else.
pub fn read_objects<M: MemoryReader>(
    memory: &M,
    layout: &Layout,
    spans: &SpanSnapshot,
    buckets: &HashSet<u64>,
) -> Result<ObjectSnapshot, SpanError> {
    let special = &layout.special;
    let mut snapshot = ObjectSnapshot::default();
    let with_lists: Vec<(&Span, u64)> = spans
        .spans
        .iter()
        .filter(|span| span.usage == SpanUse::Heap && span.specials != 0 && span.element_size > 0)
        .map(|span| (span, span.specials))
        .collect();
    let bits = read_bits(memory, &with_lists)?;
    // All lists are followed at once, a step of each in one batch.
    let mut pending: Vec<(usize, u64)> = with_lists
        .iter()
        .enumerate()
        .map(|(index, (_, first))| (index, *first))
        .collect();
    let mut bytes = Vec::new();
    for _ in 0..MAX_LIST {
        let mut next = Vec::new();
        for chunk in pending.chunks(BATCH) {
            let ranges: Vec<Range> = chunk
                .iter()
                .map(|&(_, address)| Range {
                    address,
                    len: special.size.offset,
                })
                .collect();
            let filled = memory.read_ranges(&ranges, &mut bytes)?;
            for ((&(index, _), bytes), filled) in chunk.iter().zip(bytes.chunks_exact(special.size.offset)).zip(filled)
            {
                let span = with_lists[index].0;
                let offset = special.offset.get(bytes);
                if !filled || offset >= span.bytes() {
                    snapshot.torn += 1;
                    continue;
                }
                let bucket = special.bucket.get(bytes);
                if buckets.contains(&bucket) {
                    let element = offset / span.element_size;
                    let survived = bits[index]
                        .get(element as usize / 8)
                        .is_some_and(|byte| byte >> (element % 8) & 1 != 0);
                    let address = span.start + element * span.element_size;
                    snapshot.objects.push(SampledObject {
                        address,
                        bucket,
                        survived,
                    });
                }
                match special.next.get(bytes) {
                    0 => {}
                    following => next.push((index, following)),
                }
            }
        }
        if snapshot.objects.len() > MAX_OBJECTS {
            snapshot.cut = true;
            break;
        }
        if next.is_empty() {
            return Ok(snapshot);
        }
        pending = next;
    }
    snapshot.torn += 1;
    Ok(snapshot)
}

/// Allocation bits of each span; empty where they cannot be read.
fn read_bits<M: MemoryReader>(memory: &M, spans: &[(&Span, u64)]) -> Result<Vec<Vec<u8>>, SpanError> {
    let mut bits = Vec::with_capacity(spans.len());
    let mut bytes = Vec::new();
    for chunk in spans.chunks(BATCH) {
        let ranges: Vec<Range> = chunk
            .iter()
            .map(|(span, _)| Range {
                address: span.alloc_bits,
                len: (span.elements.div_ceil(8) as usize).min(MAX_BITS),
            })
            .collect();
        let filled = memory.read_ranges(&ranges, &mut bytes)?;
        let mut rest = bytes.as_slice();
        for (range, filled) in ranges.iter().zip(filled) {
            let (these, behind) = rest.split_at(range.len);
            rest = behind;
            bits.push(if filled { these.to_vec() } else { Vec::new() });
        }
    }
    Ok(bits)
}
