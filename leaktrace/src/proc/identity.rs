//! Who a process is: pid and start time, names, owner, threads, seccomp state.
//!
//! The parsers are pure. A name (`comm`) may hold spaces, parentheses and newlines: fields are found from the last `)`.

use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::model::ProcessKey;
use crate::proc::{ProcError, living, process_exists, read_bounded};

/// Bit of `flags` in `/proc/PID/stat` that marks kernel threads (`PF_KTHREAD`).
const PF_KTHREAD: u64 = 0x0020_0000;

/// Most threads that are listed.
pub const MAX_THREADS: usize = 1 << 20;

/// How seccomp restricts a process (`Seccomp:` in `/proc/PID/status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// No restriction.
    Off,
    /// read, write, exit and sigreturn only.
    Strict,
    /// A BPF filter decides on each system call.
    Filter,
}

/// What `/proc/PID/stat` tells about identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Pid and start time.
    pub key: ProcessKey,
    /// Command name, at most 15 bytes of it for processes (the kernel cuts it); lossy UTF-8.
    pub comm: String,
    /// Process state, as the letter that the kernel shows (`R`, `S`, `Z`, …).
    pub state: char,
    /// Parent pid.
    pub parent: u32,
    /// Threads that are left of the process.
    pub threads: u32,
    /// Flags of the thread (`PF_*`).
    pub flags: u64,
    /// A thread of the kernel.
    pub kernel_thread: bool,
    /// Address where the stack of its main thread begins: each program that a process runs has another, by chance; 0
    /// for callers who may not read the process, and where addresses are not random.
    pub stack_start: u64,
}

/// How long after the machine's start a process started; `start_time` is in clock ticks.
pub fn since_boot(start_time: u64) -> Duration {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).max(1);
    let nanos = u128::from(start_time) * 1_000_000_000 / u128::from(ticks.unsigned_abs());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How long ago it started.
pub fn age(start_time: u64) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.saturating_sub(since_boot(start_time))
}

/// A process and what is worth showing about it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Pid and start time.
    pub key: ProcessKey,
    /// Command name.
    pub comm: String,
    /// Arguments, lossy UTF-8; at most 64 KiB of them.
    pub cmdline: Vec<String>,
    /// Executable, as the process' own mount namespace names it; `None` when the link cannot be read.
    pub exe: Option<PathBuf>,
    /// Real user id.
    pub uid: u32,
    /// Seccomp state of the main thread.
    pub seccomp: Seccomp,
}

/// Parses `/proc/PID/stat`.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let pid = std::str::from_utf8(&bytes[..open]).ok()?.trim().parse().ok()?;
    let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
    // `rest` begins with field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(50).collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let flags = field(9)?.parse::<u64>().ok()?;
    Some(Stat {
        key: ProcessKey {
            pid,
            start_time: field(22)?.parse().ok()?,
        },
        comm,
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        flags,
        kernel_thread: flags & PF_KTHREAD != 0,
        stack_start: field(28).and_then(|field| field.parse().ok()).unwrap_or(0),
    })
}

/// Reads `/proc/PID/stat`.
pub fn read_stat(pid: u32) -> Result<Stat, ProcError> {
    let bytes = read_bounded(pid, "stat", 1 << 16)?;
    parse_stat(&bytes).ok_or_else(|| malformed(pid, "stat", "not in the kernel's form"))
}

/// The identity that survives pid reuse.
pub fn read_key(pid: u32) -> Result<ProcessKey, ProcError> {
    Ok(read_stat(pid)?.key)
}

/// Reads everything about a process that can be traced.
///
/// # Errors
/// [`ProcError::KernelThread`] for a kernel thread; [`ProcError::Exited`] when all of its threads have ended.
pub fn read_identity(pid: u32) -> Result<Identity, ProcError> {
    let stat = read_stat(pid)?;
    if stat.kernel_thread {
        return Err(ProcError::KernelThread { pid, comm: stat.comm });
    }
    if living::has_ended(&stat) {
        return Err(ProcError::Exited { pid });
    }
    let thread = living::thread(pid);
    let status = read_bounded(thread, "status", 1 << 16)?;
    let (uid, seccomp) = parse_status(&status).ok_or_else(|| malformed(pid, "status", "no Uid line"))?;
    let exe = std::fs::read_link(format!("/proc/{thread}/exe")).ok();
    Ok(Identity {
        key: stat.key,
        comm: stat.comm,
        cmdline: read_cmdline(thread),
        exe: exe.map(strip_deleted),
        uid,
        seccomp,
    })
}

/// The thread ids of a process, ascending.
pub fn read_threads(pid: u32) -> Result<Vec<u32>, ProcError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let entries = std::fs::read_dir(&path).map_err(|source| ProcError::from_io(pid, &path, source))?;
    let mut threads: Vec<u32> = entries
        .flatten()
        .take(MAX_THREADS)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    if threads.is_empty() && !process_exists(pid) {
        return Err(ProcError::Exited { pid });
    }
    threads.sort_unstable();
    Ok(threads)
}

/// The name of a thread, lossy UTF-8; `None` if it ended.
pub fn read_thread_name(pid: u32, tid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned())
}

/// The process that a pid or a thread id belongs to.
pub fn thread_group(pid: u32) -> Result<u32, ProcError> {
    let status = read_bounded(pid, "status", 1 << 16)?;
    parse_thread_group(&status).ok_or_else(|| malformed(pid, "status", "no Tgid line"))
}

/// What a process is for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Its pid in the innermost pid namespace that it is in.
    pub pid: u32,
    /// The user that it makes files as, as this process's user namespace names it.
    pub uid: u32,
}

/// What a process is for itself.
///
/// # Errors
/// It is gone, or out of reach.
pub fn read_inner(pid: u32) -> Result<Inner, ProcError> {
    let status = read_bounded(pid, "status", 1 << 16)?;
    parse_inner(&status).ok_or_else(|| malformed(pid, "status", "no Uid line"))
}

/// The last words of the lines `NSpid:` (kernels without pid namespaces have `Pid:` alone) and `Uid:`.
fn parse_inner(status: &[u8]) -> Option<Inner> {
    let text = String::from_utf8_lossy(status);
    let last = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().next_back()?.parse().ok()
    };
    Some(Inner {
        pid: last("NSpid:").or_else(|| last("Pid:"))?,
        uid: last("Uid:")?,
    })
}

/// The `Tgid:` line of `/proc/PID/status`.
fn parse_thread_group(status: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

/// The process that traces another as debuggers do; `None` also when it is this one.
pub fn debugger(pid: u32) -> Option<u32> {
    let status = read_bounded(pid, "status", 1 << 16).ok()?;
    let tracer = parse_tracer(&status)?;
    // The line names a thread.
    let tracer = thread_group(tracer).unwrap_or(tracer);
    (tracer != std::process::id()).then_some(tracer)
}

/// The `TracerPid:` line of `/proc/PID/status`.
fn parse_tracer(status: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Real uid and seccomp mode. A kernel without seccomp has no such line: [`Seccomp::Off`].
pub fn parse_status(bytes: &[u8]) -> Option<(u32, Seccomp)> {
    // `Name:` comes first and its newlines are escaped, so a line that begins with `Uid:` is the kernel's.
    let text = String::from_utf8_lossy(bytes);
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let uid = value("Uid:")?.split_ascii_whitespace().next()?.parse().ok()?;
    let seccomp = match value("Seccomp:") {
        None | Some("0") => Seccomp::Off,
        Some("1") => Seccomp::Strict,
        Some(_) => Seccomp::Filter,
    };
    Some((uid, seccomp))
}

/// Arguments are the target's memory: whatever can be had of the first 64 KiB.
fn read_cmdline(pid: u32) -> Vec<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let Ok(file) = std::fs::File::open(format!("/proc/{pid}/cmdline")) else {
        return Vec::new();
    };
    if file.take(1 << 16).read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

fn strip_deleted(path: PathBuf) -> PathBuf {
    let mut bytes = path.into_os_string().into_vec();
    if bytes.ends_with(b" (deleted)") {
        bytes.truncate(bytes.len() - b" (deleted)".len());
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn malformed(pid: u32, name: &str, reason: &str) -> ProcError {
    ProcError::Malformed {
        pid,
        object: format!("/proc/{pid}/{name}").into(),
        reason: reason.into(),
    }
}

/// For `fuzzing`: any bytes as the text of `/proc/PID/status`.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_any_status(status: &[u8]) {
    let _ = (parse_status(status), parse_inner(status));
    let _ = (parse_thread_group(status), parse_tracer(status));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_imitate_the_fields_behind_it() {
        let text = b"42 (a) R 1 (b c) S 7 42 42 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.comm, "a) R 1 (b c");
        assert_eq!(
            stat.key,
            ProcessKey {
                pid: 42,
                start_time: 98765
            }
        );
        assert_eq!((stat.state, stat.parent, stat.kernel_thread), ('S', 7, false));
        assert_eq!((stat.threads, stat.flags), (1, 4_194_560));
        assert_eq!(stat.stack_start, 0);
        let more = [
            text.trim_ascii_end(),
            b" 18446744073709551615 4096 8192 140722001122 0\n",
        ]
        .concat();
        assert_eq!(parse_stat(&more).unwrap().stack_start, 140_722_001_122);
        assert!(parse_stat(b"42 (a").is_none());
        assert!(parse_stat(b")(").is_none());
    }

    #[test]
    fn status_lines() {
        let text = b"Name:\tUid:\\n\nUid:\t1000\t0\t0\t0\nSeccomp:\t2\n";
        assert_eq!(parse_status(text), Some((1000, Seccomp::Filter)));
        assert_eq!(parse_status(b"Uid:\t0\t0\t0\t0\n"), Some((0, Seccomp::Off)));
        assert_eq!(parse_tracer(b"Name:\tx\nTracerPid:\t7\n"), Some(7));
        assert_eq!(parse_tracer(b"TracerPid:\t0\n"), None);
        assert_eq!(parse_status(b"Name:\tx\n"), None);
        assert_eq!(parse_thread_group(b"Name:\tTgid:\nTgid:\t17\nPid:\t18\n"), Some(17));
        let contained = b"Pid:\t900\nUid:\t1\t2\t3\t4\nNSpid:\t900\t7\t1\n";
        assert_eq!(parse_inner(contained), Some(Inner { pid: 1, uid: 4 }));
        assert_eq!(
            parse_inner(b"Pid:\t900\nUid:\t0\t0\t0\t0\n"),
            Some(Inner { pid: 900, uid: 0 })
        );
        assert_eq!(parse_inner(b"Pid:\t900\n"), None);
        assert_eq!(parse_thread_group(b"Name:\tx\n"), None);
    }

    #[test]
    fn reads_its_own_process() {
        let identity = read_identity(std::process::id()).unwrap();
        assert_eq!(identity.exe, std::env::current_exe().ok());
        assert!(!identity.cmdline.is_empty());
        assert_eq!(identity.key, read_key(std::process::id()).unwrap());
        assert_ne!(read_stat(std::process::id()).unwrap().stack_start, 0);
        assert!(read_threads(std::process::id()).unwrap().contains(&std::process::id()));
    }

    #[test]
    fn kernel_threads_are_told_apart() {
        // kthreadd is pid 2 in the initial PID namespace only.
        match read_stat(2) {
            Ok(stat) if stat.kernel_thread => {
                assert!(matches!(read_identity(2), Err(ProcError::KernelThread { pid: 2, .. })));
            }
            _ => println!("skipped: no kernel thread is visible here"),
        }
    }
}
