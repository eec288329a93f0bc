//! What the store knows of a profile, and the names that are made from it.
//!
//! A name consists of pid, start time and sequence number: numbers, never text that a process chose.

use serde::{Deserialize, Serialize};

use crate::api::{Identity, Key, StoredProfile};

/// Ending of the files.
const ENDING: &str = ".pb.gz";
/// Sequence numbers end here: JSON readers keep integers up to 2⁵³.
pub(super) const MAX_SEQUENCE: u64 = 1 << 53;
/// Bytes of a command name that are kept. The kernel gives 15; lossy UTF-8 makes at most 45 of them.
const MAX_COMM: usize = 64;
/// No file of the store is larger: a profile and its label.
const MAX_FILE: u64 = super::MAX_PROFILE + (1 << 16);
/// Files take whole blocks.
const BLOCK: u64 = 4096;

/// Which memory a profile tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Heap {
    /// Allocations that were traced.
    Native,
    /// The heap of the Go runtime.
    Go,
    /// Both in one profile.
    Both,
    /// Growth that was followed without probes.
    Growth,
}

impl Heap {
    /// `native`, `go`, `both` or `growth`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Go => "go",
            Self::Both => "both",
            Self::Growth => "growth",
        }
    }
}

/// A profile to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// Of whom.
    pub identity: &'a Identity,
    /// What it tells begins here, in nanoseconds since 1970.
    pub begin: u64,
    /// And ends here: now, usually.
    pub end: u64,
    /// Which memory it tells of.
    pub heap: Heap,
    /// Outstanding bytes that it tells.
    pub in_use: i64,
    /// The profile: gzip-compressed pprof.
    pub bytes: &'a [u8],
}

/// What the index holds of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its number in the store; later ones have larger numbers.
    pub sequence: u64,
    pub process: Key,
    pub comm: Box<str>,
    pub begin: u64,
    pub end: u64,
    pub heap: Heap,
    pub in_use: i64,
    /// Bytes of the profile.
    pub size: u64,
    /// Bytes of its file, with the label. 0 inside the label, which cannot know it.
    pub file_size: u64,
    /// When it was stored, on the clock that [`super::age`] keeps.
    pub stored: u64,
}

impl Entry {
    pub(super) fn new(new: &NewEntry<'_>, sequence: u64, stored: u64) -> Self {
        Self {
            sequence,
            process: Key {
                pid: new.identity.pid,
                start_time: new.identity.start_time,
            },
            comm: new.identity.comm[..new.identity.comm.floor_char_boundary(MAX_COMM)].into(),
            begin: new.begin,
            end: new.end,
            heap: new.heap,
            in_use: new.in_use,
            size: new.bytes.len() as u64,
            file_size: 0,
            stored,
        }
    }

    /// Numbers that are read from a disk, and that the store could have written.
    pub(super) fn is_plausible(&self) -> bool {
        (1..=MAX_SEQUENCE).contains(&self.sequence) && self.size <= self.file_size && self.file_size <= MAX_FILE
    }

    pub(super) fn id(&self) -> String {
        let Key { pid, start_time } = self.process;
        format!("{pid}-{start_time}-{}", self.sequence)
    }

    pub(super) fn file_name(&self) -> String {
        self.id() + ENDING
    }

    /// Bytes on disk.
    pub(super) fn footprint(&self) -> u64 {
        footprint(self.file_size)
    }

    pub(super) fn told(&self) -> StoredProfile {
        StoredProfile {
            id: self.id(),
            process: self.process,
            comm: self.comm.to_string(),
            begin: self.begin,
            end: self.end,
            heap: self.heap.name().to_owned(),
            size: self.size,
            in_use: self.in_use,
        }
    }
}

/// Bytes on disk of a file with so many bytes.
pub(super) fn footprint(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Process and sequence number of an id; `None` for text that is none. Each profile has one spelling.
pub(super) fn parse_id(id: &str) -> Option<(Key, u64)> {
    let mut parts = id.splitn(3, '-');
    let (pid, start_time, sequence) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    let pid = u32::try_from(pid).ok()?;
    (sequence <= MAX_SEQUENCE).then_some((Key { pid, start_time }, sequence))
}

/// Whether a text has the form of a profile's id.
pub fn is_id(text: &str) -> bool {
    parse_id(text).is_some()
}

/// The same of the name of a file.
pub(super) fn parse_file_name(name: &str) -> Option<(Key, u64)> {
    parse_id(name.strip_suffix(ENDING)?)
}

fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling_and_lead_nowhere_else() {
        let (key, sequence) = parse_id("12-345-6").unwrap();
        assert_eq!((key.pid, key.start_time, sequence), (12, 345, 6));
        assert_eq!(parse_file_name("12-345-6.pb.gz"), Some((key, 6)));
        for wrong in [
            "",
            "1-2",
            "1-2-",
            "1-2-3-4",
            "01-2-3",
            "+1-2-3",
            " 1-2-3",
            "1-2-3 ",
            "1-2-3\n",
            "../1-2-3",
            "1-2-../3",
            "/etc/passwd",
            "4294967296-1-1",
            "1-18446744073709551616-1",
            "1-1-9007199254740993",
            "1-2-3.pb.gz",
            "١-2-3",
            "--",
            "-1-2-3",
        ] {
            assert_eq!(parse_id(wrong), None, "{wrong:?}");
        }
        for wrong in [
            "1-2-3",
            "1-2-3.pb",
            ".tmp-1-2-3.pb.gz",
            "1-2-3.pb.gz.pb.gz",
            "../1-2-3.pb.gz",
        ] {
            assert_eq!(parse_file_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let identity = Identity {
            comm: "é".repeat(100),
            ..Identity::default()
        };
        let new = NewEntry {
            identity: &identity,
            begin: 0,
            end: 0,
            heap: Heap::Go,
            in_use: 0,
            bytes: &[],
        };
        assert_eq!(&*Entry::new(&new, 1, 0).comm, "é".repeat(32));
    }
}
