//! Who a process is, in the words of the API: read once when a process appears, and again after exec.
//!
//! Cheap enough for hundreds of new processes a second: a handful of small reads each; what takes more (the executable's
//! build ID and Go version) is remembered per file. Invariant: all reads go through one open `/proc/PID`, so that a pid
//! which is used anew in between never mixes two processes. After an exec in between, name and executable may be of two
//! programs: the exec itself is a reason to read again.

mod executable;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};

use self::executable::Executables;
use crate::api;
use crate::model::ProcessKey;
use crate::proc::cgroup::Cgroups;
use crate::proc::identity::{parse_stat, parse_status, since_boot};
use crate::proc::users::Users;
use crate::proc::{ProcError, cgroup, living};

/// Most bytes of arguments that are told.
const MAX_COMMAND_LINE: usize = 4096;
/// Most arguments that are told: empty ones take no bytes of the above.
const MAX_ARGUMENTS: usize = 512;
/// Most bytes of a small file below `/proc/PID`.
const MAX_FILE: usize = 64 << 10;
/// The machine's clock may be moved by less than this without the start times of processes changing with it.
const CLOCK_TOLERANCE: i64 = 500_000_000;

/// Reads identities and remembers what they share: users, files, the boot's moment. One for the whole daemon; may be
/// used by several threads.
#[derive(Debug, Default)]
pub struct Identities {
    users: Users,
    executables: Executables,
    /// Nanoseconds from 1970 to boot; 0 until first asked for.
    boot: AtomicI64,
}

impl Identities {
    /// Reads who a process is. What cannot be had (a name that is not in `/etc/passwd`, an executable that cannot be
    /// opened) is `None` there.
    ///
    /// # Errors
    /// [`ProcError::NoSuchProcess`] and [`ProcError::Exited`] when all of its threads have ended, or its pid is another
    /// process's by now; [`ProcError::KernelThread`].
    pub fn read(&self, key: ProcessKey) -> Result<api::Identity, ProcError> {
        let process = Process::open(key.pid)?;
        let stat = process.read("stat", MAX_FILE)?;
        let stat = parse_stat(&stat).ok_or_else(|| process.malformed("stat", "not in the kernel's form"))?;
        if stat.key.start_time != key.start_time || living::has_ended(&stat) {
            return Err(ProcError::Exited { pid: key.pid });
        }
        let thread = living::thread(key.pid);
        // What the first thread does not show any more when it has ended another one does.
        let process = if thread == key.pid {
            process
        } else {
            Process::open(thread)?
        };
        if stat.kernel_thread {
            return Err(ProcError::KernelThread {
                pid: key.pid,
                comm: stat.comm,
            });
        }
        let status = process.read("status", MAX_FILE)?;
        let (uid, _) = parse_status(&status).ok_or_else(|| process.malformed("status", "no Uid line"))?;
        // Optional from here on: a kernel may be built without, and arguments are the target's memory.
        let arguments = process.read("cmdline", MAX_COMMAND_LINE + 1).unwrap_or_default();
        let groups = process.read("cgroup", MAX_FILE).unwrap_or_default();
        let groups = Cgroups::parse(&groups);
        let executable = readlinkat(&process.directory, "exe").ok();
        let facts = self.executables.facts(key.pid, process.directory.as_fd());
        Ok(api::Identity {
            pid: key.pid,
            start_time: key.start_time,
            started: self.started(key.start_time),
            comm: stat.comm,
            command_line: command_line(&arguments),
            executable: executable.map(|path| path.to_string_lossy().into_owned()),
            build_id: facts.build_id,
            uid,
            user: self.users.name(uid),
            cgroup: groups.path().map(str::to_owned),
            container: groups.container().map(container),
            unit: groups.unit(),
            runtime: facts.runtime,
            runtime_version: facts.version,
        })
    }

    /// When a process started, in nanoseconds since 1970.
    fn started(&self, start_time: u64) -> u64 {
        let now = nanos(ClockId::CLOCK_REALTIME).saturating_sub(nanos(ClockId::CLOCK_BOOTTIME));
        // Kept as it was, so that two looks at one process tell the same moment.
        let mut boot = self.boot.load(Ordering::Relaxed);
        if boot.abs_diff(now) > CLOCK_TOLERANCE.unsigned_abs() {
            boot = now;
            self.boot.store(now, Ordering::Relaxed);
        }
        let since_boot = i64::try_from(since_boot(start_time).as_nanos()).unwrap_or(i64::MAX);
        u64::try_from(boot.saturating_add(since_boot)).unwrap_or(0)
    }
}

fn nanos(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| {
        time.tv_sec()
            .saturating_mul(1_000_000_000)
            .saturating_add(time.tv_nsec())
    })
}

fn container(found: cgroup::Container) -> api::Container {
    api::Container {
        engine: found.engine.name().to_owned(),
        id: found.id,
    }
}

/// An open `/proc/PID`: it names one process, whatever becomes of the number.
struct Process {
    pid: u32,
    directory: OwnedFd,
}

impl Process {
    fn open(pid: u32) -> Result<Self, ProcError> {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory =
            open(&path, flags, Mode::empty()).map_err(|error| ProcError::from_io(pid, &path, error.into()))?;
        Ok(Self { pid, directory })
    }

    /// At most `limit` bytes of a file.
    fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, ProcError> {
        read_below(self.directory.as_fd(), name, limit).map_err(|source| match source.raw_os_error() {
            // What an open directory of a process that is gone answers.
            Some(libc::ENOENT) => ProcError::Exited { pid: self.pid },
            _ => ProcError::from_io(self.pid, &self.path(name), source),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    fn malformed(&self, name: &str, reason: &str) -> ProcError {
        ProcError::Malformed {
            pid: self.pid,
            object: self.path(name),
            reason: reason.into(),
        }
    }
}

fn open_below(directory: BorrowedFd<'_>, name: &str, how: OFlag) -> io::Result<File> {
    let flags = how | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}

fn read_below(directory: BorrowedFd<'_>, name: &str, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_below(directory, name, OFlag::O_RDONLY)?
        .take(limit as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Arguments as text, 4 KiB in all; one that is cut ends in `…`. Programs that rewrite their arguments leave zeros behind
/// them, so empty ones at the end are left out.
fn command_line(bytes: &[u8]) -> Vec<String> {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut shortened = end > MAX_COMMAND_LINE;
    let bytes = &bytes[..end.min(MAX_COMMAND_LINE)];
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut left = MAX_COMMAND_LINE;
    let mut arguments = Vec::new();
    for argument in bytes.split(|byte| *byte == 0) {
        // What is no UTF-8 grows threefold when it is made text.
        let mut text = String::from_utf8_lossy(argument).into_owned();
        if text.len() > left || arguments.len() == MAX_ARGUMENTS {
            text.truncate(text.floor_char_boundary(left));
            shortened = true;
        }
        left -= text.len();
        arguments.push(text);
        if shortened && (left == 0 || arguments.len() > MAX_ARGUMENTS) {
            break;
        }
    }
    if shortened && let Some(last) = arguments.last_mut() {
        let room = left + last.len();
        last.truncate(last.floor_char_boundary(room.saturating_sub('…'.len_utf8())));
        last.push('…');
    }
    arguments
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
