//! What an executable file says of itself: build ID and runtime, remembered per file.
//!
//! Many processes run few files, so a new process mostly costs one `stat`. Invariant: what is remembered belongs to
//! exactly the device, inode, length and times of change that it was read from, and is bounded in number.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use nix::fcntl::OFlag;

use super::open_below;
use crate::api::Runtime;
use crate::object::image::{ElfImage, ImageError};
use crate::proc::mounts::{FileSystem, Pinned};
use crate::runtime;

/// Most files that are remembered, at some 200 bytes each.
const MAX_FILES: usize = 4096;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Hexadecimal.
    pub build_id: Option<String>,
    /// What will run it.
    pub runtime: Runtime,
    /// Such as `go1.23.4`.
    pub version: Option<String>,
}

/// One state of one file. The time of the last change of its inode is part of it: unlike the time of its last
/// modification, its owner cannot set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Facts of the files used last.
#[derive(Debug, Default)]
pub(super) struct Executables {
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    files: HashMap<Key, (Facts, u64)>,
    /// Counts uses.
    clock: u64,
}

impl Executables {
    /// What the executable of the process says whose `/proc/PID` this is; nothing where it cannot be read.
    pub fn facts(&self, pid: u32, process: BorrowedFd<'_>) -> Facts {
        let Ok(pinned) = open_below(process, "exe", OFlag::O_PATH).and_then(Pinned::of) else {
            return Facts::default();
        };
        let key = Key {
            device: pinned.device,
            inode: pinned.inode,
            size: pinned.size,
            modified: pinned.modified,
            changed: pinned.changed,
        };
        if let Some(facts) = self.lock().get(&key) {
            return facts;
        }
        // Not worth a wait: what is on another file system says nothing of itself.
        if pinned.file_system(pid) != FileSystem::Local {
            return Facts::default();
        }
        // The lock is free meanwhile: two threads may read one file twice, none waits for the other's disk.
        let Some((key, facts)) = open_below(process, "exe", OFlag::O_RDONLY).ok().and_then(read) else {
            return Facts::default();
        };
        self.lock().insert(key, facts.clone());
        facts
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn get(&mut self, key: &Key) -> Option<Facts> {
        self.clock += 1;
        let (facts, used) = self.files.get_mut(key)?;
        *used = self.clock;
        Some(facts.clone())
    }

    fn insert(&mut self, key: Key, facts: Facts) {
        if self.files.len() >= MAX_FILES {
            // A quarter at a time, those unused for longest, so that a flood of new files costs little for each.
            let mut uses: Vec<u64> = self.files.values().map(|&(_, used)| used).collect();
            let (_, &mut limit, _) = uses.select_nth_unstable(MAX_FILES / 4);
            self.files.retain(|_, (_, used)| *used > limit);
        }
        self.clock += 1;
        self.files.insert(key, (facts, self.clock));
    }
}

/// Reads an open file. `None` when that fails for a reason that may pass.
fn read(file: File) -> Option<(Key, Facts)> {
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() {
        return None;
    }
    let key = Key {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    match ElfImage::open(file) {
        Ok(image) => Some((key, inspect(&image))),
        Err(ImageError::Io(_)) => None,
        // Scripts never get here (their interpreter is the executable); 32-bit programs do.
        Err(_) => Some((key, Facts::default())),
    }
}

fn inspect(image: &ElfImage) -> Facts {
    let identified = runtime::identify(image);
    let runtime = identified.as_ref().filter(|(_, identified)| identified.is_readable);
    Facts {
        build_id: image.build_id().map(ToString::to_string),
        runtime: runtime.map_or(Runtime::Native, |(runtime, _)| Runtime::of(*runtime)),
        version: identified.map(|(_, identified)| identified.version),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use super::*;

    fn key(inode: u64) -> Key {
        Key {
            device: 1,
            inode,
            size: 1,
            modified: (0, 0),
            changed: (0, 0),
        }
    }

    #[test]
    fn those_used_last_stay() {
        let mut cache = Cache::default();
        for inode in 0..MAX_FILES as u64 {
            cache.insert(key(inode), Facts::default());
        }
        assert!(cache.get(&key(0)).is_some());
        for inode in 0..10 * MAX_FILES as u64 {
            cache.insert(key(1_000_000 + inode), Facts::default());
            assert!(cache.files.len() <= MAX_FILES);
            cache.get(&key(0));
        }
        assert!(cache.get(&key(0)).is_some());
        assert!(cache.get(&key(1)).is_none());
    }

    /// An ELF file with one writable segment, no sections.
    fn elf(data: &[u8]) -> File {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([2u16, 62].map(u16::to_le_bytes).concat());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([0x40_0000u64, 64, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend([64u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
        bytes.extend([1u32, 6].map(u32::to_le_bytes).concat());
        let size = data.len() as u64;
        bytes.extend(
            [0x1000, 0x40_0000, 0x40_0000, size, size, 0x1000]
                .map(u64::to_le_bytes)
                .concat(),
        );
        bytes.resize(0x1000, 0);
        bytes.extend(data);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn go(version: &str) -> Vec<u8> {
        let mut data = vec![0; 48];
        data.extend(b"\xff Go buildinf:");
        data.extend([8, 2]);
        data.resize(48 + 32, 0);
        data.push(version.len() as u8);
        data.extend(version.as_bytes());
        data.push(0);
        data.resize(data.len() + 64, 0);
        data
    }

    #[test]
    fn go_is_found_without_sections() {
        let (_, facts) = read(elf(&go("go1.23.4"))).unwrap();
        assert_eq!(
            (facts.runtime, facts.version.as_deref()),
            (Runtime::Go, Some("go1.23.4"))
        );
        let (_, facts) = read(elf(&go("go1.9"))).unwrap();
        assert_eq!(
            (facts.runtime, facts.version.as_deref()),
            (Runtime::Native, Some("go1.9"))
        );
        let (_, facts) = read(elf(&go("go1.23\x1b[2J"))).unwrap();
        assert_eq!(facts.version.as_deref(), Some("go1.23[2J"));
        let (_, facts) = read(elf(b"nothing")).unwrap();
        assert_eq!(facts, Facts::default());
    }

    #[test]
    fn what_is_damaged_tells_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"\x7fELF\x02\x01 but not much else").unwrap();
        assert_eq!(read(file).unwrap().1, Facts::default());
        let whole = go("go1.23.4");
        for len in 0..whole.len() {
            let _ = read(elf(&whole[..len]));
        }
    }
}
