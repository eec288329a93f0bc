//! What the readers of this runtime need of a target's memory beyond [`MemoryReader`], and a recorded image of one.
//!
//! A range is either wholly read or not at all: nothing downstream ever sees half of one.

use std::collections::BTreeMap;

use crate::model::ProcessAddress;
use crate::proc::memory::{MemoryError, MemoryReader, ReadRequest};

/// Ranges in one call. The kernel takes 1,024; this is a multiple of three, so that the triples
/// (goroutine, stack, goroutine) are never torn apart.
pub const BATCH: usize = 1023;

/// Unreadable ranges after which [`Target::read_ranges`] gives up on the rest: each costs a system call.
const MAX_FAULTS: usize = 10_000;

/// A range of target memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub len: usize,
}

/// Reads of plain words and of many ranges at once; implemented for every [`MemoryReader`].
pub trait Target: MemoryReader {
    /// A 64-bit word.
    fn u64_at(&self, address: u64) -> Result<u64, MemoryError> {
        self.read_u64(ProcessAddress(address))
    }

    /// A 32-bit word.
    fn u32_at(&self, address: u64) -> Result<u32, MemoryError> {
        let mut bytes = [0; 4];
        self.read(ProcessAddress(address), &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Fills the buffer.
    fn fill(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.read(ProcessAddress(address), buffer)
    }

    /// `len` bytes. The caller bounds `len`.
    fn bytes_at(&self, address: u64, len: usize) -> Result<Vec<u8>, MemoryError> {
        let mut bytes = vec![0; len];
        self.fill(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads many ranges into `out`, where they lie behind each other; says for each whether it was read (the bytes
    /// of one that was not are unspecified). The caller bounds the sum of the lengths.
    fn read_ranges(&self, ranges: &[Range], out: &mut Vec<u8>) -> Result<Vec<bool>, MemoryError> {
        out.resize(ranges.iter().map(|range| range.len).sum(), 0);
        let mut rest = out.as_mut_slice();
        let mut filled = Vec::with_capacity(ranges.len());
        let mut faults = 0;
        for chunk in ranges.chunks(BATCH) {
            let mut requests = Vec::with_capacity(chunk.len());
            for range in chunk {
                let (buffer, behind) = rest.split_at_mut(range.len);
                rest = behind;
                requests.push(ReadRequest {
                    address: ProcessAddress(range.address),
                    buffer,
                    filled: false,
                });
            }
            if faults < MAX_FAULTS {
                self.read_many(&mut requests)?;
            }
            faults += requests.iter().filter(|request| !request.filled).count();
            filled.extend(requests.iter().map(|request| request.filled));
        }
        Ok(filled)
    }
}

impl<M: MemoryReader + ?Sized> Target for M {}

/// A little-endian word in a buffer; 0 behind its end.
pub(in crate::runtime::go) fn word(buffer: &[u8], at: usize) -> u64 {
    match buffer.get(at..).and_then(|tail| tail.first_chunk::<8>()) {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => 0,
    }
}

/// A recorded piece of an address space: what tests and fuzz targets read instead of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryImage {
    segments: BTreeMap<u64, Vec<u8>>,
}

impl MemoryImage {
    /// An empty image.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes at an address. Where segments overlap, the one that begins last and covers a read wins.
    pub fn insert(&mut self, address: u64, bytes: Vec<u8>) {
        self.segments.insert(address, bytes);
    }

    /// All segments, by address.
    pub fn segments(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.segments
            .iter()
            .map(|(&address, bytes)| (address, bytes.as_slice()))
    }

    /// The bytes of a segment, for a test that changes them.
    pub fn segment_mut(&mut self, address: u64) -> Option<&mut Vec<u8>> {
        self.segments.get_mut(&address)
    }

    /// The form on disk: address, length and bytes of each segment, in little-endian words.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (address, bytes) in self.segments() {
            out.extend_from_slice(&address.to_le_bytes());
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        out
    }

    /// Reads what [`MemoryImage::to_bytes`] wrote; a segment that is cut short ends the image.
    pub fn from_bytes(mut data: &[u8]) -> Self {
        let mut image = Self::new();
        while let Some((head, rest)) = data.split_first_chunk::<16>() {
            let len = usize::try_from(word(head, 8)).unwrap_or(usize::MAX).min(rest.len());
            image.insert(word(head, 0), rest[..len].to_vec());
            data = &rest[len..];
        }
        image
    }
}

impl MemoryReader for MemoryImage {
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        // The nearest few: a shorter segment may lie within a longer one.
        let found = self
            .segments
            .range(..=address.0)
            .rev()
            .take(8)
            .find_map(|(&start, bytes)| {
                usize::try_from(address.0 - start)
                    .ok()
                    .and_then(|at| bytes.get(at..)?.get(..buffer.len()))
            });
        match found {
            Some(found) => {
                buffer.copy_from_slice(found);
                Ok(())
            }
            None => Err(MemoryError::Unmapped {
                pid: 0,
                address,
                len: buffer.len(),
            }),
        }
    }
}

/// Reads through another memory and keeps what was read.
#[derive(Debug)]
pub struct Recorder<'m, M> {
    memory: &'m M,
    image: std::cell::RefCell<MemoryImage>,
}

impl<'m, M: MemoryReader> Recorder<'m, M> {
    /// Records reads of `memory`.
    pub fn new(memory: &'m M) -> Self {
        Self {
            memory,
            image: std::cell::RefCell::default(),
        }
    }

    /// What was read.
    pub fn into_image(self) -> MemoryImage {
        self.image.into_inner()
    }
}

impl<M: MemoryReader> MemoryReader for Recorder<'_, M> {
    fn read(&self, address: ProcessAddress, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(address, buffer)?;
        let mut image = self.image.borrow_mut();
        // Short reads at the begin of longer ones are in those already.
        if image
            .segments
            .get(&address.0)
            .is_none_or(|known| known.len() < buffer.len())
        {
            image.insert(address.0, buffer.to_vec());
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_image_survives_the_disk_and_reads_like_memory() {
        let mut image = MemoryImage::new();
        image.insert(0x1000, (0..64).collect());
        image.insert(0x2000, vec![7; 16]);
        let image = MemoryImage::from_bytes(&image.to_bytes());
        assert_eq!(image.u32_at(0x1004).unwrap(), 0x0706_0504);
        assert!(image.u64_at(0x103c).is_err(), "runs over the end");
        let mut out = Vec::new();
        let ranges = [
            Range {
                address: 0x2000,
                len: 8,
            },
            Range {
                address: 0x5000,
                len: 8,
            },
            Range {
                address: 0x1000,
                len: 1,
            },
        ];
        assert_eq!(image.read_ranges(&ranges, &mut out).unwrap(), [true, false, true]);
        assert_eq!(out[..8], [7; 8]);
        assert_eq!(
            MemoryImage::from_bytes(&[1; 40]).segments().count(),
            1,
            "the second header is cut short"
        );
    }
}
