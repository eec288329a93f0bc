//! The index on disk: records of length, checksum and JSON, one after the other.
//!
//! The journal saves the reading of every file's label, no more: the files tell all themselves. So a record is not
//! synced, one that got lost is made anew when the store is opened, and a torn or damaged end is cut off. It is written
//! anew, by a rename, when most of it is about profiles that are gone.

use std::fs::File;
use std::io::{BufReader, Read};

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::entry::{Entry, MAX_SEQUENCE};
use super::error::StoreError;
use super::index::Index;
use super::label::checksum;

/// Name of the file.
pub(super) const NAME: &str = "journal";
/// What it begins with.
const MAGIC: &[u8] = b"leaktrace journal 1\n";
/// Longest record. An entry takes about 250 bytes, with the worst name 700.
const MAX_RECORD: u32 = 4096;
/// A longer journal is read up to here; what the rest says is found in the files.
const MAX_JOURNAL: u64 = 256 << 20;
/// So many records about profiles that are gone are borne.
const SLACK: u64 = 1000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    /// A profile was stored.
    Put(Entry),
    /// A profile was removed.
    Removed(u64),
    /// Numbers that must not go back.
    Mark { next: u64, clock: u64 },
}

/// What a journal tells.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub index: Index,
    /// Sequence numbers of profiles that were removed.
    pub removed: HashSet<u64>,
    /// Its bytes up to the first that make no sense.
    pub good: u64,
    /// Its records.
    pub records: u64,
}

/// Reads a journal up to its end, or to the first record that is torn or damaged.
pub(super) fn read(input: impl Read) -> Told {
    let mut input = BufReader::new(input.take(MAX_JOURNAL));
    let mut told = Told::default();
    let mut magic = [0; MAGIC.len()];
    if input.read_exact(&mut magic).is_err() || magic != *MAGIC {
        return told;
    }
    told.good = MAGIC.len() as u64;
    while let Some((record, length)) = next(&mut input) {
        told.good += length;
        told.records += 1;
        match record {
            Record::Put(entry) if entry.sequence <= MAX_SEQUENCE => told.index.insert(entry),
            Record::Put(_) => {}
            Record::Removed(sequence) => {
                told.index.remove(sequence);
                told.removed.insert(sequence);
            }
            Record::Mark { next, clock } => {
                told.index.skip_to(next);
                told.index.clock = told.index.clock.max(clock);
            }
        }
    }
    told
}

fn next(input: &mut impl Read) -> Option<(Record, u64)> {
    let (mut length, mut sum) = ([0; 4], [0; 4]);
    input.read_exact(&mut length).ok()?;
    input.read_exact(&mut sum).ok()?;
    let length = u32::from_le_bytes(length);
    if length > MAX_RECORD {
        return None;
    }
    let mut json = vec![0; length as usize];
    input.read_exact(&mut json).ok()?;
    // Zeros, which some file systems leave after a crash, have the checksum of nothing; they are no JSON.
    if checksum(&json) != u32::from_le_bytes(sum) {
        return None;
    }
    Some((serde_json::from_slice(&json).ok()?, 8 + u64::from(length)))
}

fn encode(record: &Record, output: &mut Vec<u8>) {
    let json = serde_json::to_vec(record).expect("a record has string keys alone");
    output.extend_from_slice(&(json.len() as u32).to_le_bytes());
    output.extend_from_slice(&checksum(&json).to_le_bytes());
    output.extend_from_slice(&json);
}

/// The journal, open at its end.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Bytes that are known to be good.
    length: u64,
    records: u64,
    /// It lacks records, or has half of one at its end: only writing it anew helps.
    broken: bool,
}

impl Journal {
    /// Continues the journal behind what was told of it.
    pub(super) fn resume(directory: &Directory, told: &Told) -> Result<Self, StoreError> {
        let file = directory.append_file(NAME)?;
        let length = file
            .metadata()
            .map_err(|source| directory.error("look at", NAME, source))?
            .len();
        if length > told.good {
            directory.cut(&file, NAME, told.good)?;
        }
        Ok(Self {
            file,
            length: told.good,
            records: told.records,
            broken: told.good < MAGIC.len() as u64,
        })
    }

    pub(super) fn put(&mut self, directory: &Directory, entry: &Entry) {
        self.append(directory, &Record::Put(entry.clone()));
    }

    pub(super) fn removed(&mut self, directory: &Directory, sequence: u64) {
        self.append(directory, &Record::Removed(sequence));
    }

    /// Writes down how far numbers have come.
    pub(super) fn mark(&mut self, directory: &Directory, next: u64, clock: u64) {
        self.append(directory, &Record::Mark { next, clock });
    }

    /// Adds a record. If that fails the journal lacks it until it is written anew; nothing is lost by that.
    fn append(&mut self, directory: &Directory, record: &Record) {
        if self.broken {
            return;
        }
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        match directory.write(&mut self.file, NAME, &bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                self.records += 1;
            }
            Err(error) => {
                tracing::debug!("the store's journal falls behind: {error}");
                self.broken = true;
                let _ = directory.cut(&self.file, NAME, self.length);
            }
        }
    }

    /// It should be written anew.
    pub(super) fn is_wasteful(&self, index: &Index) -> bool {
        self.broken || self.records > 2 * index.len() as u64 + SLACK
    }

    /// Writes the journal anew from the index.
    pub(super) fn compact(&mut self, directory: &Directory, index: &Index, clock: u64) -> Result<(), StoreError> {
        let mut bytes = MAGIC.to_vec();
        let next = index.next_sequence();
        encode(&Record::Mark { next, clock }, &mut bytes);
        for entry in index.entries() {
            encode(&Record::Put(entry.clone()), &mut bytes);
        }
        directory.replace(NAME, &[&bytes])?;
        self.file = directory.append_file(NAME)?;
        self.length = bytes.len() as u64;
        self.records = index.len() as u64 + 1;
        self.broken = false;
        Ok(())
    }
}
