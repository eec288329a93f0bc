//! Where the debug information of a stripped file is: `/usr/lib/debug`, by build ID or by debug link.
//!
//! Looks only into directories of this machine's administrator, never next to the target's own file. Invariant: a file
//! found by debug link has the checksum that the link states.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::snapshot::Snapshot;

/// Directories where distributions install debug files.
pub const DIRECTORIES: [&str; 2] = ["/usr/lib/debug", "/usr/local/lib/debug"];

/// The debug file of the file at `path` (as the target sees it), if there is one.
pub fn find(directories: &[PathBuf], snapshot: &Snapshot, path: &str) -> Option<PathBuf> {
    directories
        .iter()
        .find_map(|directory| by_build_id(directory, snapshot).or_else(|| by_link(directory, snapshot, path)))
}

fn by_build_id(directory: &Path, snapshot: &Snapshot) -> Option<PathBuf> {
    let build_id = snapshot
        .build_id
        .as_deref()
        .filter(|build_id| (2..=64).contains(&build_id.len()))?;
    let hex: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, rest) = hex.split_at(2);
    let path = directory.join(".build-id").join(first).join(format!("{rest}.debug"));
    is_file(&path).then_some(path)
}

fn by_link(directory: &Path, snapshot: &Snapshot, path: &str) -> Option<PathBuf> {
    let (name, checksum) = snapshot.debug_link.as_ref()?;
    let parent = Path::new(path).parent()?.strip_prefix("/").ok()?;
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    // The path and the name are the target's: they must not lead out of the directory.
    if name.contains(&b'/') || name.as_ref() == b".." || !parent.components().all(plain) {
        return None;
    }
    let found = directory.join(parent).join(std::ffi::OsStr::from_bytes(name));
    (is_file(&found) && self::checksum(&found) == Some(*checksum)).then_some(found)
}

fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// CRC-32 of the whole file.
fn checksum(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?;
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(crc.sum()),
            read => crc.update(&buffer[..read]),
        }
    }
}
