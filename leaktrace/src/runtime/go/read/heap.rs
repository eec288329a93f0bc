//! The heap profile that the runtime keeps: sampled allocations by stack, since the program started.
//!
//! Owns reading the buckets, the three views of them, and scaling. Invariant: in a [`HeapSnapshot`] no bucket counts
//! more frees than allocations in total, and every bucket was reached once.

use hashbrown::{HashMap, HashSet};

use super::memory::{Target, word};
use crate::proc::memory::{MemoryError, MemoryReader};
use crate::runtime::go::locate::Globals;
use crate::runtime::go::offsets::{Layout, Record};

/// Most buckets that are read. A program has one per allocating stack and size; tens of thousands are many.
pub const MAX_BUCKETS: usize = 1 << 21;
/// Most stack words over all buckets (256 MB).
const MAX_FRAMES: usize = 1 << 25;
/// Longest stack of one bucket; the runtime's own limit is 1,024 from Go 1.23 on, 32 before.
const MAX_STACK: u64 = 1024;
const HEADER: usize = 48;
/// Buckets are allocated behind each other, so that whole windows of memory are read.
const WINDOW: u64 = 64 << 10;
/// Windows that are kept; with more the oldest ones are read anew.
const MAX_WINDOWS: usize = 512;
/// Reads of one bucket that changes while it is read.
const TORN_RETRIES: usize = 3;
/// Snapshots that are taken anew because a collection moved the cycle under them.
const CYCLE_RETRIES: usize = 5;

/// Which allocations a profile holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Everything up to this moment, garbage that no collection has seen included.
    #[default]
    Now,
    /// What the program's own `pprof` shows: live objects as of the last completed collection but one phase, so that
    /// allocations are not shown before their frees can be.
    Pprof,
    /// Everything up to the last collection.
    LastGc,
}

/// Allocations and frees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects allocated.
    pub allocs: u64,
    /// Of them, objects freed.
    pub frees: u64,
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            allocs: self.allocs.saturating_add(other.allocs),
            frees: self.frees.saturating_add(other.frees),
        }
    }

    /// Objects not freed.
    pub fn in_use(self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }
}

/// All sampled allocations of one size at one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Where the runtime keeps it; objects refer to it by this address.
    pub address: u64,
    /// Bytes of one object.
    pub size: u64,
    /// Return addresses, innermost first; inlined calls have one of their own.
    pub stack: Vec<u64>,
    /// Published counts.
    pub active: Counts,
    /// Counts of three cycles that are not published yet, by cycle number modulo 3.
    pub future: [Counts; 3],
}

/// All buckets at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapSnapshot {
    /// Mean bytes between samples; 0: profiling is off; 1: everything is recorded.
    pub rate: u64,
    /// The runtime's profile cycle.
    pub cycle: u32,
    /// The cycle did not move while the buckets were read.
    pub stable: bool,
    /// In the order of the runtime's list, newest first.
    pub buckets: Vec<Bucket>,
    /// Buckets that kept changing while they were read; each is left out.
    pub torn: u64,
    /// The list was cut short at a limit or because it contradicts itself; says where.
    pub cut: Option<String>,
}

impl HeapSnapshot {
    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        let stacks: usize = self.buckets.iter().map(|bucket| size_of_val(&bucket.stack[..])).sum();
        size_of_val(&self.buckets[..]) + stacks
    }
}

/// Values of a bucket, scaled to the whole program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scaled {
    /// Objects allocated.
    pub alloc_objects: i64,
    /// Bytes allocated.
    pub alloc_bytes: i64,
    /// Objects not freed.
    pub inuse_objects: i64,
    /// Bytes not freed.
    pub inuse_bytes: i64,
}

impl HeapSnapshot {
    /// Counts of each bucket in a view.
    pub fn view(&self, view: View) -> impl Iterator<Item = (&Bucket, Counts)> {
        let current = self.cycle % 3;
        // Before the first collection nothing is published, and pprof shows all there is.
        let published = self.buckets.iter().any(|bucket| {
            let visible = bucket.active.plus(bucket.future[current as usize]);
            visible != Counts::default()
        });
        let cycles: &[u32] = match view {
            View::Now => &[0, 1, 2],
            View::Pprof if !published => &[0, 1, 2],
            View::Pprof => &[0],
            View::LastGc => &[0, 1],
        };
        self.buckets.iter().map(move |bucket| {
            let counts = cycles.iter().fold(bucket.active, |counts, ahead| {
                counts.plus(bucket.future[((current + ahead) % 3) as usize])
            });
            (bucket, counts)
        })
    }

    /// Estimates for the whole program from a bucket's counts.
    pub fn scale(&self, bucket: &Bucket, counts: Counts) -> Scaled {
        let (alloc_objects, alloc_bytes) = scale(counts.allocs, bucket.size, self.rate);
        let (inuse_objects, inuse_bytes) = scale(counts.in_use(), bucket.size, self.rate);
        Scaled {
            alloc_objects,
            alloc_bytes,
            inuse_objects,
            inuse_bytes,
        }
    }
}

/// Each sampled object of `size` bytes stands for 1/(1−exp(−size/rate)) of them.
fn scale(count: u64, size: u64, rate: u64) -> (i64, i64) {
    let bytes = count.saturating_mul(size);
    if bytes == 0 {
        return (0, 0);
    }
    if rate <= 1 {
        return (
            i64::try_from(count).unwrap_or(i64::MAX),
            i64::try_from(bytes).unwrap_or(i64::MAX),
        );
    }
    // In the order of pprof's own computation, so that the last digit agrees.
    let average = bytes as f64 / count as f64;
    let factor = 1.0 / (1.0 - (-average / rate as f64).exp());
    ((count as f64 * factor) as i64, (bytes as f64 * factor) as i64)
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// A global variable is missing: the process passed no self-check.
    #[error("the runtime's heap profile was not found")]
    NotFound,
    /// A read failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Windows of memory, read once.
struct Windows<'m, M> {
    memory: &'m M,
    windows: HashMap<u64, Vec<u8>>,
}

impl<M: MemoryReader> Windows<'_, M> {
    /// Bytes at an address; read directly where they do not lie in one readable window.
    fn get(&mut self, address: u64, len: usize, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        out.clear();
        let start = address - address % WINDOW;
        let at = (address - start) as usize;
        if at + len <= WINDOW as usize {
            if !self.windows.contains_key(&start) {
                if self.windows.len() >= MAX_WINDOWS {
                    self.windows.clear();
                }
                let mut window = vec![0; WINDOW as usize];
                match self.memory.fill(start, &mut window) {
                    Ok(()) => {}
                    // Partly mapped: an empty window says "read directly".
                    Err(MemoryError::Unmapped { .. }) => window.clear(),
                    Err(error) => return Err(error),
                }
                self.windows.insert(start, window);
            }
            if let Some(bytes) = self.windows[&start].get(at..at + len) {
                out.extend_from_slice(bytes);
                return Ok(());
            }
        }
        self.direct(address, len, out)
    }

    fn direct(&self, address: u64, len: usize, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        out.clear();
        out.resize(len, 0);
        self.memory.fill(address, out)
    }
}

/// Counts of one cycle, and whether its bytes agree with them (where bytes are kept, every object is of `size`).
fn counts(record: &Record, bytes: &[u8], size: u64) -> (Counts, bool) {
    let counts = Counts {
        allocs: record.allocs.get(bytes),
        frees: record.frees.get(bytes),
    };
    let agrees = |field: Option<crate::runtime::go::offsets::Field>, count: u64| {
        field.is_none_or(|field| field.get(bytes) == count.wrapping_mul(size))
    };
    let whole = agrees(record.alloc_bytes, counts.allocs) && agrees(record.free_bytes, counts.frees);
    (counts, whole)
}

enum Parsed {
    Whole(Bucket),
    Torn,
}

fn parse_records(layout: &Layout, address: u64, size: u64, stack: Vec<u64>, records: &[u8]) -> Parsed {
    let step = layout.record.size.offset;
    let mut cycles = [Counts::default(); 4];
    for (index, slot) in cycles.iter_mut().enumerate() {
        let (found, whole) = counts(&layout.record, records.get(index * step..).unwrap_or_default(), size);
        if !whole {
            return Parsed::Torn;
        }
        *slot = found;
    }
    let [active, first, second, third] = cycles;
    let total = cycles.iter().fold(Counts::default(), |sum, counts| sum.plus(*counts));
    if total.frees > total.allocs || total.allocs > 1 << 48 {
        return Parsed::Torn;
    }
    Parsed::Whole(Bucket {
        address,
        size,
        stack,
        active,
        future: [first, second, third],
    })
}

/// Reads all buckets. For the view of pprof the snapshot is taken anew while collections move the cycle under it.
pub fn read<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Result<HeapSnapshot, HeapError> {
    let mut last = read_once(memory, globals, layout)?;
    for _ in 0..CYCLE_RETRIES {
        if last.stable {
            break;
        }
        last = read_once(memory, globals, layout)?;
    }
    Ok(last)
}

fn read_once<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Result<HeapSnapshot, HeapError> {
    let (Some(head), Some(cycle_at), Some(rate)) = (globals.buckets, globals.profile_cycle, globals.profile_rate)
    else {
        return Err(HeapError::NotFound);
    };
    let cycle = memory.u32_at(cycle_at)?;
    let mut snapshot = HeapSnapshot {
        rate: memory.u64_at(rate)?,
        cycle: cycle >> 1,
        ..HeapSnapshot::default()
    };
    let mut windows = Windows {
        memory,
        windows: HashMap::new(),
    };
    let records = layout.record.size.offset * 4;
    let mut seen = HashSet::new();
    let mut bytes = Vec::new();
    let mut frames = 0;
    let mut address = memory.u64_at(head)?;
    while address != 0 {
        let cut = |what: &str| Some(format!("bucket {} at {address:#x}: {what}", snapshot.buckets.len()));
        if !seen.insert(address) {
            snapshot.cut = cut("the list is cyclic");
            break;
        }
        if seen.len() > MAX_BUCKETS || frames > MAX_FRAMES {
            snapshot.cut = cut("there are more buckets than any program has");
            break;
        }
        match windows.get(address, HEADER, &mut bytes) {
            Ok(()) => {}
            Err(MemoryError::Unmapped { .. }) => {
                snapshot.cut = cut("it is not readable");
                break;
            }
            Err(error) => return Err(error.into()),
        }
        let (next, kind, size, depth) = (word(&bytes, 8), word(&bytes, 16), word(&bytes, 32), word(&bytes, 40));
        if kind != 1 || depth > MAX_STACK {
            snapshot.cut = cut(&format!("it is of type {kind} and has {depth} frames"));
            break;
        }
        let body = address.wrapping_add(HEADER as u64);
        let stack_len = depth as usize * 8;
        if let Err(error) = windows.get(body, stack_len + records, &mut bytes) {
            match error {
                MemoryError::Unmapped { .. } => snapshot.cut = cut("its counts are not readable"),
                error => return Err(error.into()),
            }
            break;
        }
        let stack: Vec<u64> = bytes[..stack_len].chunks_exact(8).map(|frame| word(frame, 0)).collect();
        frames += stack.len();
        let mut parsed = parse_records(layout, address, size, stack, &bytes[stack_len..]);
        for _ in 0..TORN_RETRIES {
            let Parsed::Torn = parsed else { break };
            windows.direct(body, stack_len + records, &mut bytes)?;
            let stack = bytes[..stack_len].chunks_exact(8).map(|frame| word(frame, 0)).collect();
            parsed = parse_records(layout, address, size, stack, &bytes[stack_len..]);
        }
        match parsed {
            Parsed::Whole(bucket) => snapshot.buckets.push(bucket),
            Parsed::Torn => snapshot.torn += 1,
        }
        address = next;
    }
    snapshot.stable = memory.u32_at(cycle_at)? == cycle;
    Ok(snapshot)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::runtime::go::memory::MemoryImage;
    use crate::runtime::go::offsets::{candidates, columns};
    use crate::runtime::go::version::GoVersion;

    fn layout(version: &str) -> Layout {
        let column = candidates(&GoVersion::parse(version).unwrap())[0];
        Layout::from_map(&column.map).unwrap()
    }

    const GLOBALS: Globals = Globals {
        buckets: Some(0x1000),
        profile_cycle: Some(0x1008),
        profile_rate: Some(0x1010),
        goroutines: None,
        goroutine_count: None,
        controller: None,
        heap: None,
        stats: None,
        work_start_sema: None,
        wait_reasons: None,
    };

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Two buckets: one with bytes kept beside the counts, as up to Go 1.26.
    fn image(cycle: u64, next_of_last: u64) -> MemoryImage {
        let mut image = MemoryImage::new();
        image.insert(0x1000, words(&[0x2000, cycle << 1, 4096]));
        let record = |allocs: u64, frees: u64, size: u64| [allocs, frees, allocs * size, frees * size];
        let mut first = vec![0, 0x3000, 1, 7, 100, 2, 0x401000, 0x402000];
        for (allocs, frees) in [(10, 4), (1, 0), (2, 1), (3, 0)] {
            first.extend(record(allocs, frees, 100));
        }
        image.insert(0x2000, words(&first));
        let mut second = vec![0, next_of_last, 1, 8, 1 << 20, 1, 0x403000];
        for (allocs, frees) in [(0, 0), (0, 0), (0, 0), (1, 0)] {
            second.extend(record(allocs, frees, 1 << 20));
        }
        image.insert(0x3000, words(&second));
        image
    }

    fn allocs(snapshot: &HeapSnapshot, view: View) -> Vec<(u64, u64)> {
        snapshot
            .view(view)
            .map(|(_, counts)| (counts.allocs, counts.frees))
            .collect()
    }

    #[test]
    fn three_views_of_the_same_buckets() {
        let layout = layout("go1.23.5");
        let snapshot = read(&image(4, 0), &GLOBALS, &layout).unwrap();
        assert!(snapshot.stable && snapshot.cut.is_none());
        assert_eq!(snapshot.buckets[0].stack, [0x401000, 0x402000]);
        // Cycle 4: the current cycle's counts are in slot 1, the next in slot 2.
        assert_eq!(allocs(&snapshot, View::Pprof), [(12, 5), (0, 0)]);
        assert_eq!(allocs(&snapshot, View::LastGc), [(15, 5), (1, 0)]);
        assert_eq!(allocs(&snapshot, View::Now), [(16, 5), (1, 0)]);
    }

    #[test]
    fn small_objects_stand_for_more() {
        let layout = layout("go1.23.5");
        let snapshot = read(&image(4, 0), &GLOBALS, &layout).unwrap();
        let (bucket, counts) = snapshot.view(View::Now).next().unwrap();
        let scaled = snapshot.scale(bucket, counts);
        assert_eq!((scaled.alloc_objects, scaled.alloc_bytes), (663, 66_339));
        let (large, counts) = snapshot.view(View::Now).nth(1).unwrap();
        assert_eq!(snapshot.scale(large, counts).inuse_bytes, 1 << 20);
    }

    #[test]
    fn a_cyclic_list_ends() {
        let layout = layout("go1.23.5");
        let snapshot = read(&image(4, 0x2000), &GLOBALS, &layout).unwrap();
        assert_eq!(snapshot.buckets.len(), 2);
        assert_eq!(snapshot.cut.unwrap(), "bucket 2 at 0x2000: the list is cyclic");
    }

    #[test]
    fn a_bucket_whose_bytes_disagree_is_torn() {
        let layout = layout("go1.23.5");
        let mut image = image(4, 0);
        // alloc_bytes of the active record.
        image.segment_mut(0x2000).unwrap()[48 + 16 + 16] ^= 1;
        let snapshot = read(&image, &GLOBALS, &layout).unwrap();
        assert_eq!((snapshot.torn, snapshot.buckets.len()), (1, 1));
    }

    #[test]
    fn no_single_byte_makes_it_panic_or_run_away() {
        for column in columns() {
            let layout = Layout::from_map(&column.map).unwrap();
            for address in [0x1000, 0x2000, 0x3000] {
                let len = image(4, 0).segment_mut(address).unwrap().len();
                for (at, value) in (0..len).flat_map(|at| [(at, 0xff), (at, 0x80), (at, 1)]) {
                    let mut image = image(4, 0);
                    image.segment_mut(address).unwrap()[at] ^= value;
                    if let Ok(snapshot) = read(&image, &GLOBALS, &layout) {
                        assert!(snapshot.buckets.len() <= 2);
                        snapshot.view(View::Pprof).for_each(|(bucket, counts)| {
                            snapshot.scale(bucket, counts);
                        });
                    }
                }
            }
        }
    }
}
