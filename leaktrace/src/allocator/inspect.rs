//! Opens the files that a process maps and finds the catalogue's functions in them.
//!
//! A file is read once, however many processes map it. Which of the functions found are hooked is decided in `detect`.
//! Invariant: what was found in a file is applied to that file in that state alone, whatever build ID another one states;
//! candidates of one file have distinct addresses.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::allocator::catalog::{self, Entry};
use crate::allocator::partial::{self, Coverage};
use crate::allocator::shape;
use crate::model::ElfAddress;
use crate::object::image::{ElfImage, ImageError};
use crate::object::symbols::{Table, for_each_symbol};
use crate::proc::ProcError;
use crate::proc::copy::Charge;
use crate::proc::files::{FileVersion, open_mapped};
use crate::proc::maps::{FileId, Mapping};

/// Most files of one process that are inspected.
const MAX_FILES: usize = 16_384;
/// Most candidates of one file: the whole catalogue is about 250 names.
const MAX_CANDIDATES: usize = 1024;
/// Most files that an inspector remembers.
const MAX_CACHED: usize = 4096;

/// A function of a file whose name is in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Names at this address, the most basic one first.
    pub names: Vec<String>,
    /// Where it begins.
    pub address: ElfAddress,
    /// Its size, 0 if unknown.
    pub size: u64,
    /// What the catalogue says of its first name; it can throw if any of the names can.
    pub entry: Entry,
}

/// A file that has been searched.
#[derive(Debug)]
pub struct InspectedFile {
    /// Its image.
    pub image: ElfImage,
    /// Functions of the catalogue, by address.
    pub candidates: Vec<Candidate>,
    /// It has no symbols of functions at all.
    pub nameless: bool,
    /// Its candidates were found by their shape: whose they are.
    pub shape: Option<&'static str>,
    /// Symbol tables and other parts that were not read, or not wholly, and why.
    pub complaints: Vec<String>,
    /// The image is read from a copy; see [`open_mapped`].
    copied: Option<Arc<Charge>>,
    /// What the entry points of its own allocator see, once somebody asked, with those that were asked for.
    coverage: OnceLock<(Vec<partial::Entry>, Coverage)>,
}

impl InspectedFile {
    /// Searches an image.
    pub fn new(image: ElfImage) -> Self {
        let mut found: BTreeMap<ElfAddress, (u64, Vec<(Entry, String)>)> = BTreeMap::new();
        let mut nameless = true;
        let mut too_many = 0;
        let mut complaints = for_each_symbol(&image, |_table: Table, symbol| {
            nameless = false;
            // An indirect function's symbol is its resolver, which allocates nothing.
            let Some(entry) = catalog::lookup(symbol.name).filter(|_| !symbol.indirect) else {
                return;
            };
            if !image.is_code(symbol.address) {
                return;
            }
            if found.len() == MAX_CANDIDATES && !found.contains_key(&symbol.address) {
                too_many += 1;
                return;
            }
            let (size, names) = found.entry(symbol.address).or_default();
            *size = (*size).max(symbol.size);
            let name = symbol.name.split(|byte| *byte == b'@').next().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            if names.len() < 64 && !names.iter().any(|(_, known)| *known == name) {
                names.push((entry, name));
            }
        });
        let nameless = nameless && complaints.is_empty();
        let shape = if nameless && is_static_program(&image) {
            shape::find(&image).ok()
        } else {
            None
        };
        for function in shape.iter().flat_map(|shape| &shape.functions) {
            let names = catalog::lookup(function.name.as_bytes()).map(|entry| (entry, function.name.to_owned()));
            found.insert(ElfAddress(function.start), (function.size, names.into_iter().collect()));
        }
        let candidates = found
            .into_iter()
            .filter(|(_, (_, names))| !names.is_empty())
            .map(|(address, (size, names))| candidate(address, size, names))
            .collect();
        complaints.extend(image.left_out());
        if too_many > 0 {
            complaints.push(format!(
                "{too_many} symbols of allocation functions beyond {MAX_CANDIDATES} are not looked at"
            ));
        }
        Self {
            image,
            candidates,
            nameless,
            shape: shape.map(|shape| shape.library),
            complaints,
            copied: None,
            coverage: OnceLock::new(),
        }
    }

    /// Of a file that a process serves. It has no functions to probe: the kernel would wait for that process with locks
    /// held that every fork on the machine needs.
    fn of_copy(image: ElfImage, charge: Arc<Charge>) -> Self {
        let mut inspected = Self::new(image);
        if !inspected.candidates.is_empty() {
            let names: Vec<&str> = inspected
                .candidates
                .iter()
                .filter_map(|candidate| candidate.names.first().map(String::as_str))
                .take(3)
                .collect();
            inspected.complaints.push(format!(
                "not probed ({}, …): it is on a file system that a process serves (FUSE)",
                names.join(", ")
            ));
            inspected.candidates.clear();
        }
        inspected.copied = Some(charge);
        inspected
    }

    /// Whether it was read from a copy, and must not be probed.
    pub fn is_copy(&self) -> bool {
        self.copied.is_some()
    }

    /// What these entry points of its own allocator see. All code of the file is searched for that, once.
    pub fn coverage(&self, entries: &[partial::Entry]) -> Coverage {
        let examine = || partial::examine(&self.image, entries);
        let (asked, coverage) = self.coverage.get_or_init(|| (entries.to_vec(), examine()));
        if asked == entries { coverage.clone() } else { examine() }
    }

    /// The candidate at an address.
    pub fn candidate_at(&self, address: ElfAddress) -> Option<usize> {
        self.candidates
            .binary_search_by_key(&address, |candidate| candidate.address)
            .ok()
    }
}

/// A program that needs no dynamic linker: it has an entry point and names no interpreter.
fn is_static_program(image: &ElfImage) -> bool {
    image.entry().0 != 0 && image.section(".interp").is_none()
}

/// Joins aliases. Identical code may have been folded, so the most basic name decides how arguments are read.
fn candidate(address: ElfAddress, size: u64, mut names: Vec<(Entry, String)>) -> Candidate {
    names.sort_by(|(a_entry, a), (b_entry, b)| {
        (a_entry.layer, a.starts_with('_'), a.len(), a).cmp(&(b_entry.layer, b.starts_with('_'), b.len(), b))
    });
    let can_throw = names.iter().any(|(entry, _)| entry.can_throw);
    let entry = Entry {
        can_throw,
        ..names[0].0
    };
    Candidate {
        names: names.into_iter().map(|(_, name)| name).collect(),
        address,
        size,
        entry,
    }
}

/// A file as one process maps it.
#[derive(Clone, Debug)]
pub struct ProcessFile {
    /// Device and inode.
    pub id: FileId,
    /// The state of the file that was inspected.
    pub version: FileVersion,
    /// Path as the process sees it.
    pub path: PathBuf,
    /// Path by which it can be opened from here while the process lives (for attaching probes).
    pub access_path: PathBuf,
    /// What was found in it.
    pub inspected: Arc<InspectedFile>,
}

/// A mapped file that could not be inspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableFile {
    /// Path as the process sees it.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
}

/// What a process maps, searched.
#[derive(Clone, Debug, Default)]
pub struct ProcessFiles {
    /// In the order of the mappings: the executable is usually first.
    pub files: Vec<ProcessFile>,
    /// Those that could not be read, with the reason.
    pub unreadable: Vec<UnreadableFile>,
}

/// Inspects files and remembers them.
#[derive(Debug, Default)]
pub struct Inspector {
    known: HashMap<FileVersion, Arc<InspectedFile>>,
}

impl Inspector {
    /// Remembers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Inspects every file that has an executable mapping, each once.
    ///
    /// # Errors
    /// Only what concerns the process as a whole (it exited, permission is missing). Files that are no ELF images or
    /// cannot be read are listed in [`ProcessFiles::unreadable`].
    pub fn inspect(&mut self, pid: u32, mappings: &[Mapping]) -> Result<ProcessFiles, ProcError> {
        let mut result = ProcessFiles::default();
        let mut seen = std::collections::HashSet::new();
        for mapping in mappings.iter().filter(|mapping| mapping.execute && mapping.is_file()) {
            let Some(id) = mapping.file.filter(|id| seen.len() < MAX_FILES && seen.insert(*id)) else {
                continue;
            };
            match open_mapped(pid, mapping) {
                Ok(opened) => match self.inspect_version(opened.file, opened.version, opened.copied) {
                    Ok(inspected) => result.files.push(ProcessFile {
                        id,
                        version: opened.version,
                        path: mapping.path.clone(),
                        access_path: opened.access_path,
                        inspected,
                    }),
                    Err(error) => result.unreadable.push(unreadable(&mapping.path, &error)),
                },
                Err(error @ (ProcError::Exited { .. } | ProcError::NoSuchProcess { .. })) => return Err(error),
                Err(error) if error.is_shortage() => return Err(error),
                // Without the privilege none of the files can be opened: that is the answer.
                Err(error @ ProcError::Permission { .. }) if result.files.is_empty() => return Err(error),
                Err(error) => result.unreadable.push(unreadable(&mapping.path, &error)),
            }
        }
        Ok(result)
    }

    /// Inspects one open file under the paths given (for a file that is not mapped yet).
    ///
    /// # Errors
    /// It is not a usable ELF image.
    pub fn inspect_file(&mut self, id: FileId, path: &Path, file: File) -> Result<ProcessFile, ImageError> {
        let version = FileVersion::of(&file)?;
        let inspected = self.inspect_version(file, version, None)?;
        Ok(ProcessFile {
            id,
            version,
            path: path.into(),
            access_path: path.into(),
            inspected,
        })
    }

    /// Forgets what nobody but this refers to.
    pub fn drop_unused(&mut self) {
        self.known.retain(|_, file| Arc::strong_count(file) > 1);
    }

    /// The remembered inspection of the file in this state, or a new one.
    fn inspect_version(
        &mut self,
        file: File,
        version: FileVersion,
        copied: Option<Arc<Charge>>,
    ) -> Result<Arc<InspectedFile>, ImageError> {
        if let Some(known) = self.known.get(&version) {
            return Ok(Arc::clone(known));
        }
        let same = file.try_clone()?;
        let image = ElfImage::open(file)?;
        let inspected = Arc::new(match copied {
            Some(charge) => InspectedFile::of_copy(image, charge),
            None => InspectedFile::new(image),
        });
        // What was read while somebody wrote belongs to no state.
        if self.known.len() < MAX_CACHED && FileVersion::of(&same).is_ok_and(|now| now == version) {
            self.known.insert(version, Arc::clone(&inspected));
        }
        Ok(inspected)
    }
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> UnreadableFile {
    UnreadableFile {
        path: path.into(),
        reason: reason.to_string(),
    }
}
