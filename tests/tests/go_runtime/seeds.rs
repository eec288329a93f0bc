//! Small tables for the fuzz target `go_pclntab`: a few functions of a recorded table, with all that belongs to them.
//!
//! A whole table has half a megabyte, of which a fuzzer changes what nobody looks at.

use std::path::PathBuf;

use leaktrace::runtime::go::pclntab::PclnTable;
use leaktrace::runtime::go::recording::Recording;

const HEADER_LEN: usize = 72;
/// Bytes of a function's record before its lists (Go 1.20 and later).
const RECORD_LEN: usize = 44;
/// Files of a compilation unit that are taken over.
const FILES: usize = 16;

fn fixture() -> Recording {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../leaktrace/fixtures/go-1.23.recording");
    Recording::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn int(data: &[u8], at: usize) -> usize {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize
}

fn set(data: &mut [u8], at: usize, value: usize) {
    data[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

fn string(data: &[u8], at: usize) -> &[u8] {
    let len = data[at..].iter().position(|&byte| byte == 0).unwrap();
    &data[at..=at + len]
}

/// A pc-value table with its end: pairs of numbers of 7 bits a byte, of which the first is 0 at the end.
fn values(data: &[u8], at: usize) -> &[u8] {
    let number = |from: usize| from + data[from..].iter().position(|&byte| byte < 0x80).unwrap() + 1;
    let mut end = at;
    loop {
        if end > at && data[end] == 0 {
            return &data[at..=end];
        }
        end = number(number(end));
    }
}

/// Puts bytes into a part of the table and says where they are.
fn put(part: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let at = part.len();
    part.extend_from_slice(bytes);
    at
}

/// The table of `count` functions from `first` on. Their text begins at offset 0.
fn excerpt(table: &[u8], first: usize, count: usize) -> Vec<u8> {
    let word = |index: usize| u64::from_le_bytes(table[8 + index * 8..16 + index * 8].try_into().unwrap()) as usize;
    let (names, cus, files, pcs, functions) = (word(3), word(4), word(5), word(6), word(7));
    let entry = |index: usize| int(table, functions + index * 8);
    // Offset 0 means "none" in the parts with values and names.
    let (mut new_names, mut new_files, mut new_values) = (vec![0], vec![0], vec![0]);
    let (mut new_cus, mut records) = (Vec::new(), Vec::new());
    let index_len = count * 8 + 4;
    let mut index = vec![0; index_len];
    for at in 0..count {
        let from = functions + int(table, functions + (first + at) * 8 + 4);
        let lists = int(table, from + 28) + usize::from(table[from + 43]);
        let mut record = table[from..from + RECORD_LEN + lists * 4].to_vec();
        set(&mut record, 0, entry(first + at) - entry(first));
        let name = put(&mut new_names, string(table, names + int(&record, 4)));
        set(&mut record, 4, name);
        let tables = [16, 20, 24].into_iter();
        for field in tables.chain((0..int(&record, 28)).map(|list| RECORD_LEN + list * 4)) {
            let old = int(&record, field);
            if old != 0 {
                set(&mut record, field, put(&mut new_values, values(table, pcs + old)));
            }
        }
        let unit = int(&record, 32);
        set(&mut record, 32, new_cus.len() / 4);
        for file in 0..FILES {
            let place = cus + (unit + file) * 4;
            let offset = if place + 4 <= files {
                int(table, place)
            } else {
                u32::MAX as usize
            };
            let offset = match offset as u32 {
                u32::MAX => u32::MAX as usize,
                _ => put(&mut new_files, string(table, files + offset)),
            };
            new_cus.extend_from_slice(&(offset as u32).to_le_bytes());
        }
        set(&mut index, at * 8, entry(first + at) - entry(first));
        let place = put(&mut records, &record);
        set(&mut index, at * 8 + 4, index_len + place);
    }
    set(&mut index, count * 8, entry(first + count) - entry(first));
    index.extend(records);
    let mut out = table[..HEADER_LEN].to_vec();
    let mut place = |number: usize, part: &[u8]| {
        // Parts begin at whole words.
        out.resize(out.len().next_multiple_of(8), 0);
        let at = out.len() as u64;
        out[8 + number * 8..16 + number * 8].copy_from_slice(&at.to_le_bytes());
        out.extend_from_slice(part);
    };
    place(3, &new_names);
    place(4, &new_cus);
    place(5, &new_files);
    place(6, &new_values);
    place(7, &index);
    out[8..16].copy_from_slice(&(count as u64).to_le_bytes());
    out
}

/// First function and how many, of the excerpts: assembly, small functions, large ones with inlining.
fn choices(table: &PclnTable) -> Vec<(usize, usize)> {
    // Some releases say of assembly which calling convention it has.
    let named = |name: &str| {
        (0..table.len()).find(|&index| {
            table.function(index).is_some_and(|function| {
                let found = table.name(&function);
                found.strip_suffix(".abi0").unwrap_or(&found) == name
            })
        })
    };
    ["runtime.goexit", "runtime.main", "runtime.mallocgc", "main.main"]
        .into_iter()
        .map(|name| (named(name).unwrap_or_else(|| panic!("no {name}")), 2))
        .chain([(0, 1), (3, 12)])
        .collect()
}

#[test]
fn an_excerpt_says_of_its_functions_what_the_table_says() {
    let recording = fixture();
    let whole = PclnTable::new(recording.table.as_slice(), 0).unwrap();
    for (first, count) in choices(&whole) {
        // The last function has nothing behind it.
        let count = count.min(whole.len() - first);
        let bytes = excerpt(&recording.table, first, count);
        assert!(bytes.len() < 24 << 10, "{} bytes", bytes.len());
        let small = PclnTable::new(bytes, 0).unwrap();
        let begin = whole.function(first).unwrap().entry;
        for pc in 0..small.text_end() {
            let (ours, theirs) = (small.function_at(pc).unwrap(), whole.function_at(begin + pc).unwrap());
            assert_eq!(small.name(&ours), whole.name(&theirs));
            assert_eq!(small.stack_depth(&ours, pc), whole.stack_depth(&theirs, begin + pc));
            let (ours, theirs) = (small.position(&ours, pc), whole.position(&theirs, begin + pc));
            // Of the files of a unit an excerpt keeps the first few alone: names of others may be wrong, lines are not.
            assert_eq!(ours.1, theirs.1);
        }
    }
}

/// Writes `fuzz/seeds/go_pclntab`.
#[test]
#[ignore = "changes the source tree"]
fn write_the_seeds() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/go_pclntab"));
    std::fs::create_dir_all(&folder).unwrap();
    let recording = fixture();
    let whole = PclnTable::new(recording.table.as_slice(), 0).unwrap();
    for (first, count) in choices(&whole) {
        let count = count.min(whole.len() - first);
        let function = whole.function(first).unwrap();
        let name = whole.name(&function).replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        std::fs::write(folder.join(name), excerpt(&recording.table, first, count)).unwrap();
    }
}
