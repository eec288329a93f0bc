//! The kernel side and the processes it traces: attach, follow new code and new programs, detach.
//!
//! Order matters for the truth of the numbers: a process is made known with its unwind tables before its first probe;
//! tracing begins at one moment when all probes are in place and ends at one moment before the first is taken away
//! ([`Tracer::set_active`]); and for code that comes later `bpf::links` sees to the order of the probes.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use leaktrace_common::config::{
    CodeMapping, MAPPING_FRAME_POINTER, MAX_MAPPINGS, PROCESS_ACTIVE, PROCESS_TRACK_MMAP, Process,
};

use super::{
    address_space::{AddressSpace, CodeSpan},
    survey::{CodeFile, Survey, Surveyor},
};
use crate::{
    bpf::{
        kernel::{Kernel, LoadError, Sizes},
        links::{AttachError, Links, Probe, Role},
        processes::{ProcessTable, ProcessTableError, Slot},
        tables::{ArrayFull, TablePlace, UnwindArrays},
    },
    model::ProcessKey,
    probe::plan::{Plan, ReturnProbe},
    proc::{ProcError, files, identity, maps::FileId},
    symbolize::PerfMap,
};

/// How long a run of mappings that was replaced may still be read by a program in the kernel. Programs run for
/// microseconds; this is generous.
const RETIREMENT: Duration = Duration::from_secs(1);

/// How processes are traced.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mean bytes between samples; 0: every allocation. A multiple of 16.
    pub sample_interval: u64,
    /// Smaller allocations are not taken.
    pub min_size: u64,
    /// Follow anonymous mappings outside allocators.
    pub track_mmap: bool,
    /// Bytes of the ring buffer; a power of two.
    pub ring_bytes: u32,
}

/// Why a process could not be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It could not be looked at.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// The kernel side could not be set up.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Probes could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// It could not be made known to the kernel side.
    #[error("failed to trace pid {pid}: {cause}")]
    Table {
        /// Process.
        pid: u32,
        /// Why.
        cause: ProcessTableError,
    },
    /// An array in the kernel is full.
    #[error("failed to store the unwind tables for pid {pid}: {cause}")]
    Full {
        /// Process.
        pid: u32,
        /// Which array.
        cause: ArrayFull,
    },
}

/// What is traced of one process.
pub struct Traced {
    /// Who it is.
    pub key: ProcessKey,
    /// Its name.
    pub comm: String,
    /// Its code, for names.
    pub space: AddressSpace,
    /// Files that `space` refers to by index.
    pub files: Vec<Arc<CodeFile>>,
    /// Probes in place and how they were chosen.
    pub plan: Plan,
    /// Names of its threads by id, as they were last seen.
    pub threads: HashMap<u32, String>,
    /// Children that it was seen to have.
    pub children: u64,
    /// Names of code that was made at run time, where the program tells.
    pub jit: Option<PerfMap>,
    links: Links,
    probed: HashSet<(FileId, u64)>,
    run: Range<u32>,
    seed: u64,
    slot: Option<Slot>,
    /// What the kernel side was told last.
    process: Process,
    active: bool,
}

impl Traced {
    /// Whether some of its code is Go.
    pub fn is_go(&self) -> bool {
        self.files.iter().any(|file| file.go.is_some())
    }
}

/// Everything traced.
pub struct Tracer {
    kernel: Kernel,
    arrays: UnwindArrays,
    table: ProcessTable,
    surveyor: Surveyor,
    settings: Settings,
    processes: HashMap<u32, Traced>,
    places: HashMap<FileId, (Arc<CodeFile>, TablePlace)>,
    retired: Vec<(Instant, Range<u32>)>,
    generation: u64,
}

/// Sizes of the arrays for what was surveyed, with room for libraries that come later.
pub fn sizes(surveys: &[Survey], settings: &Settings) -> Sizes {
    let (rows, blocks) = surveys
        .iter()
        .map(Survey::table_size)
        .fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    let with_room = |used: usize, room: usize| u32::try_from(used + used / 2 + room).unwrap_or(u32::MAX);
    Sizes {
        ring_bytes: settings.ring_bytes,
        rows: with_room(rows, 4 << 20),
        blocks: with_room(blocks, 512 << 10),
        mappings: 4 * MAX_MAPPINGS,
    }
}

impl Tracer {
    /// Takes over a loaded kernel side.
    pub fn new(
        mut kernel: Kernel,
        arrays: UnwindArrays,
        table: ProcessTable,
        surveyor: Surveyor,
        settings: Settings,
    ) -> Result<Self, TraceError> {
        kernel.attach_tracepoints()?;
        Ok(Self {
            kernel,
            arrays,
            table,
            surveyor,
            settings,
            processes: HashMap::new(),
            places: HashMap::new(),
            retired: Vec::new(),
            generation: 0,
        })
    }

    /// Begins to trace a process.
    pub fn add(&mut self, survey: Survey) -> Result<(), TraceError> {
        let key = survey.key();
        let traced = Traced {
            key,
            comm: survey.identity.comm.clone(),
            space: AddressSpace::default(),
            files: Vec::new(),
            plan: Plan::default(),
            threads: HashMap::new(),
            children: 0,
            jit: None,
            links: Links::new(),
            probed: HashSet::new(),
            run: 0..0,
            seed: seed(key, 0),
            slot: None,
            process: Process::default(),
            active: false,
        };
        self.processes.insert(key.pid, traced);
        let result = self.update(survey);
        if result.is_err() {
            self.remove(key.pid);
        }
        result
    }

    /// Looks at a process again after it mapped code.
    pub fn refresh(&mut self, pid: u32) -> Result<(), TraceError> {
        if !self.processes.contains_key(&pid) {
            return Ok(());
        }
        let survey = self.surveyor.survey(pid)?;
        self.update(survey)
    }

    /// Begins anew with a process that runs another program now.
    pub fn restart(&mut self, pid: u32) -> Result<(), TraceError> {
        let generation = self.generation;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        traced.space = AddressSpace::default();
        traced.files.clear();
        traced.seed = seed(traced.key, generation + 1);
        self.refresh(pid)
    }

    fn update(&mut self, survey: Survey) -> Result<(), TraceError> {
        let pid = survey.key().pid;
        self.release_retired();
        let spans = self.code_spans(&survey);
        let run = self.store_mappings(pid, &survey, &spans)?;
        self.generation += 1;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        traced.comm.clone_from(&survey.identity.comm);
        for (span, file) in spans {
            let index = traced
                .files
                .iter()
                .position(|known| Arc::ptr_eq(known, &file))
                .unwrap_or_else(|| {
                    traced.files.push(file);
                    traced.files.len() - 1
                });
            traced.space.insert(CodeSpan { file: index, ..span });
        }
        let process = Process {
            pid,
            flags: flags(&self.settings, traced.active),
            mapping_first: run.start,
            mapping_count: run.end - run.start,
            sample_interval: self.settings.sample_interval,
            min_size: self.settings.min_size,
            stack_seed: traced.seed,
            generation: self.generation,
        };
        traced.process = process;
        let slot = match &mut traced.slot {
            Some(slot) => {
                self.table.change(slot, process);
                slot.number()
            }
            None => {
                let slot = self
                    .table
                    .add(process)
                    .map_err(|cause| TraceError::Table { pid, cause })?;
                traced.slot.insert(slot).number()
            }
        };
        let old = std::mem::replace(&mut traced.run, run);
        self.retired.push((Instant::now(), old));
        let probes = wanted(&survey, &traced.probed);
        if !probes.is_empty() {
            let links = self.kernel.attach(
                &probes.iter().map(|wanted| wanted.probe(slot)).collect::<Vec<_>>(),
                Some(pid),
            )?;
            traced.links.append(links);
            traced
                .probed
                .extend(probes.iter().map(|wanted| (wanted.file.id, wanted.offset)));
        }
        traced.plan = survey.plan;
        Ok(())
    }

    /// Executable file mappings with their file, in the order of addresses.
    fn code_spans(&self, survey: &Survey) -> Vec<(CodeSpan, Arc<CodeFile>)> {
        let mut spans = Vec::new();
        for mapping in survey.mappings.iter().filter(|mapping| mapping.execute) {
            let Some(file) = survey.files.iter().find(|file| Some(file.id) == mapping.file) else {
                continue;
            };
            let elf_start = file
                .mapping_address(mapping.offset)
                .map_or(mapping.offset.0, |address| address.0);
            let span = CodeSpan {
                start: mapping.start.0,
                end: mapping.end.0,
                offset: mapping.offset.0,
                file: 0,
                elf_start,
            };
            spans.push((span, Arc::clone(file)));
        }
        spans
    }

    /// Writes the process's mappings, and the tables that they need, to the arrays.
    fn store_mappings(
        &mut self,
        pid: u32,
        survey: &Survey,
        spans: &[(CodeSpan, Arc<CodeFile>)],
    ) -> Result<Range<u32>, TraceError> {
        let mut mappings = Vec::new();
        for (span, file) in spans {
            let mut mapping = CodeMapping {
                start: span.start,
                end: span.end,
                ..CodeMapping::default()
            };
            if let Some(Ok(table)) = &file.table {
                let place = self.table_place(pid, file)?;
                mapping.delta = span.start.wrapping_sub(span.elf_start.wrapping_sub(table.base.0));
                mapping.block_first = place.blocks.start;
                mapping.block_count = (place.blocks.end - place.blocks.start).saturating_sub(1);
            }
            mappings.push(mapping);
        }
        // Code without a file was made by the program itself; such code keeps frame pointers or cannot be followed.
        for mapping in survey
            .mappings
            .iter()
            .filter(|mapping| mapping.execute && mapping.file.is_none())
        {
            mappings.push(CodeMapping {
                start: mapping.start.0,
                end: mapping.end.0,
                flags: MAPPING_FRAME_POINTER,
                ..CodeMapping::default()
            });
        }
        mappings.sort_by_key(|mapping| mapping.start);
        mappings.truncate(MAX_MAPPINGS as usize);
        self.arrays
            .mappings
            .store(mappings.into_iter())
            .map_err(|cause| TraceError::Full { pid, cause })
    }

    fn table_place(&mut self, pid: u32, file: &Arc<CodeFile>) -> Result<TablePlace, TraceError> {
        if let Some((known, place)) = self.places.get(&file.id)
            && Arc::ptr_eq(known, file)
        {
            return Ok(place.clone());
        }
        let Some(Ok(table)) = &file.table else {
            return Ok(TablePlace {
                blocks: 0..0,
                rows: 0..0,
            });
        };
        let place = self
            .arrays
            .store_table(&table.blocks, &table.rows)
            .map_err(|cause| TraceError::Full { pid, cause })?;
        self.places.insert(file.id, (Arc::clone(file), place.clone()));
        Ok(place)
    }

    fn release_retired(&mut self) {
        let arrays = &mut self.arrays;
        self.retired.retain(|(since, run)| {
            let keep = since.elapsed() < RETIREMENT;
            if !keep {
                arrays.mappings.release(run.clone());
            }
            keep
        });
    }

    /// Notes a new thread or child of a process.
    pub fn note_task(&mut self, pid: u32, task: u32) {
        if let Some(traced) = self.processes.get_mut(&pid)
            && identity::thread_group(task).is_ok_and(|process| process == task)
        {
            traced.children += 1;
        }
    }

    /// Reads what can be read only while the process lives: the names of its threads, and the map that a JIT compiler keeps
    /// of its code.
    pub fn read_names(&mut self, pid: u32) {
        if let Some(traced) = self.processes.get_mut(&pid) {
            let map = files::below_root(pid, format!("/tmp/perf-{pid}.map").as_ref());
            traced.jit = files::open_regular(&map).and_then(|(file, _)| PerfMap::read(file)).ok();
            let threads = identity::read_threads(pid).unwrap_or_default();
            let names = threads
                .into_iter()
                .filter_map(|tid| Some((tid, identity::read_thread_name(pid, tid)?)));
            traced.threads.extend(names);
        }
    }

    /// Begins or ends the telling of calls, for all probes of a process at one moment.
    pub fn set_active(&mut self, pid: u32, active: bool) {
        if let Some(traced) = self.processes.get_mut(&pid)
            && let Some(slot) = &mut traced.slot
        {
            traced.active = active;
            traced.process.flags = flags(&self.settings, active);
            self.table.change(slot, traced.process);
        }
    }

    /// Detaches from a process and hands out what is known of it.
    pub fn remove(&mut self, pid: u32) -> Option<Traced> {
        self.set_active(pid, false);
        let mut traced = self.processes.remove(&pid)?;
        traced.links = Links::new();
        if let Some(slot) = traced.slot.take() {
            self.table.remove(slot);
        }
        self.retired.push((Instant::now(), traced.run.clone()));
        Some(traced)
    }

    /// Takes the probes of a process away and leaves the rest.
    pub fn detach(&mut self, pid: u32) {
        if let Some(traced) = self.processes.get_mut(&pid) {
            traced.links = Links::new();
        }
    }

    /// What is known of a traced process.
    pub fn process(&self, pid: u32) -> Option<&Traced> {
        self.processes.get(&pid)
    }

    /// The loaded kernel side.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }
}

fn flags(settings: &Settings, active: bool) -> u32 {
    let mmap = if settings.track_mmap { PROCESS_TRACK_MMAP } else { 0 };
    if active { mmap | PROCESS_ACTIVE } else { mmap }
}

/// A different seed for each program that a process runs, so that no two of their stacks share an id.
fn seed(key: ProcessKey, program: u64) -> u64 {
    let mixed = (u64::from(key.pid) << 32 ^ key.start_time).wrapping_add(program.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9) << 3
}

/// A probe that is not in place yet.
pub(super) struct Wanted<'a> {
    file: &'a CodeFile,
    offset: u64,
    signature: leaktrace_common::signature::Signature,
    role: Role,
}

impl Wanted<'_> {
    pub(super) fn probe(&self, slot: u16) -> Probe<'_> {
        Probe {
            file: self.file.file.as_fd(),
            offset: self.offset,
            signature: self.signature.site(self.offset as u8).slot(slot),
            role: self.role,
        }
    }
}

/// The probes of a survey's plan that are not in place yet.
pub(super) fn wanted<'a>(survey: &'a Survey, probed: &HashSet<(FileId, u64)>) -> Vec<Wanted<'a>> {
    let mut result = Vec::new();
    for (file_plan, planned) in survey.plan.probes() {
        let Some(file) = survey.files.iter().find(|file| file.id == file_plan.file) else {
            continue;
        };
        let mut want = |offset: u64, role| {
            if !probed.contains(&(file.id, offset)) {
                result.push(Wanted {
                    file,
                    offset,
                    signature: planned.signature,
                    role,
                });
            }
        };
        match &planned.ret {
            ReturnProbe::None => want(planned.entry.offset.0, Role::Release),
            ReturnProbe::FunctionReturn => want(planned.entry.offset.0, Role::Call),
            ReturnProbe::Instructions(returns) => {
                want(planned.entry.offset.0, Role::Entry);
                returns.iter().for_each(|offset| want(offset.0, Role::ReturnSite));
            }
        }
    }
    result.sort_by_key(|wanted| (wanted.file.id, wanted.offset, wanted.role));
    result.dedup_by_key(|wanted| (wanted.file.id, wanted.offset));
    result
}
