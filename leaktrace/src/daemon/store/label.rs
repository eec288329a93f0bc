//! What a stored profile says about itself.
//!
//! A file is the gzip stream that was stored with one field more in its header (RFC 1952, `FEXTRA`), so that every pprof
//! reader opens it where it lies, and the index can be made anew from the files alone. Reading gives back the very bytes
//! that were stored, or an error.

use std::io::{self, Read};

use flate2::Crc;
use serde::{Deserialize, Serialize};

use super::entry::Entry;
use crate::api::Identity;

/// Bytes of a gzip header without optional fields.
const HEADER: usize = 10;
/// The flag that says that there is an extra field.
const FEXTRA: u8 = 4;
/// The flag that says that a checksum of the header follows it.
const FHCRC: u8 = 2;
/// Names our field.
const FIELD: [u8; 2] = *b"LT";
/// Length of all extra fields; name and length of ours; checksum of the label.
const FRAME: usize = 2 + 4 + 4;
/// Longest label: the lengths are 16 bits wide.
const MAX_LABEL: usize = u16::MAX as usize - 8;

/// What a stored profile says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    pub entry: Entry,
    /// Checksum of the bytes that were stored.
    pub checksum: u32,
    pub identity: Identity,
}

pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// What the file begins with, instead of the first [`HEADER`] bytes of the profile.
pub(super) struct Sealed<'a> {
    /// Header and label.
    pub head: Vec<u8>,
    /// The rest of the profile.
    pub rest: &'a [u8],
}

/// Puts a label on a profile.
pub(super) fn seal<'a>(entry: &Entry, identity: &Identity, gzip: &'a [u8]) -> Result<Sealed<'a>, &'static str> {
    // Nothing is shorter: header, an empty block, checksum and length.
    if gzip.len() < HEADER + 2 + 8 || gzip[..3] != [0x1f, 0x8b, 8] {
        return Err("it is not gzip-compressed");
    }
    if gzip[3] & (FEXTRA | FHCRC) != 0 {
        return Err("its gzip header has optional fields that the store cannot keep");
    }
    let mut label = Label {
        entry: entry.clone(),
        checksum: checksum(gzip),
        identity: identity.clone(),
    };
    label.entry.file_size = 0;
    let json = shortened(label);
    let field = json.len() + 4;
    let mut head = Vec::with_capacity(HEADER + FRAME + json.len());
    head.extend_from_slice(&gzip[..HEADER]);
    head[3] |= FEXTRA;
    head.extend_from_slice(&((field + 4) as u16).to_le_bytes());
    head.extend_from_slice(&FIELD);
    head.extend_from_slice(&(field as u16).to_le_bytes());
    head.extend_from_slice(&checksum(&json).to_le_bytes());
    head.extend_from_slice(&json);
    Ok(Sealed {
        head,
        rest: &gzip[HEADER..],
    })
}

/// The label as JSON, without the parts that processes can make long where it would not fit.
fn shortened(mut label: Label) -> Vec<u8> {
    let json = |label: &Label| serde_json::to_vec(label).expect("a label has string keys alone");
    let text = json(&label);
    if text.len() <= MAX_LABEL {
        return text;
    }
    label.identity.command_line.clear();
    let text = json(&label);
    if text.len() <= MAX_LABEL {
        return text;
    }
    label.identity = Identity {
        pid: label.identity.pid,
        start_time: label.identity.start_time,
        started: label.identity.started,
        comm: label.entry.comm.to_string(),
        uid: label.identity.uid,
        runtime: label.identity.runtime,
        ..Identity::default()
    };
    json(&label)
}

/// A file whose label was read.
pub(super) struct Opened<R> {
    pub label: Label,
    header: [u8; HEADER],
    rest: R,
}

/// Reads the label of a file with `file_size` bytes.
pub(super) fn open<R: Read>(mut file: R, file_size: u64) -> io::Result<Opened<R>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut head = [0; HEADER + FRAME];
    file.read_exact(&mut head)?;
    let mut header = [0; HEADER];
    header.copy_from_slice(&head[..HEADER]);
    if header[..3] != [0x1f, 0x8b, 8] || header[3] & FEXTRA == 0 {
        return Err(damaged("it does not begin as stored profiles do"));
    }
    header[3] &= !FEXTRA;
    let half = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let (extra, field) = (half(HEADER), half(HEADER + 4));
    if head[HEADER + 2..HEADER + 4] != FIELD || extra != field + 4 || field < 4 {
        return Err(damaged("it has no label"));
    }
    let mut json = vec![0; field - 4];
    file.read_exact(&mut json)?;
    let expected = u32::from_le_bytes([head[HEADER + 6], head[HEADER + 7], head[HEADER + 8], head[HEADER + 9]]);
    if checksum(&json) != expected {
        return Err(damaged("the checksum of its label does not match"));
    }
    let mut label: Label = serde_json::from_slice(&json).map_err(|_| damaged("its label cannot be read"))?;
    label.entry.file_size = file_size;
    if !label.entry.is_plausible() || (FRAME + json.len()) as u64 + label.entry.size != file_size {
        return Err(damaged("it has another length than it should have"));
    }
    Ok(Opened {
        label,
        header,
        rest: file,
    })
}

impl<R: Read> Opened<R> {
    /// The bytes that were stored.
    pub(super) fn read(self) -> io::Result<Vec<u8>> {
        let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut bytes = self.header.to_vec();
        // The length was compared with the file's, so that this is no more than there is.
        let rest = self.label.entry.size.saturating_sub(HEADER as u64);
        self.rest.take(rest).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.label.entry.size {
            return Err(damaged("it is cut off"));
        }
        if checksum(&bytes) != self.label.checksum {
            return Err(damaged("its checksum does not match"));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::Write as _;

    use flate2::write::GzEncoder;
    use flate2::{Compression, read::GzDecoder};

    use super::super::entry::{Heap, NewEntry};
    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn sealed(identity: &Identity, bytes: &[u8]) -> Vec<u8> {
        let new = NewEntry {
            identity,
            begin: 1,
            end: 2,
            heap: Heap::Native,
            in_use: 3,
            bytes,
        };
        let sealed = seal(&Entry::new(&new, 7, 9), identity, bytes).unwrap();
        [sealed.head.as_slice(), sealed.rest].concat()
    }

    #[test]
    fn a_file_is_a_gzip_stream_and_gives_back_what_was_stored() {
        let bytes = gzip(b"a profile");
        let identity = Identity {
            comm: "\u{1b}[31m\n../../x".to_owned(),
            command_line: vec!["a".to_owned(), "\n".to_owned()],
            ..Identity::default()
        };
        let file = sealed(&identity, &bytes);
        let mut text = String::new();
        GzDecoder::new(file.as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "a profile");
        let opened = open(file.as_slice(), file.len() as u64).unwrap();
        assert_eq!(opened.label.identity, identity);
        assert_eq!(opened.label.entry.file_size, file.len() as u64);
        assert_eq!(opened.read().unwrap(), bytes);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let file = sealed(&Identity::default(), &gzip(b"a profile"));
        let read = |file: &[u8]| open(file, file.len() as u64).and_then(Opened::read);
        for length in 0..file.len() {
            assert!(read(&file[..length]).is_err(), "cut at {length}");
        }
        for at in 0..file.len() {
            let mut file = file.clone();
            file[at] ^= 0x40;
            assert!(read(&file).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_label_that_would_not_fit_loses_what_is_long() {
        let bytes = gzip(b"a profile");
        let mut identity = Identity {
            pid: 4,
            comm: "x".to_owned(),
            command_line: vec!["\n".repeat(60_000)],
            executable: Some("/bin/x".to_owned()),
            ..Identity::default()
        };
        let file = sealed(&identity, &bytes);
        let opened = open(file.as_slice(), file.len() as u64).unwrap();
        assert!(opened.label.identity.command_line.is_empty());
        assert_eq!(opened.label.identity.executable.as_deref(), Some("/bin/x"));
        identity.cgroup = Some("\n".repeat(60_000));
        let file = sealed(&identity, &bytes);
        let opened = open(file.as_slice(), file.len() as u64).unwrap();
        assert_eq!(
            (opened.label.identity.pid, opened.label.identity.cgroup.clone()),
            (4, None)
        );
        assert_eq!(opened.read().unwrap(), bytes);
    }

    #[test]
    fn what_is_no_gzip_is_refused() {
        let new = NewEntry {
            identity: &Identity::default(),
            begin: 0,
            end: 0,
            heap: Heap::Go,
            in_use: 0,
            bytes: b"",
        };
        let entry = Entry::new(&new, 1, 0);
        for bytes in [&b""[..], b"\x1f\x8b\x08", &[b'x'; 40]] {
            assert!(seal(&entry, new.identity, bytes).is_err());
        }
        let mut with_name = gzip(b"x");
        with_name[3] = FEXTRA;
        assert!(seal(&entry, new.identity, &with_name).is_err());
    }
}
