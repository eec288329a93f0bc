//! Attaching to a Go process: executable, module, version, globals and a layout that passed its self-checks.
//!
//! Nothing is written and nothing is stopped. Invariant: an area whose layout is handed out by [`GoProcess::layout`]
//! passed its check in this process.

use std::path::PathBuf;

use super::buildinfo::BuildInfo;
use super::check;
use super::error::{Area, GoError};
use super::executable::Executable;
use super::gc::{self, CollectorState, Glance};
use super::goroutines::{self, Goroutine, GoroutineError, GoroutineSnapshot, Status};
use super::heap::{self, HeapError, HeapSnapshot};
use super::library;
use super::locate::{self, Globals};
use super::memory::{Target, word};
use super::module::{self, Module};
use super::offsets::{self, Layout};
use super::pclntab::PclnTable;
use super::spans::{self, ObjectSnapshot, SpanError, SpanSnapshot};
use super::version::GoVersion;
use crate::model::ProcessKey;
use crate::proc::files::open_executable;
use crate::proc::memory::{AT_ENTRY, AuxVector, MemoryReader, ProcessMemory};
use crate::proc::{ProcError, identity, living, maps, mounts};

/// Where a layout came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The built-in column of this release.
    Table(GoVersion),
    /// The binary's own debug information.
    Dwarf,
    /// The built-in column of this release, moved to fit.
    Calibrated(GoVersion),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Table(version) => write!(f, "built-in layout of {version}"),
            Self::Dwarf => f.write_str("layout from DWARF"),
            Self::Calibrated(version) => write!(f, "layout of {version}, calibrated"),
        }
    }
}

/// A Go process that can be read.
#[derive(Debug)]
pub struct GoProcess<M = ProcessMemory> {
    /// Which process.
    pub key: ProcessKey,
    /// The file that holds the runtime, as the process's mount namespace names it: its executable, or a library.
    pub exe: PathBuf,
    /// Toolchain.
    pub version: GoVersion,
    /// What the linker noted; empty where it was stripped off.
    pub info: BuildInfo,
    /// The module: table, text, load bias.
    pub module: Module,
    /// The open executable.
    pub executable: Executable,
    /// Global variables.
    pub globals: Globals,
    /// Texts of the wait reasons, by number.
    pub wait_reasons: Vec<String>,
    memory: M,
    layouts: [Result<(Layout, Source), String>; 4],
}

impl GoProcess {
    /// Attaches to a running process.
    pub fn attach(pid: u32) -> Result<Self, GoError> {
        let identity = identity::read_identity(pid)?;
        let link = PathBuf::from(format!("/proc/{}/exe", living::thread(pid)));
        let exe = identity.exe.clone().unwrap_or_else(|| link.clone());
        let name = exe.display().to_string();
        refuse_served_memory(pid)?;
        let file = open_executable(pid)?;
        let executable = Executable::new(file).map_err(|source| GoError::elf(pid, name.clone(), source))?;
        let entry = AuxVector::read(pid)?.get(AT_ENTRY);
        let bias = entry.map_or(0, |entry| entry.wrapping_sub(executable.entry));
        let memory = || ProcessMemory::new(pid);
        match Self::open(identity.key, exe, executable, bias, memory()) {
            // A program of another language may have Go in a library.
            Err(error @ GoError::NotGo { .. }) => match library::find(pid)? {
                Some(found) => Self::open(identity.key, found.path, found.executable, found.bias, memory()),
                None => Err(error),
            },
            result => result,
        }
    }
}

/// Memory of a file that a process serves is not read: nobody can end a wait for that process.
fn refuse_served_memory(pid: u32) -> Result<(), GoError> {
    let mappings = maps::read_maps(pid)?;
    let Some(mapping) = mounts::served_mapping(pid, &mappings) else {
        return Ok(());
    };
    Err(ProcError::Io {
        pid,
        object: mapping.path.clone(),
        source: std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "the process maps this file, which another process serves (FUSE) and may never answer for; \
             the memory of such a process is not read",
        ),
    }
    .into())
}

impl<M: MemoryReader> GoProcess<M> {
    fn open(key: ProcessKey, exe: PathBuf, executable: Executable, bias: u64, memory: M) -> Result<Self, GoError> {
        let pid = key.pid;
        let info = module::build_info(&executable);
        let not_go = |found: &str| GoError::NotGo {
            pid,
            exe: exe.display().to_string(),
            found: found.to_owned(),
        };
        let found = module::find(&executable, bias, &memory).map_err(|source| GoError::memory(pid, source))?;
        let Some(mut module) = found else {
            return Err(match info {
                Some(info) => not_go(&format!(
                    "says that it was built by {}, but has no function table (pclntab) of Go 1.18 or later that its memory refers to",
                    info.version
                )),
                None => not_go(
                    "has neither build information nor a function table (pclntab) of Go 1.18 or later, nor has a library that it maps",
                ),
            });
        };
        let stated = info.as_ref().and_then(|info| GoVersion::parse(&info.version));
        let version = match stated.or_else(|| version_from_code(&module, &executable, &memory)) {
            Some(version) => version,
            None => return Err(not_go("has a function table, but its Go version cannot be found")),
        };
        let code = |entry, end| module.code(&executable, entry, end);
        let mut globals = locate::globals(&module.table, code);
        let mut candidates: Vec<(Layout, Source)> = Vec::new();
        for column in offsets::candidates(&version) {
            if let Ok(layout) = Layout::from_map(&column.map) {
                candidates.push((layout, Source::Table(column.version.clone())));
            }
        }
        if !globals.is_complete() {
            let symbols = executable.symbols(&Globals::SYMBOLS);
            let start_sema = candidates
                .first()
                .map_or(0, |(layout, _)| layout.work.start_sema.offset as u64);
            globals.fill_from_symbols(|name| symbols.get(name).map(|at| at.wrapping_add(bias)), start_sema);
        }
        let layouts = choose(&memory, &globals, &version, &module, &executable, candidates);
        if let Some((layout, _)) = layouts.iter().flatten().next() {
            module.load_inline_trees(&executable, layout.module.gofunc.offset);
        }
        let wait_reasons = read_wait_reasons(&memory, &globals);
        let info = info.unwrap_or_default();
        Ok(Self {
            key,
            exe,
            version,
            info,
            module,
            executable,
            globals,
            wait_reasons,
            memory,
            layouts,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.key.pid
    }

    /// Its memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Functions, lines and stack depths, by process address.
    pub fn table(&self) -> &PclnTable {
        &self.module.table
    }

    /// The layout to read an area with, and where it came from.
    ///
    /// # Errors
    /// [`GoError::Unsupported`] naming the check that no layout passed.
    pub fn layout(&self, area: Area) -> Result<(&Layout, &Source), GoError> {
        match &self.layouts[area as usize] {
            Ok((layout, source)) => Ok((layout, source)),
            Err(check) => {
                let (oldest, newest) = offsets::supported();
                Err(GoError::Unsupported {
                    pid: self.pid(),
                    area,
                    version: self.version.to_string(),
                    check: check.clone(),
                    oldest,
                    newest,
                })
            }
        }
    }

    /// A failed heap read, as an error that names the process.
    fn heap_error(&self, error: HeapError) -> GoError {
        match error {
            HeapError::NotFound => GoError::Corrupt {
                pid: self.pid(),
                area: Area::Heap,
                what: "its heap profile was not found".to_owned(),
            },
            HeapError::Memory(source) => GoError::memory(self.pid(), source),
        }
    }

    /// A failed read of goroutines, as an error that names the process.
    fn goroutine_error(&self, error: GoroutineError) -> GoError {
        match error {
            GoroutineError::List(what) => GoError::Corrupt {
                pid: self.pid(),
                area: Area::Goroutines,
                what,
            },
            GoroutineError::Memory(source) => GoError::memory(self.pid(), source),
        }
    }

    /// The collector's state now.
    pub fn collector(&self) -> Result<CollectorState, GoError> {
        let (layout, _) = self.layout(Area::Collector)?;
        gc::read(&self.memory, &self.globals, layout).map_err(|error| GoError::collector(self.pid(), error))
    }

    /// As [`Self::collector`], into buffers that are there already.
    pub fn collector_into(&self, buffer: &mut Vec<u8>, state: &mut CollectorState) -> Result<(), GoError> {
        let (layout, _) = self.layout(Area::Collector)?;
        gc::read_into(&self.memory, &self.globals, layout, buffer, state)
            .map_err(|error| GoError::collector(self.pid(), error))
    }

    /// What of the collector tells whether there is something to see. `buffer` is used again by the next one.
    pub fn collector_glance(&self, buffer: &mut Vec<u8>) -> Result<Glance, GoError> {
        let (layout, _) = self.layout(Area::Collector)?;
        gc::read_glance(&self.memory, &self.globals, layout, buffer)
            .map_err(|error| GoError::collector(self.pid(), error))
    }

    /// The heap profile now.
    pub fn heap(&self) -> Result<HeapSnapshot, GoError> {
        let (layout, _) = self.layout(Area::Heap)?;
        heap::read(&self.memory, &self.globals, layout).map_err(|error| self.heap_error(error))
    }

    /// All goroutines now.
    pub fn goroutines(&self) -> Result<GoroutineSnapshot, GoError> {
        let (layout, _) = self.layout(Area::Goroutines)?;
        let table = self.table();
        goroutines::read(&self.memory, &self.globals, layout, table).map_err(|error| self.goroutine_error(error))
    }

    /// All spans now.
    pub fn spans(&self) -> Result<SpanSnapshot, GoError> {
        let (layout, _) = self.layout(Area::Spans)?;
        spans::read(&self.memory, &self.globals, layout).map_err(|error| self.span_error(error))
    }

    /// The sampled objects on these spans, by the buckets of this heap.
    pub fn objects(&self, spans: &SpanSnapshot, heap: &HeapSnapshot) -> Result<ObjectSnapshot, GoError> {
        let (layout, _) = self.layout(Area::Spans)?;
        let buckets = heap.buckets.iter().map(|bucket| bucket.address).collect();
        spans::read_objects(&self.memory, layout, spans, &buckets).map_err(|error| self.span_error(error))
    }

    fn span_error(&self, error: SpanError) -> GoError {
        match error {
            SpanError::List(what) => GoError::Corrupt {
                pid: self.pid(),
                area: Area::Spans,
                what,
            },
            SpanError::Memory(source) => GoError::memory(self.pid(), source),
        }
    }

    /// What a goroutine does, or why it waits: `chan receive`, `IO wait`, `running`.
    pub fn wait_text(&self, goroutine: &Goroutine) -> &str {
        let reason = self.wait_reasons.get(usize::from(goroutine.wait_reason));
        match (goroutine.status, reason) {
            (Status::Waiting | Status::Leaked, Some(reason)) if !reason.is_empty() => reason,
            (status, _) => status.name(),
        }
    }

    /// Still the process that was attached to, running the same program start.
    pub fn is_alive(&self) -> bool {
        living::is_running(self.key)
    }
}

/// For each area the first candidate that passes its check; else one from DWARF; else a calibrated one.
fn choose<M: MemoryReader>(
    memory: &M,
    globals: &Globals,
    version: &GoVersion,
    module: &Module,
    executable: &Executable,
    mut candidates: Vec<(Layout, Source)>,
) -> [Result<(Layout, Source), String>; 4] {
    let known = !candidates.is_empty();
    let mut dwarf_tried = false;
    Area::ALL.map(|area| {
        let check = |layout: &Layout| match area {
            Area::Heap => check::heap(memory, globals, layout),
            Area::Goroutines => check::goroutines(memory, globals, layout),
            Area::Collector => check::collector(memory, globals, layout),
            Area::Spans => check::spans(memory, globals, layout),
        };
        let mut failure = None;
        for (layout, source) in &candidates {
            match check(layout) {
                Ok(()) => return Ok((layout.clone(), source.clone())),
                Err(cause) => failure = failure.or(Some(cause)),
            }
        }
        if !dwarf_tried {
            dwarf_tried = true;
            if let Some(layout) = super::dwarf::layout(executable) {
                let passes = check(&layout);
                candidates.push((layout.clone(), Source::Dwarf));
                match passes {
                    Ok(()) => return Ok((layout, Source::Dwarf)),
                    Err(cause) => failure = failure.or(Some(cause)),
                }
            }
        }
        // A newer release than the table's newest is tried with the newest; an older one is refused.
        let newest = offsets::columns()
            .last()
            .filter(|newest| known || version.release() > newest.version.release());
        let base = offsets::candidates(version).into_iter().next().or(newest);
        if let Some(base) = base
            && let Ok(layout) = Layout::from_map(&base.map)
        {
            let text = module.table.text()..module.table.text_end();
            let verdict = check(&layout);
            let moved = match area {
                _ if verdict.is_ok() => Some(layout),
                Area::Heap => Some(check::other_record(&layout)).filter(|other| check(other).is_ok()),
                Area::Collector => check::shifted_work(memory, globals, &layout),
                Area::Goroutines => check::shifted_goroutine(memory, globals, &layout, text),
                Area::Spans => None,
            };
            if let Some(layout) = moved {
                return Ok((layout, Source::Calibrated(base.version.clone())));
            }
            failure = failure.or(verdict.err());
        }
        Err(failure.unwrap_or_else(|| "no layout is known for this release".to_owned()))
    })
}

/// `buildVersion`, a string that `schedinit` refers to, where the linker's blob is missing.
fn version_from_code<M: MemoryReader>(module: &Module, executable: &Executable, memory: &M) -> Option<GoVersion> {
    let code = |entry, end| module.code(executable, entry, end);
    locate::build_version_candidates(&module.table, code)
        .into_iter()
        .find_map(|address| {
            // The load may be of the length, behind the pointer.
            [address, address.wrapping_sub(8)].into_iter().find_map(|at| {
                let text = read_string(memory, &memory.bytes_at(at, 16).ok()?, 64)?;
                GoVersion::parse(&text)
            })
        })
}

/// The string that a header of 16 bytes describes, if it is no longer than `limit`.
fn read_string<M: MemoryReader>(memory: &M, header: &[u8], limit: u64) -> Option<String> {
    let len = word(header, 8);
    if len == 0 || len > limit {
        return None;
    }
    String::from_utf8(memory.bytes_at(word(header, 0), len as usize).ok()?).ok()
}

fn read_wait_reasons<M: MemoryReader>(memory: &M, globals: &Globals) -> Vec<String> {
    const MAX: usize = 64;
    let Some(address) = globals.wait_reasons else {
        return Vec::new();
    };
    let mut reasons = Vec::new();
    for index in 0..MAX as u64 {
        let Ok(header) = memory.bytes_at(address + index * 16, 16) else {
            break;
        };
        match read_string(memory, &header, 64) {
            Some(text) if text.chars().all(|c| c.is_ascii_graphic() || c == ' ') => reasons.push(text),
            // The first one is empty.
            None if index == 0 => reasons.push(String::new()),
            _ => break,
        }
    }
    reasons
}
