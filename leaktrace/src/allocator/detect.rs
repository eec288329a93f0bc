//! Decides which allocation functions of a process are hooked, with a reason for each decision.
//!
//! - A **base** function (`malloc`, `mallocx`, `mi_malloc`, …) is hooked in every file that defines it: symbol interposition
//!   decides at run time which definition wins, and nested calls count once. Only a mere jump to another one is not.
//! - A **wrapper** (`operator new`, `__rust_alloc`, `reallocarray`, …) is hooked only if a way through it avoids what is
//!   hooked (see [`flow`](crate::allocator::flow)): libstdc++'s operators end in `malloc`, jemalloc's have its fast path inlined.
//!
//! - The entry points of an allocator that a Rust program brings along are hooked only if they see all of its calls (see
//!   [`partial`](crate::allocator::partial)); else what stands behind them is, or nothing of it.
//!
//! Invariant: a skipped function always reaches a hooked one, so no allocation is lost by a decision made here. The
//! exceptions are named in their reasons.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use leaktrace_common::signature::{Op, Signature};

use crate::allocator::catalog::{self, Layer};
use crate::allocator::flow::{Funnel, Walk};
use crate::allocator::inspect::{Candidate, ProcessFile, ProcessFiles};
use crate::allocator::partial::{self, Coverage, Implementation};
use crate::model::ElfAddress;
use crate::object::code::{Callee, can_decode};

/// One function to hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its names, the most basic one first.
    pub names: Vec<String>,
    /// How to read its arguments.
    pub signature: Signature,
    /// It may call others that are hooked, as part of what it does.
    pub nests: bool,
    /// May leave by an exception: no uretprobe.
    pub can_throw: bool,
    /// Where it begins.
    pub address: ElfAddress,
    /// Its size, 0 if unknown.
    pub size: u64,
    /// Index into the files that were given.
    pub file: usize,
    /// Why it is hooked.
    pub reason: String,
}

/// One function that is not hooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its most basic name.
    pub symbol: String,
    /// The file that defines it, as the process sees it.
    pub file: PathBuf,
    /// Why it is not hooked.
    pub reason: String,
}

/// The decisions for one process.
#[derive(Clone, Debug, Default)]
pub struct Detection {
    /// Functions to hook, by file and address.
    pub hooks: Vec<Hook>,
    /// Functions of the catalogue that are not.
    pub skipped: Vec<Skipped>,
    /// Allocators of which nothing is hooked because only a part of their calls would be seen.
    pub unseen: Vec<Skipped>,
    /// Every file that was searched, with a note where a part of it could not be read.
    pub looked_in: Vec<(PathBuf, Option<String>)>,
}

/// No decision could be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DetectError {
    /// Nothing of the catalogue was found.
    #[error(
        "no known allocator: looked for malloc, operator new, __rust_alloc, jemalloc, tcmalloc and mimalloc functions in \
         the symbols of {}{}", list(.looked_in), advice(*.nameless)
    )]
    NoAllocator {
        /// Where it was looked for, and what could not be read.
        looked_in: Vec<(PathBuf, Option<String>)>,
        /// The only file is a program without any symbols: it is linked statically and stripped.
        nameless: bool,
    },
}

/// What to do about a program without names.
pub const NAMELESS_REMEDY: &str = "run a copy that is not stripped, or let `leaktrace daemon` follow its growth, which \
                                   needs no allocator";

fn advice(nameless: bool) -> String {
    if nameless {
        format!(
            "; the program is linked statically and stripped, so its malloc has no name any more: {NAMELESS_REMEDY}"
        )
    } else {
        String::new()
    }
}

fn list(files: &[(PathBuf, Option<String>)]) -> String {
    if files.is_empty() {
        return "no file (nothing executable is mapped)".into();
    }
    let mut names: Vec<String> = files
        .iter()
        .take(8)
        .map(|(path, note)| match note {
            Some(note) => format!("`{}` ({note})", path.display()),
            None => format!("`{}`", path.display()),
        })
        .collect();
    if files.len() > names.len() {
        names.push(format!("{} more files", files.len() - names.len()));
    }
    names.join(", ")
}

/// Decides for all files of a process. After a `dlopen`, call it again with the new list: decisions depend on all files.
///
/// # Errors
/// [`DetectError::NoAllocator`] when nothing can be hooked.
pub fn detect(process: &ProcessFiles) -> Result<Detection, DetectError> {
    let mut detector = Detector::new(&process.files);
    for (file, ProcessFile { inspected, .. }) in process.files.iter().enumerate() {
        for candidate in 0..inspected.candidates.len() {
            detector.decide((file, candidate));
        }
    }
    let mut detection = detector.finish();
    for file in &process.files {
        let complaints = &file.inspected.complaints;
        let unseen = detection.unseen.iter().filter(|unseen| unseen.file == file.path);
        let reasons = unseen.map(|unseen| &unseen.reason);
        let notes: Vec<&str> = complaints.iter().chain(reasons).map(String::as_str).collect();
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        detection.looked_in.push((file.path.clone(), note));
    }
    detection.looked_in.extend(
        process
            .unreadable
            .iter()
            .map(|file| (file.path.clone(), Some(file.reason.clone()))),
    );
    if detection.hooks.is_empty() {
        return Err(DetectError::NoAllocator {
            looked_in: detection.looked_in,
            nameless: matches!(&process.files[..], [program] if program.inspected.nameless)
                && process.unreadable.is_empty(),
        });
    }
    Ok(detection)
}

/// File and candidate.
type Key = (usize, usize);

#[derive(Clone, Debug)]
enum Decision {
    /// Being decided: a cycle proves nothing.
    Pending,
    Hook(String),
    /// Reaches a hooked one.
    Funnels(String),
    /// Is left out although it reaches none.
    LeftOut(String),
    /// Is left out with the rest of its allocator, whose memory is not seen then.
    Unseen(String),
}

struct Detector<'a> {
    files: &'a [ProcessFile],
    by_name: HashMap<&'a [u8], Vec<Key>>,
    decisions: HashMap<Key, Decision>,
    /// What is hooked in place of entry points, by file.
    behind: Vec<(usize, Implementation, String)>,
}

impl<'a> Detector<'a> {
    fn new(files: &'a [ProcessFile]) -> Self {
        let mut by_name: HashMap<&[u8], Vec<Key>> = HashMap::new();
        for (file, ProcessFile { inspected, path, .. }) in files.iter().enumerate() {
            if is_loader(path) {
                continue;
            }
            for (index, candidate) in inspected.candidates.iter().enumerate() {
                for name in &candidate.names {
                    by_name.entry(name.as_bytes()).or_default().push((file, index));
                }
            }
        }
        Self {
            files,
            by_name,
            decisions: HashMap::new(),
            behind: Vec::new(),
        }
    }

    fn candidate(&self, (file, candidate): Key) -> &'a Candidate {
        &self.files[file].inspected.candidates[candidate]
    }

    /// Decides on a candidate, and first on those that it calls. Calls nest as deep as wrappers do, a handful at most:
    /// each level is a different candidate and wrappers that are pending are not entered again.
    fn decide(&mut self, key: Key) -> bool {
        if let Some(decision) = self.decisions.get(&key) {
            return matches!(decision, Decision::Hook(_) | Decision::Funnels(_));
        }
        self.decisions.insert(key, Decision::Pending);
        let decision = self.judge(key);
        let reached = matches!(decision, Decision::Hook(_) | Decision::Funnels(_));
        self.decisions.insert(key, decision);
        reached
    }

    fn judge(&mut self, key: Key) -> Decision {
        let candidate = self.candidate(key);
        let (file, path) = (&self.files[key.0], &self.files[key.0].path);
        let image = &file.inspected.image;
        if is_loader(path) {
            return Decision::LeftOut("serves the dynamic loader alone, until libc is there".into());
        }
        if !can_decode(image.machine()) {
            return self.judge_without_code(key);
        }
        let signature = candidate.entry.signature;
        let frees = signature.op() == Op::Free as u8;
        let mut reaches = |callee: &Callee| self.reaches(key, callee);
        match candidate.entry.layer {
            Layer::Base => match Walk::new(image, frees, &mut reaches).thunk_target(candidate.address) {
                Some(target) => Decision::Funnels(format!("only jumps to {target}")),
                None => Decision::Hook(match file.inspected.shape {
                    Some(library) => format!("found by shape: {library}'s {}", candidate.names[0]),
                    None => "an allocator's own function".into(),
                }),
            },
            Layer::Wrapper => match Walk::new(image, frees, &mut reaches).funnel(candidate.address) {
                // libstdc++ rounds the size of an aligned `new` up to its alignment before it asks for memory: only a
                // hook out here sees what was requested. The array and nothrow forms call the plain one.
                Funnel::Always(targets) if is_aligned_new(candidate) && !targets.iter().all(|name| is_new(name)) => {
                    Decision::Hook(format!("rounds the size up before it calls {}", targets.join(", ")))
                }
                Funnel::Always(targets) => Decision::Funnels(format!("always reaches {}", targets.join(", "))),
                Funnel::Around(way) => Decision::Hook(format!("does not always reach a hooked function: {way}")),
            },
        }
    }

    /// Where code cannot be read: nested calls count once, so hooking too much is right, only dearer. What can throw is
    /// left out as long as a base function is there, because its return instructions cannot be found.
    fn judge_without_code(&self, key: Key) -> Decision {
        let candidate = self.candidate(key);
        if candidate.entry.layer == Layer::Base || !candidate.entry.can_throw {
            return Decision::Hook("code of this architecture is not decoded: hooked wherever it is defined".into());
        }
        Decision::LeftOut("can throw, and its return instructions cannot be found on this architecture".into())
    }

    /// Whether a callee is a fitting allocation function that is hooked or reaches one. `None` also for itself.
    fn reaches(&mut self, caller: Key, callee: &Callee) -> Option<String> {
        let (keys, name) = self.definitions(caller, callee)?;
        let wanted = self.candidate(caller).entry.signature;
        let fits = |key: &Key| stands_for(self.candidate(*key).entry.signature, wanted);
        // Any of the definitions may be the one that wins.
        if keys.is_empty() || !keys.iter().all(fits) || keys.contains(&caller) {
            return None;
        }
        keys.into_iter().take(64).all(|key| self.decide(key)).then_some(name)
    }

    /// What a callee may be: candidates, and its name.
    fn definitions(&self, caller: Key, callee: &Callee) -> Option<(Vec<Key>, String)> {
        match callee {
            Callee::Local(address) => {
                let index = self.files[caller.0].inspected.candidate_at(*address)?;
                let key = (caller.0, index);
                Some((vec![key], self.candidate(key).names[0].clone()))
            }
            Callee::Symbol(name) => {
                catalog::lookup(name)?;
                let keys = self.by_name.get(name.as_slice())?.clone();
                Some((keys, String::from_utf8_lossy(name).into_owned()))
            }
            Callee::Unknown => None,
        }
    }

    /// Whether a hooked function may call another that returns blocks and is hooked, or reaches one. To be asked when all
    /// is decided.
    fn nests(&self, key: Key) -> bool {
        let candidate = self.candidate(key);
        if candidate.entry.signature.op() == Op::Free as u8 {
            return false;
        }
        let image = &self.files[key.0].inspected.image;
        if !can_decode(image.machine()) {
            // What is usual.
            return candidate.entry.layer == Layer::Wrapper || candidate.entry.signature.op() == Op::Realloc as u8;
        }
        let counts = |other: &Key| {
            *other != key
                && self.candidate(*other).entry.signature.op() != Op::Free as u8
                && matches!(
                    self.decisions.get(other),
                    Some(Decision::Hook(_) | Decision::Funnels(_))
                )
        };
        let mut reaches = |callee: &Callee| {
            let (keys, name) = self.definitions(key, callee)?;
            keys.iter().any(counts).then_some(name)
        };
        Walk::new(image, false, &mut reaches).may_reach(candidate.address)
    }

    fn finish(mut self) -> Detection {
        self.leave_out_half_inlined_rust();
        self.look_behind_inlined_rust();
        let mut detection = Detection::default();
        let nesting: HashSet<Key> = self
            .decisions
            .iter()
            .filter(|(key, decision)| matches!(decision, Decision::Hook(_)) && self.nests(**key))
            .map(|(key, _)| *key)
            .collect();
        let mut decisions: Vec<(Key, Decision)> = self.decisions.drain().collect();
        decisions.sort_by_key(|(key, _)| *key);
        for ((file, index), decision) in decisions {
            let candidate = &self.files[file].inspected.candidates[index];
            match decision {
                Decision::Hook(reason) => detection.hooks.push(Hook {
                    names: candidate.names.clone(),
                    signature: candidate.entry.signature,
                    nests: nesting.contains(&(file, index)),
                    can_throw: candidate.entry.can_throw,
                    address: candidate.address,
                    size: candidate.size,
                    file,
                    reason,
                }),
                Decision::Funnels(reason) | Decision::LeftOut(reason) => detection.skipped.push(Skipped {
                    symbol: candidate.names[0].clone(),
                    file: self.files[file].path.clone(),
                    reason,
                }),
                Decision::Unseen(reason) => {
                    let name = partial::shown(&candidate.names[0]);
                    let path = &self.files[file].path;
                    match detection.unseen.last_mut().filter(|last| last.file == *path) {
                        Some(last) => last.symbol = format!("{}, {name}", last.symbol),
                        None => detection.unseen.push(Skipped {
                            symbol: name,
                            file: path.clone(),
                            reason,
                        }),
                    }
                }
                Decision::Pending => unreachable!("decide replaces it before it returns"),
            }
        }
        let behind = self.behind.into_iter().map(|(file, function, reason)| Hook {
            names: vec![function.symbol],
            signature: function.signature,
            // One may call another of them.
            nests: function.signature.op() != Op::Free as u8,
            can_throw: false,
            address: function.address,
            size: function.size,
            file,
            reason,
        });
        detection.hooks.extend(behind);
        detection.hooks.sort_by_key(|hook| (hook.file, hook.address));
        detection
    }

    /// Of the entry points that are still to be hooked, asks the code whether they see all calls.
    fn look_behind_inlined_rust(&mut self) {
        for file in 0..self.files.len() {
            let inspected = &self.files[file].inspected;
            let hooked = self.hooked_rust(file);
            if hooked.is_empty() || !can_decode(inspected.image.machine()) {
                continue;
            }
            let entries: Vec<partial::Entry> = hooked
                .iter()
                .map(|key| self.candidate(*key))
                .map(|candidate| partial::Entry {
                    address: candidate.address,
                    signature: candidate.entry.signature,
                })
                .collect();
            let decision = match inspected.coverage(&entries) {
                Coverage::Whole => continue,
                Coverage::Behind { functions, by } => {
                    let reason = "does the work of an entry point that was inlined elsewhere";
                    let functions = functions.into_iter();
                    self.behind
                        .extend(functions.map(|function| (file, function, reason.to_owned())));
                    Decision::Funnels(format!("inlined {by}: what stands behind it is hooked"))
                }
                Coverage::Unknown(reason) => Decision::Unseen(reason),
            };
            for key in hooked {
                self.decisions.insert(key, decision.clone());
            }
        }
    }

    /// Entry points of a Rust allocator that are to be hooked in a file, by address.
    fn hooked_rust(&self, file: usize) -> Vec<Key> {
        (0..self.files[file].inspected.candidates.len())
            .map(|index| (file, index))
            .filter(|key| is_rust(&self.candidate(*key).names[0]))
            .filter(|key| matches!(self.decisions.get(key), Some(Decision::Hook(_))))
            .collect()
    }

    /// With the deallocation entry point inlined into its callers and the allocation one not, each block would look
    /// leaked. Better to see nothing of such a program's Rust layer than that.
    fn leave_out_half_inlined_rust(&mut self) {
        for file in 0..self.files.len() {
            let rust = self.hooked_rust(file);
            let frees = |key: &Key| self.candidate(*key).entry.signature.op() == Op::Free as u8;
            if !rust.is_empty() && !rust.iter().any(frees) {
                let reason = "its deallocation function was inlined: every block would look leaked";
                for key in rust {
                    self.decisions.insert(key, Decision::Unseen(reason.into()));
                }
            }
        }
    }
}

fn is_new(name: &str) -> bool {
    name.starts_with("_Znw") || name.starts_with("_Zna")
}

fn is_aligned_new(candidate: &Candidate) -> bool {
    candidate
        .names
        .iter()
        .any(|name| is_new(name) && name.contains("St11align_val_t"))
}

fn is_rust(name: &str) -> bool {
    ["___rust_", "__rust_", "___rg_", "__rg_", "___rdl_", "__rdl_"]
        .iter()
        .any(|part| name.contains(part))
}

/// Whether a call of `callee` does to the heap what a call of `caller` has to do.
fn stands_for(callee: Signature, caller: Signature) -> bool {
    let is = |signature: Signature, op: Op| signature.op() == op as u8;
    let allocates = is(callee, Op::Alloc) || is(callee, Op::AllocOut);
    if is(caller, Op::Free) {
        is(callee, Op::Free)
    } else if is(caller, Op::Realloc) {
        is(callee, Op::Realloc) || allocates
    } else if is(caller, Op::Resize) {
        is(callee, Op::Resize)
    } else {
        allocates || is(callee, Op::Realloc)
    }
}

/// The dynamic loader of glibc, which has a small allocator of its own (musl's is libc itself, and is called `ld-musl-…`).
fn is_loader(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.starts_with("ld-linux") || name.starts_with("ld-2.") || name == "ld.so.1"
}
