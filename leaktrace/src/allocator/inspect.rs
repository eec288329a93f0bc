//! Opens the files that a process maps and finds the catalogue's functions in them.
//!
//! A file is read once per build ID, however many processes map it. Which of the functions found are hooked is decided in
//! `detect`. Invariant: candidates of one file have distinct addresses.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::allocator::catalog::{self, Entry};
use crate::allocator::partial::{self, Coverage};
use crate::model::{BuildId, ElfAddress};
use crate::object::image::{ElfImage, ImageError};
use crate::object::symbols::{Table, for_each_symbol};
use crate::proc::ProcError;
use crate::proc::files::open_mapped;
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
    /// Symbol tables that could not be read, and why.
    pub complaints: Vec<String>,
    /// What the entry points of its own allocator see, once somebody asked, with those that were asked for.
    coverage: OnceLock<(Vec<partial::Entry>, Coverage)>,
}

impl InspectedFile {
    /// Searches an image.
    pub fn new(image: ElfImage) -> Self {
        let mut found: BTreeMap<ElfAddress, (u64, Vec<(Entry, String)>)> = BTreeMap::new();
        let mut nameless = true;
        let complaints = for_each_symbol(&image, |_table: Table, symbol| {
            nameless = false;
            // An indirect function's symbol is its resolver, which allocates nothing.
            let Some(entry) = catalog::lookup(symbol.name).filter(|_| !symbol.indirect) else {
                return;
            };
            if !image.is_code(symbol.address) || (found.len() == MAX_CANDIDATES && !found.contains_key(&symbol.address))
            {
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
        let candidates = found
            .into_iter()
            .map(|(address, (size, names))| candidate(address, size, names))
            .collect();
        Self {
            image,
            candidates,
            nameless: nameless && complaints.is_empty(),
            complaints,
            coverage: OnceLock::new(),
        }
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
    by_build_id: HashMap<(BuildId, u64), Arc<InspectedFile>>,
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
                Ok(opened) => match ElfImage::open(opened.file) {
                    Ok(image) => result.files.push(ProcessFile {
                        id,
                        path: mapping.path.clone(),
                        access_path: opened.access_path,
                        inspected: self.remember(image),
                    }),
                    Err(error) => result.unreadable.push(unreadable(&mapping.path, &error)),
                },
                Err(error @ (ProcError::Exited { .. } | ProcError::NoSuchProcess { .. })) => return Err(error),
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
    pub fn inspect_file(&mut self, id: FileId, path: &Path, file: std::fs::File) -> Result<ProcessFile, ImageError> {
        let inspected = self.remember(ElfImage::open(file)?);
        Ok(ProcessFile {
            id,
            path: path.into(),
            access_path: path.into(),
            inspected,
        })
    }

    /// Forgets what nobody but this refers to.
    pub fn drop_unused(&mut self) {
        self.by_build_id.retain(|_, file| Arc::strong_count(file) > 1);
    }

    /// The remembered inspection of the same build, or a new one. The length is part of the identity, because `strip`
    /// keeps the build ID and takes the symbols.
    fn remember(&mut self, image: ElfImage) -> Arc<InspectedFile> {
        let Some(key) = image.build_id().map(|id| (id.clone(), image.file_len())) else {
            return Arc::new(InspectedFile::new(image));
        };
        if let Some(known) = self.by_build_id.get(&key) {
            return Arc::clone(known);
        }
        let inspected = Arc::new(InspectedFile::new(image));
        if self.by_build_id.len() < MAX_CACHED {
            self.by_build_id.insert(key, Arc::clone(&inspected));
        }
        inspected
    }
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> UnreadableFile {
    UnreadableFile {
        path: path.into(),
        reason: reason.to_string(),
    }
}
