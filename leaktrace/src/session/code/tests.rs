//! Many processes and too little room: who has most is cut, and what is stored is always whole.

use std::fs::File;

use leaktrace_common::unwind::Row;

use super::*;
use crate::{bpf::tables::TablePiece, model::ElfAddress, unwind::UnwindTable};

/// What the kernel side would see of each process.
type Seen = BTreeMap<u32, (Range<u32>, LeftOut)>;

fn file(inode: u64, blocks: u32, rows_each: u32) -> Arc<CodeFile> {
    let table = UnwindTable {
        base: ElfAddress(0x1000),
        blocks: (0..=blocks).map(|block| block * rows_each).collect(),
        rows: vec![Row::default(); (blocks * rows_each) as usize],
        stats: crate::unwind::TableStats::default(),
    };
    Arc::new(CodeFile {
        id: FileId { device: 1, inode },
        version: FileVersion {
            device: 1,
            inode,
            size: 1,
            changed: (0, 0),
        },
        path: "/lib/x".into(),
        file: File::open("/dev/null").expect("a file"),
        copied: None,
        inspected: None,
        managed: None,
        table: Some(Ok(Arc::new(table))),
    })
}

/// `count` mappings of each of these files.
fn code(files: &[Arc<CodeFile>], count: usize) -> Code {
    let mut spans = Vec::new();
    for (number, file) in files.iter().enumerate() {
        for copy in 0..count {
            let start = ((number * count + copy) as u64 + 1) << 32;
            let blocks = file
                .table
                .as_ref()
                .map_or(0, |table| table.as_ref().map_or(0, |t| t.blocks.len() - 1));
            let span = CodeSpan {
                start,
                end: start + ((blocks as u64) << BLOCK_SHIFT),
                offset: 0,
                file: 0,
                elf_start: 0x1000,
            };
            spans.push((span, Arc::clone(file)));
        }
    }
    Code {
        spans,
        made: Vec::new(),
    }
}

fn store(tables: &mut CodeTables, seen: &mut Seen, user: u32, pid: u32, code: Code) {
    tables.store(Holder { user, pid }, code, &mut |pid, run, left_out| {
        seen.insert(pid, (run, left_out));
    });
}

/// Runs lie in the half that is in use, apart from each other, and are sorted.
fn check(tables: &CodeTables, seen: &Seen) {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for (pid, stored) in &tables.processes {
        let (run, left_out) = &seen[pid];
        assert_eq!((run, left_out), (&stored.run, &stored.left_out));
        assert!(run.is_empty() || run.start >= tables.half.start && run.end <= tables.half.end);
        let records = tables.arrays.mappings.read(run.clone());
        assert!(records.iter().all(|record| record.start < record.end));
        assert!(records.windows(2).all(|pair| pair[0].end <= pair[1].start));
        runs.push(run.clone());
    }
    runs.sort_by_key(|run| run.start);
    assert!(
        runs.windows(2)
            .all(|pair| pair[0].is_empty() || pair[0].end <= pair[1].start)
    );
}

#[test]
fn greedy_mappings_are_cut_for_an_innocent_process() {
    let mut tables = CodeTables::new(UnwindArrays::detached(2 * 1000, 1 << 12, 1 << 14));
    let mut seen = Seen::new();
    let (greedy, common) = (file(1, 4, 3), file(2, 40, 3));
    for pid in 1..=4 {
        let mut code = code(&[Arc::clone(&common)], 1);
        code.spans.extend(
            self::code(&[Arc::clone(&greedy)], 400)
                .spans
                .into_iter()
                .map(|(mut span, file)| {
                    span.start += 1 << 60;
                    span.end += 1 << 60;
                    (span, file)
                }),
        );
        store(&mut tables, &mut seen, 7, pid, code);
        check(&tables, &seen);
    }
    assert!(seen.values().all(|(run, _)| run.len() == 250));
    assert!(
        seen.values()
            .all(|(_, left_out)| left_out.mappings == 151 && left_out.of_mappings == 401)
    );
    // The file that is mapped once is there: it is the first of its kind.
    let records = tables.arrays.mappings.read(seen[&1].0.clone());
    assert_eq!(records[0].end - records[0].start, 40 << BLOCK_SHIFT);
    store(&mut tables, &mut seen, 8, 5, code(&[common], 300));
    check(&tables, &seen);
    assert_eq!(seen[&5].0.len(), 300);
    assert!(!seen[&5].1.is_some());
    assert!((1..=4).all(|pid| seen[&pid].0.len() == 175));
    // When it ends they get its part.
    tables.remove(5);
    seen.remove(&5);
    tables.extend(&mut |pid, run, left_out| {
        seen.insert(pid, (run, left_out));
    });
    check(&tables, &seen);
    assert!(seen.values().all(|(run, _)| run.len() == 250));
}

#[test]
fn holes_refuse_nobody() {
    let mut tables = CodeTables::new(UnwindArrays::detached(2 * 100, 1 << 12, 1 << 14));
    let mut seen = Seen::new();
    let common = file(1, 4, 3);
    for pid in 0..10 {
        store(&mut tables, &mut seen, pid, pid, code(&[Arc::clone(&common)], 10));
    }
    for pid in (0..10).step_by(2) {
        tables.remove(pid);
        seen.remove(&pid);
    }
    store(&mut tables, &mut seen, 99, 99, code(&[Arc::clone(&common)], 50));
    check(&tables, &seen);
    assert!(seen.values().all(|(_, left_out)| !left_out.is_some()));
    // The same when all change at once.
    for round in 0..5 {
        for pid in [1, 3, 5, 7, 9, 99] {
            let count = if pid == 99 {
                45 + round
            } else {
                8 + (pid as usize + round) % 2
            };
            store(&mut tables, &mut seen, pid, pid, code(&[Arc::clone(&common)], count));
            check(&tables, &seen);
            assert!(!seen[&pid].1.is_some());
        }
    }
}

#[test]
fn tables_of_who_has_most_go_first() {
    let mut tables = CodeTables::new(UnwindArrays::detached(2 * 1000, 1 << 14, 32 * 512));
    let mut seen = Seen::new();
    let common = file(1, 100, 4);
    // 30 pages of rows, in files of its own.
    let greedy: Vec<_> = (10..25).map(|inode| file(inode, 100, 10)).collect();
    let mut files = vec![Arc::clone(&common)];
    files.extend(greedy);
    store(&mut tables, &mut seen, 1, 1, code(&files, 1));
    assert!(!seen[&1].1.is_some());
    store(&mut tables, &mut seen, 2, 2, code(&[common, file(50, 500, 6)], 1));
    check(&tables, &seen);
    assert!(!seen[&2].1.is_some(), "{}", seen[&2].1);
    assert!((3..=4).contains(&seen[&1].1.tables), "{}", seen[&1].1);
    // It does not get them back from somebody who has less.
    let again = tables.processes[&1].code.spans.clone();
    store(
        &mut tables,
        &mut seen,
        1,
        1,
        Code {
            spans: again,
            made: Vec::new(),
        },
    );
    assert!(!seen[&2].1.is_some() && (3..=4).contains(&seen[&1].1.tables));
    tables.remove(2);
    seen.remove(&2);
    tables.extend(&mut |pid, run, left_out| {
        seen.insert(pid, (run, left_out));
    });
    assert!(!seen[&1].1.is_some(), "{}", seen[&1].1);
    check(&tables, &seen);
}

#[test]
fn a_table_in_pieces_has_a_record_for_each() {
    let place = |pieces: &[(u32, u32, u32)]| TablePlace {
        pieces: pieces
            .iter()
            .map(|(first, start, count)| TablePiece::of(*first, *start..*start + count + 1))
            .collect(),
    };
    let table = StoredTable {
        place: place(&[(0, 32, 10), (10, 96, 20), (30, 0, 5)]),
        holders: BTreeMap::new(),
    };
    let span = |start, end| CodeSpan {
        start,
        end,
        offset: 0,
        file: 0,
        elf_start: 0,
    };
    let records = |start, end, base| {
        let records = span_records(&span(start, end), Some((&table, base)));
        records
            .iter()
            .map(|record| {
                (
                    record.start,
                    record.end,
                    record.delta,
                    record.block_first,
                    record.block_count,
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        records(0x10000, 0x14000, 0x10000),
        [
            (0x10000, 0x10a00, 0x10000, 32, 10),
            (0x10a00, 0x11e00, 0x10a00, 96, 20),
            (0x11e00, 0x14000, 0x11e00, 0, 5)
        ]
    );
    // A part of the file, and what lies before its table.
    assert_eq!(
        records(0x10b00, 0x10c00, 0x10000),
        [(0x10b00, 0x10c00, 0x10a00, 96, 20)]
    );
    assert_eq!(records(0x1000, 0x2000, 0x10000), [(0x1000, 0x2000, 0x10000, 32, 10)]);
    assert_eq!(records(0x20000, 0x21000, 0x10000), [(0x20000, 0x21000, 0x11e00, 0, 5)]);
}
