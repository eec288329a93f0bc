//! `/tmp/perf-PID.map`: the names that a JIT compiler gives to the code it makes.
//!
//! The parser is pure; who finds, opens and reads the file (in the target's own mount namespace, under its own pid) is the
//! caller's business. The file is written by the target. Invariant: the caller's limit, [`MAX_ENTRIES`] and [`MAX_NAME`]
//! bound what is kept, and lines that are not understood are counted, not believed.

use std::sync::Arc;

/// At most so many entries are kept.
pub const MAX_ENTRIES: usize = 2_000_000;
/// Names are cut to so many bytes.
pub const MAX_NAME: usize = 1024;

/// Code with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address in the process.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Name as the JIT compiler wrote it.
    pub name: Arc<str>,
}

/// All code with names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    /// Sorted by start, without overlaps.
    entries: Vec<Entry>,
    /// Bytes that the entries take with their names, about.
    bytes: usize,
    /// Lines that were left out: not understood, or too many.
    skipped: u64,
}

impl PerfMap {
    /// Begins to add lines. With what is there, `limit` bytes are kept at most.
    pub fn addition(&self, limit: usize) -> Addition {
        Addition {
            entries: Vec::new(),
            skipped: 0,
            room: limit.saturating_sub(self.bytes),
            count: MAX_ENTRIES.saturating_sub(self.entries.len()),
        }
    }

    /// Adds lines. Where lines overlap the later one holds: the compiler appends to the file when it reuses memory.
    pub fn add(&mut self, addition: Addition) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.extend(addition.entries);
        self.entries = without_overlaps(entries);
        self.entries.shrink_to_fit();
        self.bytes = self.entries.iter().map(Entry::bytes).sum();
        self.skipped += addition.skipped;
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The code at an address of the process.
    pub fn find(&self, address: u64) -> Option<&Entry> {
        let after = self.entries.partition_point(|entry| entry.start <= address);
        self.entries[..after].last().filter(|entry| address < entry.end)
    }

    /// Lines that were left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No code has a name.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    /// The name counts in full, though an entry that was cut in two shares it, with what the allocator adds.
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + 32
    }
}

/// Lines that are to be added to a map.
#[derive(Debug)]
pub struct Addition {
    entries: Vec<Entry>,
    skipped: u64,
    /// Bytes and entries that there is room for.
    room: usize,
    count: usize,
}

impl Addition {
    /// Parses lines of `START SIZE NAME`, both numbers hexadecimal.
    pub fn parse(&mut self, bytes: &[u8]) {
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match parse_line(line).filter(|entry| self.count > 0 && entry.bytes() <= self.room) {
                Some(entry) => {
                    self.room -= entry.bytes();
                    self.count -= 1;
                    self.entries.push(entry);
                }
                None => self.skipped += 1,
            }
        }
    }

    /// Nothing was parsed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.skipped == 0
    }
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let text = str::from_utf8(parts.next()?).ok()?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = parts.next()?.trim_ascii();
    let end = start.checked_add(size).filter(|end| *end > start)?;
    (!name.is_empty()).then(|| {
        let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
        Entry {
            start,
            end,
            name: name.into(),
        }
    })
}

/// Cuts earlier entries to what later ones leave of them: one sweep over all starts and ends, with the live entries in
/// a heap by age.
fn without_overlaps(entries: Vec<Entry>) -> Vec<Entry> {
    let mut by_start: Vec<usize> = (0..entries.len()).collect();
    by_start.sort_by_key(|index| (entries[*index].start, *index));
    let mut result: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut live = std::collections::BinaryHeap::new();
    let mut starts = by_start.into_iter().peekable();
    let mut position = 0;
    loop {
        while live
            .peek()
            .is_some_and(|newest: &usize| entries[*newest].end <= position)
        {
            live.pop();
        }
        let next_start = starts.peek().map(|index| entries[*index].start);
        if let Some(start) = next_start.filter(|start| live.is_empty() || *start <= position) {
            position = position.max(start);
            live.extend(starts.next());
            continue;
        }
        let Some(&newest) = live.peek() else { return result };
        let end = next_start.map_or(entries[newest].end, |start| start.min(entries[newest].end));
        match result.last_mut() {
            Some(last) if last.end == position && Arc::ptr_eq(&last.name, &entries[newest].name) => last.end = end,
            _ => result.push(Entry {
                start: position,
                end,
                name: entries[newest].name.clone(),
            }),
        }
        position = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(map: &PerfMap, address: u64) -> Option<&str> {
        map.find(address).map(|entry| entry.name.as_ref())
    }

    fn parse(bytes: &[u8]) -> PerfMap {
        let mut map = PerfMap::default();
        let mut lines = map.addition(usize::MAX);
        lines.parse(bytes);
        map.add(lines);
        map
    }

    #[test]
    fn lines_are_added_within_the_limit() {
        let mut map = parse(b"1000 100 old\n");
        let limit = map.bytes() * 3;
        for text in ["1040 10 new\n", "5000 10 far\n6000 10 beyond\n"] {
            let mut lines = map.addition(limit);
            lines.parse(text.as_bytes());
            map.add(lines);
        }
        // The first one was cut in two by then.
        assert_eq!((name(&map, 0x1045), name(&map, 0x1055)), (Some("new"), Some("old")));
        assert_eq!((map.len(), map.skipped()), (3, 2));
    }

    #[test]
    fn lookup() {
        let map = parse(b"1000 10 LazyCompile:~f /app.js:1\n0x2000 0x20 g\n");
        assert_eq!(name(&map, 0xfff), None);
        assert_eq!(name(&map, 0x1000), Some("LazyCompile:~f /app.js:1"));
        assert_eq!(name(&map, 0x1010), None);
        assert_eq!(name(&map, 0x201f), Some("g"));
        assert_eq!((map.len(), map.skipped()), (2, 0));
    }

    #[test]
    fn reused_memory_has_the_newer_name() {
        let map = parse(b"1000 100 old\n1040 10 new\n2000 10 first\n2000 10 second\n");
        assert_eq!(name(&map, 0x103f), Some("old"));
        assert_eq!(name(&map, 0x1040), Some("new"));
        assert_eq!(name(&map, 0x1050), Some("old"));
        assert_eq!(name(&map, 0x2000), Some("second"));
    }

    #[test]
    fn nonsense_is_counted_and_left_out() {
        let map = parse(b"hello\n1000 0 empty\nffffffffffffffff 2 wraps\n1000 10 \nzz 1 x\n\n3000 1 \xff\n");
        assert_eq!((map.len(), map.skipped()), (1, 5));
        assert_eq!(name(&map, 0x3000), Some("\u{fffd}"));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes).find(0);
        }

        /// Against the plain definition: the last line that covers the address.
        #[test]
        fn the_last_line_holds(lines in prop::collection::vec((0u64..60, 1u64..30), 0..25)) {
            let text: String = lines.iter().enumerate().map(|(i, (start, size))| format!("{start:x} {size:x} f{i}\n")).collect();
            let map = parse(text.as_bytes());
            for address in 0..100 {
                let expected = lines.iter().rposition(|(start, size)| (*start..start + size).contains(&address));
                let expected = expected.map(|i| format!("f{i}"));
                prop_assert_eq!(name(&map, address), expected.as_deref());
            }
        }
    }
}
