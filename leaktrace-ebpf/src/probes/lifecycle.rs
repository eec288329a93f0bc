//! The life of processes and threads.

use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use leaktrace_common::event::{KIND_FORK, KIND_THREAD_EXIT};

use crate::{emit, maps, probes::growth, thread};

/// Where `sched_process_fork` keeps the child's id: since 6.12 the names before it are 4-byte references, before that
/// 16-byte arrays. Set by userspace from the tracepoint's format.
#[unsafe(no_mangle)]
static FORK_CHILD_OFFSET: u32 = NEW_CHILD_OFFSET;
const NEW_CHILD_OFFSET: u32 = 20;
const OLD_CHILD_OFFSET: usize = 44;
/// Where `sched_process_exec` keeps the thread's id before: it takes over that of its process's first.
const EXEC_OLD_TID_OFFSET: usize = 16;

/// `sched_process_fork`: the process has a new thread or a child; which, `/proc` tells.
pub fn fork(ctx: &TracePointContext) {
    let (pid, _) = thread::current();
    if maps::process_by_pid(pid).is_none() {
        return;
    }
    // SAFETY: a constant that userspace may replace at load; the offsets lie inside the tracepoint's record.
    let child = unsafe {
        if (&raw const FORK_CHILD_OFFSET).read_volatile() == NEW_CHILD_OFFSET {
            ctx.read_at::<u32>(NEW_CHILD_OFFSET as usize)
        } else {
            ctx.read_at::<u32>(OLD_CHILD_OFFSET)
        }
    };
    if let Ok(child) = child {
        emit::notice(KIND_FORK, pid, child);
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
    if maps::process_by_pid(pid).is_some() {
        emit::notice(KIND_THREAD_EXIT, pid, tid);
    }
}
