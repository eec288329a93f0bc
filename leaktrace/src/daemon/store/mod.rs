//! Profiles on disk: written whole or not at all, listed by an index that survives a crash, kept within limits.
//!
//! A store is one folder:
//!
//! - `version`: that it is a store, and its format;
//! - `lock`: whoever writes holds a lock on it, which the kernel takes away with the process;
//! - `PID-STARTTIME-NUMBER.pb.gz`: a profile and, in its gzip header, what is known of it ([`label`]);
//! - `journal`: the same in short for all of them ([`journal`]); it can be lost;
//! - `.tmp-…`: what is being written.
//!
//! Invariant: at every instant a profile is listed if and only if its file is there, whole and synced. A profile gets
//! its name when it is on the disk; the journal is told afterwards, and the files are believed where both differ.
//!
//! Nothing here reads a clock or starts a thread. The reading side is [`Reader`].

mod age;
mod directory;
mod entry;
mod error;
mod index;
mod journal;
mod label;
mod reader;
mod space;
#[cfg(test)]
mod tests;
mod version;

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use age::{AgeClock, LONGEST_STEP};
use directory::Directory;
use entry::Entry;
pub use entry::{Heap, NewEntry, is_id};
pub use error::StoreError;
use index::Limits;
use journal::Journal;
pub use reader::{Filter, Listed, Profile, Reader};
use space::Pause;

use crate::api::{Key, StoreFigures, StoredProfile};

/// Where the store is unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/leaktrace/profiles";
/// Largest profile that is stored, in bytes.
pub const MAX_PROFILE: u64 = 256 << 20;

/// How a store is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its folder.
    pub directory: PathBuf,
    /// Profiles of one process that are kept; at least one is.
    pub keep_count_per_process: usize,
    /// How long profiles are kept while the daemon runs. Time in which it does not run, and clocks that jump, age a
    /// profile by an hour at most.
    pub keep_age: Duration,
    /// Bytes on disk of all profiles together.
    pub keep_bytes: u64,
    /// Bytes of the file system that are left free for others.
    pub free_reserve: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from(DEFAULT_DIRECTORY),
            keep_count_per_process: 120,
            keep_age: Duration::from_secs(7 * 24 * 3600),
            keep_bytes: 1 << 30,
            free_reserve: 128 << 20,
        }
    }
}

/// A store to write to. There is one at a time for each folder.
#[derive(Debug)]
pub struct Store {
    reader: Reader,
    journal: Journal,
    settings: Settings,
    clock: AgeClock,
    /// What the journal knows of the age clock.
    marked: u64,
    pause: Option<Pause>,
    dropped: u64,
    /// Held as long as the store is open.
    lock: File,
}

impl Store {
    /// Opens the store, or makes it, and puts right what a crash left behind.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::OtherVersion`], [`StoreError::NotAStore`], [`StoreError::Insecure`] or
    /// [`StoreError::Io`].
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        Self::open_in(Directory::create(&settings.directory)?, settings)
    }

    /// Opens a store to read it, while a daemon may write to it.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_readonly(directory: &Path) -> Result<Reader, StoreError> {
        Reader::open(directory)
    }

    fn open_in(directory: Directory, settings: Settings) -> Result<Self, StoreError> {
        // Nothing is touched in a folder that is not ours.
        if !version::check(&directory)? {
            version::check_empty(&directory)?;
        }
        let lock = lock(&directory)?;
        if !version::check(&directory)? {
            version::write(&directory)?;
        }
        let reader::Found { told, junk, agreed } = reader::find(&directory)?;
        for name in &junk {
            // A file that cannot be removed is not listed either.
            if let Err(error) = directory.remove(name) {
                tracing::warn!("{error}");
            }
        }
        let journal = Journal::resume(&directory, &told)?;
        let mut store = Self {
            clock: AgeClock::at(told.index.clock),
            marked: told.index.clock,
            reader: Reader {
                directory,
                index: told.index,
            },
            journal,
            settings,
            pause: None,
            dropped: 0,
            lock,
        };
        if !agreed || store.journal.is_wasteful(&store.reader.index) {
            store.compact();
        }
        Ok(store)
    }

    /// The reading side.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Stores a profile; then removes those that the settings do not allow to stay. When this returns, the profile is
    /// on the disk, and stays there through a crash of the machine.
    ///
    /// # Errors
    /// [`StoreError::Paused`] when the disk is full, [`StoreError::NotGzip`], [`StoreError::TooLarge`] or
    /// [`StoreError::Io`]. The profile is counted as dropped then, and the store is as before, but for old profiles
    /// that had to make room.
    pub fn put(&mut self, new: &NewEntry<'_>) -> Result<StoredProfile, StoreError> {
        let result = self.try_put(new);
        if result.is_err() {
            self.dropped += 1;
        }
        result
    }

    fn try_put(&mut self, new: &NewEntry<'_>) -> Result<StoredProfile, StoreError> {
        let fits = |size: u64, limit: u64| match size <= limit {
            true => Ok(()),
            false => Err(StoreError::TooLarge { size, limit }),
        };
        fits(new.bytes.len() as u64, MAX_PROFILE)?;
        self.clock.look(new.end);
        let sequence = self.reader.index.next_sequence();
        let mut entry = Entry::new(new, sequence, self.clock.value);
        let sealed = label::seal(&entry, new.identity, new.bytes).map_err(StoreError::NotGzip)?;
        entry.file_size = (sealed.head.len() + sealed.rest.len()) as u64;
        fits(entry.footprint(), self.settings.keep_bytes)?;
        // Even if writing fails, something of that name may have come into being.
        self.reader.index.skip_to(sequence + 1);
        self.write_with_room(&entry, &[&sealed.head, sealed.rest])?;
        let told = entry.told();
        let process = entry.process;
        self.journal.put(&self.reader.directory, &entry);
        self.reader.index.insert(entry);
        self.retain(Some(process));
        Ok(told)
    }

    /// Removes profiles that the settings do not allow to stay, and ends a pause when there is room again. To be called
    /// about once a minute; `now` is in nanoseconds since 1970.
    pub fn tidy(&mut self, now: u64) {
        self.clock.look(now);
        self.retain(None);
        self.end_pause_if_there_is_room();
        if self.clock.value - self.marked >= LONGEST_STEP {
            let next = self.reader.index.next_sequence();
            self.journal.mark(&self.reader.directory, next, self.clock.value);
            self.marked = self.clock.value;
        }
    }

    /// Other limits from now on; the folder stays. They are applied by the next [`tidy`](Self::tidy).
    pub fn configure(&mut self, settings: Settings) {
        self.settings = Settings {
            directory: std::mem::take(&mut self.settings.directory),
            ..settings
        };
    }

    /// Why nothing is stored at the moment, and what to do about it.
    pub fn paused(&self) -> Option<&str> {
        self.pause.as_ref().map(Pause::message)
    }

    /// What the store holds.
    pub fn figures(&self) -> StoreFigures {
        StoreFigures {
            profiles: self.reader.index.len() as u64,
            bytes: self.reader.index.bytes(),
            dropped: self.dropped,
            paused: self.pause.is_some(),
        }
    }

    fn retain(&mut self, process: Option<Key>) {
        let limits = Limits {
            count_per_process: self.settings.keep_count_per_process.max(1),
            age: u64::try_from(self.settings.keep_age.as_nanos()).unwrap_or(u64::MAX),
            bytes: self.settings.keep_bytes,
        };
        for sequence in self.reader.index.outdated(&limits, self.clock.value, process) {
            self.remove(sequence);
        }
        if self.journal.is_wasteful(&self.reader.index) {
            self.compact();
        }
    }

    /// Removes a profile; gives the bytes that became free.
    fn remove(&mut self, sequence: u64) -> u64 {
        let Some(entry) = self.reader.index.get(sequence) else {
            return 0;
        };
        let footprint = entry.footprint();
        if let Err(error) = self.reader.directory.remove(&entry.file_name()) {
            tracing::warn!("{error}");
            return 0;
        }
        self.reader.index.remove(sequence);
        self.journal.removed(&self.reader.directory, sequence);
        footprint
    }

    fn compact(&mut self) {
        let Reader { directory, index } = &self.reader;
        // The journal can wait: the files say all.
        if let Err(error) = self.journal.compact(directory, index, self.clock.value) {
            tracing::debug!("the store's journal is not written anew: {error}");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing alone would leave the lock to a child that was forked and has not called exec yet.
        let _ = self.lock.unlock();
    }
}

/// Takes the lock of a store, or says who has it.
fn lock(directory: &Directory) -> Result<File, StoreError> {
    let mut file = directory.append_file(version::LOCK)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = (&file).take(32).read_to_string(&mut text);
            return Err(StoreError::InUse {
                path: directory.path().to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(directory.error("lock", version::LOCK, source)),
    }
    // Who has it is told for convenience: without room there is no pid.
    let _ = file.set_len(0).and_then(|()| {
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    });
    Ok(file)
}

/// For `fuzzing`: any bytes as a stored profile. What is read back is what was stored, and can be stored again.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_profile(file: &[u8]) {
    let Ok(opened) = label::open(file, file.len() as u64) else {
        return;
    };
    let (entry, identity) = (opened.label.entry.clone(), opened.label.identity.clone());
    let Ok(bytes) = opened.read() else { return };
    if let Ok(sealed) = label::seal(&entry, &identity, &bytes) {
        let again = [&sealed.head, sealed.rest].concat();
        let opened = label::open(&*again, again.len() as u64).expect("what was stored can be read");
        assert!(opened.read().is_ok_and(|read| read == bytes));
    }
}

/// For `fuzzing`: any bytes as the journal.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_any_journal(file: &[u8]) {
    let told = journal::read(file);
    assert!(told.good <= file.len() as u64);
    // Up to there it is read again as it was.
    let again = journal::read(&file[..told.good as usize]);
    assert_eq!((again.good, again.records), (told.good, told.records));
    for entry in told.index.entries() {
        assert_eq!(
            entry::parse_file_name(&entry.file_name()).map(|(key, _)| key),
            Some(entry.process)
        );
    }
}
