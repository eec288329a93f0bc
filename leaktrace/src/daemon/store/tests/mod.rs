//! The store as a whole: what it keeps, what it refuses. Crashes and full disks have files of their own.

mod crash;
mod full;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;
use crate::api::Identity;

/// Lets system calls of a folder fail.
#[derive(Debug)]
pub(super) struct Faults {
    /// Calls that succeed before the process is as good as dead: every later one fails.
    pub left: AtomicU64,
    /// Writing fails for want of room.
    pub full: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            left: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
        }
    }
}

impl Faults {
    pub(super) fn step(&self, verb: &str) -> io::Result<()> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other("crash"));
        }
        self.left.store(left - 1, Ordering::Relaxed);
        if self.full.load(Ordering::Relaxed) && verb == "write" {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(())
    }
}

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;

/// No gzip stream that could be decompressed, but one by its header, as the store looks at it. Each number gives
/// another, of so many bytes.
fn profile(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    bytes.extend(number.to_le_bytes());
    bytes.resize(size.max(20), number as u8);
    bytes
}

fn identity(pid: u32) -> Identity {
    Identity {
        pid,
        start_time: 1000 + u64::from(pid),
        comm: format!("program{pid}"),
        ..Identity::default()
    }
}

fn settings(directory: &Path) -> Settings {
    Settings {
        directory: directory.to_owned(),
        free_reserve: 0,
        ..Settings::default()
    }
}

fn put(store: &mut Store, pid: u32, end: u64, bytes: &[u8]) -> Result<StoredProfile, StoreError> {
    store.put(&NewEntry {
        identity: &identity(pid),
        begin: end.saturating_sub(SECOND),
        end,
        heap: Heap::Native,
        in_use: bytes.len() as i64,
        bytes,
    })
}

fn ids(reader: &Reader) -> Vec<String> {
    let listed = reader.list(&Filter::default());
    listed.into_iter().map(|profile| profile.id).collect()
}

fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(settings(directory.path())).expect("opens");
    (directory, store)
}

#[test]
fn what_is_stored_is_listed_and_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("a/b");
    let mut store = Store::open(settings(&path)).expect("opens");
    assert_eq!(
        fs::metadata(&path).expect("is there").permissions().mode() & 0o777,
        0o700
    );
    let first = put(&mut store, 1, 10 * SECOND, &profile(1, 100)).expect("stores");
    let other = put(&mut store, 2, 20 * SECOND, &profile(2, 5000)).expect("stores");
    let second = put(&mut store, 1, 30 * SECOND, &profile(3, 40)).expect("stores");
    assert_eq!((first.id.as_str(), first.size, first.in_use), ("1-1001-1", 100, 100));
    let everything = [second.clone(), other.clone(), first.clone()];
    let some = regex::Regex::new("^program[2-9]$").expect("is valid");
    for reader in [store.reader(), &Reader::open(&path).expect("opens")] {
        assert_eq!(reader.list(&Filter::default()), everything);
        assert_eq!(reader.read(&other.id).expect("reads"), profile(2, 5000));
        assert_eq!(reader.get(&other.id).expect("is there"), other);
        let opened = reader.open_profile(&first.id).expect("opens");
        assert_eq!(*opened.identity(), identity(1));
        let listed = |filter: Filter| -> Vec<(String, Option<i64>)> {
            let listed = reader.list_with_growth(&filter).into_iter();
            listed.map(|listed| (listed.profile.id, listed.growth)).collect()
        };
        let pid = Filter {
            pid: Some(1),
            since: Some(11 * SECOND),
            ..Filter::default()
        };
        assert_eq!(listed(pid), [(second.id.clone(), Some(-60))]);
        let comm = Filter {
            comm: Some(some.clone()),
            ..Filter::default()
        };
        assert_eq!(listed(comm), [(other.id.clone(), None)]);
        let until = Filter {
            until: Some(20 * SECOND),
            ..Filter::default()
        };
        assert_eq!(listed(until), [(first.id.clone(), None)]);
    }
    assert_eq!(store.figures().profiles, 3);
    assert_eq!(store.figures().bytes, 4 * 4096);
}

#[test]
fn a_store_goes_on_where_it_ended() {
    let (directory, mut store) = store();
    for number in 1..=5 {
        put(&mut store, 1, number, &profile(number, 50)).expect("stores");
    }
    let before = ids(store.reader());
    drop(store);
    let mut store = Store::open(settings(directory.path())).expect("opens");
    assert_eq!(ids(store.reader()), before);
    let next = put(&mut store, 1, 9, &profile(9, 50)).expect("stores");
    assert_eq!(next.id, "1-1001-6");
    // Numbers are not given again, not even if everything is removed and the journal is written anew.
    store.configure(Settings {
        keep_bytes: 0,
        ..settings(directory.path())
    });
    store.tidy(10);
    assert_eq!(store.figures().profiles, 0);
    store.compact();
    drop(store);
    let mut store = Store::open(settings(directory.path())).expect("opens");
    assert_eq!(put(&mut store, 1, 9, &profile(9, 50)).expect("stores").id, "1-1001-7");
}

#[test]
fn limits_of_count_and_bytes() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut store = Store::open(Settings {
        keep_count_per_process: 3,
        keep_bytes: 5 * 4096,
        ..settings(directory.path())
    })
    .expect("opens");
    for number in 1..=6 {
        put(&mut store, 1, number, &profile(number, 50)).expect("stores");
    }
    assert_eq!(ids(store.reader()), ["1-1001-6", "1-1001-5", "1-1001-4"]);
    for number in 7..=9 {
        put(&mut store, 2, number, &profile(number, 50)).expect("stores");
    }
    let left = ["2-1002-9", "2-1002-8", "2-1002-7", "1-1001-6", "1-1001-5"];
    assert_eq!(ids(store.reader()), left);
    assert_eq!(ids(&Reader::open(directory.path()).expect("opens")), left);
    let files = fs::read_dir(directory.path()).expect("lists").count();
    assert_eq!(files, 5 + 3, "files of removed profiles are gone");
    let large = put(&mut store, 1, 10, &profile(10, 5 * 4096)).expect_err("is too large");
    assert!(matches!(large, StoreError::TooLarge { .. }), "{large}");
    assert_eq!(ids(store.reader()), left, "nothing had to go for it");
    assert_eq!(store.figures().dropped, 1);
}

#[test]
fn age_and_clocks_that_jump() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let settings = Settings {
        keep_age: Duration::from_secs(10 * 3600),
        ..settings(directory.path())
    };
    let mut store = Store::open(settings.clone()).expect("opens");
    let mut now = 1_000_000 * HOUR;
    put(&mut store, 1, now, &profile(1, 50)).expect("stores");
    // The clock jumps forwards and back, again and again; and the daemon is off for a year.
    now += 50_000 * HOUR;
    store.tidy(now);
    store.tidy(1);
    store.tidy(now);
    drop(store);
    let mut store = Store::open(settings.clone()).expect("opens");
    now += 9000 * HOUR;
    store.tidy(now);
    put(&mut store, 2, now, &profile(2, 50)).expect("stores");
    assert_eq!(store.figures().profiles, 2);
    // Eleven hours of ordinary time, with a restart.
    for minute in 0..11 * 60 {
        now += HOUR / 60;
        store.tidy(now);
        if minute == 300 {
            drop(store);
            store = Store::open(settings.clone()).expect("opens");
        }
    }
    put(&mut store, 2, now, &profile(3, 50)).expect("stores");
    // The restart may cost what was not written down yet, and no more.
    for _ in 0..60 {
        now += HOUR / 60;
        store.tidy(now);
    }
    assert_eq!(ids(store.reader()), ["2-1002-3"]);
}

#[test]
fn one_daemon_at_a_time() {
    let (directory, store) = store();
    let error = Store::open(settings(directory.path())).expect_err("is in use");
    assert!(
        error
            .to_string()
            .contains(&format!("in use by another daemon (pid {})", std::process::id())),
        "{error}"
    );
    assert!(matches!(error, StoreError::InUse { .. }));
    drop(store);
    Store::open(settings(directory.path())).expect("opens");
}

#[test]
fn other_versions_and_other_folders_are_left_alone() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path();
    assert!(matches!(Reader::open(path), Err(StoreError::NotFound(_))));
    assert!(matches!(Reader::open(&path.join("x")), Err(StoreError::NotFound(_))));
    fs::write(path.join("1-1-1.pb.gz"), "somebody's").expect("writes");
    let error = Store::open(settings(path)).expect_err("is no store");
    assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
    assert_eq!(fs::read_dir(path).expect("lists").count(), 1);
    let write = |text: &str| fs::write(path.join("version"), text).expect("writes");
    write("leaktrace profile store\nformat 2\nmade by leaktrace 9.0.0\n");
    for error in [
        Store::open(settings(path)).expect_err("is of another version"),
        Reader::open(path).expect_err("is of another version"),
    ] {
        assert!(matches!(error, StoreError::OtherVersion { found: 2, .. }), "{error}");
    }
    for damaged in [
        "",
        "leaktrace profile store\n",
        "leaktrace profile store\nformat one\n",
        "\0\0\0\0",
    ] {
        write(damaged);
        let error = Store::open(settings(path)).expect_err("is damaged");
        assert!(matches!(error, StoreError::NotAStore { .. }), "{damaged:?}: {error}");
    }
    assert_eq!(fs::read_dir(path).expect("lists").count(), 2, "nothing was touched");
    write("leaktrace profile store\nformat 1\n");
    Store::open(settings(path)).expect("opens");
}

#[test]
fn folders_that_others_may_write_to_are_closed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).expect("changes");
    Store::open(settings(directory.path())).expect("opens");
    let mode = fs::metadata(directory.path()).expect("is there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn nothing_leads_out_of_the_store() {
    let (directory, mut store) = store();
    let outside = tempfile::tempdir().expect("temporary directory");
    let secret = outside.path().join("secret");
    let hostile = Identity {
        pid: 7,
        start_time: 1,
        comm: "../../../etc/x\n\u{1b}[2J".to_owned(),
        command_line: vec!["/".to_owned(), "..".to_owned(), "\0".to_owned()],
        ..Identity::default()
    };
    let new = NewEntry {
        identity: &hostile,
        begin: 0,
        end: 1,
        heap: Heap::Both,
        in_use: 1,
        bytes: &profile(1, 50),
    };
    let id = store.put(&new).expect("stores").id;
    assert_eq!(id, "7-1-1");
    assert_eq!(store.reader().open_profile(&id).expect("opens").identity(), &hostile);
    for wrong in [
        "../7-1-1",
        "7-1-1.pb.gz",
        "version",
        "lock",
        "/etc/passwd",
        "7-1-2",
        "8-1-1",
        "",
        "7-1-1\0",
    ] {
        let error = store.reader().read(wrong).expect_err("there is none");
        assert!(matches!(error, StoreError::NoSuchProfile { .. }), "{wrong:?}: {error}");
        assert!(!error.to_string().contains('\0'));
    }
    // A link in place of the next file, of its temporary one, and of a stored one.
    fs::write(&secret, profile(9, 50)).expect("writes");
    symlink(&secret, directory.path().join("7-1-2.pb.gz")).expect("links");
    symlink(&secret, directory.path().join(".tmp-7-1-2.pb.gz")).expect("links");
    let id = store.put(&new).expect("stores").id;
    assert_eq!(fs::read(&secret).expect("reads"), profile(9, 50));
    assert_eq!(store.reader().read(&id).expect("reads"), profile(1, 50));
    fs::remove_file(directory.path().join("7-1-1.pb.gz")).expect("removes");
    symlink(&secret, directory.path().join("7-1-1.pb.gz")).expect("links");
    assert!(store.reader().read("7-1-1").is_err());
    drop(store);
    let store = Store::open(settings(directory.path())).expect("opens");
    assert_eq!(ids(store.reader()), [id], "a link is no profile");
    assert_eq!(fs::read(&secret).expect("reads"), profile(9, 50));
    // A link in place of the journal or of the lock is not followed either.
    drop(store);
    for name in ["journal", "lock"] {
        let _ = fs::remove_file(directory.path().join(name));
        symlink(&secret, directory.path().join(name)).expect("links");
        let error = Store::open(settings(directory.path())).expect_err("is a link");
        assert!(matches!(error, StoreError::Io { .. }), "{name}: {error}");
        fs::remove_file(directory.path().join(name)).expect("removes");
    }
    assert_eq!(fs::read(&secret).expect("reads"), profile(9, 50));
}

#[test]
fn a_damaged_file_is_told_from_a_profile() {
    let (directory, mut store) = store();
    let id = put(&mut store, 1, 1, &profile(1, 5000)).expect("stores").id;
    let path = directory.path().join(format!("{id}.pb.gz"));
    let mut bytes = fs::read(&path).expect("reads");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).expect("writes");
    let error = store.reader().read(&id).expect_err("is damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    fs::write(&path, &bytes[..last]).expect("writes");
    assert!(store.reader().read(&id).is_err());
    drop(store);
    let store = Store::open(settings(directory.path())).expect("opens");
    assert_eq!(ids(store.reader()), Vec::<String>::new(), "half a file is not listed");
    assert!(!path.exists());
}
