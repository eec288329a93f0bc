//! How much memory a process has, by the cheapest files that tell: made to be asked every second for every process.
//!
//! `statm` is held open, so a look is one read; when the process ends the read fails, whoever has its pid by then. It is
//! that of the process's first thread, or, once that has ended, of another one.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use super::{ProcError, identity, living, read_bounded};
use crate::model::{ProcessKey, page_size};

/// What is resident of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All.
    pub rss: u64,
    /// Of that, neither of files nor shared.
    pub anonymous: u64,
}

/// What costs a little more to find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Swapped bytes.
    pub swap: u64,
    /// Major page faults since the start.
    pub major_faults: u64,
}

/// A process whose memory is looked at again and again.
#[derive(Debug)]
pub struct Footprint {
    pid: u32,
    /// The thread that is asked.
    thread: u32,
    start_time: Option<u64>,
    statm: File,
}

impl Footprint {
    /// Begins to look at a process.
    ///
    /// # Errors
    /// It does not exist.
    pub fn open(pid: u32) -> Result<Self, ProcError> {
        Self::through(pid, pid, None)
    }

    /// Says which process it is: after that no other one that has its pid is taken for it.
    pub fn belongs_to(&mut self, key: ProcessKey) {
        self.start_time = Some(key.start_time);
    }

    fn through(pid: u32, thread: u32, start_time: Option<u64>) -> Result<Self, ProcError> {
        let path = PathBuf::from(format!("/proc/{pid}/task/{thread}/statm"));
        let statm = File::open(&path).map_err(|source| ProcError::from_io(pid, &path, source))?;
        Ok(Self {
            pid,
            thread,
            start_time,
            statm,
        })
    }

    /// What is resident now.
    ///
    /// # Errors
    /// [`ProcError::Exited`] when it has ended.
    pub fn resident(&mut self) -> Result<Resident, ProcError> {
        let known = self.read();
        // A thread that has ended has no memory, or cannot be read any more.
        if known.as_ref().is_ok_and(|resident| *resident != Resident::default()) {
            return known;
        }
        let thread = living::thread(self.pid);
        if thread == self.thread {
            return known;
        }
        let key = identity::read_key(self.pid)?;
        if self.start_time.is_some_and(|start_time| start_time != key.start_time) {
            return Err(ProcError::Exited { pid: self.pid });
        }
        *self = Self::through(self.pid, thread, self.start_time)?;
        self.read()
    }

    fn read(&self) -> Result<Resident, ProcError> {
        let mut text = [0; 128];
        let path = || PathBuf::from(format!("/proc/{}/task/{}/statm", self.pid, self.thread));
        let length = self
            .statm
            .read_at(&mut text, 0)
            .map_err(|source| ProcError::from_io(self.pid, &path(), source))?;
        parse_statm(&text[..length]).ok_or_else(|| ProcError::Malformed {
            pid: self.pid,
            object: path(),
            reason: "not seven numbers".to_owned(),
        })
    }

    /// Swap and faults.
    ///
    /// # Errors
    /// It has ended, or the kernel's text is not as expected.
    pub fn rest(&self) -> Result<Rest, ProcError> {
        let status = read_bounded(self.thread, "status", 64 << 10)?;
        let stat = read_bounded(self.pid, "stat", 4096)?;
        Ok(Rest {
            swap: parse_swap(&status).unwrap_or(0),
            major_faults: parse_major_faults(&stat).unwrap_or(0),
        })
    }
}

/// Bytes between the begin and the end of the memory that `brk` manages; `None` without any.
///
/// # Errors
/// It has ended, or has more than 32 MiB of mappings' descriptions.
pub fn read_brk(pid: u32) -> Result<Option<u64>, ProcError> {
    let maps = read_bounded(living::thread(pid), "maps", 32 << 20)?;
    Ok(parse_brk(&maps))
}

/// `size resident shared text lib data dt`, in pages. Threads that have ended have zeros.
fn parse_statm(text: &[u8]) -> Option<Resident> {
    let mut numbers = std::str::from_utf8(text).ok()?.split_ascii_whitespace().map(str::parse);
    let mut next = || -> Option<u64> { numbers.next()?.ok() };
    let (_, resident, shared) = (next()?, next()?, next()?);
    Some(Resident {
        rss: resident.saturating_mul(page_size()),
        // The counters are not read at one moment.
        anonymous: resident.saturating_sub(shared).saturating_mul(page_size()),
    })
}

fn parse_swap(status: &[u8]) -> Option<u64> {
    // The name in the first line may hold anything but a newline, which the kernel escapes.
    let line = status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"VmSwap:"))?;
    let number = std::str::from_utf8(line).ok()?.trim().strip_suffix(" kB")?.trim();
    number.parse::<u64>().ok()?.checked_mul(1024)
}

/// Field 12 of `stat`; fields are counted from behind the name, which may hold anything.
fn parse_major_faults(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(12 - 3)?.parse().ok()
}

fn parse_brk(maps: &[u8]) -> Option<u64> {
    let line = maps
        .split(|byte| *byte == b'\n')
        .find(|line| line.ends_with(b" [heap]"))?;
    let range = std::str::from_utf8(line).ok()?.split(' ').next()?;
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    number(end)?.checked_sub(number(start)?)
}

/// For `fuzzing`: any bytes as each of the texts.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_any(text: &[u8]) {
    let _ = (parse_statm(text), parse_swap(text));
    let _ = (parse_major_faults(text), parse_brk(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let resident = parse_statm(b"1000 300 100 50 0 400 0\n");
        assert_eq!(
            resident,
            Some(Resident {
                rss: 300 * page_size(),
                anonymous: 200 * page_size()
            })
        );
        assert_eq!(parse_statm(b"1000 300"), None);
        let status = b"Name:\tVmSwap:\\n evil\nVmData:\t 1 kB\nVmSwap:\t     20 kB\n";
        assert_eq!(parse_swap(status), Some(20480));
        assert_eq!(parse_swap(b"VmSwap:\t99999999999999999999 kB"), None);
        let stat = b"7 (a) b) S 1 7 7 0 -1 4194304 100 200 42 9 1 1";
        assert_eq!(parse_major_faults(stat), Some(42));
        let maps = b"5580-5590 r-xp 0 08:01 1 /bin/x [heap]y\n1000-3000 rw-p 0 00:00 0          [heap]\n";
        assert_eq!(parse_brk(maps), Some(0x2000));
    }

    #[test]
    fn this_process_has_memory() {
        let mut footprint = Footprint::open(std::process::id()).expect("this process lives");
        let resident = footprint.resident().expect("this process lives");
        assert!(resident.rss >= resident.anonymous && resident.anonymous > 0);
        footprint.rest().expect("this process lives");
    }
}
