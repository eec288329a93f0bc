//! Fixtures of the unwind tests: real libraries, and programs and objects built by the machine's compiler.
//!
//! Invariant: a fixture that is missing makes the test say that it skips, except libc and the compiler, which must exist.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made is a failed test")]

mod equivalence;
mod hostile;
mod live;
mod shapes;
mod sharing;
mod steps;
mod uncovered;

use std::path::PathBuf;
use std::process::Command;

use leaktrace_common::unwind::{BLOCK_SIZE, RULE_UNKNOWN};

use super::{ForcedRule, UnknownReason, UnwindTable, compile};
use crate::model::ElfAddress;

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBSTDCXX: &str = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";
const LIBCRYPTO: &str = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
const PYTHON: &str = "/usr/bin/python3";

/// A file that other distributions may keep elsewhere.
fn optional(path: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok();
    if bytes.is_none() {
        eprintln!("skipped: no {path} here");
    }
    bytes
}

/// A rule of the caller's, for no code: nothing is derived from the code beside such, so that a table is what its entries say.
const ENTRIES_ALONE: [ForcedRule; 1] = [ForcedRule::End(ElfAddress(0)..ElfAddress(0))];

fn compile_bytes(bytes: &[u8]) -> UnwindTable {
    compile(&object::File::parse(bytes).unwrap(), &ENTRIES_ALONE).unwrap()
}

/// Runs gcc on a source in a fresh directory, which the first part of the result keeps alive.
pub(in crate::unwind) fn gcc(name: &str, source: &str, arguments: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join(name), directory.path().join("out"));
    std::fs::write(&input, source).unwrap();
    run(Command::new("gcc").args(arguments).arg(&input).arg("-o").arg(&output));
    (directory, output)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The invariants that `leaktrace_common::unwind` states.
fn check_layout(table: &UnwindTable) {
    assert!(table.base.0.is_multiple_of(BLOCK_SIZE));
    assert_eq!(table.blocks.first(), Some(&0));
    assert_eq!(table.blocks.last().copied(), Some(table.rows.len() as u32));
    assert!(table.blocks.is_sorted());
    assert_eq!(
        table.rows.first().unwrap().low,
        0,
        "the first row lies at the first byte"
    );
    for block in table.blocks.windows(2) {
        let rows = &table.rows[block[0] as usize..block[1] as usize];
        assert!(rows.is_sorted_by(|a, b| a.low < b.low), "rows of a block ascend");
    }
    for rows in table.rows.windows(2) {
        let differ = (rows[0].rule, rows[0].bp_offset, rows[0].cfa) != (rows[1].rule, rows[1].bp_offset, rows[1].cfa);
        assert!(differ, "equal neighbours are merged");
        assert!(rows[0].rule != RULE_UNKNOWN || UnknownReason::from_row(rows[0]).is_some());
    }
}

/// The loader's lazy binding and libcrypto's assembly keep their frames in `rbx`, `rax` and the like.
#[test]
fn unknown_rules_are_rare_in_real_libraries() {
    for (path, limit) in [
        (LIBC, 0.01),
        (LOADER, 0.03),
        (LIBSTDCXX, 0.01),
        (LIBCRYPTO, 0.03),
        (PYTHON, 0.01),
    ] {
        let Some(bytes) = optional(path) else { continue };
        let table = compile_bytes(&bytes);
        check_layout(&table);
        let share = table.stats.unknown_share();
        println!(
            "{path}: {} rows, {:.3} % unknown, {:?}",
            table.rows.len(),
            share * 100.0,
            table.stats
        );
        assert!(
            share < limit,
            "{path}: {share} of the code has no rule: {:?}",
            table.stats
        );
        assert_eq!(table.stats.malformed, 0, "{path}");
    }
}
