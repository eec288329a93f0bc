//! The stack walk: from the registers of a frame to its caller's, by compiled rows or frame pointers.
//!
//! A walk is a function of its first registers, of the stack slots that it reads and of the process's mappings. Each
//! thread keeps its last walk with every slot that it read. A new walk that comes to a state which the last one passed
//! through therefore takes the same way from there on if those slots still hold the same values: one comparison a
//! frame, against a copy of the stack that is read in pieces of 2,048 bytes, instead of two searches.
//!
//! Of a stack with more than [`MAX_FRAMES`] frames the innermost and the outermost are kept, so that the callers of a deep
//! recursion stay. How many lie between is no part of its id: recursion to any depth is one stack. Such a walk is not
//! remembered.
//!
//! Loops: `step` at most [`MAX_WALK`] + 1 times, twice if what was remembered turns out to be changed; the search for a mapping 12 halvings; the search for a row 8.

use aya_ebpf::{
    cty::{c_long, c_void},
    helpers::{bpf_loop, generated},
};
use leaktrace_common::{
    config::{INNER_FRAMES, MAPPING_FRAME_POINTER, MAX_FRAMES, MAX_MAPPINGS, MAX_WALK, OMITTED_FRAMES, Process},
    reason::WalkEnd,
    unwind::{
        BLOCK_SHIFT, BLOCK_SIZE, BP_VIA_BP, GO_STACK_HI, RULE_BP, RULE_BP_DEREF, RULE_END, RULE_FRAME_POINTER,
        RULE_GO_CGOCALL, RULE_PLT, RULE_SIGNAL, RULE_SP, RULE_SP_DEREF, Row, deref_addend, deref_offset,
    },
};

use crate::{
    arch::{self, signal_frame},
    maps::{BLOCKS, MAPPINGS, ROWS},
    thread::{FRAME_MASK, FoundRow, Frame, FreshFrame, ROW_SLOTS, Scratch, WINDOW_WORDS, Walk},
};

const WINDOW_BYTES: u64 = WINDOW_WORDS as u64 * 8;
/// How far below the slot that is asked for a piece begins at most.
const BELOW: u64 = 96;
/// Value of [`Frame::bp_slot`] that rules verification out.
const UNVERIFIABLE: u64 = 1;
const NO_ROW: u32 = u32::MAX;
/// Outermost frames that are kept of a deep stack, beside the inner ones and what stands for the frames between.
const OUTER_FRAMES: u32 = (MAX_FRAMES - INNER_FRAMES - 1) as u32;
/// Times that `step` is called at most: once more than there may be frames, to see that there are more.
const STEPS: u32 = MAX_WALK as u32 + 1;
/// Frames that a callback of a short loop deals with: where the kernel keeps returns from being predicted, a return costs
/// more than a frame does. (`step` is long: two frames a call gain little and take the verifier half a second more.)
const FRAMES_A_CALL: usize = 8;
/// What callbacks of a loop return.
pub const CONTINUE: c_long = 0;
const STOP: c_long = 1;

struct Context {
    walk: *mut Walk,
    scratch: *mut Scratch,
}

/// What a callback works on.
#[inline(always)]
fn parts<'a>(context: *mut c_void) -> (&'a mut Walk, &'a mut Scratch) {
    // SAFETY: `walk` passes a `Context` with two live halves of one thread's record.
    unsafe {
        let context = &*context.cast::<Context>();
        (&mut *context.walk, &mut *context.scratch)
    }
}

/// Walks the stack of the current thread from the registers that `walk` holds; it keeps what came of it.
#[inline(never)]
pub fn walk(walk: &mut Walk, scratch: &mut Scratch, process: &Process) -> u64 {
    let sp = walk.sp;
    walk.exact = 0;
    walk.unreadable = 0;
    walk.depth = 0;
    walk.matched = 0;
    walk.end = WalkEnd::TooDeep as u32;
    walk.mapping_first = process.mapping_first;
    walk.mapping_count = process.mapping_count;
    if walk.kept_generation != process.generation || walk.kept_seed != process.stack_seed {
        walk.kept_generation = process.generation;
        walk.kept_seed = process.stack_seed;
        walk.kept = 0;
        walk.map_end = 0;
    }
    walk.cursor = walk.kept;
    // The first piece is asked for sooner or later.
    fill(walk, sp);
    let mut context = Context { walk, scratch };
    let pointer = (&raw mut context).cast();
    // SAFETY: each callback gets `context`, which outlives the loops.
    unsafe { bpf_loop(STEPS, step as *mut c_void, pointer, 0) };
    if walk.matched != 0 {
        walk.verify = walk.cursor;
        // SAFETY: as above.
        unsafe { bpf_loop(walk.cursor, verify as *mut c_void, pointer, 0) };
        if walk.verify > 1 || walk.depth + walk.cursor > MAX_FRAMES as u32 {
            // Something further out changed: what was verified counts as found, the rest is walked anew.
            // SAFETY: as above.
            unsafe { bpf_loop(walk.cursor, adopt as *mut c_void, pointer, 0) };
            walk.cursor = 0;
            walk.matched = 0;
            walk.unreadable = 0;
            // SAFETY: as above.
            unsafe { bpf_loop(STEPS, step as *mut c_void, pointer, 0) };
        } else {
            walk.end = walk.kept_end;
        }
    }
    // What is remembered further out than the match stays; the frames found go on top, outermost first.
    walk.kept = if walk.matched != 0 { walk.cursor } else { 0 };
    walk.hash = walk.kept_seed ^ walk.end as u64;
    if walk.kept != 0 {
        walk.hash = walk.memo[(walk.kept.wrapping_sub(1) & FRAME_MASK) as usize].hash;
    }
    if walk.depth > MAX_FRAMES as u32 {
        walk.kept_generation = 0;
        if walk.end == WalkEnd::TooDeep as u32 {
            // What was found last is somewhere in the middle.
            walk.depth = INNER_FRAMES as u32;
        } else {
            // SAFETY: as above.
            unsafe { bpf_loop(MAX_FRAMES as u32, remember_ends as *mut c_void, pointer, 0) };
            walk.depth = 0;
        }
    }
    // SAFETY: as above.
    unsafe { bpf_loop(walk.depth, remember as *mut c_void, pointer, 0) };
    walk.kept_end = walk.end;
    if walk.end == WalkEnd::UnreadableStack as u32 {
        // Such an end depends on more than the remembered slots.
        walk.kept_generation = 0;
    }
    0
}

/// Puts the outermost frames found that are not yet remembered on top of the remembered ones.
extern "C" fn remember(_index: u32, context: *mut c_void) -> c_long {
    let (walk, scratch) = parts(context);
    for _ in 0..FRAMES_A_CALL {
        if walk.depth == 0 {
            return STOP;
        }
        let from = walk.depth.wrapping_sub(1);
        keep(walk, scratch.fresh[(from & FRAME_MASK) as usize]);
        walk.depth = from;
    }
    CONTINUE
}

/// Puts a frame on top of the remembered ones.
#[inline(always)]
fn keep(walk: &mut Walk, frame: FreshFrame) {
    let mut hash = (walk.hash ^ frame.ip).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^= hash >> 29;
    walk.hash = hash;
    let FreshFrame { ip, sp, bp, bp_slot } = frame;
    walk.memo[(walk.kept & FRAME_MASK) as usize] = Frame {
        ip,
        sp,
        bp,
        bp_slot,
        hash,
    };
    walk.kept += 1;
}

/// As `remember` of a deep stack: the outermost frames found, what stands for those between, and the innermost.
extern "C" fn remember_ends(index: u32, context: *mut c_void) -> c_long {
    let (walk, scratch) = parts(context);
    let from = if index < OUTER_FRAMES {
        outer_place(walk.depth.wrapping_sub(1).wrapping_sub(index))
    } else {
        (MAX_FRAMES as u32 - 1).wrapping_sub(index)
    };
    let at = (from & FRAME_MASK) as usize;
    if index == OUTER_FRAMES {
        scratch.fresh[at].ip = OMITTED_FRAMES;
    }
    keep(walk, scratch.fresh[at]);
    CONTINUE
}

/// Where a frame behind the innermost ones stands while a stack is walked: what is further out replaces what is further
/// in.
#[inline(always)]
fn outer_place(number: u32) -> u32 {
    INNER_FRAMES as u32 | number & (INNER_FRAMES as u32 - 1)
}

/// Checks that the slots which led from remembered frames to the next ones out still hold what they held.
extern "C" fn verify(_index: u32, context: *mut c_void) -> c_long {
    let (walk, _) = parts(context);
    for _ in 0..FRAMES_A_CALL {
        if walk.verify <= 1 {
            return STOP;
        }
        let inner = &walk.memo[(walk.verify.wrapping_sub(1) & FRAME_MASK) as usize];
        let outer = &walk.memo[(walk.verify.wrapping_sub(2) & FRAME_MASK) as usize];
        let (bp_slot, ip, sp, bp) = (inner.bp_slot, outer.ip, outer.sp, outer.bp);
        if bp_slot == UNVERIFIABLE {
            return STOP;
        }
        // An unreadable slot gives 0, which is never a remembered instruction pointer.
        if slot(walk, arch::return_address_slot(sp)) != ip || ip == 0 {
            return STOP;
        }
        if bp_slot != 0 && slot(walk, bp_slot) != bp {
            return STOP;
        }
        walk.verify -= 1;
    }
    CONTINUE
}

/// Takes the innermost remembered frame of the verified part over into the frames found, and its outer neighbour's
/// registers as the state to go on from.
extern "C" fn adopt(_index: u32, context: *mut c_void) -> c_long {
    let (walk, scratch) = parts(context);
    let at = walk.cursor;
    let frame = walk.memo[(at.wrapping_sub(1) & FRAME_MASK) as usize];
    walk.ip = frame.ip;
    walk.sp = frame.sp;
    walk.bp = frame.bp;
    if at <= walk.verify || at <= 1 {
        // The way out of this frame is not verified: `step` takes it.
        return STOP;
    }
    if walk.depth >= MAX_FRAMES as u32 {
        return STOP;
    }
    let Frame {
        ip, sp, bp, bp_slot, ..
    } = frame;
    scratch.fresh[(walk.depth & FRAME_MASK) as usize] = FreshFrame { ip, sp, bp, bp_slot };
    walk.depth += 1;
    walk.cursor = at - 1;
    CONTINUE
}

/// Notes the current frame and goes to its caller's.
extern "C" fn step(_index: u32, context: *mut c_void) -> c_long {
    let (walk, scratch) = parts(context);
    // Remembered frames lie above each other as long as they are on one stack; those below the current one are gone.
    for _ in 0..4 {
        if walk.cursor == 0 || walk.memo[(walk.cursor.wrapping_sub(1) & FRAME_MASK) as usize].sp >= walk.sp {
            break;
        }
        walk.cursor -= 1;
    }
    if walk.cursor > 1 {
        let candidate = &walk.memo[(walk.cursor.wrapping_sub(1) & FRAME_MASK) as usize];
        if candidate.sp == walk.sp && candidate.ip == walk.ip && candidate.bp == walk.bp && walk.exact == 0 {
            walk.matched = 1;
            return STOP;
        }
    }
    let mut place = walk.depth;
    if place >= MAX_FRAMES as u32 {
        if place >= MAX_WALK as u32 {
            walk.end = WalkEnd::TooDeep as u32;
            return STOP;
        }
        place = outer_place(place);
    }
    let at = (place & FRAME_MASK) as usize;
    let frame = &mut scratch.fresh[at];
    frame.ip = walk.ip;
    frame.sp = walk.sp;
    frame.bp = walk.bp;
    frame.bp_slot = 0;
    walk.depth += 1;
    match advance(walk, scratch, at) {
        None => CONTINUE,
        Some(end) => {
            walk.end = end as u32;
            STOP
        }
    }
}

/// Replaces the walk's registers by the caller's; the reason if there is no going on.
#[inline(always)]
fn advance(walk: &mut Walk, scratch: &mut Scratch, at: usize) -> Option<WalkEnd> {
    // A return address may lie behind the function's last byte, so the call itself is looked up.
    let pc = if walk.exact != 0 {
        walk.ip
    } else {
        walk.ip.wrapping_sub(1)
    };
    let place = row_place(pc);
    let found = scratch.rows[place];
    let row = if found.pc == pc && found.generation == walk.kept_generation {
        found.row
    } else {
        let row = match search_row(walk, pc) {
            Ok(row) => row,
            Err(end) => return Some(end),
        };
        scratch.rows[place] = FoundRow {
            pc,
            generation: walk.kept_generation,
            row,
        };
        row
    };
    walk.exact = 0;
    let cfa = match row.rule & !BP_VIA_BP {
        RULE_SP => walk.sp.wrapping_add(row.cfa as i64 as u64),
        RULE_BP => walk.bp.wrapping_add(row.cfa as i64 as u64),
        RULE_END => return Some(WalkEnd::Bottom),
        RULE_FRAME_POINTER => {
            if walk.bp == 0 {
                return Some(WalkEnd::Bottom);
            }
            walk.bp.wrapping_add(16)
        }
        RULE_PLT => {
            let pushed = (walk.ip & 15) >= row.cfa as u64;
            walk.sp.wrapping_add(if pushed { 16 } else { 8 })
        }
        rule @ (RULE_BP_DEREF | RULE_SP_DEREF) => {
            scratch.fresh[at].bp_slot = UNVERIFIABLE;
            let base = if rule == RULE_BP_DEREF { walk.bp } else { walk.sp };
            let value = slot(walk, base.wrapping_add(deref_offset(row.cfa) as i64 as u64));
            value.wrapping_add(deref_addend(row.cfa) as i64 as u64)
        }
        RULE_GO_CGOCALL => {
            // The goroutine's stack may have moved meanwhile: its end and the depth are what stays true.
            scratch.fresh[at].bp_slot = UNVERIFIABLE;
            let goroutine = slot(walk, walk.sp.wrapping_add(deref_offset(row.cfa) as i64 as u64));
            let depth = slot(walk, walk.sp.wrapping_add(deref_addend(row.cfa) as i64 as u64));
            let own = if goroutine == 0 {
                depth
            } else {
                slot(walk, goroutine.wrapping_add(GO_STACK_HI)).wrapping_sub(depth)
            };
            if walk.unreadable != 0 {
                return Some(WalkEnd::UnreadableStack);
            }
            // The stack is another one, above or below: no order can be asked for.
            let returns_at = own.wrapping_add(row.bp_offset as i64 as u64);
            walk.sp = returns_at.wrapping_add(8);
            walk.ip = slot(walk, returns_at);
            if row.bp_offset != 0 {
                walk.bp = slot(walk, returns_at.wrapping_sub(8));
            }
            return if walk.unreadable != 0 {
                Some(WalkEnd::UnreadableStack)
            } else if walk.ip == 0 {
                Some(WalkEnd::Bottom)
            } else {
                None
            };
        }
        RULE_SIGNAL => {
            scratch.fresh[at].bp_slot = UNVERIFIABLE;
            let frame = walk.sp;
            walk.ip = slot(walk, frame.wrapping_add(signal_frame::INSTRUCTION_POINTER));
            walk.sp = slot(walk, frame.wrapping_add(signal_frame::STACK_POINTER));
            walk.bp = slot(walk, frame.wrapping_add(signal_frame::FRAME_POINTER));
            walk.exact = 1;
            return if walk.unreadable != 0 {
                Some(WalkEnd::UnreadableStack)
            } else {
                None
            };
        }
        _ => return Some(WalkEnd::NoRule),
    };
    if walk.unreadable != 0 {
        return Some(WalkEnd::UnreadableStack);
    }
    // A chain of frame pointers may lead to another stack (from C into Go), but not back to the same frame.
    let stuck = if row.rule == RULE_FRAME_POINTER {
        cfa == walk.sp
    } else {
        cfa <= walk.sp
    };
    if stuck {
        return Some(WalkEnd::NotProgressing);
    }
    let bp_slot = if row.rule == RULE_FRAME_POINTER {
        walk.bp
    } else if row.bp_offset == 0 && row.rule & BP_VIA_BP == 0 {
        0
    } else {
        let base = if row.rule & BP_VIA_BP != 0 { walk.bp } else { cfa };
        base.wrapping_add(row.bp_offset as i64 as u64)
    };
    walk.ip = slot(walk, arch::return_address_slot(cfa));
    walk.sp = cfa;
    if bp_slot != 0 {
        if scratch.fresh[at].bp_slot == 0 {
            scratch.fresh[at].bp_slot = bp_slot;
        }
        walk.bp = slot(walk, bp_slot);
    }
    if walk.unreadable != 0 {
        return Some(WalkEnd::UnreadableStack);
    }
    if walk.ip == 0 { Some(WalkEnd::Bottom) } else { None }
}

#[inline(always)]
fn row_place(pc: u64) -> usize {
    (pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as usize & (ROW_SLOTS - 1)
}

/// The rule for a code address, by two searches.
#[inline(always)]
fn search_row(walk: &mut Walk, pc: u64) -> Result<Row, WalkEnd> {
    if !(pc >= walk.map_start && pc < walk.map_end) && find_mapping(walk, pc) == 0 {
        return Err(WalkEnd::NoMapping);
    }
    if walk.map_flags & MAPPING_FRAME_POINTER != 0 {
        return Ok(Row {
            low: 0,
            rule: RULE_FRAME_POINTER,
            bp_offset: 0,
            cfa: 0,
        });
    }
    let index = find_row(walk, pc);
    match ROWS.get(index) {
        Some(row) if index != NO_ROW => Ok(*row),
        _ => Err(WalkEnd::NoRule),
    }
}

/// The value of a stack slot, from the copied piece if it lies there. An unreadable one gives 0 and is noted in
/// `unreadable` (an `Option` here makes the compiler merge undefined registers, which the verifier refuses).
#[inline(always)]
fn slot(walk: &mut Walk, address: u64) -> u64 {
    let offset = address.wrapping_sub(walk.window_base);
    if offset < walk.window_bytes && offset & 7 == 0 {
        return window_word(walk, offset);
    }
    refill(walk, address)
}

/// The word at an offset into the copied piece. The mask is an instruction of its own: left to itself, the compiler drops
/// it where it knows the offset to be in bounds, which verifiers before 6.3 cannot follow.
#[inline(always)]
fn window_word(walk: &Walk, offset: u64) -> u64 {
    let mut index = offset >> 3;
    // SAFETY: changes its one operand.
    unsafe { core::arch::asm!("{0} &= {1}", inout(reg) index, const WINDOW_WORDS - 1) };
    // SAFETY: every bit pattern is a word.
    unsafe { walk.piece.window[index as usize & (WINDOW_WORDS - 1)] }
}

/// Copies a piece of the stack around an address and returns the slot's value. The piece begins a little below: a
/// frame's saved frame pointer lies below its return address, and is read after it. It ends at the end of the stack,
/// which the first piece that goes beyond it tells; of that one just the slot is copied.
#[inline(never)]
fn refill(walk: &mut Walk, address: u64) -> u64 {
    fill(walk, address)
}

/// As [`refill`], in place.
#[inline(always)]
fn fill(walk: &mut Walk, address: u64) -> u64 {
    let near = address.wrapping_sub(walk.sp) <= BELOW;
    let base = if near { walk.sp } else { address.wrapping_sub(BELOW) };
    let room = walk.wall.wrapping_sub(base);
    let bytes = if room < WINDOW_BYTES {
        room & (WINDOW_BYTES - 8)
    } else {
        WINDOW_BYTES
    };
    walk.window_base = base;
    walk.window_bytes = 0;
    // SAFETY: the destination is a map value of at least this size; the helper checks the source.
    let failed =
        unsafe { generated::bpf_probe_read_user((&raw mut walk.piece).cast(), bytes as u32, base as *const c_void) };
    let offset = address.wrapping_sub(base);
    if failed == 0 && offset & 7 == 0 && offset < bytes {
        walk.window_bytes = bytes;
        return window_word(walk, offset);
    }
    if failed != 0 {
        walk.wall = (base | (arch::LEAST_PAGE - 1)).wrapping_add(1);
    }
    // SAFETY: any bit pattern is a word, and no longer record is in use while a stack is walked.
    unsafe { walk.piece.window[0] = 0 };
    // SAFETY: as above, for one word.
    let failed = unsafe { generated::bpf_probe_read_user((&raw mut walk.piece).cast(), 8, address as *const c_void) };
    if failed != 0 {
        walk.unreadable = 1;
        return 0;
    }
    walk.window_base = address;
    walk.window_bytes = 8;
    window_word(walk, 0)
}

/// A half-open range that a search narrows. It lives in map memory, so that after each step the verifier knows nothing
/// of it: tracked in registers, each outcome of each comparison would be a path of its own.
struct Range<'a>(&'a mut [u32; 2]);

impl Range<'_> {
    #[inline(always)]
    fn get(&self) -> (u32, u32) {
        // SAFETY: aligned fields of a live map value.
        unsafe {
            (
                (&raw const self.0[0]).read_volatile(),
                (&raw const self.0[1]).read_volatile(),
            )
        }
    }

    #[inline(always)]
    fn set_low(&mut self, low: u32) {
        // SAFETY: as in `get`.
        unsafe { (&raw mut self.0[0]).write_volatile(low) }
    }

    #[inline(always)]
    fn set_high(&mut self, high: u32) {
        // SAFETY: as in `get`.
        unsafe { (&raw mut self.0[1]).write_volatile(high) }
    }
}

/// Whether an address lies in code that the process is known to have mapped.
#[inline(always)]
pub fn is_known_code(walk: &mut Walk, process: &Process, pc: u64) -> bool {
    walk.mapping_first = process.mapping_first;
    walk.mapping_count = process.mapping_count;
    find_mapping(walk, pc) != 0
}

/// The same of a whole range, within one mapping; 0 if it is not.
#[inline(never)]
pub fn is_known_range(walk: &mut Walk, process: &Process, start: u64, length: u64) -> u64 {
    if !is_known_code(walk, process, start) {
        return 0;
    }
    (length <= walk.map_end.wrapping_sub(start)) as u64
}

/// Finds the executable mapping of an address and makes it the walk's current one. 0 if there is none.
#[inline(never)]
fn find_mapping(walk: &mut Walk, pc: u64) -> u64 {
    let count = if walk.mapping_count > MAX_MAPPINGS {
        MAX_MAPPINGS
    } else {
        walk.mapping_count
    };
    let first = walk.mapping_first;
    let mut range = Range(&mut walk.range);
    range.set_low(0);
    range.set_high(count);
    // 2^12 = MAX_MAPPINGS, and one halving more to come to an empty range.
    for _ in 0..13 {
        let (low, high) = range.get();
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        let Some(mapping) = MAPPINGS.get(first.wrapping_add(middle)) else {
            return 0;
        };
        if pc < mapping.start {
            range.set_high(middle);
        } else if pc >= mapping.end {
            range.set_low(middle + 1);
        } else {
            walk.map_start = mapping.start;
            walk.map_end = mapping.end;
            walk.map_delta = mapping.delta;
            walk.map_block_first = mapping.block_first;
            walk.map_block_count = mapping.block_count;
            walk.map_flags = mapping.flags;
            return 1;
        }
    }
    0
}

/// Index of the row in effect at an address of the current mapping, or [`NO_ROW`].
#[inline(never)]
fn find_row(walk: &mut Walk, pc: u64) -> u32 {
    let offset = pc.wrapping_sub(walk.map_delta);
    let block = offset >> BLOCK_SHIFT;
    if block >= walk.map_block_count as u64 {
        return NO_ROW;
    }
    let low_byte = (offset & (BLOCK_SIZE - 1)) as u8;
    let first = walk.map_block_first.wrapping_add(block as u32);
    let (Some(begin), Some(end)) = (BLOCKS.get(first), BLOCKS.get(first.wrapping_add(1))) else {
        return NO_ROW;
    };
    let mut range = Range(&mut walk.range);
    range.set_low(*begin);
    range.set_high(*end);
    // A block has at most 256 rows; after the loop the range's beginning is the first row behind the address.
    for _ in 0..9 {
        let (low, high) = range.get();
        if low >= high {
            break;
        }
        let middle = (low + high) >> 1;
        let Some(row) = ROWS.get(middle) else {
            return NO_ROW;
        };
        if row.low <= low_byte {
            range.set_low(middle + 1);
        } else {
            range.set_high(middle);
        }
    }
    range.get().0.wrapping_sub(1)
}
