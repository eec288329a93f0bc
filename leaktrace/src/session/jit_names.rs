//! The names that a program gives to code which it makes: `/tmp/perf-PID.map`, in its own mount namespace and under the
//! pid that it has for itself.
//!
//! The file is held open from when it is found, so that names are there when the program has ended, and only what was
//! appended is read again. Invariant: it belongs to the user that the process makes files as, or to root, nobody else may
//! write to it, and it was changed since the process began: no other user gives names, and no other process that had
//! the pid before.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    model::ProcessKey,
    proc::{beneath::open_beneath, identity},
    symbolize::PerfMap,
};

/// At most so much of a file is read.
const MAX_BYTES: u64 = 256 << 20;
/// So much is read at once; a line is not longer.
const PIECE: usize = 1 << 20;
/// Start times are told to a hundredth of a second, and clocks are set.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The names of one process.
#[derive(Clone, Debug)]
pub struct JitNames {
    file: Arc<File>,
    id: (u64, u64),
    /// Bytes that were read, in whole lines.
    read: u64,
    /// Length and time of change when it was read.
    stamp: (u64, i64, i64),
    map: Arc<PerfMap>,
}

impl JitNames {
    /// Finds the file; reads nothing yet.
    ///
    /// # Errors
    /// There is none that counts.
    pub fn open(key: ProcessKey) -> io::Result<Self> {
        let inner = identity::read_inner(key.pid).map_err(io::Error::other)?;
        let file = open_beneath(key.pid, format!("/tmp/perf-{}.map", inner.pid).as_ref())?;
        let metadata = file.metadata()?;
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if metadata.uid() != 0 && metadata.uid() != inner.uid {
            return refuse(format!("it belongs to user {}", metadata.uid()));
        }
        if metadata.mode() & libc::S_IWOTH != 0 {
            return refuse("anybody may write to it".to_owned());
        }
        if age_of_change(&metadata).is_some_and(|age| age > identity::age(key.start_time) + TOLERANCE) {
            return refuse("it is older than the process".to_owned());
        }
        // Asked last: until here it was this process.
        if identity::read_key(key.pid).ok() != Some(key) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            file: Arc::new(file),
            id: (metadata.dev(), metadata.ino()),
            read: 0,
            stamp: (0, 0, 0),
            map: Arc::default(),
        })
    }

    /// Whether both are of one file.
    pub fn is_of_same_file(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// All names.
    pub fn map(&self) -> &PerfMap {
        &self.map
    }

    /// Reads what came since the last time. At most `limit` bytes of names are kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn update(&mut self, limit: usize) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        let stamp = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        let is_too_much = self.map.bytes() > limit;
        if stamp == self.stamp && !is_too_much {
            return Ok(());
        }
        if metadata.len() <= self.read || is_too_much {
            // It was not appended to, but written anew.
            self.read = 0;
            self.map = Arc::default();
        }
        self.stamp = stamp;
        let end = metadata.len().min(MAX_BYTES);
        let mut piece = vec![0; PIECE];
        let mut added = self.map.addition(limit);
        while self.read < end {
            let got = self.file.read_at(&mut piece, self.read)?;
            let lines = piece[..got]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |last| last + 1);
            added.parse(&piece[..lines]);
            self.read += match lines {
                // The rest of a line that is being written, or no line at all.
                0 if got < PIECE => break,
                0 => got as u64,
                lines => lines as u64,
            };
        }
        if !added.is_empty() {
            Arc::make_mut(&mut self.map).add(added);
        }
        Ok(())
    }
}

/// How long ago the file was changed, by a time that its owner cannot set.
fn age_of_change(metadata: &Metadata) -> Option<Duration> {
    let changed = Duration::new(
        metadata.ctime().try_into().ok()?,
        metadata.ctime_nsec().try_into().ok()?,
    );
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    /// One test, because there is one name for the file of this process.
    #[test]
    fn names_are_read_once_and_from_whom_they_belong_to() {
        let key = identity::read_key(std::process::id()).unwrap();
        let path = format!("/tmp/perf-{}.map", identity::read_inner(key.pid).unwrap().pid);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"1000 10 first\n2000 10 sec").unwrap();
        let mut names = JitNames::open(key).unwrap();
        let name = |names: &JitNames, address| names.map().find(address).map(|entry| entry.name.to_string());
        names.update(1 << 20).unwrap();
        assert_eq!(name(&names, 0x1000).as_deref(), Some("first"));
        assert_eq!(name(&names, 0x2000), None);
        file.write_all(b"ond\n1008 8 newer\n").unwrap();
        // What a profile refers to stays as it is.
        let before = names.clone();
        std::fs::remove_file(&path).unwrap();
        names.update(1 << 20).unwrap();
        assert_eq!(name(&names, 0x2000).as_deref(), Some("second"));
        assert_eq!(name(&names, 0x1008).as_deref(), Some("newer"));
        assert_eq!(name(&before, 0x1008).as_deref(), Some("first"));
        // Less room than before.
        let one = names.map().bytes() / 3;
        names.update(one).unwrap();
        assert!(names.map().len() <= 1 && names.map().skipped() >= 2);
        // Written anew, with another content of the same length.
        file.set_len(0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"5000 10 other\n", 0).unwrap();
        names.update(1 << 20).unwrap();
        assert_eq!(name(&names, 0x5000).as_deref(), Some("other"));
        assert_eq!(name(&names, 0x1000), None);

        assert_eq!(JitNames::open(key).unwrap_err().kind(), io::ErrorKind::NotFound);
        let other = File::create(&path).unwrap();
        assert!(!JitNames::open(key).unwrap().is_of_same_file(&names));
        other.set_permissions(PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(JitNames::open(key).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        other.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert_eq!(JitNames::open(key).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        std::fs::remove_file(&path).unwrap();
    }
}
