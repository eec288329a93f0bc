//! The life of processes and threads.

use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use leaktrace_common::event::{FLAG_SHARER_MISSED, KIND_FORK, KIND_THREAD_EXIT};

use crate::{emit, maps, probes::growth, thread};

/// Where `sched_process_fork` keeps the child's id: since 6.12 the names before it are 4-byte references, before that
/// 16-byte arrays. Set by userspace from the tracepoint's format.
#[unsafe(no_mangle)]
static FORK_CHILD_OFFSET: u32 = NEW_CHILD_OFFSET;
const NEW_CHILD_OFFSET: u32 = 20;
const OLD_CHILD_OFFSET: usize = 44;
/// Where `sched_process_exec` keeps the thread's id before: it takes over that of its process's first.
const EXEC_OLD_TID_OFFSET: usize = 16;

/// Where `task_newtask` keeps the new task's id and the flags of `clone`.
const NEW_TASK_OFFSET: usize = 8;
const CLONE_FLAGS_OFFSET: usize = 32;
const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_THREAD: u64 = 0x1_0000;

/// `task_newtask`: a task is made, none of whose instructions has run. A process that uses its parent's memory acts for it.
pub fn task_created(ctx: &TracePointContext) {
    // SAFETY: the offset lies inside the tracepoint's record.
    let Ok(flags) = (unsafe { ctx.read_at::<u64>(CLONE_FLAGS_OFFSET) }) else {
        return;
    };
    if flags & (CLONE_VM | CLONE_THREAD) != CLONE_VM {
        return;
    }
    let (pid, _) = thread::current();
    let Some(slot) = maps::slot_by_pid(pid) else {
        return;
    };
    let Some(process) = maps::process(slot, pid) else {
        return;
    };
    // SAFETY: the offset lies inside the tracepoint's record.
    let Ok(child) = (unsafe { ctx.read_at::<u32>(NEW_TASK_OFFSET) }) else {
        return;
    };
    let is_waited_for = (flags & CLONE_VFORK != 0) as u32;
    let missed = maps::note_sharer(child, slot, process.pid, is_waited_for) == 0;
    // Who was made by `vfork` is gone from this memory before anybody could act.
    if is_waited_for == 0 {
        emit::sharer(process.pid, child, if missed { FLAG_SHARER_MISSED } else { 0 });
    }
}

/// `sched_process_fork`: the process has a new thread or a child; which, `/proc` tells.
pub fn fork(ctx: &TracePointContext) {
    let (pid, _) = thread::current();
    let Some(process) = maps::process_by_pid(pid) else {
        return;
    };
    // SAFETY: a constant that userspace may replace at load; the offsets lie inside the tracepoint's record.
    let child = unsafe {
        if (&raw const FORK_CHILD_OFFSET).read_volatile() == NEW_CHILD_OFFSET {
            ctx.read_at::<u32>(NEW_CHILD_OFFSET as usize)
        } else {
            ctx.read_at::<u32>(OLD_CHILD_OFFSET)
        }
    };
    if let Ok(child) = child {
        emit::notice(KIND_FORK, process.pid, child);
    }
}

/// `sched_process_exec`: the process runs another program now.
pub fn exec(ctx: &TracePointContext) {
    let (pid, tid) = thread::current();
    // SAFETY: the offset lies inside the tracepoint's record.
    if let Ok(before) = unsafe { ctx.read_at::<u32>(EXEC_OLD_TID_OFFSET) }
        && before != tid
    {
        thread::forget(before);
    }
    if let Some(thread) = thread::known() {
        thread.exec();
    }
    // Its memory is its own now.
    if maps::end_sharing(pid) != 0 {
        return;
    }
    if maps::process_by_pid(pid).is_some() {
        growth::forget(pid);
        maps::note_exec(pid);
        debug!(ctx, "pid {} runs another program", pid);
        emit::exec(pid);
    }
}

/// `sched_process_exit`: a thread ends.
pub fn thread_exit() {
    let (pid, tid) = thread::current();
    thread::forget(tid);
    if let Some(process) = maps::process_by_pid(pid) {
        emit::notice(KIND_THREAD_EXIT, process.pid, tid);
        if process.pid != pid && tid == pid {
            maps::end_sharing(pid);
        }
    }
}
