//! A source of records that needs no target, to measure how many userspace can take (`leaktrace debug feed`).

use aya_ebpf::{
    cty::{c_long, c_void},
    helpers::bpf_loop,
};
use leaktrace_common::event::{Alloc, Free, KIND_ALLOC, KIND_FREE};

use crate::emit;

/// Process id that the records carry; no process has it.
const PID: u32 = u32::MAX;
/// Pairs a run makes.
const PAIRS: u32 = 512;
const BLOCK: u64 = 64;
const BASE: u64 = 0x5555_0000_0000;

struct Position {
    next: u64,
    live: u64,
}

/// Makes [`PAIRS`] allocations, numbered from `next`, and as many frees of the ones `live` places before.
pub fn feed(next: u64, live: u64) {
    let mut position = Position { next, live };
    // SAFETY: the callback gets `position`, which outlives the loop.
    unsafe { bpf_loop(PAIRS, pair as *mut c_void, (&raw mut position).cast(), 0) };
}

extern "C" fn pair(_index: u32, context: *mut c_void) -> c_long {
    // SAFETY: `feed` passes a live `Position`.
    let position = unsafe { &mut *context.cast::<Position>() };
    let number = position.next;
    position.next = number + 1;
    let alloc = Alloc {
        header: emit::header(KIND_ALLOC, 0, PID),
        address: BASE.wrapping_add(number.wrapping_mul(BLOCK)),
        size: BLOCK,
        stack: number & 1023,
        tid: 1,
        interval: 0,
    };
    if !emit::record(alloc) {
        emit::lost(&alloc);
    }
    if number >= position.live {
        let address = BASE.wrapping_add((number - position.live).wrapping_mul(BLOCK));
        if !emit::record(Free {
            header: emit::header(KIND_FREE, 0, PID),
            address,
        }) {
            emit::lost(&alloc);
        }
    }
    0
}
