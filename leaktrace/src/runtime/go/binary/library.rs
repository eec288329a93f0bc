//! Go in a shared library (`-buildmode=c-shared`): which of a process's mapped files holds a runtime.
//!
//! Only files whose section headers name Go's tables are taken: searching each library of a C program for them would
//! read it whole. A process with several such libraries has several runtimes; the one at the lowest address is read.
//! Invariant: the bias of a [`Library`] is that of the mapping through which its file was opened.

use std::path::PathBuf;

use hashbrown::HashSet;

use super::executable::Executable;
use crate::proc::ProcError;
use crate::proc::files::open_mapped;
use crate::proc::maps::{Mapping, read_maps};

/// Files that are looked at; a process with more has its Go runtime among the first or is not read.
const MAX_FILES: usize = 4096;

/// A mapped file that holds a Go runtime.
pub(in crate::runtime::go) struct Library {
    /// As the process names it.
    pub path: PathBuf,
    /// Its file.
    pub executable: Executable,
    /// What to add to the file's addresses.
    pub bias: u64,
}

/// The first mapped library with Go in it.
pub(in crate::runtime::go) fn find(pid: u32) -> Result<Option<Library>, ProcError> {
    let mut seen = HashSet::new();
    for mapping in read_maps(pid)? {
        let Some(file) = mapping.file.filter(|_| mapping.execute) else {
            continue;
        };
        if !seen.insert(file) || seen.len() > MAX_FILES {
            continue;
        }
        // One that cannot be opened or is no ELF file is not what is looked for.
        let Ok(opened) = open_mapped(pid, &mapping) else {
            continue;
        };
        let Ok(executable) = Executable::new(opened.file) else {
            continue;
        };
        let is_go = [".go.buildinfo", ".gopclntab", ".data.rel.ro.gopclntab"]
            .iter()
            .any(|name| executable.section(name).is_some());
        if let Some(bias) = bias(&executable, &mapping).filter(|_| is_go) {
            return Ok(Some(Library {
                path: mapping.path,
                executable,
                bias,
            }));
        }
    }
    Ok(None)
}

/// The distance between where a mapping is and where the file says that its bytes are. Mappings begin at whole pages,
/// segments need not.
fn bias(executable: &Executable, mapping: &Mapping) -> Option<u64> {
    let offset = mapping.offset.0;
    let segment = executable.segments.iter().find(|segment| {
        let begin = segment.offset & !0xfff;
        begin <= offset && offset < segment.offset.saturating_add(segment.file_len)
    })?;
    let stated = segment.address.wrapping_add(offset).wrapping_sub(segment.offset);
    Some(mapping.start.0.wrapping_sub(stated))
}
