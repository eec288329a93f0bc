//! The maps, each with its size, its eviction and what happens when it is full.
//!
//! Sizes given here are placeholders where userspace sets them at load (`leaktrace/src/bpf/kernel.rs`).

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use leaktrace_common::{
    config::{
        BlockKey, CodeMapping, EXPONENTIAL_TABLE, GrowthState, HELD_SAMPLES as HELD_COUNTERS,
        LOST_RELEASES as LOST_RELEASE_BUCKETS, MAX_PROCESSES, MAX_SAMPLES, MAX_SHARERS, Process, ProcessSlot,
        ReleaseKey, Sharer, may_hold_sample,
    },
    reason::Counter,
    unwind::Row,
};

use crate::{
    task_storage::TaskStorage,
    thread::{Scratch, Thread, ThreadById},
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// All records, in one order. Full: the record is dropped and counted; a release goes to
/// [`DEFERRED_RELEASES`].
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Traced processes by slot. Userspace writes it through shared memory.
#[map]
pub static PROCESSES: Array<ProcessSlot> = Array::with_max_entries(MAX_PROCESSES, BPF_F_MMAPABLE);

/// Slots by pid, for tracepoints, which carry no cookie. Userspace adds and removes traced processes; those that share the
/// memory of one ([`SHARERS`]) have its slot.
#[map]
pub static SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES + MAX_SHARERS, BPF_F_NO_PREALLOC);

/// Processes that use a traced one's memory (`clone` with `CLONE_VM`, `vfork`), by pid: from their first instruction until
/// they run another program or end. Userspace adds those that were there before, and removes all with the traced one's slot.
/// Full: what the process gives back is not seen; userspace hears of it and leaves the traced one out.
#[map]
pub static SHARERS: HashMap<u32, Sharer> = HashMap::with_max_entries(MAX_SHARERS, BPF_F_NO_PREALLOC);

/// What is remembered of the process in each slot to see its growth.
#[map]
pub static GROWTH: Array<GrowthState> = Array::with_max_entries(MAX_PROCESSES, 0);

/// Threads that made a hooked call: task-local storage, three times as fast to find as an entry of a hash map, zeroed
/// when it is made and gone with the thread. Where the kernel refuses one: [`THREADS_BY_ID`].
#[btf_map]
pub static THREADS: TaskStorage<Thread> = TaskStorage::new();

/// The half of their records that stack walks need.
#[btf_map]
pub static SCRATCHES: TaskStorage<Scratch> = TaskStorage::new();

/// Threads by id, of which the kernel refused a record (see `thread.rs`); gone with the thread. All memory is taken when
/// the map is made. Full: the thread's calls are not seen, counted.
#[map]
pub static THREADS_BY_ID: HashMap<u32, ThreadById> = HashMap::with_max_entries(1, 0);

/// What a new entry of [`THREADS_BY_ID`] is made from: zeros.
#[map]
pub static NEW_THREAD: Array<ThreadById> = Array::with_max_entries(1, 0);

/// Releases (free, munmap, exec) whose record did not fit: key → position in the ring at which they happened. Userspace
/// drains it and applies each when its reading has come to that position. Full: [`LOST_RELEASES`].
#[map]
pub static DEFERRED_RELEASES: HashMap<ReleaseKey, u64> = HashMap::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

/// How many releases were lost for good, by what they may have been. Userspace leaves all of that out.
#[map]
pub static LOST_RELEASES: Array<u64> = Array::with_max_entries(LOST_RELEASE_BUCKETS, BPF_F_MMAPABLE);

/// Blocks taken as samples, with [`ProcessSlot::execs`] at that time: only their frees leave the kernel. Userspace takes
/// out those of programs that are gone. Full, or a user or a process has its share: the sample is not taken, counted.
#[map]
pub static SAMPLED: HashMap<BlockKey, u32> = HashMap::with_max_entries(MAX_SAMPLES, BPF_F_NO_PREALLOC);

/// How many entries [`SAMPLED`] has: in all, for each slot, for each user.
#[map]
pub static HELD_SAMPLES: Array<u64> = Array::with_max_entries(HELD_COUNTERS, BPF_F_MMAPABLE);

/// Ids of stacks that userspace has been sent, two places for each id. An id that finds both taken replaces the first;
/// the other stack is sent again when it comes next, which does no harm.
#[map]
pub static KNOWN_STACKS: Array<u64> = Array::with_max_entries(1 << 18, 0);

/// Executable mappings of all processes; each process has a sorted run of them.
#[map]
pub static MAPPINGS: Array<CodeMapping> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Block indices of all unwind tables.
#[map]
pub static BLOCKS: Array<u32> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rows of all unwind tables.
#[map]
pub static ROWS: Array<Row> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Exponential variates in fixed point, ascending (see `sample.rs`).
#[map]
pub static EXPONENTIALS: Array<u64> = Array::with_max_entries(EXPONENTIAL_TABLE, 0);

/// Losses by cause.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT as u32, 0);

/// The process in a slot, whichever it is.
#[inline(always)]
pub fn process_in(slot: u32) -> Option<&'static Process> {
    let slot = PROCESSES.get(slot)?;
    Some(if slot.current == 0 {
        &slot.versions[0]
    } else {
        &slot.versions[1]
    })
}

/// The process in a slot, if it is still the one with this pid, or one that uses its memory.
#[inline(always)]
pub fn process(slot: u32, pid: u32) -> Option<&'static Process> {
    match process_in(slot) {
        Some(process) if process.pid == pid => Some(process),
        // SAFETY: null or a map value.
        _ => unsafe { process_of_sharer(slot, pid).as_ref() },
    }
}

/// The process in a slot, if the one with this pid uses its memory; else null.
#[inline(never)]
fn process_of_sharer(slot: u32, pid: u32) -> *const Process {
    match process_in(slot) {
        Some(process) if is_sharer(pid, slot, process.pid) != 0 => process,
        _ => core::ptr::null(),
    }
}

/// Whether the process with this pid uses the memory of the one in the slot. Asked of nobody but who is not that one.
#[inline(never)]
pub fn is_sharer(pid: u32, slot: u32, owner: u32) -> u64 {
    // SAFETY: read-only access to a map value.
    let Some(sharer) = (unsafe { SHARERS.get(pid) }) else {
        return 0;
    };
    (sharer.slot == slot && sharer.owner == owner && sharer.execs == execs(slot)) as u64
}

/// A process begins that uses the memory of the one in the slot. Returns whether it is known from now on.
#[inline(never)]
pub fn note_sharer(pid: u32, slot: u32, owner: u32, is_waited_for: u32) -> u64 {
    let sharer = Sharer {
        slot,
        owner,
        execs: execs(slot),
        is_waited_for,
    };
    if SHARERS.insert(pid, sharer, 0).is_ok() && SLOTS.insert(pid, slot, 0).is_ok() {
        return 1;
    }
    end_sharing(pid);
    count(Counter::MapRefused, 1);
    0
}

/// The process uses memory of its own from now on, or has ended. Returns whether it used another one's.
#[inline(never)]
pub fn end_sharing(pid: u32) -> u64 {
    if SHARERS.remove(pid).is_err() {
        return 0;
    }
    let _ = SLOTS.remove(pid);
    1
}

/// Whether one more sample of the process may be held.
#[inline(never)]
pub fn may_hold(process: &Process) -> bool {
    let all = held(0);
    let of_user = held(process.held_of_user);
    may_hold_sample(all, of_user, held(process.held))
}

#[inline(always)]
fn held(counter: u32) -> u64 {
    HELD_SAMPLES.get(counter).copied().unwrap_or(0)
}

/// A sample of the process is held from now on (1), or is not any more (-1).
#[inline(never)]
pub fn note_held(process: &Process, change: i64) -> u64 {
    add_held(0, change);
    add_held(process.held_of_user, change);
    add_held(process.held, change)
}

#[inline(never)]
fn add_held(counter: u32, change: i64) -> u64 {
    if let Some(value) = HELD_SAMPLES.get_ptr_mut(counter) {
        // SAFETY: adds to an aligned map value and touches nothing else.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) change) };
    }
    0
}

/// The slot of the process with this pid, if it is traced.
#[inline(always)]
pub fn slot_by_pid(pid: u32) -> Option<u32> {
    // SAFETY: read-only access to a map value.
    unsafe { SLOTS.get(pid) }.copied()
}

/// How many programs the process in a slot has run before.
#[inline(always)]
pub fn execs(slot: u32) -> u32 {
    PROCESSES.get(slot).map_or(0, |slot| slot.execs as u32)
}

/// The process with this pid begins to run another program. No other thread of it is left by then, and none of the new
/// program's instructions has run.
#[inline(always)]
pub fn note_exec(pid: u32) {
    if let Some(slot) = slot_by_pid(pid)
        && let Some(slot) = PROCESSES.get_ptr_mut(slot)
    {
        // SAFETY: the one writer adds to an aligned word of a map value.
        unsafe { (*slot).execs += 1 };
    }
    // Userspace takes the old program's samples out in a moment. Until then they count against nobody: the new program would
    // have room for none.
    if let Some(process) = process_by_pid(pid) {
        note_held(process, (held(process.held) as i64).wrapping_neg());
    }
}

/// The process with this pid, if it is traced.
#[inline(always)]
pub fn process_by_pid(pid: u32) -> Option<&'static Process> {
    process(slot_by_pid(pid)?, pid)
}

/// Adds to a counter. Atomic, because a program can be preempted by another one on the same CPU; by instruction, because
/// `core` has no atomic addition for this target.
#[inline(always)]
pub fn count(counter: Counter, amount: u64) {
    add(counter, amount);
}

#[inline(never)]
fn add(counter: Counter, amount: u64) -> u64 {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: adds to an aligned map value and touches nothing else.
        unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) amount) };
    }
    0
}
