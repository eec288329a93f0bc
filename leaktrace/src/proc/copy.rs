//! Copies of files whose file system may never answer, made by a process that can be left behind.
//!
//! A thread that waits for a FUSE server cannot be ended and keeps its whole process from ending, so the reading is done
//! by a child: this program, run with the hidden subcommand [`COMMAND`], which gets the file held with `O_PATH` as its
//! standard input and an anonymous file to copy to as its standard output. What does not end in time is killed and left
//! to the kernel. Invariants: this process makes no request of such a file system; waiting for all of them together
//! takes at most [`MAX_WAITING`] in [`WINDOW`], and copies that are in use take at most [`MAX_COPIES`] bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::mounts::Pinned;

/// The hidden subcommand that copies.
pub const COMMAND: &str = "copy-file";

/// Largest file that is copied.
const MAX_FILE: u64 = 64 << 20;
/// Bytes of all copies in use.
const MAX_COPIES: u64 = 160 << 20;
/// How long one file may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// How long all of them together may be waited for, in each [`WINDOW`].
const MAX_WAITING: Duration = Duration::from_secs(10);
/// See [`MAX_WAITING`]. A file system that did not answer is left alone for as long.
const WINDOW: Duration = Duration::from_secs(60);
/// Children left behind, at most; with more nothing is copied.
const MAX_LEFT: usize = 16;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

static ENABLED: AtomicBool = AtomicBool::new(false);
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Says that this process is the program that has the subcommand. Without this nothing is copied: who uses the library
/// runs another program.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Bytes of a copy, for as long as it is in use.
#[derive(Debug)]
pub struct Charge(u64);

impl Drop for Charge {
    fn drop(&mut self) {
        IN_USE.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A file's contents in memory.
#[derive(Debug)]
pub struct Copied {
    /// An anonymous file.
    pub file: File,
    /// To be held for as long as the file is.
    pub charge: Arc<Charge>,
}

/// A file in one state.
type Key = (u64, u64, u64, (i64, i64), (i64, i64));

#[derive(Default)]
struct State {
    known: HashMap<Key, (Weak<Charge>, File)>,
    /// Devices that did not answer, and when.
    stuck: HashMap<u64, Instant>,
    left: Vec<Child>,
    window: Option<Instant>,
    waited: Duration,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    let state = STATE.get_or_init(Mutex::default);
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Children that hang in a request which a file system does not answer.
pub fn left_behind() -> usize {
    let mut state = state();
    state.reap();
    state.left.len()
}

impl State {
    fn reap(&mut self) {
        self.left.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.stuck.retain(|_, since| since.elapsed() < WINDOW);
        self.known.retain(|_, (charge, _)| charge.strong_count() > 0);
    }

    /// How long the next one may be waited for; an error if it is not to be tried.
    fn admit(&mut self, device: u64) -> io::Result<Duration> {
        self.reap();
        if self.stuck.contains_key(&device) {
            return Err(refusal(format!(
                "its file system did not answer lately and is left alone for {} s",
                WINDOW.as_secs()
            )));
        }
        if self.left.len() >= MAX_LEFT {
            return Err(refusal(format!(
                "{MAX_LEFT} reads of file systems that do not answer hang already"
            )));
        }
        if self.window.is_none_or(|begin| begin.elapsed() > WINDOW) {
            self.window = Some(Instant::now());
            self.waited = Duration::ZERO;
        }
        match MAX_WAITING.saturating_sub(self.waited) {
            Duration::ZERO => Err(refusal(format!(
                "slow file systems have been waited for {} s in this minute",
                MAX_WAITING.as_secs()
            ))),
            left => Ok(left.min(MAX_TIME)),
        }
    }
}

fn refusal(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// The contents of a file, as a copy in memory.
///
/// # Errors
/// The file's own, `FileTooLarge`, or `TimedOut` with what was waited for.
pub fn copy(pinned: &Pinned) -> io::Result<Copied> {
    let key = (
        pinned.device,
        pinned.inode,
        pinned.size,
        pinned.modified,
        pinned.changed,
    );
    let known = state().known.get(&key).and_then(|(charge, file)| {
        Some(Copied {
            charge: charge.upgrade()?,
            file: file.try_clone().ok()?,
        })
    });
    if let Some(copied) = known {
        return Ok(copied);
    }
    // The length is what the server said before; the child asks again and is held to the same limit.
    let charge = charge(pinned.size.min(MAX_FILE))?;
    let copy = File::from(memfd_create(c"leaktrace-copy", MFdFlags::MFD_CLOEXEC)?);
    copy.set_len(pinned.size.min(MAX_FILE))?;
    run(pinned, &copy, "copy")?;
    let copied = Copied {
        file: copy,
        charge: Arc::new(charge),
    };
    state()
        .known
        .insert(key, (Arc::downgrade(&copied.charge), copied.file.try_clone()?));
    Ok(copied)
}

/// Makes sure that a file's file system answers at the moment.
///
/// # Errors
/// As [`copy`].
pub fn probe(pinned: &Pinned) -> io::Result<()> {
    let nowhere = File::from(memfd_create(c"leaktrace-copy", MFdFlags::MFD_CLOEXEC)?);
    run(pinned, &nowhere, "probe")
}

fn charge(bytes: u64) -> io::Result<Charge> {
    let add = |in_use: u64| in_use.checked_add(bytes).filter(|sum| *sum <= MAX_COPIES);
    match IN_USE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
        Ok(_) => Ok(Charge(bytes)),
        Err(in_use) => Err(io::Error::other(format!(
            "copies of files that a process serves take {in_use} bytes already, of {MAX_COPIES}"
        ))),
    }
}

fn run(pinned: &Pinned, copy: &File, mode: &str) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(COMMAND).arg(mode).stdin(pinned.file.try_clone()?);
    let device = pinned.device;
    if !ENABLED.load(Ordering::Relaxed) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system may not answer, and this program cannot read it apart",
        ));
    }
    let limit = state().admit(device)?;
    let begin = Instant::now();
    let mut child = command
        .env_clear()
        .current_dir("/")
        .stdout(copy.try_clone()?)
        .stderr(Stdio::null())
        .spawn()?;
    let ended = wait(&mut child, limit);
    let mut state = state();
    state.waited += begin.elapsed();
    match ended? {
        Some(status) => outcome(status),
        None => {
            let _ = child.kill();
            state.stuck.insert(device, Instant::now());
            if !matches!(child.try_wait(), Ok(Some(_))) {
                state.left.push(child);
            }
            Err(refusal(format!(
                "its file system has not answered for {:.1} s; it is left alone for {} s",
                limit.as_secs_f64(),
                WINDOW.as_secs()
            )))
        }
    }
}

/// Waits for a child, at most so long.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// The child's status is the number of its error.
fn outcome(status: ExitStatus) -> io::Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number)),
        None => Err(io::Error::other(format!(
            "the process that read it ended with {status}"
        ))),
    }
}

/// Does the work, in the child. Returns the number of the error as the exit code.
pub fn main(arguments: &[std::ffi::OsString]) -> ExitCode {
    let mode = arguments.first().and_then(|mode| mode.to_str());
    let result = match mode {
        Some("copy") => copy_input(MAX_FILE),
        Some("probe") => copy_input(1),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let number = match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    ExitCode::from(u8::try_from(number).unwrap_or(libc::EIO as u8))
}

fn open(path: &Path) -> io::Result<File> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// Copies what standard input holds, or the first page of it when `limit` is less than the file.
fn copy_input(limit: u64) -> io::Result<()> {
    let file = open("/proc/self/fd/0".as_ref())?;
    let output = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
    let output = File::from(output);
    if limit == 1 {
        return file.read_at(&mut [0; 4096], 0).map(drop);
    }
    if file.metadata()?.len() > limit {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    copy_bytes(&file, &output, limit)
}

fn copy_bytes(file: &File, output: &File, limit: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < limit {
        let wanted = buffer.len().min(usize::try_from(limit - done).unwrap_or(usize::MAX));
        match file.read_at(&mut buffer[..wanted], done) {
            Ok(0) => break,
            Ok(read) => {
                // Holes stay holes.
                if buffer[..read].iter().any(|byte| *byte != 0) {
                    output.write_all_at(&buffer[..read], done)?;
                }
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.set_len(done)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_run_from_another_program() {
        let pinned = Pinned::open("/proc/self/exe".as_ref()).unwrap();
        assert_eq!(probe(&pinned).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn what_was_stuck_is_left_alone() {
        let mut state = State::default();
        assert_eq!(state.admit(7).unwrap(), MAX_TIME);
        state.stuck.insert(7, Instant::now());
        assert!(state.admit(7).unwrap_err().to_string().contains("left alone"));
        state.admit(8).unwrap();
        state.waited = MAX_WAITING - Duration::from_millis(5);
        assert_eq!(state.admit(8).unwrap(), Duration::from_millis(5));
        state.waited = MAX_WAITING;
        assert!(state.admit(8).unwrap_err().to_string().contains("in this minute"));
    }

    #[test]
    fn copies_in_use_are_bounded() {
        let first = charge(MAX_COPIES).unwrap();
        assert!(charge(1).is_err());
        drop(first);
        drop(charge(1).unwrap());
    }

    #[test]
    fn bytes_are_copied_and_holes_stay() {
        let from = tempfile::tempfile().unwrap();
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(b"tail", 3 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        copy_bytes(&from, &to, MAX_FILE).unwrap();
        let mut bytes = [0; 4];
        to.read_exact_at(&mut bytes, 3 << 20).unwrap();
        assert_eq!((&bytes, to.metadata().unwrap().len()), (b"tail", (3 << 20) + 4));
    }
}
