//! The Yama security module's limit on ptrace, which holds for root as well.

use std::fs;

/// Where the limit can be read and set.
pub const SYSCTL: &str = "kernel.yama.ptrace_scope";
/// No process may attach to another, until the next boot (`YAMA_SCOPE_NO_ATTACH`).
const NO_ATTACH: u32 = 3;

/// The limit; `None` on a kernel without Yama.
pub fn ptrace_scope() -> Option<u32> {
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    text.trim().parse().ok()
}

/// Whether nobody may attach by ptrace, whatever capabilities they have.
pub fn forbids_attaching(scope: Option<u32>) -> bool {
    scope.is_some_and(|scope| scope >= NO_ATTACH)
}
