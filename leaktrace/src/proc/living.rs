//! Which thread of a process stands for it. A process lives until its last thread ends, but its first thread may end
//! before that (`pthread_exit` in `main`): its pid is then a zombie's, with other threads still running. What `/proc`
//! shows of memory, files and mount points below the pid is empty from that moment on, and is there below the id of a
//! thread that lives, which `/proc` knows just as well.
//!
//! Invariant: a process that has a thread which runs has not ended.

use super::{
    ProcError,
    identity::{self, Stat},
    read_bounded,
};
use crate::model::ProcessKey;

/// Flag of a thread that is on its way out (`PF_EXITING`).
const EXITING: u64 = 4;
/// `SIGKILL` in a mask of signals.
const KILL: u64 = 1 << (libc::SIGKILL - 1);

/// Whether a state is that of a thread that has ended.
fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// Whether the process has ended, given what `/proc/PID/stat` says of it.
pub fn has_ended(stat: &Stat) -> bool {
    is_dead(stat.state) && (stat.threads < 2 || others(stat.key.pid).next().is_none())
}

/// Whether it is still there: the same process, with a thread that has not ended. One that cannot be looked at at the
/// moment (for want of descriptors or memory) is.
pub fn is_running(key: ProcessKey) -> bool {
    match identity::read_stat(key.pid) {
        Ok(stat) => stat.key == key && !has_ended(&stat),
        Err(ProcError::NoSuchProcess { .. } | ProcError::Exited { .. }) => false,
        Err(_) => true,
    }
}

/// The thread that stands for a process: its first one, or, if that has ended, another. The pid itself if there is none,
/// so that whoever reads below it hears why.
pub fn thread(pid: u32) -> u32 {
    match identity::read_stat(pid) {
        Ok(stat) if is_dead(stat.state) && stat.threads >= 2 => others(pid).next().unwrap_or(pid),
        _ => pid,
    }
}

/// A thread that is not about to end, if the first one has ended or is about to. Of a process that is being ended as a
/// whole there is none.
pub fn successor(pid: u32) -> Option<u32> {
    if stays(pid) {
        return None;
    }
    others(pid).find(|tid| stays(*tid))
}

/// Threads that have not ended, without the first.
fn others(pid: u32) -> impl Iterator<Item = u32> {
    let threads = identity::read_threads(pid).unwrap_or_default();
    threads
        .into_iter()
        .filter(move |tid| *tid != pid && identity::read_stat(*tid).is_ok_and(|stat| !is_dead(stat.state)))
}

/// Whether a thread has neither ended, nor is on its way out, nor killed.
fn stays(tid: u32) -> bool {
    let killed = read_bounded(tid, "status", 1 << 16).map_or(true, |status| is_killed(&status));
    identity::read_stat(tid).is_ok_and(|stat| !is_dead(stat.state) && stat.flags & EXITING == 0) && !killed
}

/// Whether `SIGKILL` waits for the thread, as it does for all when one calls `exit`.
fn is_killed(status: &[u8]) -> bool {
    let text = String::from_utf8_lossy(status);
    let pending = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    };
    (pending("SigPnd:") | pending("ShdPnd:")) & KILL != 0
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn this_process_stands_for_itself() {
        let pid = std::process::id();
        let key = identity::read_key(pid).unwrap();
        assert!(is_running(key));
        assert_eq!(thread(pid), pid);
        let later = ProcessKey {
            start_time: key.start_time + 1,
            ..key
        };
        assert!(!is_running(later), "that is another process");
    }

    #[test]
    fn what_has_ended_has_no_thread() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let key = identity::read_key(child.id()).unwrap();
        // A zombie until it is waited for.
        while is_running(key) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(identity::read_stat(key.pid).unwrap().state, 'Z');
        assert_eq!((thread(key.pid), successor(key.pid)), (key.pid, None));
        child.wait().unwrap();
        assert!(!is_running(key));
    }

    #[test]
    fn a_killed_thread_is_told_by_its_signals() {
        assert!(is_killed(b"Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0\n"));
        assert!(is_killed(b"SigPnd:\t0\nShdPnd:\t0000000000000101\n"));
        assert!(!is_killed(b"Name:\tSigPnd:\nSigPnd:\t0000000000000001\n"));
    }
}
