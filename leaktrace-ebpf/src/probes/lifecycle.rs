//! The life of processes and threads.

use aya_ebpf::programs::TracePointContext;
use leaktrace_common::event::{KIND_EXEC, KIND_FORK, KIND_THREAD_EXIT};

use crate::{emit, maps, thread};

/// `sched_process_fork`: common fields (8), parent_comm and its id, child_comm and its id. Since 6.12 the names are
/// 4-byte references, before that 16-byte arrays; the reader finds the child's id in `/proc` either way.
pub fn fork(_ctx: &TracePointContext) {
    let (pid, _) = thread::current();
    if maps::process_by_pid(pid).is_some() {
        emit::notice(KIND_FORK, pid, 0);
    }
}

/// `sched_process_exec`: the process runs another program now. What was pending in the thread will not return.
pub fn exec() {
    let (pid, _) = thread::current();
    if maps::process_by_pid(pid).is_some() {
        if let Some(thread) = thread::known() {
            thread.pending.sp = 0;
            thread.mapping.call = 0;
        }
        emit::notice(KIND_EXEC, pid, 0);
    }
}

/// `sched_process_exit`: a thread ends.
pub fn thread_exit() {
    let (pid, tid) = thread::current();
    if maps::process_by_pid(pid).is_some() {
        emit::notice(KIND_THREAD_EXIT, pid, tid);
    }
}
