//! The reading side: what is in a store, and the profiles themselves. It changes nothing and needs no lock.

use std::path::Path;

use hashbrown::{HashMap, HashSet};
use regex::Regex;

use super::directory::{Directory, TEMPORARY};
use super::entry::{Entry, Heap, parse_file_name};
use super::error::StoreError;
use super::index::Index;
use super::journal::{self, Told};
use super::label::{self, Label};
use super::version;
use crate::api::{Identity, Key, StoredProfile};
use crate::report::name::printable;

/// Which profiles to list. All that is `None` lets all pass.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those of processes with this pid.
    pub pid: Option<u32>,
    /// Those of processes whose name matches.
    pub comm: Option<Regex>,
    /// Those that end at this moment or later, in nanoseconds since 1970.
    pub since: Option<u64>,
    /// Those that end before this moment.
    pub until: Option<u64>,
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        self.pid.is_none_or(|pid| entry.process.pid == pid)
            && self.comm.as_ref().is_none_or(|comm| comm.is_match(&entry.comm))
            && self.since.is_none_or(|since| entry.end >= since)
            && self.until.is_none_or(|until| entry.end < until)
    }
}

/// A profile in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// What it is.
    pub profile: StoredProfile,
    /// What is in use more than in the profile before it of the same process and heap, if that is still there.
    pub growth: Option<i64>,
}

/// A store to read.
#[derive(Debug)]
pub struct Reader {
    pub(super) directory: Directory,
    pub(super) index: Index,
}

impl Reader {
    /// Opens a store as it is now; what a daemon stores later is not seen.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotAStore`], [`StoreError::OtherVersion`] or [`StoreError::Io`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let directory = Directory::open(path).map_err(|error| match error.is_missing() {
            true => StoreError::NotFound(path.to_owned()),
            false => error,
        })?;
        if !version::check(&directory)? {
            return Err(StoreError::NotFound(path.to_owned()));
        }
        let Found { told, .. } = find(&directory)?;
        Ok(Self {
            directory,
            index: told.index,
        })
    }

    /// Profiles, newest first.
    pub fn list(&self, filter: &Filter) -> Vec<StoredProfile> {
        let entries = self.index.entries().rev();
        entries.filter(|entry| filter.takes(entry)).map(Entry::told).collect()
    }

    /// Profiles, newest first, each with its growth.
    pub fn list_with_growth(&self, filter: &Filter) -> Vec<Listed> {
        let mut last: HashMap<(Key, Heap), i64> = HashMap::new();
        let mut listed = Vec::new();
        for entry in self.index.entries() {
            let before = last.insert((entry.process, entry.heap), entry.in_use);
            if filter.takes(entry) {
                listed.push(Listed {
                    profile: entry.told(),
                    growth: before.map(|before| entry.in_use.saturating_sub(before)),
                });
            }
        }
        listed.reverse();
        listed
    }

    /// The list's words about one profile.
    ///
    /// # Errors
    /// [`StoreError::NoSuchProfile`].
    pub fn get(&self, id: &str) -> Result<StoredProfile, StoreError> {
        self.entry(id).map(Entry::told)
    }

    /// Opens a profile. Quick; reading it from there needs the store no more.
    ///
    /// # Errors
    /// [`StoreError::NoSuchProfile`], [`StoreError::Damaged`] or [`StoreError::Io`].
    pub fn open_profile(&self, id: &str) -> Result<Profile, StoreError> {
        let entry = self.entry(id)?;
        let file = self.directory.open_file(&entry.file_name());
        let file = file.map_err(|error| match error.is_missing() {
            // It was removed since the store was opened.
            true => self.no_such_profile(id),
            false => error,
        })?;
        let path = self.directory.path().join(entry.file_name());
        let opened = label::open(file, entry.file_size);
        let opened = opened.map_err(|error| StoreError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if opened.label.entry != *entry {
            return Err(StoreError::Damaged {
                path,
                reason: "it is another profile than the index says".to_owned(),
            });
        }
        Ok(Profile { path, opened })
    }

    /// A profile: gzip-compressed pprof, byte by byte as it was stored.
    ///
    /// # Errors
    /// [`StoreError::NoSuchProfile`], [`StoreError::Damaged`] or [`StoreError::Io`].
    pub fn read(&self, id: &str) -> Result<Vec<u8>, StoreError> {
        self.open_profile(id)?.read()
    }

    fn entry(&self, id: &str) -> Result<&Entry, StoreError> {
        self.index.find(id).ok_or_else(|| self.no_such_profile(id))
    }

    fn no_such_profile(&self, id: &str) -> StoreError {
        StoreError::NoSuchProfile {
            id: printable(&id.chars().take(64).collect::<String>()).into_owned(),
            path: self.directory.path().to_owned(),
        }
    }
}

/// A profile that was opened: it can be read even if it is removed from the store meanwhile.
pub struct Profile {
    path: std::path::PathBuf,
    opened: label::Opened<std::fs::File>,
}

impl Profile {
    /// Who the process was when the profile was stored.
    pub fn identity(&self) -> &Identity {
        &self.opened.label.identity
    }

    /// The list's words about it.
    pub fn told(&self) -> StoredProfile {
        self.opened.label.entry.told()
    }

    /// The profile: gzip-compressed pprof, byte by byte as it was stored.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn read(self) -> Result<Vec<u8>, StoreError> {
        self.opened.read().map_err(|error| StoreError::Damaged {
            path: self.path,
            reason: error.to_string(),
        })
    }
}

/// What lies in the folder of a store.
pub(super) struct Found {
    /// The journal, and an index that says what is truly there.
    pub told: Told,
    /// Files that are of no use: half-written, removed, or damaged.
    pub junk: Vec<String>,
    /// The index and the journal say the same.
    pub agreed: bool,
}

/// Compares the journal with the files. What is there counts: entries without file are dropped, files without entry are
/// taken in by their labels.
pub(super) fn find(directory: &Directory) -> Result<Found, StoreError> {
    let mut told = match directory.open_file(journal::NAME) {
        Ok(file) => journal::read(file),
        Err(error) if error.is_missing() => Told::default(),
        Err(error) => return Err(error),
    };
    let mut junk = Vec::new();
    let mut agreed = true;
    let mut present = HashSet::new();
    for name in directory.names()? {
        if name.starts_with(TEMPORARY) {
            junk.push(name);
            continue;
        }
        // Other names are not ours; nor is anything but a file.
        let Some((process, sequence)) = parse_file_name(&name) else {
            continue;
        };
        let Some(size) = directory.size(&name) else { continue };
        if told.removed.contains(&sequence) {
            junk.push(name);
            continue;
        }
        let known = told.index.get(sequence);
        if known.is_some_and(|entry| entry.process == process && entry.file_size == size) {
            present.insert(sequence);
            continue;
        }
        agreed = false;
        match read_label(directory, &name, size) {
            Some(label) if label.entry.process == process && label.entry.sequence == sequence => {
                told.index.insert(label.entry);
                present.insert(sequence);
            }
            _ => junk.push(name),
        }
    }
    let missing = told.index.entries().map(|entry| entry.sequence);
    let missing: Vec<u64> = missing.filter(|sequence| !present.contains(sequence)).collect();
    for sequence in missing {
        agreed = false;
        told.index.remove(sequence);
    }
    Ok(Found { told, junk, agreed })
}

fn read_label(directory: &Directory, name: &str, size: u64) -> Option<Label> {
    let file = directory.open_file(name).ok()?;
    Some(label::open(file, size).ok()?.label)
}
