//! Stacks by id: a stack is sent to userspace once, and from then on told by the hash over its frames.

use aya_ebpf::{
    bindings::pt_regs,
    cty::{c_long, c_void},
    helpers::{bpf_get_current_task_btf, bpf_loop, bpf_task_pt_regs},
};
use leaktrace_common::{
    config::{MAX_FRAMES, Process},
    event::KIND_STACK,
    reason::Counter,
};

use crate::{
    arch, emit,
    maps::{KNOWN_STACKS, count},
    thread::{FRAME_MASK, Scratch, Thread},
    unwind::{CONTINUE, walk},
};

/// Walks the stack of the current thread from the registers that its walk holds and makes its id known to userspace.
/// `None` (counted) if the stack's record did not fit into the ring.
#[inline(always)]
pub fn id(thread: &mut Thread, scratch: &mut Scratch, process: &Process, pid: u32) -> Option<u64> {
    thread.is_walking = 1;
    walk(&mut thread.walk, scratch, process);
    thread.is_walking = 0;
    let id = thread.walk.hash;
    if is_known(id) {
        return Some(id);
    }
    if publish(thread, pid) == 0 {
        return None;
    }
    Some(id)
}

/// The same from the registers with which the thread entered the kernel. `behind` is 0 after a system call, whose
/// instruction lies before the instruction pointer, and 1 in a fault, where it points to the instruction itself.
#[inline(always)]
pub fn entry_id(thread: &mut Thread, scratch: &mut Scratch, process: &Process, pid: u32, behind: u64) -> Option<u64> {
    let regs = entry_registers()?;
    thread
        .walk
        .begin_at(regs.ip().wrapping_add(behind), regs.sp(), regs.frame_pointer());
    id(thread, scratch, process, pid)
}

/// The registers with which the current thread entered the kernel.
#[inline(always)]
pub fn entry_registers() -> Option<arch::Registers> {
    // SAFETY: both helpers return trusted pointers for the current task.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs;
    (!regs.is_null()).then(|| arch::Registers::from_task(regs))
}

#[inline(always)]
fn places(id: u64) -> (u32, u32) {
    let mask = (1 << 18) - 1;
    ((id as u32) & mask, ((id >> 32) as u32) & mask)
}

#[inline(always)]
fn is_known(id: u64) -> bool {
    let (first, second) = places(id);
    KNOWN_STACKS.get(first).is_some_and(|known| *known == id)
        || KNOWN_STACKS.get(second).is_some_and(|known| *known == id)
}

struct Shared(*mut Thread);

/// Sends the remembered walk and notes its id, in this order: who finds the id noted can rely on the record's being
/// ahead of his own. Returns 1 if the record fitted.
#[inline(never)]
fn publish(thread: &mut Thread, pid: u32) -> u64 {
    let depth = thread.walk.kept;
    // SAFETY: plain numbers, in which every bit pattern is valid.
    let record = unsafe { &mut thread.walk.piece.record };
    record.header = emit::header(KIND_STACK, 0, pid);
    record.id = thread.walk.hash;
    record.depth = depth;
    record.end = thread.walk.end;
    let mut shared = Shared(thread);
    // SAFETY: the callback gets `shared`, which outlives the loop.
    unsafe { bpf_loop(depth, copy_frame as *mut c_void, (&raw mut shared).cast(), 0) };
    if !emit::stack(thread) {
        count(Counter::StackLost, 1);
        return 0;
    }
    let id = thread.walk.hash;
    let (first, second) = places(id);
    let free = KNOWN_STACKS.get(first).is_some_and(|known| *known == 0);
    let place = if free || KNOWN_STACKS.get(second).is_some_and(|known| *known != 0) {
        first
    } else {
        second
    };
    if let Some(known) = KNOWN_STACKS.get_ptr_mut(place) {
        // SAFETY: an aligned map value; a torn or lost store only makes the stack be sent again.
        unsafe { known.write_volatile(id) };
    }
    1
}

extern "C" fn copy_frame(index: u32, context: *mut c_void) -> c_long {
    // SAFETY: `publish` passes a `Shared` with a live thread.
    let thread = unsafe { &mut *(*context.cast::<Shared>()).0 };
    let from = thread.walk.kept.wrapping_sub(1).wrapping_sub(index) & FRAME_MASK;
    let frame = thread.walk.memo[from as usize].ip;
    if (index as usize) < MAX_FRAMES {
        // SAFETY: as in `publish`.
        unsafe { thread.walk.piece.record.frames[index as usize] = frame };
    }
    CONTINUE
}
