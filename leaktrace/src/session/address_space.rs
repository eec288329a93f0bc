//! Which file's code lies at which address of a process, now and before.
//!
//! Profiles are made after libraries may have been unmapped again, so nothing is forgotten unless other code takes its
//! place.

use std::collections::BTreeMap;

use crate::model::{ElfAddress, ProcessAddress};

/// A run of code from one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeSpan {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Position in the file where it begins.
    pub offset: u64,
    /// Index of the file.
    pub file: usize,
    /// What the file's headers say is the address of its first byte.
    pub elf_start: u64,
}

/// Code by address.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace(BTreeMap<u64, CodeSpan>);

impl AddressSpace {
    /// Notes code; whatever it overlaps is gone.
    pub fn insert(&mut self, span: CodeSpan) {
        let overlapping: Vec<u64> = self
            .0
            .range(..span.end)
            .rev()
            .take_while(|(_, known)| known.end > span.start)
            .map(|(start, _)| *start)
            .collect();
        for start in overlapping {
            self.0.remove(&start);
        }
        self.0.insert(span.start, span);
    }

    /// The code at an address, and that address in its file's terms.
    pub fn find(&self, address: ProcessAddress) -> Option<(&CodeSpan, ElfAddress)> {
        let (_, span) = self.0.range(..=address.0).next_back()?;
        (address.0 < span.end).then(|| (span, ElfAddress(address.0 - span.start + span.elf_start)))
    }

    /// All code by address.
    pub fn iter(&self) -> impl Iterator<Item = &CodeSpan> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_code_replaces_what_it_overlaps() {
        let span = |start, end, file| CodeSpan {
            start,
            end,
            offset: 0,
            file,
            elf_start: 0x100,
        };
        let mut space = AddressSpace::default();
        space.insert(span(0x1000, 0x3000, 0));
        space.insert(span(0x4000, 0x5000, 1));
        space.insert(span(0x2000, 0x4000, 2));
        let file = |address| {
            space
                .find(ProcessAddress(address))
                .map(|(span, elf)| (span.file, elf.0))
        };
        assert_eq!(file(0x1800), None);
        assert_eq!(file(0x2010), Some((2, 0x110)));
        assert_eq!(file(0x4fff), Some((1, 0x10ff)));
        assert_eq!(file(0x5000), None);
    }
}
