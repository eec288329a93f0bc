//! Which probes a process needs, and where each stands.
//!
//! Made from a [`Detection`] and what the kernel can do; attaching is `bpf`'s work. Invariant: a function that can throw
//! never gets a probe that replaces its return address.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use leaktrace_common::signature::{Op, Signature};

use crate::allocator::detect::{Detection, Hook};
use crate::allocator::inspect::ProcessFile;
use crate::model::{ElfAddress, FileOffset};
use crate::probe::decoded::Decoded;
use crate::probe::returns::{self, ReturnSites, ReturnsError};
use crate::probe::site::{self, Demand, Site, SiteError};
use crate::proc::{files::FileVersion, maps::FileId};

/// Most files of which sites are remembered.
const MAX_CACHED: usize = 65_536;

/// What decides how probes can be placed on this kernel, for one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// A uretprobe would get the target killed: it has a seccomp filter, and the kernel is 6.11 to 6.13.
    pub uretprobes_kill: bool,
    /// The kernel emulates long NOPs (Linux 6.16 and later).
    pub long_nops: bool,
}

/// How the end of a call is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReturnProbe {
    /// It need not be: the call gives back memory.
    None,
    /// A uretprobe, or the return half of a session.
    FunctionReturn,
    /// Probes on these return instructions. They fire for other functions too that share the instruction, and a call may
    /// end without passing one (by an exception, or a way out that could not be followed): the entry's stack pointer tells.
    Instructions(Vec<FileOffset>),
}

/// One hooked function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    /// Its most basic name.
    pub symbol: String,
    /// Other names of the same function.
    pub aliases: Vec<String>,
    /// How to read its arguments where the entry probe stands (they may have been moved there; see [`Site::signature`]).
    pub signature: Signature,
    /// Where the function begins.
    pub function: ElfAddress,
    /// Where the entry probe stands.
    pub entry: Site,
    /// How the return is seen.
    pub ret: ReturnProbe,
    /// Why the function is hooked, and why its return is seen that way.
    pub reason: String,
    /// All code that the places were concluded from.
    pub code: Vec<Decoded>,
}

impl PlannedProbe {
    /// Where its probes stand in the file.
    pub fn places(&self) -> impl Iterator<Item = FileOffset> {
        let returns = match &self.ret {
            ReturnProbe::Instructions(returns) => returns.as_slice(),
            ReturnProbe::None | ReturnProbe::FunctionReturn => &[],
        };
        std::iter::once(self.entry.offset).chain(returns.iter().copied())
    }
}

/// The probes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// Device and inode.
    pub file: FileId,
    /// Path as the process sees it.
    pub path: PathBuf,
    /// Path by which probes can be attached from here.
    pub access_path: PathBuf,
    /// The file has no symbols: whose functions these are, by their shape.
    pub shape: Option<&'static str>,
    /// In order of address.
    pub probes: Vec<PlannedProbe>,
}

/// A function that should be hooked and cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its most basic name.
    pub symbol: String,
    /// The file that defines it.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` in `{}`: {}", self.symbol, self.path.display(), self.reason)
    }
}

/// The probes of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Files with at least one probe.
    pub files: Vec<FilePlan>,
    /// What had to be left out: allocations of these are not seen.
    pub refused: Vec<Refused>,
    /// Files of which functions were left out because of what was found in the process's memory (see `verify`).
    pub withdrawn: Vec<FileId>,
}

impl Plan {
    /// All probes with their file.
    pub fn probes(&self) -> impl Iterator<Item = (&FilePlan, &PlannedProbe)> {
        self.files
            .iter()
            .flat_map(|file| file.probes.iter().map(move |probe| (file, probe)))
    }

    /// Why nothing is probed although there is something to probe; `None` where that is not so.
    pub fn nothing_left(&self) -> Option<&Refused> {
        self.refused.first().filter(|_| self.files.is_empty())
    }

    /// Whether all calls of an operation are probed at instructions that the kernel executes step by step, which costs ten
    /// times as much a hit.
    pub fn is_stepped(&self, op: Op) -> bool {
        let mut probes = self
            .probes()
            .filter(|(_, probe)| probe.signature.op() == op as u8)
            .peekable();
        probes.peek().is_some() && probes.all(|(_, probe)| !probe.entry.emulated)
    }
}

/// Makes plans, and decodes each file only once.
#[derive(Debug, Default)]
pub struct Planner {
    sites: HashMap<(FileVersion, ElfAddress, Demand), Result<Site, SiteError>>,
}

impl Planner {
    /// Nothing is decoded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan for a process. `files` are those that the detection was made from.
    pub fn plan(&mut self, detection: &Detection, files: &[ProcessFile], features: Features) -> Plan {
        let hooked: HashSet<&[u8]> = detection
            .hooks
            .iter()
            .flat_map(|hook| hook.names.iter().map(String::as_bytes))
            .collect();
        let mut plan = Plan::default();
        for hook in &detection.hooks {
            let Some(file) = files.get(hook.file) else { continue };
            match self.probe(hook, file, features, &hooked) {
                Ok(probe) => match plan.files.last_mut().filter(|last| last.file == file.id) {
                    Some(last) => last.probes.push(probe),
                    None => plan.files.push(FilePlan {
                        file: file.id,
                        path: file.path.clone(),
                        access_path: file.access_path.clone(),
                        shape: file.inspected.shape,
                        probes: vec![probe],
                    }),
                },
                Err(reason) => {
                    plan.refused.push(Refused {
                        symbol: hook.names[0].clone(),
                        path: file.path.clone(),
                        reason,
                    });
                }
            }
        }
        plan.refused.extend(detection.unseen.iter().map(|unseen| Refused {
            symbol: unseen.symbol.clone(),
            path: unseen.file.clone(),
            reason: unseen.reason.clone(),
        }));
        plan
    }

    fn probe(
        &mut self,
        hook: &Hook,
        file: &ProcessFile,
        features: Features,
        hooked: &HashSet<&[u8]>,
    ) -> Result<PlannedProbe, String> {
        let image = &file.inspected.image;
        let mut code = Vec::new();
        let (ret, how) = if hook.signature.op() == Op::Free as u8 {
            (ReturnProbe::None, None)
        } else if hook.can_throw || features.uretprobes_kill {
            let why = if hook.can_throw {
                "it can throw"
            } else {
                "a uretprobe would get this target killed"
            };
            let found: Result<ReturnSites, ReturnsError> =
                returns::find(image, hook.address, hook.size, |name| hooked.contains(name));
            let found = found.map_err(|error| format!("{why}, and its returns cannot be probed: {error}"))?;
            let mut how = format!("{why}: {} return instructions", found.offsets.len());
            if !found.leaves_to.is_empty() {
                how.push_str(&format!(", or the returns of {}", found.leaves_to.join(", ")));
            }
            if let Some(way) = &found.incomplete {
                how.push_str(&format!(" (not all: {way})"));
            }
            code = found.code;
            (ReturnProbe::Instructions(found.offsets), Some(how))
        } else {
            (ReturnProbe::FunctionReturn, None)
        };
        let demand = Demand {
            signature: hook.signature,
            // Also for probes on return instructions: they recognise their call by the entry's stack pointer.
            return_probe: ret != ReturnProbe::None,
            long_nops: features.long_nops,
        };
        let entry = self
            .site(file, hook.address, demand)
            .map_err(|error| error.to_string())?;
        code.extend_from_slice(&entry.code);
        Ok(PlannedProbe {
            symbol: hook.names[0].clone(),
            aliases: hook.names[1..].to_vec(),
            signature: if hook.nests {
                entry.signature.nesting()
            } else {
                entry.signature
            },
            function: hook.address,
            entry,
            ret,
            reason: [
                Some(hook.reason.clone()),
                how,
                hook.nests.then(|| "may call other hooked functions".to_owned()),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("; "),
            code,
        })
    }

    fn site(&mut self, file: &ProcessFile, function: ElfAddress, demand: Demand) -> Result<Site, SiteError> {
        let image = &file.inspected.image;
        // A full cache begins anew: sites are cheap to find again, memory is not unbounded.
        if self.sites.len() >= MAX_CACHED {
            self.sites.clear();
        }
        self.sites
            .entry((file.version, function, demand))
            .or_insert_with(|| site::choose(image, function, demand))
            .clone()
    }
}
