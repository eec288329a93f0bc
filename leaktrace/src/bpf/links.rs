//! Attaching uprobes: which program serves which place, in an order that cannot invent a leak.
//!
//! Releases are attached first and detached last, then reallocations, then allocations: whatever is seen to be
//! allocated will be seen to be freed.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use leaktrace_common::signature::{Op, Signature};

use super::{
    kernel::{Kernel, LoadError},
    program::UprobeProgram,
    program_set::ProgramSet,
    syscall::AttachType,
};

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A call that gives a block back: entry only.
    Release,
    /// A call that returns a block: entry, and return by return probe.
    Call,
    /// The entry of a call whose return is probed by [`Role::ReturnSite`]s.
    Entry,
    /// A return instruction.
    ReturnSite,
}

/// One place to probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// The file, held open by the caller.
    pub file: BorrowedFd<'a>,
    /// Place in the file.
    pub offset: u64,
    /// How to read the call.
    pub signature: Signature,
    /// What for.
    pub role: Role,
}

/// Why probes could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("failed to attach {count} uprobes for {}: {cause}", scope(*pid))]
    Refused {
        /// How many at once.
        count: usize,
        /// Confined to.
        pid: Option<u32>,
        /// Why.
        cause: io::Error,
    },
    /// A program is missing.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl AttachError {
    /// The process ended while it was being attached to.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { cause, .. } if cause.raw_os_error() == Some(libc::ESRCH))
    }
}

fn scope(pid: Option<u32>) -> String {
    pid.map_or_else(|| "all processes".to_owned(), |pid| format!("pid {pid}"))
}

/// Attached probes. Dropping them detaches, allocations first.
#[derive(Default)]
pub struct Links {
    /// In the order of attaching.
    links: Vec<OwnedFd>,
}

impl Links {
    /// No probes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the probes of another set, attached later.
    pub fn append(&mut self, mut later: Links) {
        self.links.append(&mut later.links);
    }

    /// How many links there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        while self.links.pop().is_some() {}
    }
}

/// The place of a probe in the order of attaching.
fn rank(probe: &Probe<'_>) -> u8 {
    let op = probe.signature.op();
    match probe.role {
        Role::Release => 0,
        // A return without its entry is ignored, an entry without its return is a missed call.
        Role::ReturnSite => 1,
        _ if op == Op::Realloc as u8 || op == Op::Resize as u8 => 2,
        Role::Call | Role::Entry => 3,
    }
}

impl Kernel {
    /// Attaches probes, confined to one process if `pid` is given. All or none.
    /// `own` are programs of the process's own; without it the shared ones serve. Where they are perf events, `pid` may
    /// be that of any of its threads, and the probes are there as long as it lives.
    pub fn attach(
        &self,
        probes: &[Probe<'_>],
        pid: Option<u32>,
        own: Option<&ProgramSet>,
    ) -> Result<Links, AttachError> {
        let mut groups: BTreeMap<(u8, Role, i32), Vec<&Probe<'_>>> = BTreeMap::new();
        for probe in probes {
            groups
                .entry((rank(probe), probe.role, probe.file.as_raw_fd()))
                .or_default()
                .push(probe);
        }
        let set = own.unwrap_or(&self.shared);
        let mut links = Links::new();
        for ((_, role, _), group) in groups {
            for instance in set.serving(role) {
                let program = instance.load(&self.source)?;
                links.links.append(&mut attach(program, &group, pid)?);
            }
        }
        Ok(links)
    }

    /// Attaches programs that do nothing to the same places, as sessions: what the probes cost by themselves.
    pub fn attach_bare(&self, probes: &[Probe<'_>], pid: Option<u32>, entry_only: bool) -> Result<Links, AttachError> {
        let call = if entry_only { "bare_entry" } else { "bare" };
        let call = UprobeProgram::load(&self.source, call, AttachType::Session)?;
        let entry = UprobeProgram::load(&self.source, "bare_entry", AttachType::Multi)?;
        let mut links = Links::new();
        for probe in probes {
            let program = if probe.role == Role::Call { &call } else { &entry };
            links.links.append(&mut attach(program, &[probe], pid)?);
        }
        Ok(links)
    }
}

/// Attaches a program to places of one file.
fn attach(program: &UprobeProgram, probes: &[&Probe<'_>], pid: Option<u32>) -> Result<Vec<OwnedFd>, AttachError> {
    let Some(first) = probes.first() else {
        return Ok(Vec::new());
    };
    let places: Vec<(u64, u64)> = probes.iter().map(|probe| (probe.offset, probe.signature.0)).collect();
    program
        .attach(&path_of(first.file), &places, pid)
        .map_err(|cause| AttachError::Refused {
            count: probes.len(),
            pid,
            cause,
        })
}

/// A path through the descriptor, which names the very file that was inspected, even if its name is gone by now.
pub(super) fn path_of(file: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("there is no NUL in it")
}
