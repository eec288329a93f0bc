//! ELF files: symbol tables, DWARF, split debug files and mini symbol tables, through blazesym.
//!
//! Invariant: a file that is damaged, stripped or hostile costs names, never an error or a panic.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Blazesym};
use hashbrown::HashMap;

use super::demangle::demangle;
use super::snapshot::{self, Snapshot};
use super::{Addresses, Frame, SymbolSource, debug_file};
use crate::proc::files::FileVersion;

/// Turns addresses into frames. Files are read once and kept, about the size of their symbol and debug sections: make
/// a symbolizer to write a profile, and drop it then. It does not move between threads; a thread that needs one makes it.
#[derive(Debug)]
pub struct Symbolizer {
    blazesym: Blazesym,
    debug_directories: Vec<PathBuf>,
    files: RefCell<HashMap<FileVersion, Rc<Opened>>>,
    /// By content.
    images: RefCell<HashMap<Box<[u8]>, Rc<Opened>>>,
    texts: RefCell<Texts>,
    /// What the names of a file lack, where they lack something.
    left_out: RefCell<HashMap<FileVersion, Vec<String>>>,
    /// What failed for want of something that this process needs, not for what is in a file.
    problems: RefCell<BTreeSet<String>>,
}

/// Problems that are kept, at most.
const MAX_PROBLEMS: usize = 16;
/// Longer names and paths are cut. Those of C++ templates have some kilobytes.
const MAX_NAME: usize = 64 << 10;

/// A file with its debug file.
#[derive(Debug)]
struct Opened {
    snapshot: Snapshot,
    debug_file: Option<PathBuf>,
}

/// Texts and demangled names, shared among frames.
#[derive(Debug, Default)]
struct Texts {
    known: HashMap<Box<str>, Arc<str>>,
    /// Mangled to mangled and demangled.
    names: HashMap<Box<str>, (Arc<str>, Arc<str>)>,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    /// A symbolizer that looks for debug files where distributions install them.
    pub fn new() -> Self {
        Self::with_debug_directories(debug_file::DIRECTORIES.map(PathBuf::from).to_vec())
    }

    /// A symbolizer that looks for debug files in these directories. Whoever can write there must be trusted.
    pub fn with_debug_directories(debug_directories: Vec<PathBuf>) -> Self {
        let blazesym = Blazesym::builder()
            .enable_auto_reload(false)
            .enable_demangling(false)
            .set_debug_dirs(Some(&debug_directories))
            .build();
        Self {
            blazesym,
            debug_directories,
            files: RefCell::default(),
            images: RefCell::default(),
            texts: RefCell::default(),
            left_out: RefCell::default(),
            problems: RefCell::default(),
        }
    }

    /// Why names are missing, as far as that is not due to the files: since the last call.
    pub fn take_problems(&self) -> BTreeSet<String> {
        self.problems.take()
    }

    /// Notes what failed, if the system said so.
    fn note(&self, name: &str, error: &(dyn std::error::Error + 'static)) {
        tracing::debug!("failed to read symbols of `{name}`: {error}");
        let causes = std::iter::successors(Some(error), |error| error.source());
        let system = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
        let Some(error) = system.filter(|error| error.raw_os_error().is_some()).last() else {
            return;
        };
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.insert(format!("failed to read symbols of `{name}`: {error}"));
        }
    }

    /// Frames of each address, innermost first. Each address has at least one frame. Addresses may come in any order,
    /// but sorted and distinct ones are fastest.
    pub fn symbolize(&self, source: &SymbolSource<'_>, addresses: Addresses<'_>) -> Vec<Vec<Frame>> {
        let values = addresses.values();
        let mut frames = vec![Vec::new(); values.len()];
        match self.open(source) {
            Ok(opened) => self.fill(source.name(), &opened, addresses, &mut frames),
            Err(error) => self.note(source.name(), &error),
        }
        for (frames, address) in frames.iter_mut().zip(values).filter(|(frames, _)| frames.is_empty()) {
            frames.push(source.placeholder(*address));
        }
        frames
    }

    /// Parts of a file that are too large or damaged, so that names are missing: which, and what is not known. Tells of files
    /// that were asked for.
    pub fn left_out(&self, file: &File) -> Vec<String> {
        let Ok(metadata) = file.metadata() else {
            return Vec::new();
        };
        let left_out = self.left_out.borrow();
        left_out.get(&FileVersion::from(&metadata)).cloned().unwrap_or_default()
    }

    fn open(&self, source: &SymbolSource<'_>) -> io::Result<Rc<Opened>> {
        let (file, path) = match source {
            SymbolSource::Image { bytes, .. } => return self.open_image(bytes),
            SymbolSource::File { file, path } => (file, path),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let key = FileVersion::from(&metadata);
        if let Some(opened) = self.files.borrow().get(&key) {
            return Ok(opened.clone());
        }
        let snapshot = Snapshot::of_file(file).inspect_err(|_| {
            if let Ok(left_out) = snapshot::left_out(file) {
                self.left_out.borrow_mut().insert(key, left_out);
            }
        })?;
        if !snapshot.left_out.is_empty() {
            self.left_out.borrow_mut().insert(key, snapshot.left_out.clone());
        }
        let debug_file = debug_file::find(&self.debug_directories, &snapshot, path);
        let opened = Rc::new(Opened { snapshot, debug_file });
        self.files.borrow_mut().insert(key, opened.clone());
        Ok(opened)
    }

    fn open_image(&self, bytes: &[u8]) -> io::Result<Rc<Opened>> {
        if let Some(opened) = self.images.borrow().get(bytes) {
            return Ok(opened.clone());
        }
        // Snapshots are never dropped before the library, which remembers them by their descriptor's number.
        let opened = Rc::new(Opened {
            snapshot: Snapshot::of_image(bytes)?,
            debug_file: None,
        });
        self.images.borrow_mut().insert(bytes.into(), opened.clone());
        Ok(opened)
    }

    /// Asks the debug file, the mini symbol table, the file itself, then its symbol table alone, each for what is still without a name.
    fn fill(&self, name: &str, opened: &Opened, addresses: Addresses<'_>, frames: &mut [Vec<Frame>]) {
        // A debug file has the addresses of its file, but not its positions.
        if let (Some(path), Addresses::Elf(_)) = (&opened.debug_file, addresses) {
            self.ask(name, path, true, addresses, frames);
        }
        // Before the file's own symbols: one without a size would take what belongs to the functions behind it.
        if let (Some(mini), Addresses::Elf(_)) = (&opened.snapshot.mini, addresses) {
            self.ask(name, &mini.path(), false, addresses, frames);
        }
        if opened.snapshot.debug_info {
            self.ask(name, &opened.snapshot.path(), true, addresses, frames);
        }
        self.ask(name, &opened.snapshot.path(), false, addresses, frames);
    }

    fn ask(&self, name: &str, path: &PathBuf, debug_info: bool, addresses: Addresses<'_>, frames: &mut [Vec<Frame>]) {
        let missing: Vec<usize> = (0..frames.len()).filter(|index| frames[*index].is_empty()).collect();
        if missing.is_empty() {
            return;
        }
        let values: Vec<u64> = missing.iter().map(|index| addresses.values()[*index]).collect();
        let input = match addresses {
            Addresses::Elf(_) => Input::VirtOffset(values.as_slice()),
            Addresses::FileOffset(_) => Input::FileOffset(values.as_slice()),
        };
        let mut elf = Elf::new(path);
        elf.debug_syms = debug_info;
        let source = Source::Elf(elf);
        let symbols = self.guarded(name, &source, input);
        let starts = self.start_lines(name, &source, &symbols);
        for (index, symbol) in missing.into_iter().zip(&symbols) {
            if let Symbolized::Sym(symbol) = symbol
                && !symbol.name.is_empty()
            {
                frames[index] = self.texts.borrow_mut().frames(symbol, &starts);
            }
        }
    }

    /// The library parses what the target wrote. A panic in there must not end the recording.
    fn guarded<'s>(&'s self, name: &str, source: &Source<'_>, input: Input<&[u64]>) -> Vec<Symbolized<'s>> {
        match catch_unwind(AssertUnwindSafe(|| self.blazesym.symbolize(source, input))) {
            Ok(Ok(symbols)) => symbols,
            Ok(Err(error)) => {
                self.note(name, &error);
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Line of the first instruction of each function, by its address. 0 if unknown.
    fn start_lines(&self, name: &str, source: &Source<'_>, symbols: &[Symbolized<'_>]) -> HashMap<u64, u32> {
        let has_line = |symbol: &&Sym<'_>| symbol.code_info.is_some() && symbol.addr != 0;
        let mut starts: Vec<u64> = symbols
            .iter()
            .filter_map(Symbolized::as_sym)
            .filter(has_line)
            .map(|symbol| symbol.addr)
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let found = self.guarded(name, source, Input::VirtOffset(&starts));
        let line = |symbol: &Symbolized<'_>| symbol.as_sym()?.code_info.as_ref()?.line;
        starts
            .into_iter()
            .zip(found.iter().map(|symbol| line(symbol).unwrap_or(0)))
            .collect()
    }
}

impl Texts {
    /// Innermost first.
    fn frames(&mut self, symbol: &Sym<'_>, starts: &HashMap<u64, u32>) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(symbol.inlined.len() + 1);
        for inlined in symbol.inlined.iter().rev() {
            // An inlined function without a name is no use to anyone.
            if !inlined.name.is_empty() {
                frames.push(Frame {
                    inlined: true,
                    ..self.frame(&inlined.name, inlined.code_info.as_ref())
                });
            }
        }
        let start_line = starts.get(&symbol.addr).copied().unwrap_or(0);
        frames.push(Frame {
            start_line,
            ..self.frame(&symbol.name, symbol.code_info.as_deref())
        });
        frames
    }

    fn frame(&mut self, name: &str, place: Option<&CodeInfo<'_>>) -> Frame {
        let (system_name, function) = self.name(name);
        let mut frame = Frame {
            function,
            system_name,
            ..Frame::default()
        };
        if let Some(place) = place {
            let path = place.to_path();
            frame.file = self.text(&path.to_string_lossy());
            frame.line = place.line.unwrap_or(0);
            frame.column = place.column.unwrap_or(0).into();
        }
        frame
    }

    fn name(&mut self, name: &str) -> (Arc<str>, Arc<str>) {
        let name = &name[..name.floor_char_boundary(MAX_NAME)];
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let system_name: Arc<str> = name.into();
        let function = match demangle(name) {
            Cow::Borrowed(_) => system_name.clone(),
            Cow::Owned(demangled) => demangled.into(),
        };
        self.names.insert(name.into(), (system_name.clone(), function.clone()));
        (system_name, function)
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        let text = &text[..text.floor_char_boundary(MAX_NAME)];
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.known.insert(text.into(), shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests;
