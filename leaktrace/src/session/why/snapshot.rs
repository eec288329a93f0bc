//! The memory of a process at one moment, by kind.
//!
//! Reading is bounded in bytes and time; what could not be read is `unknown`, with a note.

use std::time::{Duration, Instant};

use super::{
    arenas, go,
    kinds::{self, Facts, Kind, Runtime, Split},
    stacks,
};
use crate::{
    proc::{
        ProcError, living,
        memory::ProcessMemory,
        mounts, read_bounded,
        smaps::{self, Smaps, kilobytes},
    },
    runtime::go::{GoProcess, residency::PageMap},
};

/// How long reading all mappings may take.
const BUDGET: Duration = Duration::from_secs(20);

/// What there is of a process.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was read.
    pub at: Instant,
    /// How long that took.
    pub cost: Duration,
    /// Resident bytes by kind.
    pub split: Split,
    /// Bytes in swap.
    pub swap: u64,
    /// Bytes of page tables.
    pub page_tables: u64,
    /// Bytes in huge pages that were set aside.
    pub hugetlb: u64,
    /// The runtime, if it is a known one that is not read.
    pub runtime: Option<Runtime>,
    /// What is to be said of it.
    pub notes: Vec<String>,
}

impl Snapshot {
    /// Reads a process.
    ///
    /// # Errors
    /// When it is gone or out of reach.
    pub fn take(pid: u32, go: Option<&GoProcess>) -> Result<Self, ProcError> {
        let at = Instant::now();
        let mut notes = Vec::new();
        let smaps = smaps::read(pid, BUDGET)?;
        let status = read_bounded(living::thread(pid), "status", 64 << 10)?;
        if smaps.areas.is_empty() {
            // A process that is about to end has none.
            return Err(ProcError::Exited { pid });
        }
        let facts = facts(pid, &smaps, go, &mut notes);
        let mut split = kinds::classify(&smaps.areas, &facts);
        if let Some(cut) = &smaps.cut {
            let resident = field(&status, b"VmRSS:").unwrap_or(0);
            split.add(Kind::Unknown, resident.saturating_sub(split.total()));
            notes.push(format!("not all memory is told apart: {cut}"));
        }
        let sum = |value: fn(&smaps::Area) -> u64| smaps.areas.iter().map(value).fold(0, u64::saturating_add);
        Ok(Self {
            at,
            cost: at.elapsed(),
            split,
            swap: sum(|area| area.swap),
            page_tables: field(&status, b"VmPTE:").unwrap_or(0),
            hugetlb: sum(|area| area.hugetlb),
            runtime: facts.runtime,
            notes,
        })
    }
}

/// A number of `/proc/PID/status`. The name in the first line may hold anything but a newline, which the kernel escapes.
fn field(status: &[u8], name: &[u8]) -> Option<u64> {
    let mut lines = status.split(|byte| *byte == b'\n');
    kilobytes(lines.find_map(|line| line.strip_prefix(name))?)
}

fn facts(pid: u32, smaps: &Smaps, go: Option<&GoProcess>, notes: &mut Vec<String>) -> Facts {
    let areas = &smaps.areas;
    let mut facts = Facts {
        tmpfs: mounts::in_memory(pid),
        runtime: Runtime::of(areas),
        ..Facts::default()
    };
    if let Some(process) = go {
        go::add_facts(process, areas, &mut facts, notes);
    }
    let pages = PageMap::open(pid).ok();
    let mut found = arenas::find(areas, &ProcessMemory::new(pid))
        .into_iter()
        .map(|(index, range)| (index, range, Kind::Arenas))
        .collect::<Vec<_>>();
    let pointers = stacks::read_pointers(pid);
    if pointers.unknown > 0 && !facts.only_go {
        notes.push(format!(
            "stacks of {} threads, which ran all the time, are among anonymous mappings",
            pointers.unknown
        ));
    }
    let located = stacks::locate(areas, &pointers.known, stacks::size_limit(pid));
    found.extend(located.into_iter().map(|(index, range)| (index, range, Kind::Stacks)));
    for (index, range, kind) in found {
        let Some(area) = areas.get(index) else { continue };
        if facts.whole.contains_key(&area.start) {
            continue;
        }
        if range.start == area.start && range.end == area.end {
            facts.whole.insert(area.start, kind);
        } else if let Some(pages) = &pages {
            let resident = pages.resident(range.start, range.end);
            facts.parts.entry(area.start).or_default().push((kind, resident));
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use memmap2::{Advice, MmapMut};

    use super::*;

    #[test]
    fn this_process_is_told_apart() {
        let pid = std::process::id();
        // Mapped by itself: an allocator may have that much to spare in an arena, after other tests. Memory that a child does
        // not get is joined with no neighbour.
        let mut memory = MmapMut::map_anon(32 << 20).expect("memory");
        memory.advise(Advice::DontFork).expect("it is ours");
        memory.fill(1);
        let snapshot = Snapshot::take(pid, None).expect("our own");
        drop(memory);
        assert!(snapshot.split.total() > 32 << 20 && snapshot.page_tables > 0);
        assert!(snapshot.split.get(&Kind::Anonymous) >= 32 << 20, "{:?}", snapshot.split);
        assert!(snapshot.split.get(&Kind::FileClean) > 0);
        assert_eq!(snapshot.split.get(&Kind::Unknown), 0);
        assert!(Snapshot::take(u32::MAX, None).is_err());
    }

    #[test]
    fn a_name_is_no_field() {
        let status = b"Name:\tVmPTE: 7 kB\\nVmPTE:\nVmPTE:\t      44 kB\n";
        assert_eq!(field(status, b"VmPTE:"), Some(44 << 10));
        assert_eq!(field(b"VmPTE: x", b"VmPTE:"), None);
    }
}
