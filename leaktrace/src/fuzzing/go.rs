//! Go: build information, tables, debug information, and the memory of a process.

use std::sync::{Arc, LazyLock};

use super::files::file;
use crate::runtime::go::executable::Executable;
use crate::runtime::go::pclntab::{PclnTable, find_header};
use crate::runtime::go::recording::Recording;
use crate::runtime::go::{GoVersion, buildinfo as build_information, code::GoCode, dwarf, module};

/// Addresses that are looked up in a table.
const ADDRESSES: u64 = 64;

static FIXTURE: LazyLock<Recording> = LazyLock::new(|| {
    Recording::from_bytes(include_bytes!("../../fixtures/go-1.23.recording")).expect("the fixture is whole")
});

/// Any bytes as build information and as a version.
pub(super) fn buildinfo(data: &[u8]) {
    if let Some(info) = build_information::parse(data) {
        GoVersion::parse(&info.version);
    }
    GoVersion::parse(&String::from_utf8_lossy(data));
}

/// A recorded process with words of its memory changed: position and value come from the input.
pub(super) fn memory(data: &[u8]) {
    let mut recording = FIXTURE.clone();
    let starts: Vec<u64> = recording.image.segments().map(|(start, _)| start).collect();
    for change in data.chunks_exact(14).take(256) {
        let number = |bytes: &[u8]| bytes.iter().fold(0usize, |value, &byte| value << 8 | usize::from(byte));
        let start = starts[number(&change[..2]) % starts.len()];
        let Some(bytes) = recording.image.segment_mut(start).filter(|bytes| bytes.len() >= 8) else {
            continue;
        };
        let at = number(&change[2..5]) % (bytes.len() / 8) * 8;
        // One bit says whether the word becomes a pointer to something recorded.
        let value = match change[5] & 1 {
            0 => number(&change[6..14]) as u64,
            _ => starts[number(&change[6..14]) % starts.len()],
        };
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    recording.read();
}

/// Any bytes as a pclntab, and looking addresses up in it.
pub(super) fn pclntab(data: &[u8]) {
    let _ = find_header(data, 0);
    let Ok(table) = PclnTable::new(data, 0x40_0000) else {
        return;
    };
    let table = table.with_inline_data(Arc::new(data.to_vec()));
    // A few addresses all over the text: each costs a walk over the tables of its function.
    let span = table.text_end().saturating_sub(table.text());
    for step in 0..ADDRESSES {
        let pc = table.text() + (span / ADDRESSES).saturating_mul(step) + step;
        table.frames(pc);
        if let Some(function) = table.function_at(pc) {
            table.stack_depth(&function, pc);
        }
    }
    table.find_by_name(["runtime.main"]);
}

/// Any bytes as a Go program: its headers, its tables, its debug information.
pub(super) fn executable(data: &[u8]) {
    let Ok(executable) = Executable::new(file(data)) else {
        return;
    };
    executable.build_id();
    executable.relative_relocations();
    executable.symbols(&["runtime.main", "runtime.memstats"]);
    module::build_info(&executable);
    dwarf::fields(&executable);
    if let Some(code) = GoCode::read(&executable) {
        code.frames(executable.entry);
    }
}
