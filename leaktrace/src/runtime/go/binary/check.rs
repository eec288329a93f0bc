//! Self-checks: does a layout fit the live process?
//!
//! Patch releases move fields, vendors patch the runtime, and a hostile process may claim any version. So before a
//! layout is believed, values with a known relation are read through it. A check looks at a bounded number of
//! structures. [`shifted_work`] and [`shifted_goroutine`] search for a layout by the same values where none fits.

use super::locate::Globals;
use super::offsets::{Field, Goroutine, Layout, Work};
use crate::proc::memory::MemoryReader;
use crate::runtime::go::memory::{Range, Target, word};

/// Structures that a check looks at.
const SAMPLE: usize = 32;
/// Addresses of user space.
const USER_END: u64 = 1 << 47;
/// No program has as many.
pub(in crate::runtime::go) const MAX_GOROUTINES: u64 = 1 << 24;
/// 16 M spans are 128 GB of heap at least.
pub(in crate::runtime::go) const MAX_SPANS: u64 = 1 << 26;
/// Entries of the pause rings.
pub(in crate::runtime::go) const PAUSES: u64 = 256;

/// The result of a check: the failure names what was looked at and what was found there.
pub type Check = Result<(), String>;

fn missing(name: &str) -> String {
    format!("`{name}` was not found in the program's code")
}

fn is_pointer(value: u64) -> bool {
    (4096..USER_END).contains(&value) && value.is_multiple_of(8)
}

/// Heap buckets: linked list of records of type 1.
pub fn heap<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Check {
    let head = globals.buckets.ok_or_else(|| missing("mbuckets"))?;
    globals.profile_cycle.ok_or_else(|| missing("mProfCycle"))?;
    let rate = globals.profile_rate.ok_or_else(|| missing("MemProfileRate"))?;
    let rate = memory
        .u64_at(rate)
        .map_err(|error| format!("MemProfileRate: {error}"))? as i64;
    if !(0..1 << 50).contains(&rate) {
        return Err(format!("MemProfileRate is {rate}"));
    }
    let record = layout.record.size.offset;
    if !matches!(record, 16 | 32) {
        return Err(format!("a heap record of {record} bytes a cycle is not known"));
    }
    let mut address = memory.u64_at(head).map_err(|error| format!("mbuckets: {error}"))?;
    let (mut looked_at, mut contradictions) = (0, 0);
    for _ in 0..SAMPLE {
        if address == 0 {
            break;
        }
        let bytes = memory
            .bytes_at(address, 48)
            .map_err(|error| format!("heap bucket: {error}"))?;
        let (kind, size, frames) = (word(&bytes, 16), word(&bytes, 32), word(&bytes, 40));
        if kind != 1 || size >= USER_END || frames > 4096 {
            return Err(format!(
                "heap bucket at {address:#x} has type {kind}, {frames} frames and objects of {size} bytes"
            ));
        }
        let records = memory.bytes_at(address + 48 + frames * 8, record * 4);
        let records = records.map_err(|error| format!("heap bucket: {error}"))?;
        let (allocs, frees) = (layout.record.allocs.get(&records), layout.record.frees.get(&records));
        // The active record is only written when a whole cycle is published.
        if frees > allocs || allocs > 1 << 48 {
            return Err(format!(
                "heap bucket at {address:#x} counts {allocs} allocations and {frees} frees"
            ));
        }
        // Behind the counts are the bytes (count times size) up to Go 1.26, and the next cycle's counts from 1.27 on.
        let with_bytes = word(&records, 16) == allocs.wrapping_mul(size);
        if allocs > 0 && size > 1 && with_bytes != (record == 32) {
            contradictions += 1;
        }
        looked_at += 1;
        address = word(&bytes, 8);
    }
    // One or two may be in the middle of an update.
    if contradictions * 4 > looked_at {
        return Err(format!(
            "{contradictions} of {looked_at} heap buckets have no counts of {record} bytes a cycle"
        ));
    }
    Ok(())
}

/// The layout with the other of the two known forms of a heap record.
pub fn other_record(layout: &Layout) -> Layout {
    let word_at = |offset| Field { offset, size: 8 };
    let mut layout = layout.clone();
    let (size, bytes) = if layout.record.size.offset == 16 {
        (32, Some((16, 24)))
    } else {
        (16, None)
    };
    layout.record.size.offset = size;
    layout.record.alloc_bytes = bytes.map(|(alloc, _)| word_at(alloc));
    layout.record.free_bytes = bytes.map(|(_, free)| word_at(free));
    layout
}

/// Goroutines: states, ids and stack bounds.
pub fn goroutines<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Check {
    let sample = goroutine_sample(memory, globals, layout.g.size.offset)?;
    let g = &layout.g;
    let mut ids = Vec::new();
    for bytes in &sample {
        let (status, id) = (g.status.get(bytes) & !0x1000, g.goid.get(bytes));
        let (low, high) = (g.stack_lo.get(bytes), g.stack_hi.get(bytes));
        if status > 16 || id >= 1 << 48 {
            return Err(format!("a goroutine has status {status} and id {id}"));
        }
        // Dead ones may have given their stack back.
        if status != 6 && (high <= low || !is_pointer(low) || !is_pointer(high)) && high != 0 {
            return Err(format!("goroutine {id} has a stack from {low:#x} to {high:#x}"));
        }
        if status != 6 && status != 0 {
            ids.push(id);
        }
    }
    // Zeros pass for idle goroutines; there are few of those, and somebody runs the program.
    if ids.is_empty() {
        return Err(format!("none of the first {} goroutines is alive", sample.len()));
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != count || ids.first() == Some(&0) {
        return Err("goroutine ids are not unique".to_owned());
    }
    Ok(())
}

/// The first goroutines, whole.
fn goroutine_sample<M: MemoryReader>(memory: &M, globals: &Globals, size: usize) -> Result<Vec<Vec<u8>>, String> {
    let pointer = globals.goroutines.ok_or_else(|| missing("allgptr"))?;
    let count = globals.goroutine_count.ok_or_else(|| missing("allglen"))?;
    let count = memory.u64_at(count).map_err(|error| format!("allglen: {error}"))?;
    if count == 0 || count > MAX_GOROUTINES {
        return Err(format!("allglen is {count}"));
    }
    let array = memory.u64_at(pointer).map_err(|error| format!("allgptr: {error}"))?;
    let count = (count as usize).min(SAMPLE);
    let addresses = memory
        .bytes_at(array, count * 8)
        .map_err(|error| format!("allgs: {error}"))?;
    (0..count)
        .map(|index| {
            memory
                .bytes_at(word(&addresses, index * 8), size)
                .map_err(|error| format!("goroutine: {error}"))
        })
        .collect()
}

/// The collector: the number of cycles and the last pause are kept in two places each, and must agree between
/// collections.
pub fn collector<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Check {
    let stats = globals.stats.ok_or_else(|| missing("memstats"))?;
    let controller = globals.controller.ok_or_else(|| missing("gcController"))?;
    let work = globals
        .work_start_sema
        .ok_or_else(|| missing("work"))?
        .wrapping_sub(layout.work.start_sema.offset as u64);
    let read = |name: &str, address: u64, len: usize| {
        memory
            .bytes_at(address, len)
            .map_err(|error| format!("{name}: {error}"))
    };
    let c = read("gcController", controller, layout.controller.size.offset)?;
    let percent = layout.controller.percent.get(&c) as u32 as i32;
    let (live, marked) = (layout.controller.live.get(&c), layout.controller.marked.get(&c));
    if !(-1..=1_000_000_000).contains(&percent) || live >= USER_END || marked >= USER_END {
        return Err(format!(
            "gcController has GOGC {percent}, {live} bytes live and {marked} marked"
        ));
    }
    let mut found = String::new();
    for _ in 0..50 {
        let begin = layout.stats.last_gc.offset;
        let s = read(
            "memstats",
            stats + begin as u64,
            layout.stats.cpu_fraction.end().saturating_sub(begin),
        )?;
        let w = read("work", work, layout.work.size.offset)?;
        let field = |field: Field| {
            Field {
                offset: field.offset.wrapping_sub(begin),
                ..field
            }
            .get(&s)
        };
        let (finished, forced) = (field(layout.stats.cycles), field(layout.stats.forced));
        let started = layout.work.cycles.get(&w);
        if forced > finished {
            return Err(format!(
                "memstats counts {finished} collections of which {forced} forced"
            ));
        }
        if started == finished {
            let ring = |field: Field, at: u64| word(&s, field.offset.wrapping_sub(begin).wrapping_add(at as usize));
            if finished == 0 {
                // Zeros prove nothing unless there are no more than there should be.
                let used = |ring_field| (0..PAUSES).any(|slot| ring(ring_field, slot * 8) != 0);
                let (last_end, total) = (field(layout.stats.last_gc), field(layout.stats.pause_total));
                if last_end != 0 || total != 0 || used(layout.stats.pauses) || used(layout.stats.pause_ends) {
                    return Err("memstats counts no collections, but has pauses".to_owned());
                }
                return Ok(());
            }
            let last = (finished + PAUSES - 1) % PAUSES * 8;
            let (pause, end) = (ring(layout.stats.pauses, last), ring(layout.stats.pause_ends, last));
            let expected = layout.work.pause.get(&w);
            if pause == expected && pause != 0 && end == field(layout.stats.last_gc) {
                return Ok(());
            }
            found = format!("the last pause is {pause} ns in memstats and {expected} ns in work");
        } else if started == finished + 1 {
            found = "a collection is running all the time".to_owned();
        } else {
            found = format!("memstats counts {finished} collections and work {started}");
        }
        // A collection is running, or ended between both reads.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Err(found)
}

/// Spans: page-aligned runs with plausible objects.
pub fn spans<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Check {
    let heap = globals.heap.ok_or_else(|| missing("mheap_"))?;
    let header = memory.bytes_at(heap + layout.heap.spans.offset as u64, 24);
    let header = header.map_err(|error| format!("mheap_.allspans: {error}"))?;
    let (array, count, capacity) = (word(&header, 0), word(&header, 8), word(&header, 16));
    if count == 0 || count > MAX_SPANS || capacity < count || !is_pointer(array) {
        return Err(format!("mheap_.allspans has {count} spans of {capacity}"));
    }
    let count = (count as usize).min(SAMPLE);
    let addresses = memory
        .bytes_at(array, count * 8)
        .map_err(|error| format!("allspans: {error}"))?;
    let span = &layout.span;
    let ranges: Vec<Range> = (0..count)
        .map(|index| Range {
            address: word(&addresses, index * 8),
            len: span.size.offset,
        })
        .collect();
    let mut bytes = Vec::new();
    let filled = memory
        .read_ranges(&ranges, &mut bytes)
        .map_err(|error| error.to_string())?;
    if filled.contains(&false) {
        return Err("mheap_.allspans points to unreadable spans".to_owned());
    }
    for bytes in bytes.chunks_exact(span.size.offset) {
        let (start, state) = (span.start.get(bytes), span.state.get(bytes));
        let (allocated, elements) = (span.allocated.get(bytes), span.elements.get(bytes));
        if state > 2
            || (state != 0 && (start % 8192 != 0 || !is_pointer(start)))
            || (state == 1 && allocated > elements)
        {
            return Err(format!(
                "a span at {start:#x} has state {state} and {allocated} of {elements} objects"
            ));
        }
    }
    Ok(())
}

/// Searches for a shift of the fields of `work` behind `startSema` at which the collector's check passes.
pub fn shifted_work<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Option<Layout> {
    shifts(320).find_map(|shift| {
        let mut layout = layout.clone();
        layout.work = shift_work(&layout.work, shift)?;
        collector(memory, globals, &layout).is_ok().then_some(layout)
    })
}

/// 8, −8, 16, −16, … up to `limit`.
fn shifts(limit: i64) -> impl Iterator<Item = i64> {
    (1..=limit / 8).flat_map(|step| [step * 8, step * -8])
}

fn moved(field: Field, shift: i64) -> Option<Field> {
    Some(Field {
        offset: usize::try_from(field.offset as i64 + shift).ok()?,
        ..field
    })
}

fn shift_work(work: &Work, shift: i64) -> Option<Work> {
    let maybe = |field: Option<Field>| field.and_then(|field| moved(field, shift));
    Some(Work {
        size: moved(work.size, shift)?,
        start_sema: work.start_sema,
        cycles: moved(work.cycles, shift).filter(|cycles| cycles.offset > work.start_sema.offset)?,
        forced: work.forced,
        stw_procs: maybe(work.stw_procs),
        procs: maybe(work.procs),
        sweep_term: moved(work.sweep_term, shift)?,
        mark: moved(work.mark, shift)?,
        mark_term: moved(work.mark_term, shift)?,
        end: moved(work.end, shift)?,
        pause: moved(work.pause, shift)?,
        heap0: moved(work.heap0, shift)?,
        heap1: moved(work.heap1, shift)?,
        heap2: moved(work.heap2, shift)?,
    })
}

/// Searches for the place of goroutine ids and creation sites. In every release the status lies 8 bytes before the id,
/// the waiting time and its reason 16 and 24 behind it, and the entry point 16 behind the creation site.
pub fn shifted_goroutine<M: MemoryReader>(
    memory: &M,
    globals: &Globals,
    layout: &Layout,
    text: std::ops::Range<u64>,
) -> Option<Layout> {
    let base = &layout.g;
    let reach = base.size.offset.saturating_sub(64).min(512);
    let sample = goroutine_sample(memory, globals, reach).ok()?;
    let alive: Vec<&[u8]> = sample
        .iter()
        .map(Vec::as_slice)
        .filter(|bytes| word(bytes, 8) != 0)
        .collect();
    // The first goroutine runs main and was created by assembly; its pcs are in the text all the same.
    let in_text = |at: usize| alive.iter().all(|bytes| text.contains(&word(bytes, at)));
    let creator = (160..reach - 16)
        .step_by(8)
        .find(|&at| in_text(at) && in_text(at + 16))?;
    let goid = (96..creator).step_by(8).find(|&at| {
        let mut ids: Vec<u64> = alive.iter().map(|bytes| word(bytes, at)).collect();
        ids.sort_unstable();
        let unique = ids.windows(2).all(|pair| pair[0] < pair[1]);
        unique && ids.first() == Some(&1) && alive.iter().all(|bytes| word(bytes, at - 8) & 0xffff_efff <= 16)
    })?;
    let early = goid as i64 - base.goid.offset as i64;
    let late = creator as i64 - base.creator_pc.offset as i64;
    let g = Goroutine {
        status: moved(base.status, early)?,
        goid: moved(base.goid, early)?,
        wait_since: moved(base.wait_since, early)?,
        wait_reason: moved(base.wait_reason, early)?,
        syscall_sp: moved(base.syscall_sp, early)?,
        syscall_pc: moved(base.syscall_pc, early)?,
        parent: base.parent.and_then(|field| moved(field, late)),
        creator_pc: moved(base.creator_pc, late)?,
        start_pc: moved(base.start_pc, late)?,
        waiting: moved(base.waiting, late)?,
        labels: base.labels.and_then(|field| moved(field, late)),
        ..base.clone()
    };
    let mut layout = layout.clone();
    layout.g = g;
    goroutines(memory, globals, &layout).is_ok().then_some(layout)
}
