//! Which file's code lies at which address of a process, now and before.
//!
//! Profiles are made after libraries may have been unmapped again, and others mapped in their place. So each piece of code
//! is kept with the looks at the process that saw it, and found by a time in which nothing changed at the address:
//! code counts for that time if a look lies wholly inside it. Invariant: what no look saw is not known, whatever was
//! there before or after.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    ledger::Interval,
    model::{ElfAddress, ProcessAddress},
};

/// Pieces of code that other code took the place of: the newest are kept. Each may hold a file open.
const MAX_EARLIER: usize = 256;
/// Looks that are remembered: the newest.
const MAX_LOOKS: usize = 1024;

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

/// When a process was looked at, in nanoseconds of the kernel's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Before.
    pub begun: u64,
    /// After.
    pub done: u64,
}

/// Code and the numbers of the looks that saw it, the first and the last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    span: CodeSpan,
    first: u64,
    last: u64,
}

impl Seen {
    fn covers(&self, address: u64) -> bool {
        (self.span.start..self.span.end).contains(&address)
    }
}

/// Code by address.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// What was seen last at each address.
    current: BTreeMap<u64, Seen>,
    /// What was seen before, oldest first.
    earlier: VecDeque<Seen>,
    looks: VecDeque<Look>,
    /// Looks that are forgotten: the number of the first one that is not.
    forgotten: u64,
}

impl AddressSpace {
    /// Notes all code that a look saw.
    pub fn note(&mut self, look: Look, spans: impl Iterator<Item = CodeSpan>) {
        if self.looks.len() == MAX_LOOKS {
            self.looks.pop_front();
            self.forgotten += 1;
        }
        let number = self.forgotten + self.looks.len() as u64;
        self.looks.push_back(look);
        for span in spans {
            match self.current.get_mut(&span.start) {
                // Between the two looks it may have been gone, but it was nothing else.
                Some(seen) if seen.span == span => seen.last = number,
                _ => self.insert(span, number),
            }
        }
    }

    /// Whatever it overlaps is gone.
    fn insert(&mut self, span: CodeSpan, number: u64) {
        let overlapping: Vec<u64> = self
            .current
            .range(..span.end)
            .rev()
            .take_while(|(_, known)| known.span.end > span.start)
            .map(|(start, _)| *start)
            .collect();
        for start in overlapping {
            if let Some(gone) = self.current.remove(&start) {
                if self.earlier.len() == MAX_EARLIER {
                    self.earlier.pop_front();
                }
                self.earlier.push_back(gone);
            }
        }
        let (first, last) = (number, number);
        self.current.insert(span.start, Seen { span, first, last });
    }

    /// The code at an address in a time, and that address in its file's terms.
    pub fn find(&self, address: ProcessAddress, during: Interval) -> Option<(&CodeSpan, ElfAddress)> {
        // Looks follow each other, so those inside are neighbours.
        let first = self.looks.partition_point(|look| look.begun < during.from);
        let behind = self.looks.partition_point(|look| look.done <= during.until);
        let (first, behind) = (self.forgotten + first as u64, self.forgotten + behind as u64);
        let is_known = |seen: &&Seen| {
            let always = during == Interval::ALWAYS;
            seen.covers(address.0) && (always || seen.first.max(first) < (seen.last + 1).min(behind))
        };
        let now = self.current.range(..=address.0).next_back().map(|(_, seen)| seen);
        let seen = now
            .filter(is_known)
            .or_else(|| self.earlier.iter().rev().find(is_known))?;
        let span = &seen.span;
        Some((span, ElfAddress(address.0 - span.start + span.elf_start)))
    }

    /// All code that is known.
    pub fn iter(&self) -> impl Iterator<Item = &CodeSpan> {
        self.current.values().chain(&self.earlier).map(|seen| &seen.span)
    }

    /// Gives the files that code is of new numbers: `files` are those by old numbers; those that none is of are taken out.
    pub fn drop_unused<T>(&mut self, files: &mut Vec<T>) {
        let mut used = vec![false; files.len()];
        self.iter().for_each(|span| {
            if let Some(used) = used.get_mut(span.file) {
                *used = true;
            }
        });
        let mut number = 0;
        let numbers: Vec<usize> = used
            .iter()
            .map(|used| {
                number += usize::from(*used);
                number.saturating_sub(1)
            })
            .collect();
        let seen = self.current.values_mut().chain(&mut self.earlier);
        seen.for_each(|seen| seen.span.file = numbers.get(seen.span.file).copied().unwrap_or(0));
        let mut used = used.into_iter();
        files.retain(|_| used.next().unwrap_or(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64, file: usize) -> CodeSpan {
        CodeSpan {
            start,
            end,
            offset: 0,
            file,
            elf_start: 0x100,
        }
    }

    fn look(time: u64) -> Look {
        Look {
            begun: time,
            done: time + 2,
        }
    }

    #[test]
    fn newer_code_replaces_what_it_overlaps() {
        let mut space = AddressSpace::default();
        let spans = [span(0x1000, 0x3000, 0), span(0x4000, 0x5000, 1)];
        space.note(look(10), spans.into_iter());
        space.note(look(20), [span(0x2000, 0x4000, 2)].into_iter());
        let file = |address| {
            space
                .find(ProcessAddress(address), Interval { from: 15, until: 30 })
                .map(|(span, elf)| (span.file, elf.0))
        };
        assert_eq!(file(0x1800), None);
        assert_eq!(file(0x2010), Some((2, 0x110)));
        assert_eq!(file(0x4fff), None);
        assert_eq!(file(0x5000), None);
        // Code that was not replaced is still known where nothing changed.
        let found = space.find(ProcessAddress(0x4fff), Interval::ALWAYS);
        assert_eq!(found.map(|(span, elf)| (span.file, elf.0)), Some((1, 0x10ff)));
    }

    #[test]
    fn code_is_what_a_look_saw_in_that_time() {
        let mut space = AddressSpace::default();
        space.note(look(10), [span(0x1000, 0x2000, 0)].into_iter());
        space.note(look(20), [span(0x1000, 0x2000, 1)].into_iter());
        space.note(look(30), [span(0x1000, 0x2000, 1)].into_iter());
        space.note(look(40), [span(0x1000, 0x2000, 0)].into_iter());
        let file = |from, until| {
            let found = space.find(ProcessAddress(0x1080), Interval { from, until });
            found.map(|(span, _)| span.file)
        };
        assert_eq!(file(0, 15), Some(0));
        assert_eq!(file(15, 35), Some(1));
        assert_eq!(file(25, 33), Some(1));
        assert_eq!(file(35, u64::MAX), Some(0));
        // No look lies wholly inside: what was there then is not known, though all neighbours are.
        assert_eq!(file(13, 19), None);
        assert_eq!(file(21, 29), None);
        assert_eq!(file(11, 21), None);
        assert_eq!(file(43, u64::MAX), None);
        assert_eq!(file(u64::MAX, 0), None);
    }

    #[test]
    fn the_past_is_bounded_and_its_files_are_given_up() {
        let mut space = AddressSpace::default();
        let mut files = Vec::new();
        for time in 0..3000 {
            files.push(time);
            let newest = span(0x1000, 0x2000, files.len() - 1);
            space.note(look(10 * time), [newest].into_iter());
            space.drop_unused(&mut files);
        }
        assert_eq!((files.len(), space.iter().count()), (MAX_EARLIER + 1, MAX_EARLIER + 1));
        let found = space.find(
            ProcessAddress(0x1000),
            Interval {
                from: 28_000,
                until: 28_003,
            },
        );
        assert_eq!(found.map(|(span, _)| files[span.file]), Some(2800));
        assert_eq!(space.find(ProcessAddress(0x1000), Interval { from: 0, until: 5 }), None);
    }
}
