//! Compares code with what was decoded, immediately before probes are placed in it.
//!
//! The instruction that the kernel executes for a probe is a copy from the *file*, made when the probe is registered, while
//! the breakpoint goes into the process's *memory*. Where the two are not the same code (another tool's jump stands there,
//! the file was changed in place), a process that hits the breakpoint executes what is not there. So every probe's place,
//! and the code that its place was concluded from, has to be in both what was decoded.
//!
//! A breakpoint in the place of an instruction's first byte is what other probes leave there, and the kernel lets several
//! share a place. It cannot be told from a debugger's: the kernel takes that for a probe that is in place already,
//! the debugger never sees it again, and takes the probe away with it. Where a debugger is attached such a place is
//! refused.
//!
//! Invariant: functions whose blocks meet are probed together or not at all, so what is refused here invents no leak.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use leaktrace_common::signature::Op;

use crate::model::{FileOffset, ProcessAddress};
use crate::object::image::Source;
use crate::probe::decoded::Decoded;
use crate::probe::plan::{FilePlan, Plan, PlannedProbe, Refused};
use crate::proc::maps::{FileId, Mapping};
use crate::proc::memory::MemoryReader;

/// Most bytes of code that are compared for one process.
const MAX_BYTES: usize = 64 << 20;
/// Most pieces of memory that are read for one process: a function has a handful, and a file is mapped once.
const MAX_READS: usize = 1 << 16;

/// Why a function must not be probed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The file is not the one that was decoded.
    #[error("its file was replaced while it was inspected; try again")]
    Replaced,
    /// The file could not be opened when it was to be.
    #[error("its file could not be opened a second time: {0}; try again")]
    Unopened(String),
    /// The file's bytes are others.
    #[error("its file was changed in place, at {0}, after it was inspected; start the program anew")]
    File(FileOffset),
    /// The process's bytes are others.
    #[error(
        "its code in memory, at {0}, is not that of its file: another tool has patched it, or the file was changed in place, \
         and a probe would crash the process; remove that tool, or start the program anew without it"
    )]
    Memory(ProcessAddress),
    /// A breakpoint that may be a debugger's.
    #[error(
        "there is a breakpoint at {at}, and process {debugger} debugs this one: a probe would hide the breakpoint from it; \
         delete the breakpoint, or detach the debugger"
    )]
    Debugged {
        /// The breakpoint.
        at: ProcessAddress,
        /// The process that traces this one.
        debugger: u32,
    },
    /// The kernel places no probes in writable or shared mappings.
    #[error("its code at {0} is mapped writable or shared, where the kernel places no probes")]
    Unprobed(ProcessAddress),
    /// The process's bytes cannot be read.
    #[error("its code in memory cannot be compared with its file: {0}")]
    Unreadable(String),
    /// The place of a probe is not part of what was decoded.
    #[error("its code at {0} in the file could not be decoded")]
    NotDecoded(FileOffset),
    /// Too much.
    #[error("there is more code to compare than {MAX_BYTES} bytes in {MAX_READS} pieces")]
    TooMuch,
}

/// What plans are compared with.
pub struct Process<'a, M> {
    /// Everything that it maps.
    pub mappings: &'a [Mapping],
    /// Its memory.
    pub memory: &'a M,
    /// Whether so many bytes from an address on are in pages that nobody has written to, so that they are the file's: where
    /// memory cannot be read, as where nobody may attach (`kernel.yama.ptrace_scope` is 3), that answers as well.
    pub unwritten: &'a dyn Fn(ProcessAddress, usize) -> bool,
    /// The process that traces it as a debugger does, other than this one.
    pub debugger: Option<u32>,
}

/// Takes the functions out of a plan that must not be probed, and those that must not be without them. `file` gives the
/// bytes that the kernel takes, or why it has none.
pub fn verify<'f, M: MemoryReader>(
    plan: &mut Plan,
    process: &Process<'_, M>,
    file: impl Fn(FileId) -> Result<&'f dyn Source, Difference>,
) {
    let mut by_file: HashMap<FileId, Vec<&Mapping>> = HashMap::new();
    for mapping in process.mappings {
        if let Some(id) = mapping.file {
            by_file.entry(id).or_default().push(mapping);
        }
    }
    let mut comparison = Comparison {
        process,
        trampolines: process
            .mappings
            .iter()
            .filter(|mapping| mapping.is_trampoline())
            .collect(),
        bytes: MAX_BYTES,
        reads: MAX_READS,
    };
    let mut found: HashMap<(FileId, usize), Difference> = HashMap::new();
    for FilePlan { file: id, probes, .. } in &plan.files {
        let mapped = by_file.get(id).map_or(&[][..], Vec::as_slice);
        for (index, probe) in probes.iter().enumerate() {
            let result = file(*id).and_then(|source| comparison.compare(probe, source, mapped));
            if let Err(difference) = result {
                found.insert((*id, index), difference);
            }
        }
    }
    if !found.is_empty() {
        withdraw(plan, &found);
    }
}

struct Comparison<'a, M> {
    process: &'a Process<'a, M>,
    trampolines: Vec<&'a Mapping>,
    bytes: usize,
    reads: usize,
}

impl<M: MemoryReader> Comparison<'_, M> {
    fn compare(&mut self, probe: &PlannedProbe, file: &dyn Source, mapped: &[&Mapping]) -> Result<(), Difference> {
        if let Some(place) = probe
            .places()
            .find(|place| !probe.code.iter().any(|run| run.has(*place)))
        {
            return Err(Difference::NotDecoded(place));
        }
        for run in &probe.code {
            self.compare_file(run, file)?;
            for mapping in mapped {
                self.compare_mapping(run, mapping)?;
            }
        }
        Ok(())
    }

    fn compare_file(&mut self, run: &Decoded, file: &dyn Source) -> Result<(), Difference> {
        self.charge(run.bytes.len())?;
        let mut bytes = vec![0; run.bytes.len()];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], run.offset.0 + filled as u64) {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
        let same = bytes
            .iter()
            .zip(&*run.bytes)
            .take(filled)
            .take_while(|(a, b)| a == b)
            .count();
        if same == run.bytes.len() {
            Ok(())
        } else {
            Err(Difference::File(FileOffset(run.offset.0 + same as u64)))
        }
    }

    /// Memory that cannot be executed is compared, too: the kernel writes breakpoints to whatever is mapped privately.
    fn compare_mapping(&mut self, run: &Decoded, mapping: &Mapping) -> Result<(), Difference> {
        let first = run.offset.0.max(mapping.offset.0);
        let last = run
            .offset
            .0
            .saturating_add(run.bytes.len() as u64)
            .min(mapping.offset.0.saturating_add(mapping.len()));
        if first >= last {
            return Ok(());
        }
        let start = ProcessAddress(mapping.start.0 + (first - mapping.offset.0));
        if mapping.write || mapping.shared {
            return if mapping.execute {
                Err(Difference::Unprobed(start))
            } else {
                Ok(())
            };
        }
        let inside = |offset: u64| (offset - run.offset.0) as usize;
        let Some(part) = run.part(inside(first), inside(last)) else {
            return Ok(());
        };
        self.charge(part.bytes.len())?;
        let mut bytes = vec![0; part.bytes.len()];
        match self.process.memory.read(start, &mut bytes) {
            Ok(()) => {}
            Err(_) if !mapping.execute || (self.process.unwritten)(start, part.bytes.len()) => return Ok(()),
            Err(error) => return Err(Difference::Unreadable(error.to_string())),
        }
        let at = |position: usize| ProcessAddress(start.0 + position as u64);
        let is_trampoline = |position: usize, distance: i32| {
            let target = ProcessAddress(at(position).0.wrapping_add_signed(distance.into()));
            let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&target);
            self.trampolines.iter().any(holds)
        };
        let mut breakpoints = Vec::new();
        if let Some(position) = part.differs(&bytes, is_trampoline, &mut breakpoints) {
            return Err(Difference::Memory(at(position)));
        }
        match (breakpoints.first(), self.process.debugger) {
            (Some(position), Some(debugger)) => Err(Difference::Debugged {
                at: at(*position),
                debugger,
            }),
            _ => Ok(()),
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Difference> {
        match (self.bytes.checked_sub(bytes), self.reads.checked_sub(1)) {
            (Some(bytes), Some(reads)) => {
                (self.bytes, self.reads) = (bytes, reads);
                Ok(())
            }
            _ => Err(Difference::TooMuch),
        }
    }
}

/// Leaves out what was found to differ, and what must not be probed without it: all of the same file, which share an
/// allocator; and, if something that gives blocks back is among that, the files that have nothing of the kind themselves
/// (`operator new` of a C++ library, whose blocks are given back by libc's `free`).
fn withdraw(plan: &mut Plan, found: &HashMap<(FileId, usize), Difference>) {
    let is = |probe: &PlannedProbe, op: Op| probe.signature.op() == op as u8;
    let differing: HashSet<FileId> = found.keys().map(|(id, _)| *id).collect();
    let gives_back = |probe: &PlannedProbe| is(probe, Op::Free) || is(probe, Op::Realloc);
    let mut withdrawn: Vec<FilePlan> = Vec::new();
    let mut kept: Vec<FilePlan> = Vec::new();
    for file in std::mem::take(&mut plan.files) {
        if differing.contains(&file.file) {
            withdrawn.push(file);
        } else {
            kept.push(file);
        }
    }
    if withdrawn.iter().flat_map(|file| &file.probes).any(gives_back) {
        let (complete, dependent) = kept
            .into_iter()
            .partition(|file| file.probes.iter().any(|probe| is(probe, Op::Free)));
        kept = complete;
        withdrawn.extend::<Vec<FilePlan>>(dependent);
    }
    let mut causes = Vec::new();
    let mut others = Vec::new();
    for file in withdrawn {
        plan.withdrawn.push(file.file);
        for (index, probe) in file.probes.into_iter().enumerate() {
            let refused = |reason| Refused {
                symbol: probe.symbol,
                path: PathBuf::clone(&file.path),
                reason,
            };
            match found.get(&(file.file, index)) {
                Some(difference) => causes.push(refused(difference.to_string())),
                None => others.push(refused(String::new())),
            }
        }
    }
    if let Some(cause) = causes.first() {
        for other in &mut others {
            other.reason = format!(
                "without `{}`, which must not be probed, its blocks would look leaked or be missed",
                cause.symbol
            );
        }
    }
    // Whoever names one function names the cause.
    causes.append(&mut others);
    causes.append(&mut plan.refused);
    plan.refused = causes;
    plan.files = kept;
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
