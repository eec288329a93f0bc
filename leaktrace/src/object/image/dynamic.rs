//! What the dynamic table (`PT_DYNAMIC`) tells of a file without section headers: its symbols, their names and its
//! relocations, as the sections that they would be.
//!
//! The dynamic loader works by this table alone, so whoever removes section headers (`sstrip`, some packers) leaves it.
//! It states no number of symbols: that is in one of the two hash tables. Invariant: what is returned lies within the
//! file's own part of a segment, and a table that contradicts itself yields fewer sections, never an error.

use object::LittleEndian as LE;
use object::elf::{self, Rela64, Sym64};

use super::parse::read_exact;
use super::{Section, Segment, Source};
use crate::model::{ElfAddress, FileOffset};

/// Largest dynamic table (4,096 entries; linkers write about 30).
const MAX_TABLE: u64 = 64 << 10;
/// Most words of a hash table that are read: of buckets, and of the last chain.
const MAX_HASH_WORDS: u64 = 16 << 20;
/// Words read at once.
const CHUNK: u64 = 16_384;

/// Where sections are looked for.
pub(super) struct Dynamic<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) len: u64,
    pub(super) segments: &'a [Segment],
}

/// The entries that matter; 0 for those that are not there.
#[derive(Default)]
struct Entries {
    symbols: u64,
    strings: u64,
    strings_size: u64,
    hash: u64,
    gnu_hash: u64,
    relocations: u64,
    relocations_size: u64,
    stub_relocations: u64,
    stub_relocations_size: u64,
    stub_relocations_kind: u64,
}

impl Dynamic<'_> {
    /// The sections that the table at this position tells of. The symbol table is the first, its strings the second.
    pub(super) fn sections(&self, offset: u64, size: u64) -> Vec<Section> {
        let Ok(bytes) = read_exact(
            self.source,
            self.len,
            offset,
            size.min(MAX_TABLE),
            MAX_TABLE,
            "the dynamic table",
        ) else {
            return Vec::new();
        };
        let entries = Entries::read(&bytes);
        let symbol_size = size_of::<Sym64<LE>>() as u64;
        let count = self.symbol_count(&entries).unwrap_or(0);
        let strings = self.section(".dynstr", elf::SHT_STRTAB, entries.strings, entries.strings_size, 0);
        let symbols_size = count.saturating_mul(symbol_size);
        let symbols = self.section(".dynsym", elf::SHT_DYNSYM, entries.symbols, symbols_size, 1);
        let (Some(symbols), Some(strings)) = (symbols, strings) else {
            return Vec::new();
        };
        let mut sections = vec![symbols, strings];
        let (address, size) = (entries.relocations, entries.relocations_size);
        sections.extend(self.section(".rela.dyn", elf::SHT_RELA, address, size, 0));
        if entries.stub_relocations_kind == elf::DT_RELA.0.cast_unsigned() {
            let (address, size) = (entries.stub_relocations, entries.stub_relocations_size);
            sections.extend(self.section(".rela.plt", elf::SHT_RELA, address, size, 0));
        }
        sections
    }

    /// A section at an address, cut at the end of its segment.
    fn section(&self, name: &str, kind: elf::SectionType, address: u64, size: u64, link: u32) -> Option<Section> {
        let (offset, rest) = self.place(address)?;
        Some(Section {
            name: name.to_owned(),
            kind: kind.0,
            allocated: true,
            address: ElfAddress(address),
            offset: FileOffset(offset),
            size: size.min(rest),
            link,
        })
    }

    /// Position in the file of an address, and how many bytes of its segment the file holds from there on.
    fn place(&self, address: u64) -> Option<(u64, u64)> {
        self.segments.iter().filter(|_| address != 0).find_map(|segment| {
            let distance = address.checked_sub(segment.address.0)?;
            let rest = segment.file_size.checked_sub(distance).filter(|rest| *rest > 0)?;
            Some((segment.offset.0.checked_add(distance)?, rest))
        })
    }

    fn symbol_count(&self, entries: &Entries) -> Option<u64> {
        let by_hash = || Some(u64::from(self.words(entries.hash, 2)?[1]));
        let by_gnu_hash = || self.gnu_hash_count(entries.gnu_hash);
        // Without a hash table: linkers put the strings right behind the symbols.
        let by_distance = || Some(entries.strings.checked_sub(entries.symbols)? / size_of::<Sym64<LE>>() as u64);
        by_hash().or_else(by_gnu_hash).or_else(by_distance)
    }

    /// One more than the highest index that the GNU hash table leads to. A chain ends with a word whose lowest bit is set.
    fn gnu_hash_count(&self, address: u64) -> Option<u64> {
        let header = self.words(address, 4)?;
        let [buckets, first_hashed, bloom_words] = [header[0], header[1], header[2]].map(u64::from);
        let buckets_at = address.checked_add(16)?.checked_add(bloom_words * 8)?;
        let mut last = 0;
        self.each_word(buckets_at, buckets, |_, bucket| {
            last = last.max(u64::from(bucket));
            true
        })?;
        if last < first_hashed {
            // Nothing is exported; what comes before are imports.
            return Some(first_hashed);
        }
        let chain = buckets_at
            .checked_add(buckets * 4)?
            .checked_add((last - first_hashed) * 4)?;
        let mut count = None;
        self.each_word(chain, MAX_HASH_WORDS, |index, hash| {
            count = (hash & 1 != 0).then_some(last + index + 1);
            count.is_none()
        });
        count
    }

    /// Visits `count` words from an address on until `visit` wants no more. `None` if they are too many, or end before.
    fn each_word(&self, address: u64, count: u64, mut visit: impl FnMut(u64, u32) -> bool) -> Option<()> {
        if count > MAX_HASH_WORDS {
            return None;
        }
        let mut done = 0;
        while done < count {
            let at = address.checked_add(done * 4)?;
            let (_, rest) = self.place(at)?;
            let words = self.words(at, CHUNK.min(count - done).min(rest / 4))?;
            if words.is_empty() {
                return None;
            }
            for (index, word) in (done..).zip(&words) {
                if !visit(index, *word) {
                    return Some(());
                }
            }
            done += words.len() as u64;
        }
        Some(())
    }

    fn words(&self, address: u64, count: u64) -> Option<Vec<u32>> {
        let (offset, rest) = self.place(address)?;
        let size = count.checked_mul(4).filter(|size| *size <= rest)?;
        let bytes = read_exact(self.source, self.len, offset, size, CHUNK * 4, "a hash table").ok()?;
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        Some(bytes.chunks_exact(4).map(word).collect())
    }
}

impl Entries {
    fn read(bytes: &[u8]) -> Self {
        let mut entries = Self::default();
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let pairs = bytes
            .chunks_exact(16)
            .map(|entry| (word(&entry[..8]), word(&entry[8..])));
        for (tag, value) in pairs.take_while(|(tag, _)| *tag != 0) {
            let Ok(tag) = i64::try_from(tag) else {
                continue;
            };
            match elf::DynamicTag(tag) {
                elf::DT_SYMTAB => entries.symbols = value,
                elf::DT_STRTAB => entries.strings = value,
                elf::DT_STRSZ => entries.strings_size = value,
                elf::DT_HASH => entries.hash = value,
                elf::DT_GNU_HASH => entries.gnu_hash = value,
                elf::DT_RELA => entries.relocations = value,
                elf::DT_RELASZ => entries.relocations_size = value,
                elf::DT_JMPREL => entries.stub_relocations = value,
                elf::DT_PLTRELSZ => entries.stub_relocations_size = value,
                elf::DT_PLTREL => entries.stub_relocations_kind = value,
                _ => {}
            }
        }
        // A relocation table holds whole entries.
        let entry = size_of::<Rela64<LE>>() as u64;
        entries.relocations_size -= entries.relocations_size % entry;
        entries.stub_relocations_size -= entries.stub_relocations_size % entry;
        entries
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
