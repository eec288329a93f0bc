//! `/proc/PID/smaps`: how much of each mapping is resident, and of which sort.
//!
//! The parser is pure and takes one line at a time. The kernel walks page tables for this text, which of a large process
//! takes seconds: reading ends at a deadline, and says so. Invariant: an [`Area`] never has more anonymous bytes than
//! resident ones.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{ProcError, living, maps};

/// Most of the text that is read: about 300,000 mappings.
const MAX_BYTES: u64 = 256 << 20;
/// Most mappings that are kept.
const MAX_AREAS: usize = 1 << 19;
/// Bytes of a name that are kept, from its beginning: paths can have 4,096.
const MAX_NAME: usize = 256;
/// Bytes of the text between two looks at the clock.
const BUFFER: usize = 64 << 10;

/// A mapping with its memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Readable, writable or executable: not reserved address space alone.
    pub accessible: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Shared rather than private.
    pub shared: bool,
    /// Of a file or a kernel object: it has an inode.
    pub has_inode: bool,
    /// Device of that, as `makedev` packs it.
    pub device: u64,
    /// Path, or a name in brackets; the beginning of it, lossy UTF-8.
    pub name: String,
    /// The file has no name any more.
    pub deleted: bool,
    /// Resident.
    pub rss: u64,
    /// Of that, pages that belong to the process and not to a file.
    pub anonymous: u64,
    /// Of that, changed and not written back.
    pub dirty: u64,
    /// In swap.
    pub swap: u64,
    /// In huge pages that were set aside by the administrator, which the kernel does not count as resident.
    pub hugetlb: u64,
    /// A user program serves faults here: reading may wait for it.
    pub served: bool,
}

impl Area {
    /// Bytes it spans.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Never true of what the parser returns: the kernel has no empty mappings.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether it is private memory without a file and without a name.
    pub fn is_plain(&self) -> bool {
        !self.has_inode && !self.shared && self.name.is_empty()
    }
}

/// All mappings at about one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Smaps {
    /// By address.
    pub areas: Vec<Area>,
    /// Why there are no more than these, if it was cut short.
    pub cut: Option<String>,
}

/// Takes the lines of the text.
#[derive(Debug, Default)]
struct Parser {
    areas: Vec<Area>,
    is_full: bool,
}

impl Parser {
    /// Whatever is not understood is passed by: later kernels have further lines.
    fn line(&mut self, line: &[u8]) {
        // Names of values begin with a capital letter, addresses are in small ones.
        if line.first().is_some_and(u8::is_ascii_uppercase) {
            if let (Some(area), false) = (self.areas.last_mut(), self.is_full) {
                value(area, line);
            }
            return;
        }
        if self.areas.len() >= MAX_AREAS {
            self.is_full = true;
            return;
        }
        if let Some(mapping) = maps::parse_line(line) {
            let bytes = mapping.path.as_os_str().as_bytes();
            self.areas.push(Area {
                start: mapping.start.0,
                end: mapping.end.0,
                accessible: mapping.read || mapping.write || mapping.execute,
                write: mapping.write,
                execute: mapping.execute,
                shared: mapping.shared,
                // The first segment of System V shared memory has the number 0.
                has_inode: mapping.file.is_some() || bytes.starts_with(b"/"),
                device: mapping.file.map_or(0, |file| file.device),
                name: String::from_utf8_lossy(bytes.get(..MAX_NAME).unwrap_or(bytes)).into_owned(),
                deleted: mapping.deleted,
                ..Area::default()
            });
        }
    }

    fn finish(mut self) -> Smaps {
        for area in &mut self.areas {
            // The counts are not of one moment.
            area.anonymous = area.anonymous.min(area.rss);
            area.dirty = area.dirty.min(area.rss);
        }
        let cut = self.is_full.then(|| format!("more than {MAX_AREAS} mappings"));
        Smaps { areas: self.areas, cut }
    }
}

fn value(area: &mut Area, line: &[u8]) {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return;
    };
    let (name, rest) = (&line[..colon], &line[colon + 1..]);
    if name == b"VmFlags" {
        area.served = rest
            .split(|byte| *byte == b' ')
            .any(|flag| matches!(flag, b"um" | b"uw" | b"ui"));
        return;
    }
    let sum = match name {
        b"Rss" => &mut area.rss,
        b"Anonymous" => &mut area.anonymous,
        b"Shared_Dirty" | b"Private_Dirty" => &mut area.dirty,
        b"Swap" => &mut area.swap,
        b"Shared_Hugetlb" | b"Private_Hugetlb" => &mut area.hugetlb,
        _ => return,
    };
    *sum = sum.saturating_add(kilobytes(rest).unwrap_or(0));
}

/// `   12 kB` in bytes.
pub(crate) fn kilobytes(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.trim().strip_suffix("kB")?;
    text.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Parses the whole text.
pub fn parse(text: &[u8]) -> Smaps {
    let mut parser = Parser::default();
    text.split(|byte| *byte == b'\n').for_each(|line| parser.line(line));
    parser.finish()
}

/// Reads the mappings of a process, for `budget` at most.
///
/// # Errors
/// When the process is gone or out of reach; what was read when time was over is no error.
pub fn read(pid: u32, budget: Duration) -> Result<Smaps, ProcError> {
    let path = PathBuf::from(format!("/proc/{}/smaps", living::thread(pid)));
    let file = File::open(&path).map_err(|source| ProcError::from_io(pid, &path, source))?;
    let begin = Instant::now();
    let mut lines = BufReader::with_capacity(BUFFER, file.take(MAX_BYTES));
    let mut parser = Parser::default();
    let mut line = Vec::new();
    let mut read = 0;
    let cut = loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) if read >= MAX_BYTES => {
                break Some(format!("more than {MAX_BYTES} bytes of descriptions of mappings"));
            }
            Ok(0) => break None,
            Ok(length) => read += length as u64,
            Err(source) => return Err(ProcError::from_io(pid, &path, source)),
        }
        parser.line(line.strip_suffix(b"\n").unwrap_or(&line));
        if lines.buffer().is_empty() && begin.elapsed() > budget {
            break Some(format!("reading all mappings takes longer than {budget:?}"));
        }
    };
    let mut smaps = parser.finish();
    smaps.cut = cut.or(smaps.cut);
    Ok(smaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                  40 kB
Shared_Dirty:          4 kB
Private_Dirty:        32 kB
Anonymous:            48 kB
Swap:                  8 kB
VmFlags: rd wr mr mw me ac sd um
7f0000021000-7f0004000000 ---p 00000000 00:00 0
Rss:                   0 kB
7f1000000000-7f1000002000 rw-s 00001000 00:01 77                         /memfd:a b\\012c (deleted)
Rss:                   8 kB
Private_Hugetlb:    2048 kB
Rss:          99999999999999999999 kB
";

    #[test]
    fn areas_have_their_values() {
        let smaps = parse(TEXT.as_bytes());
        assert_eq!(smaps.areas.len(), 3);
        let [heap, none, memfd] = &smaps.areas[..] else {
            panic!("three areas")
        };
        assert_eq!((heap.rss, heap.dirty, heap.swap), (40 << 10, 36 << 10, 8 << 10));
        assert_eq!(heap.anonymous, heap.rss, "never more than is resident");
        assert!(heap.is_plain() && heap.served && heap.write && heap.accessible);
        assert!(!none.accessible && none.rss == 0);
        assert_eq!(memfd.name, "/memfd:a b\nc");
        assert!(memfd.shared && memfd.deleted && memfd.has_inode);
        assert_eq!((memfd.rss, memfd.hugetlb), (8 << 10, 2 << 20));
        assert_eq!(smaps.cut, None);
    }

    #[test]
    fn this_process_adds_up() {
        let smaps = read(std::process::id(), Duration::from_secs(10)).expect("our own");
        assert!(smaps.areas.iter().any(|area| area.name == "[stack]"));
        assert!(smaps.areas.iter().map(|area| area.rss).sum::<u64>() > 0);
        let cut = read(std::process::id(), Duration::ZERO).expect("our own");
        assert!(cut.areas.len() <= smaps.areas.len() + 50);
        assert!(read(u32::MAX, Duration::ZERO).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken(text in "([0-9a-f]{1,17}-[0-9a-f]{1,17} [rwxps-]{1,5} [0-9a-f]+ [0-9]:[0-9] [0-9]+|[A-Z][a-z]+: *[0-9]+ kB|\\PC|\n){0,40}") {
            for area in parse(text.as_bytes()).areas {
                assert!(area.anonymous <= area.rss && area.dirty <= area.rss);
            }
        }
    }
}
