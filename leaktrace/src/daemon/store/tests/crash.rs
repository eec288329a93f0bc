//! Crashes: at every system call, at every byte of the journal, and of a real process at random moments.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

/// Names the folder for the process that is to be killed.
const CHILD: &str = "LEAKTRACE_TEST_STORE";

/// Everything that a reader and the next daemon see; both have to agree, and every profile has to be whole.
fn surviving(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |reader: &Reader| -> BTreeMap<String, Vec<u8>> {
        let ids = ids(reader).into_iter();
        ids.map(|id| (id.clone(), reader.read(&id).expect("what is listed is whole")))
            .collect()
    };
    let before = match Reader::open(path) {
        Ok(reader) => read(&reader),
        Err(StoreError::NotFound(_)) => BTreeMap::new(),
        Err(error) => panic!("a reader after the crash: {error}"),
    };
    let store = Store::open(settings(path)).expect("opens after a crash");
    let after = read(store.reader());
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let strange = fs::read_dir(path)
        .expect("lists")
        .map(|entry| entry.expect("is readable").file_name().into_string().expect("is UTF-8"))
        .filter(|name| !["version", "lock", "journal"].contains(&name.as_str()))
        .filter(|name| !after.contains_key(name.trim_end_matches(".pb.gz")))
        .collect::<Vec<_>>();
    assert_eq!(strange, Vec::<String>::new(), "nothing is left over");
    drop(store);
    // And what was put right stays so.
    let again = Store::open(settings(path)).expect("opens");
    assert_eq!(read(again.reader()), after);
    after
}

/// What is done to a store until the crash; `done` holds what was promised.
fn work(store: &mut Store, done: &mut BTreeMap<String, Vec<u8>>) -> Result<(), StoreError> {
    for number in 1..=6u64 {
        let bytes = profile(number, 3000 * number as usize);
        let stored = put(store, (number % 2) as u32, number * SECOND, &bytes)?;
        done.insert(stored.id, bytes);
        if number == 4 {
            store.compact();
        }
        store.tidy(number * HOUR);
    }
    Ok(())
}

#[test]
fn a_crash_at_every_step_loses_nothing_that_was_promised() {
    let mut crashes = 0;
    for steps in 0.. {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path();
        let faulty = Directory::create(path).expect("opens");
        faulty.faults.left.store(steps, Ordering::Relaxed);
        let mut done = BTreeMap::new();
        // Two profiles of each process stay.
        let limited = Settings {
            keep_count_per_process: 2,
            ..settings(path)
        };
        let result = Store::open_in(faulty, limited).and_then(|mut store| work(&mut store, &mut done));
        let survived = surviving(path);
        let promised: Vec<_> = done.keys().rev().collect();
        for (id, bytes) in &survived {
            let number: u64 = id.rsplit('-').next().expect("has parts").parse().expect("is a number");
            assert_eq!(*bytes, profile(number, 3000 * number as usize), "after {steps} steps");
            assert!(
                done.contains_key(id) || done.len() as u64 + 1 == number,
                "after {steps} steps: {id}"
            );
        }
        // Of each process, the last two that were promised.
        for pid in ["0-", "1-"] {
            let last = promised.iter().filter(|id| id.starts_with(pid)).take(2);
            // A third may have begun to push out the first of them.
            let newest = survived.keys().rev().filter(|id| id.starts_with(pid)).take(2);
            let (last, newest): (Vec<_>, Vec<_>) = (last.collect(), newest.collect());
            let lost = last.iter().filter(|id| !newest.contains(*id)).count();
            let unpromised = newest.iter().filter(|id| !done.contains_key(**id)).count();
            assert!(lost <= unpromised, "after {steps} steps: {last:?} {newest:?}");
        }
        if result.is_ok() {
            break;
        }
        crashes += 1;
        assert!(crashes < 1000, "the work comes to an end");
    }
    assert!(crashes > 50, "{crashes}");
}

#[test]
fn a_journal_cut_at_every_byte_or_changed_anywhere_lists_the_same() {
    let (directory, mut store) = store();
    for number in 1..=5 {
        put(&mut store, 1, number, &profile(number, 50)).expect("stores");
    }
    let removed = store.reader.index.get(2).expect("is there").sequence;
    store.remove(removed);
    let expected = ids(store.reader());
    assert_eq!(expected.len(), 4);
    drop(store);
    let path = directory.path().join("journal");
    let journal = fs::read(&path).expect("reads");
    let check = |what: String, bytes: &[u8]| {
        fs::write(&path, bytes).expect("writes");
        assert_eq!(ids(&Reader::open(directory.path()).expect("opens")), expected, "{what}");
        let store = Store::open(settings(directory.path())).expect("opens");
        assert_eq!(ids(store.reader()), expected, "{what}");
        drop(store);
        assert_eq!(ids(&Reader::open(directory.path()).expect("opens")), expected, "{what}");
    };
    for length in 0..journal.len() {
        check(format!("cut at {length}"), &journal[..length]);
    }
    for at in (0..journal.len()).step_by(7) {
        let mut bytes = journal.clone();
        bytes[at] ^= 0x10;
        check(format!("changed at {at}"), &bytes);
    }
    check("zeros at the end".to_owned(), &[&journal[..], &[0; 5000]].concat());
    check("a length too large".to_owned(), &[&journal[..], &[0xff; 64]].concat());
    fs::remove_file(&path).expect("removes");
    assert_eq!(ids(&Reader::open(directory.path()).expect("opens")), expected);
}

/// The process that is killed below. Does nothing of its own.
#[test]
fn child_that_stores() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut store = Store::open(Settings {
        keep_count_per_process: 8,
        ..settings(Path::new(&path))
    })
    .expect("opens: the lock went with its holder");
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let number = store.reader.index.next_sequence();
        let bytes = profile(number, 100 + (number as usize * 7919) % 60_000);
        let stored = put(&mut store, (number % 3) as u32, number, &bytes).expect("stores");
        println!("stored {}", stored.id);
        if number.is_multiple_of(5) {
            store.compact();
        }
    }
}

#[test]
fn killed_at_random_moments() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let name = "daemon::store::tests::crash::child_that_stores";
    let mut last = 0;
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().expect("has a path"))
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut output = BufReader::new(child.stdout.take().expect("is piped"));
        let mut text = String::new();
        // Every other time from before it opens the store, else well into its work.
        while round % 2 == 0 && !text.contains("stored ") {
            let length = output.read_line(&mut text).expect("is text");
            assert!(length > 0, "it ended by itself: {text}");
        }
        std::thread::sleep(Duration::from_millis(round * 7919 % 130));
        child.kill().expect("kills");
        child.wait().expect("ends");
        output.read_to_string(&mut text).expect("is text");
        // The last line may be half of one.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let promised = whole.lines().filter_map(|line| line.split("stored ").nth(1));
        let promised: Vec<String> = promised.map(str::to_owned).collect();
        let survived = surviving(directory.path());
        for (id, bytes) in &survived {
            let number: u64 = id.rsplit('-').next().expect("has parts").parse().expect("is a number");
            assert_eq!(*bytes, profile(number, 100 + (number as usize * 7919) % 60_000));
            last = last.max(number);
        }
        for id in promised.iter().rev().take(20) {
            let number: u64 = id.rsplit('-').next().expect("has parts").parse().expect("is a number");
            // Eight of each of the three processes stay.
            assert!(
                survived.contains_key(id) || number + 3 * 8 <= last,
                "{id} of {last} is lost"
            );
        }
    }
    assert!(last > 20, "only {last} profiles were stored: the test did not test");
}
