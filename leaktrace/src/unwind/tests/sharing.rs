//! The cache: order, sharing, and what is remembered.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{LIBC, LOADER};
use crate::proc::files::FileVersion;
use crate::unwind::{CompileError, CompileJob, TableCache};

fn key(inode: u64) -> FileVersion {
    FileVersion {
        device: 1,
        inode,
        size: 3,
        changed: (4, 5),
    }
}

fn job<'a>(key: FileVersion, path: &'a str, opened: &'a AtomicUsize) -> CompileJob<'a> {
    let open = move || {
        opened.fetch_add(1, Ordering::Relaxed);
        File::open(path)
    };
    CompileJob {
        key,
        open: Box::new(open),
        forced: Vec::new(),
        size_hint: path.len() as u64,
    }
}

#[test]
fn results_keep_the_order_of_jobs_and_keys_share_tables() {
    let opened = AtomicUsize::new(0);
    let cache = TableCache::new();
    let paths = [
        (1, LIBC),
        (2, LOADER),
        (1, LIBC),
        (3, "/dev/null"),
        (1, LIBC),
        (4, "/nonexistent"),
    ];
    let jobs: Vec<_> = paths
        .iter()
        .map(|&(number, path)| job(key(number), path, &opened))
        .collect();
    let results = cache.compile_all(&jobs);

    let table = |index: usize| results[index].as_ref().unwrap();
    assert!(Arc::ptr_eq(table(0), table(2)) && Arc::ptr_eq(table(0), table(4)));
    assert_eq!(**table(0), super::compile_bytes(&std::fs::read(LIBC).unwrap()));
    assert_eq!(**table(1), super::compile_bytes(&std::fs::read(LOADER).unwrap()));
    assert!(matches!(**results[3].as_ref().unwrap_err(), CompileError::Parse(_)));
    let error = results[5].as_ref().unwrap_err();
    assert!(matches!(&**error, CompileError::Open(cause) if cause.kind() == io::ErrorKind::NotFound));
    assert_eq!(opened.load(Ordering::Relaxed), 4, "one opening a key");
    assert_eq!(cache.usage(), (2, table(0).bytes() + table(1).bytes()));
}

#[test]
fn known_keys_are_not_opened_again_but_unopened_files_are() {
    let opened = AtomicUsize::new(0);
    let cache = TableCache::new();
    let counts = |path: &str| {
        let before = opened.load(Ordering::Relaxed);
        let key = key(path.len() as u64);
        let _ = cache.get_or_compile(&job(key, path, &opened));
        let _ = cache.get_or_compile(&job(key, path, &opened));
        opened.load(Ordering::Relaxed) - before
    };
    assert_eq!(counts(LOADER), 1);
    assert_eq!(counts("/dev/null"), 1, "it will not become an object file");
    assert_eq!(counts("/nonexistent"), 2, "it may come to be");
}

#[test]
fn another_state_of_a_file_has_a_table_of_its_own() {
    let opened = AtomicUsize::new(0);
    let cache = TableCache::new();
    let old = cache.get_or_compile(&job(key(1), LOADER, &opened)).unwrap();
    let changed = FileVersion {
        changed: (4, 6),
        ..key(1)
    };
    let new = cache.get_or_compile(&job(changed, LOADER, &opened)).unwrap();
    assert!(!Arc::ptr_eq(&old, &new));
}

#[test]
fn unused_tables_are_dropped() {
    let opened = AtomicUsize::new(0);
    let cache = TableCache::new();
    let held = cache.get_or_compile(&job(key(1), LOADER, &opened)).unwrap();
    cache.get_or_compile(&job(key(2), LOADER, &opened)).unwrap();
    assert_eq!(cache.drop_unused(), 1);
    assert!(Arc::ptr_eq(&held, &cache.get(&key(1)).unwrap().unwrap()));
    assert!(cache.get(&key(2)).is_none());
    drop(held);
    assert_eq!((cache.drop_unused(), cache.usage()), (1, (0, 0)));
}
