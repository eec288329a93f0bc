//! Full disks: a small tmpfs, and a quota.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// A file system of one megabyte, unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    /// `None`, with the reason printed, without the privilege to mount.
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let options = "size=1m,mode=755";
        match mount(
            Some("tmpfs"),
            directory.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        ) {
            Ok(()) => Some(Self(directory)),
            Err(error) => {
                eprintln!("skipped: cannot mount a tmpfs: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

const KIB: usize = 1024;

#[test]
fn a_full_disk_takes_the_oldest_first_then_pauses_then_goes_on() {
    let Some(disk) = Disk::new() else { return };
    let path = disk.0.path().join("store");
    let mut store = Store::open(settings(&path)).expect("opens");
    // Without other limits a disk of 1 MiB has room for nine of them.
    for number in 1..=30 {
        put(&mut store, number as u32, number, &profile(number, 100 * KIB)).expect("stores");
    }
    let kept = ids(store.reader());
    assert!((7..=9).contains(&kept.len()), "{kept:?}");
    assert_eq!(kept[0], "30-1030-30");
    assert!(store.paused().is_none());
    // Somebody else takes the disk: nothing that we could give up would make enough room.
    let hog = disk.0.path().join("hog");
    store.configure(Settings {
        keep_bytes: 150 * KIB as u64,
        ..settings(&path)
    });
    store.tidy(31);
    assert_eq!(store.figures().profiles, 1);
    assert!(fs::write(&hog, vec![1; 2 << 20]).is_err(), "the disk is full");
    let error = put(&mut store, 1, 32, &profile(32, 130 * KIB)).expect_err("the disk is full");
    assert!(matches!(error, StoreError::Paused(_)), "{error}");
    let message = store.paused().expect("pauses").to_owned();
    assert!(
        message.contains("is full: ") && message.contains("free some space"),
        "{message}"
    );
    assert_eq!(ids(store.reader()), ["30-1030-30"], "nothing is given up in vain");
    store.tidy(33);
    assert!(store.paused().is_some());
    put(&mut store, 1, 34, &profile(34, 130 * KIB)).expect_err("the disk is full");
    assert_eq!(store.figures().dropped, 2);
    // A crash now, and opening on a full disk.
    drop(store);
    let mut store = Store::open(settings(&path)).expect("opens on a full disk");
    assert_eq!(ids(store.reader()), ["30-1030-30"]);
    put(&mut store, 1, 35, &profile(35, 130 * KIB)).expect_err("the disk is full");
    fs::remove_file(&hog).expect("removes");
    store.tidy(36);
    assert!(store.paused().is_none(), "there is room again");
    let last = put(&mut store, 1, 37, &profile(37, 130 * KIB)).expect("stores").id;
    assert_eq!(ids(&Reader::open(&path).expect("opens")), [last.as_str(), "30-1030-30"]);
    assert_eq!(store.reader().read(&last).expect("reads"), profile(37, 130 * KIB));
}

#[test]
fn the_reserve_is_left_to_others() {
    let Some(disk) = Disk::new() else { return };
    let path = disk.0.path().join("store");
    let mut store = Store::open(Settings {
        free_reserve: 500 * KIB as u64,
        ..settings(&path)
    })
    .expect("opens");
    for number in 1..=20 {
        put(&mut store, 1, number, &profile(number, 50 * KIB)).expect("stores");
        let free = Directory::open(&path).expect("opens").available().expect("tells");
        assert!(free >= 490 * KIB as u64, "{free}");
    }
    assert!(store.figures().profiles >= 7);
}

#[test]
fn a_quota_makes_room_once_then_pauses_and_tries_again() {
    let (directory, mut store) = store();
    for number in 1..=6 {
        put(&mut store, 1, number, &profile(number, 50)).expect("stores");
    }
    let full = |store: &Store, full: bool| store.reader.directory.faults.full.store(full, Ordering::Relaxed);
    full(&store, true);
    for _ in 0..5 {
        put(&mut store, 1, 7, &profile(7, 50)).expect_err("the quota is used up");
    }
    assert_eq!(store.figures().profiles, 5, "one was given up, not one each time");
    store.tidy(8);
    assert!(store.paused().is_some(), "nobody knows yet");
    full(&store, false);
    let id = put(&mut store, 1, 9, &profile(9, 50)).expect("stores").id;
    assert!(store.paused().is_none());
    // The journal could not be told of the removal then; it is now.
    drop(store);
    let store = Store::open(settings(directory.path())).expect("opens");
    assert_eq!(ids(store.reader())[0], id);
    assert_eq!(store.figures().profiles, 6);
}
