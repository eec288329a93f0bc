//! Names of users by number, from this machine's `/etc/passwd`.
//!
//! Directories on the network (LDAP, sssd) are not asked: that could block, and the number is told as well. Invariant:
//! what is held is bounded, and follows the file when that is replaced or changed.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::proc::files::open_regular;

/// Most bytes of the file that are read.
const MAX_FILE: u64 = 8 << 20;
/// Most users that are kept.
const MAX_USERS: usize = 65_536;
/// Longest name that is kept.
const MAX_NAME: usize = 256;

/// The file's state when it was read: device, inode, length, and the times of the last change in nanoseconds.
type Version = (u64, u64, u64, i128, i128);

/// A table of users that follows its file.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    version: Option<Version>,
    names: HashMap<u32, Box<str>>,
}

impl Default for Users {
    fn default() -> Self {
        Self::of(Path::new("/etc/passwd"))
    }
}

impl Users {
    /// The users of a file in the form of `/etc/passwd`, which is read when first asked for.
    pub fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            table: Mutex::default(),
        }
    }

    /// The name of a user; `None` where the file has none, or cannot be read. Looks at the file's time of change at each
    /// call and reads it only when that differs.
    pub fn name(&self, uid: u32) -> Option<String> {
        let version = std::fs::metadata(&self.path).ok().map(|metadata| version(&metadata));
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.version != version {
            table.version = version;
            table.names = read(&self.path).map(|bytes| parse(&bytes)).unwrap_or_default();
        }
        table.names.get(&uid).map(|name| name.clone().into_string())
    }
}

fn version(metadata: &Metadata) -> Version {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        nanos(metadata.mtime(), metadata.mtime_nsec()),
        nanos(metadata.ctime(), metadata.ctime_nsec()),
    )
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let (file, _) = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Names by number; the first line of a number counts, as it does for `getpwuid`. Lines of another form (comments, NIS
/// inclusions) are passed over.
pub fn parse(bytes: &[u8]) -> HashMap<u32, Box<str>> {
    let mut names = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (Some(name), Some(_), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        if name.is_empty() || name.len() > MAX_NAME || matches!(name[0], b'#' | b'+' | b'-') {
            continue;
        }
        let Some(uid) = std::str::from_utf8(uid).ok().and_then(|uid| uid.parse().ok()) else {
            continue;
        };
        if names.len() >= MAX_USERS {
            break;
        }
        names
            .entry(uid)
            .or_insert_with(|| String::from_utf8_lossy(name).into_owned().into_boxed_str());
    }
    names
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let names = parse(
            b"root:x:0:0:root:/root:/bin/sh\n# x:x:7:\n+::::::\ntoor:x:0:0::/:\nweb:x:33:33\nbad:x:no:1\n:x:5:\ncut:x",
        );
        assert_eq!(names.len(), 2);
        assert_eq!((&*names[&0], &*names[&33]), ("root", "web"));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_missing_one_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwd");
        let users = Users::of(&path);
        assert_eq!(users.name(7), None);
        std::fs::write(&path, "one:x:7:7:::\n").unwrap();
        assert_eq!(users.name(7).as_deref(), Some("one"));
        // Replaced by a new file, as useradd does it.
        let new = directory.path().join("passwd.new");
        std::fs::write(&new, "two:x:7:7:::\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(users.name(7).as_deref(), Some("two"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(users.name(7), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let text: String = (0..MAX_USERS + 10).map(|uid| format!("u:x:{uid}:\n")).collect();
        assert_eq!(parse(text.as_bytes()).len(), MAX_USERS);
        assert!(parse(format!("{}:x:1:\n", "n".repeat(MAX_NAME + 1)).as_bytes()).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            parse(&bytes);
        }
    }
}
