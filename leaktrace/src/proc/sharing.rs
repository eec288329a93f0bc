//! Processes that use one memory: `clone` with `CLONE_VM` and without `CLONE_THREAD` makes such, and so does `vfork` until
//! the child runs another program. What one of them frees, another may have allocated.

use super::{
    find,
    identity::{self, Stat},
    living,
    memory::is_same_memory,
};

/// Processes that are looked at, at most.
const MAX_LOOKED_AT: usize = 1 << 15;

/// Other processes that use the memory of this one. The address where the first thread's stack begins, which is drawn by
/// chance for each program, sorts out nearly all that do not; the kernel is asked of the rest, and where it does not
/// compare processes there are none.
pub fn sharers(pid: u32) -> Vec<u32> {
    // A thread that has ended has no memory.
    let Ok(own) = identity::read_stat(living::thread(pid)) else {
        return Vec::new();
    };
    let may_share = |other: &Stat| other.stack_start == own.stack_start && !other.kernel_thread;
    find::pids()
        .filter(|other| *other != pid)
        .take(MAX_LOOKED_AT)
        .filter(|other| identity::read_stat(*other).is_ok_and(|other| may_share(&other)))
        .filter(|other| is_same_memory(own.key.pid, *other).unwrap_or(false))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_of_its_own_memory_shares_nothing() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        assert!(!sharers(std::process::id()).contains(&child.id()));
        assert!(!is_same_memory(std::process::id(), child.id()).unwrap_or(false));
        assert!(is_same_memory(std::process::id(), std::process::id()).unwrap_or(true));
        child.kill().expect("it runs");
        child.wait().expect("it was killed");
    }
}
