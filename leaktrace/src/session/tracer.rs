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

use leaktrace_common::config::{MAX_MAPPINGS, PROCESS_ACTIVE, PROCESS_TRACK_MMAP, Process};

use super::{
    address_space::{AddressSpace, CodeSpan, Look},
    code::{CodeTables, code_spans, file_code, made_code, makes_code},
    program::Program,
    pump::{Notice, monotonic},
    survey::{CodeFile, Survey, Surveyor},
};
use crate::{
    bpf::{
        btf::Places,
        growth::GrowthProbes,
        kernel::{Kernel, LoadError, Sizes, UprobeMechanism},
        links::{AttachError, Links, Probe, Role},
        processes::{ProcessTable, ProcessTableError, Slot},
        program_set::ProgramSet,
        tables::{ArrayFull, UnwindArrays},
        usage::Usage,
    },
    model::ProcessKey,
    probe::plan::{Refused, ReturnProbe},
    proc::{
        ProcError, living,
        maps::{self, FileId},
    },
};

/// How many sets of programs are kept for later.
const SPARE_PROGRAMS: usize = 4;

/// How often a process is looked at that makes code itself: a compiler may do so a thousand times a second.
const MADE_CODE_INTERVAL: Duration = Duration::from_millis(100);

/// Longest mean distance of samples: what fits into 32 bits in units of 16 bytes.
pub const MAX_INTERVAL: u64 = 16 << 31;

/// How a process is traced.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Mean bytes between samples; 0: every allocation. A multiple of 16.
    pub sample_interval: u64,
    /// Smaller allocations are not taken.
    pub min_size: u64,
    /// Follow anonymous mappings outside allocators.
    pub track_mmap: bool,
    /// Mean bytes between samples of growth; 0: growth is not followed, allocations are. A multiple of 16.
    pub growth_interval: u64,
}

impl Settings {
    /// Every allocation of at least `min_size` bytes, and direct mappings.
    pub fn exact(min_size: u64) -> Self {
        Self {
            sample_interval: 0,
            min_size,
            track_mmap: true,
            growth_interval: 0,
        }
    }

    /// Growth alone, a sample every `interval` bytes on average: no probe is attached to the process.
    pub fn growth(interval: u64) -> Self {
        Self {
            sample_interval: 0,
            min_size: 0,
            track_mmap: false,
            growth_interval: interval.clamp(16, MAX_INTERVAL) & !15,
        }
    }

    /// A sample every `interval` bytes on average. The kernel side keeps intervals in units of 16 bytes.
    ///
    /// An allocation that is no sample has no return probe, so what the allocator maps inside it could not be told from
    /// what the program maps: direct mappings are not followed.
    pub fn sampled(interval: u64, min_size: u64) -> Self {
        Self {
            sample_interval: interval.clamp(16, MAX_INTERVAL) & !15,
            min_size,
            track_mmap: false,
            growth_interval: 0,
        }
    }
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
    Attach(AttachError),
    /// It could not be made known to the kernel side.
    #[error("failed to trace pid {pid}: {cause}")]
    Table {
        /// Process.
        pid: u32,
        /// Why.
        cause: ProcessTableError,
    },
    /// Code that has probes is not what it was: tracing of the process has ended, until it runs another program.
    #[error(
        "tracing of pid {pid} has ended, and what was recorded of it is left out, since frees may have been missed: {cause}"
    )]
    Withdrawn {
        /// Process.
        pid: u32,
        /// The first function that is concerned.
        cause: Refused,
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

impl From<AttachError> for TraceError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Load(cause) => Self::Load(cause),
            refused @ AttachError::Refused { .. } => Self::Attach(refused),
        }
    }
}

/// What is traced of one process.
struct Traced {
    /// What is known of the process itself.
    pub program: Program,
    settings: Settings,
    /// Programs of its own, so that its cost can be told apart.
    programs: Option<ProgramSet>,
    links: Links,
    /// The thread that probes are attached through: the first one as long as it lives.
    thread: u32,
    probed: HashSet<(FileId, u64)>,
    run: Range<u32>,
    /// Where which file's code is, as it was seen last.
    spans: Vec<(CodeSpan, Arc<CodeFile>)>,
    /// What told that.
    file_code: Vec<(u64, u64, u64, FileId)>,
    /// Memory that the program filled with code itself.
    made: Vec<Range<u64>>,
    /// When it was looked at last, and whether it made code since.
    looked: Instant,
    is_due: bool,
    seed: u64,
    slot: Option<Slot>,
    /// What the kernel side was told last.
    process: Process,
    active: bool,
    /// Files of which functions are left out, which was said.
    withdrawn: HashSet<FileId>,
    /// Probes were taken away for good.
    ended: bool,
}

impl Traced {
    fn has_probes_in(&self, file: FileId) -> bool {
        self.probed.iter().any(|(probed, _)| *probed == file)
    }
}

/// Everything traced.
pub struct Tracer {
    kernel: Kernel,
    code: CodeTables,
    table: ProcessTable,
    surveyor: Surveyor,
    processes: HashMap<u32, Traced>,
    generation: u64,
    /// There while some process's growth is followed.
    growth_probes: Option<GrowthProbes>,
    /// Programs of processes that are not traced any more, for the next ones: they need not be verified again.
    spare: Vec<ProgramSet>,
}

/// Sizes of the arrays for what was surveyed, with room for libraries that come later, and of the ring buffer.
pub fn sizes(surveys: &[Survey], ring_bytes: u32) -> Sizes {
    let (rows, blocks) = surveys
        .iter()
        .map(Survey::table_size)
        .fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    let with_room = |used: usize, room: usize| u32::try_from(used + used / 2 + room).unwrap_or(u32::MAX);
    Sizes {
        ring_bytes,
        rows: with_room(rows, 4 << 20),
        blocks: with_room(blocks, 512 << 10),
        mappings: 4 * MAX_MAPPINGS,
        // A recording follows allocations.
        places: Places::default(),
    }
}

impl Tracer {
    /// Takes over a loaded kernel side.
    pub fn new(
        mut kernel: Kernel,
        arrays: UnwindArrays,
        table: ProcessTable,
        surveyor: Surveyor,
    ) -> Result<Self, TraceError> {
        kernel.attach_tracepoints()?;
        Ok(Self {
            kernel,
            code: CodeTables::new(arrays),
            table,
            surveyor,
            processes: HashMap::new(),
            generation: 0,
            growth_probes: None,
            spare: Vec::new(),
        })
    }

    /// Makes a process known whose growth is to be followed, without any probe.
    pub fn add_growth(&mut self, survey: Survey, interval: u64) -> Result<(), TraceError> {
        if self.growth_probes.is_none() {
            self.growth_probes = Some(self.kernel.attach_growth()?);
        }
        self.add_with(survey, Settings::growth(interval), None)
    }

    /// Makes a process known and attaches to it. It is traced from [`set_active`](Self::set_active) on.
    pub fn add(&mut self, survey: Survey, settings: Settings) -> Result<(), TraceError> {
        self.add_with(survey, settings, None)
    }

    /// The same, with programs of its own, so that [`usage`](Self::usage) can tell its cost.
    pub fn add_measured(&mut self, survey: Survey, settings: Settings) -> Result<(), TraceError> {
        let programs = self.spare.pop().unwrap_or_else(|| self.kernel.program_set());
        self.add_with(survey, settings, Some(programs))
    }

    fn add_with(&mut self, survey: Survey, settings: Settings, programs: Option<ProgramSet>) -> Result<(), TraceError> {
        let key = survey.key();
        let traced = Traced {
            program: Program::new(key, survey.identity.comm.clone()),
            settings,
            programs,
            links: Links::new(),
            thread: key.pid,
            probed: HashSet::new(),
            run: 0..0,
            spans: Vec::new(),
            file_code: Vec::new(),
            made: Vec::new(),
            looked: Instant::now(),
            is_due: false,
            seed: seed(key, 0),
            slot: None,
            process: Process::default(),
            active: false,
            withdrawn: HashSet::new(),
            ended: false,
        };
        self.processes.insert(key.pid, traced);
        let thread = living::thread(key.pid);
        if thread != key.pid {
            self.attach_through(key.pid, thread);
        }
        // Only now is it told when code comes, and some may have come since the survey.
        let result = self.update(survey).and_then(|()| self.refresh(key.pid));
        if result.is_err() {
            self.remove(key.pid);
        }
        result
    }

    /// Looks at a process again after code came to be in it.
    pub fn refresh(&mut self, pid: u32) -> Result<(), TraceError> {
        if !self.processes.contains_key(&pid) {
            return Ok(());
        }
        if self.look_at_made_code(pid)? {
            return Ok(());
        }
        self.survey_again(pid)
    }

    /// Looks at all of a process again, its files too: one may be another than before where nothing else is.
    fn survey_again(&mut self, pid: u32) -> Result<(), TraceError> {
        if !self.processes.contains_key(&pid) {
            return Ok(());
        }
        let survey = self.surveyor.survey(pid)?;
        self.update(survey)
    }

    /// Looks where the program has made code itself, if that is all that changed. Returns whether it is.
    fn look_at_made_code(&mut self, pid: u32) -> Result<bool, TraceError> {
        let begun = monotonic();
        let mappings = maps::read_maps(pid)?;
        let look = Look {
            begun,
            done: monotonic(),
        };
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(true);
        };
        if traced.file_code.is_empty() || !file_code(&mappings).eq(traced.file_code.iter().copied()) {
            return Ok(false);
        }
        traced.looked = Instant::now();
        traced.is_due = false;
        let files: Vec<_> = traced
            .program
            .files
            .iter()
            .filter(|file| file.is_made())
            .cloned()
            .collect();
        let made = made_code(&mappings, &files, &traced.made);
        traced.program.has_made_code |= makes_code(&mappings, &files);
        traced.program.hold_names();
        let spans = traced.program.numbered(&traced.spans);
        traced.program.space.note(look, spans.into_iter());
        if made == traced.made {
            return Ok(true);
        }
        traced.made = made;
        self.store_code(pid)?;
        Ok(true)
    }

    /// Looks at processes that made code of late. To be called several times a second, or as [`due`](Self::due) says.
    pub fn catch_up(&mut self) {
        let is_due = |traced: &Traced| traced.is_due && traced.looked.elapsed() >= MADE_CODE_INTERVAL;
        let due: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, traced)| is_due(traced))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            if let Some(traced) = self.processes.get_mut(&pid) {
                // Whatever comes of it.
                traced.is_due = false;
            }
            if let Err(error) = self.refresh(pid) {
                tracing::debug!("failed to look for new code of pid {pid}: {error}");
            }
        }
    }

    /// When [`catch_up`](Self::catch_up) has something to do.
    pub fn due(&self) -> Option<Instant> {
        let due = self.processes.values().filter(|traced| traced.is_due);
        due.map(|traced| traced.looked + MADE_CODE_INTERVAL).min()
    }

    /// Notes that a process has made code; it is looked at now, or later if that was done just before.
    fn note_made_code(&mut self, pid: u32) -> Result<(), TraceError> {
        match self.processes.get_mut(&pid) {
            Some(traced) if traced.looked.elapsed() < MADE_CODE_INTERVAL => {
                traced.is_due = true;
                Ok(())
            }
            _ => self.refresh(pid),
        }
    }

    /// Begins anew with a process that runs another program now.
    pub fn restart(&mut self, pid: u32) -> Result<(), TraceError> {
        let generation = self.generation;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        if let Some(slot) = &traced.slot {
            self.table.forget_earlier(slot);
        }
        traced.ended = false;
        traced.program.space = AddressSpace::default();
        traced.program.files.clear();
        traced.program.forget_made_code();
        traced.file_code.clear();
        traced.made.clear();
        // Of all threads the one that asked for this is left, and it has its process's pid now.
        traced.thread = pid;
        traced.seed = seed(traced.program.key, generation + 1);
        self.refresh(pid)
    }

    fn update(&mut self, mut survey: Survey) -> Result<(), TraceError> {
        let pid = survey.key().pid;
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        traced.spans = code_spans(&survey);
        traced.made = made_code(&survey.mappings, &survey.files, &traced.made);
        traced.looked = Instant::now();
        traced.is_due = false;
        let program = &mut traced.program;
        program.comm.clone_from(&survey.identity.comm);
        program.has_made_code |= makes_code(&survey.mappings, &survey.files);
        program.hold_names();
        program.untraceable = match &survey.detection {
            Err(cause) if !survey.is_go() => Some(cause.to_string()),
            _ => None,
        };
        let spans = program.numbered(&traced.spans);
        program.space.note(survey.look, spans.into_iter());
        program.space.drop_unused(&mut program.files);
        let Some(slot) = self.store_code(pid)? else {
            return Ok(());
        };
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let follows_calls = traced.settings.growth_interval == 0 && !traced.ended;
        if follows_calls && !wanted(&survey, &traced.probed).is_empty() {
            // Some time may have passed since the survey.
            survey.verify_again()?;
        }
        let withdrawn = &survey.plan.withdrawn;
        if let Some(cause) = survey.plan.refused.last()
            && withdrawn.iter().any(|file| !traced.withdrawn.contains(file))
        {
            tracing::warn!(
                "pid {pid}: {} functions are not traced, such as {cause}",
                survey.plan.refused.len()
            );
            traced.withdrawn.extend(withdrawn);
        }
        if follows_calls && withdrawn.iter().any(|file| traced.has_probes_in(*file)) {
            let cause = survey.plan.refused.first().cloned();
            traced.program.plan = survey.plan;
            return self.withdraw(pid, cause);
        }
        let probes = wanted(&survey, &traced.probed);
        if !probes.is_empty() && follows_calls {
            let places: Vec<_> = probes.iter().map(|wanted| wanted.probe(slot)).collect();
            let links = self
                .kernel
                .attach(&places, Some(traced.thread), traced.programs.as_ref())?;
            traced.links.append(links);
            traced
                .probed
                .extend(probes.iter().map(|wanted| (wanted.file.id, wanted.offset)));
        }
        traced.program.unread = survey.unread();
        traced.program.plan = survey.plan;
        // Only now: what failed is tried again as a whole.
        traced.file_code = file_code(&survey.mappings).collect();
        Ok(())
    }

    /// Tells the kernel side where a process has which code, and what else it has to know of it. Returns its slot.
    fn store_code(&mut self, pid: u32) -> Result<Option<u16>, TraceError> {
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(None);
        };
        let stored = self.code.store(&traced.spans, &traced.made);
        let run = stored.map_err(|cause| TraceError::Full { pid, cause })?;
        self.generation += 1;
        let process = Process {
            pid,
            flags: flags(&traced.settings, traced.active && !traced.ended),
            mapping_first: run.start,
            mapping_count: run.end - run.start,
            sample_interval: traced.settings.sample_interval,
            min_size: traced.settings.min_size,
            growth_interval: traced.settings.growth_interval,
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
        self.code.retire(old);
        Ok(Some(slot))
    }

    /// Takes a process's probes away, since calls of its allocator are missed from now on.
    fn withdraw(&mut self, pid: u32, cause: Option<Refused>) -> Result<(), TraceError> {
        self.set_active(pid, false);
        let Some((traced, cause)) = self.processes.get_mut(&pid).zip(cause) else {
            return Ok(());
        };
        // It is active again when it runs another program.
        traced.active = true;
        traced.ended = true;
        traced.links = Links::new();
        traced.probed.clear();
        Err(TraceError::Withdrawn { pid, cause })
    }

    /// Acts on something that the kernel side noticed.
    pub fn act_on(&mut self, notice: Notice) -> Result<(), TraceError> {
        match notice {
            Notice::CodeMapped { pid, is_made: false } => self.survey_again(pid),
            Notice::CodeMapped { pid, is_made: true } => self.note_made_code(pid),
            Notice::Exec(pid) => self.restart(pid),
            Notice::Fork { pid, child } => {
                if let Some(program) = self.program_mut(pid) {
                    program.note_task(child);
                }
                Ok(())
            }
            Notice::ThreadExit { pid, tid } => self.replace_thread(pid, tid),
        }
    }

    /// Later probes of a process are attached through this thread, which is not its first.
    fn attach_through(&mut self, pid: u32, thread: u32) {
        if let Some(traced) = self.processes.get_mut(&pid) {
            traced.thread = thread;
            let suits = |programs: &ProgramSet| programs.mechanism() == UprobeMechanism::PerfEvent;
            if !traced.programs.as_ref().is_some_and(suits) {
                traced.programs = Some(self.kernel.thread_program_set());
            }
        }
    }

    /// A thread ended. If the probes of its process were attached through it, they are attached through another one: the
    /// kernel takes them away, or does so as soon as somebody else's are taken from the same places. New ones are there
    /// before the old ones go, and what both tell of one call is told once: the second entry is nested in the first, and
    /// finds its return taken.
    fn replace_thread(&mut self, pid: u32, tid: u32) -> Result<(), TraceError> {
        let is_held_by = |traced: &&Traced| traced.thread == tid && traced.settings.growth_interval == 0;
        let Some(traced) = self.processes.get(&pid).filter(is_held_by) else {
            return Ok(());
        };
        // What the kernel counts as perf events is gone with the thread; sessions stay for the moment.
        let had_gap = self.mechanism_of(traced) == UprobeMechanism::PerfEvent;
        let Some(thread) = living::successor(pid) else {
            return Ok(());
        };
        let survey = self.surveyor.survey(pid)?;
        self.attach_through(pid, thread);
        let Some(traced) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        let old = std::mem::take(&mut traced.links);
        traced.probed.clear();
        traced.program.gaps += u64::from(had_gap);
        let result = self.update(survey);
        drop(old);
        result
    }

    fn mechanism_of(&self, traced: &Traced) -> UprobeMechanism {
        traced
            .programs
            .as_ref()
            .map_or(self.kernel.mechanism(), ProgramSet::mechanism)
    }

    /// Looks for the files in which processes name their own code, as long as they live.
    pub fn hold_names(&mut self) {
        let without = self
            .processes
            .values_mut()
            .filter(|traced| traced.program.jit.is_none());
        without.for_each(|traced| traced.program.hold_names());
    }

    /// Reads names of a process that can be read only while it lives. `budget` is what the names that all processes give
    /// to their own code may take; each has an equal share.
    pub fn read_names(&mut self, pid: u32, budget: usize) {
        let sharers = self.processes.values().filter(|traced| traced.program.jit.is_some());
        let share = budget / sharers.count().max(1);
        if let Some(traced) = self.processes.get_mut(&pid) {
            traced.program.read_names(share);
        }
    }

    /// What is known of a process, to be brought up to date.
    pub fn program_mut(&mut self, pid: u32) -> Option<&mut Program> {
        self.processes.get_mut(&pid).map(|traced| &mut traced.program)
    }

    /// Begins or ends the telling of calls, for all probes of a process at one moment.
    pub fn set_active(&mut self, pid: u32, active: bool) {
        if let Some(traced) = self.processes.get_mut(&pid)
            && let Some(slot) = &mut traced.slot
        {
            traced.active = active;
            traced.process.flags = flags(&traced.settings, active && !traced.ended);
            self.table.change(slot, traced.process);
        }
    }

    /// Detaches from a process and hands out what is known of it.
    pub fn remove(&mut self, pid: u32) -> Option<Program> {
        self.set_active(pid, false);
        let mut traced = self.processes.remove(&pid)?;
        traced.links = Links::new();
        if let Some(programs) = traced.programs.take()
            && self.spare.len() < SPARE_PROGRAMS
            && programs.mechanism() == self.kernel.mechanism()
        {
            self.spare.push(programs);
        }
        if let Some(slot) = traced.slot.take() {
            self.table.remove(slot);
        }
        self.code.retire(traced.run);
        if self
            .processes
            .values()
            .all(|traced| traced.settings.growth_interval == 0)
        {
            self.growth_probes = None;
        }
        Some(traced.program)
    }

    /// What is known of a traced process.
    pub fn program(&self, pid: u32) -> Option<&Program> {
        self.processes.get(&pid).map(|traced| &traced.program)
    }

    /// Looks at a process without touching it.
    pub fn survey(&mut self, pid: u32) -> Result<Survey, ProcError> {
        self.surveyor.survey(pid)
    }

    /// Changes the mean distance of samples of a process that is traced by samples. Blocks that were taken before keep
    /// the distance that they were taken with.
    pub fn set_interval(&mut self, pid: u32, interval: u64) {
        if let Some(traced) = self.processes.get_mut(&pid)
            && let Some(slot) = &mut traced.slot
        {
            traced.settings = Settings::sampled(interval, traced.settings.min_size);
            traced.process.sample_interval = traced.settings.sample_interval;
            self.table.change(slot, traced.process);
        }
    }

    /// How often the programs ran that tell growth, and for how long, as far as the kernel counted it; `None` while none
    /// is attached.
    pub fn growth_usage(&self) -> Option<(u64, Duration)> {
        self.growth_probes.as_ref().map(|_| self.kernel.growth_usage())
    }

    /// How often the probes of a process were hit and how long its programs took, as far as the kernel counted it; `None`
    /// for a process without programs of its own.
    pub fn usage(&self, pid: u32) -> Option<Usage> {
        self.processes.get(&pid)?.programs.as_ref().map(ProgramSet::usage)
    }

    /// Whether only samples of a process have their return seen: a session skips the return of a call that is not taken.
    pub fn skips_returns(&self, pid: u32) -> bool {
        self.processes
            .get(&pid)
            .is_some_and(|traced| self.mechanism_of(traced) == UprobeMechanism::Session)
    }

    /// Gives up the unwind tables of files that no traced process maps any more, and what was learned of them.
    pub fn drop_unused(&mut self) {
        self.code.drop_unused();
        self.surveyor.drop_unused();
    }

    /// The loaded kernel side.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }
}

/// What a profile has to tell where [`act_on`](Tracer::act_on) failed; nothing where the process has ended.
pub(super) fn not_followed(error: &TraceError) -> Option<String> {
    let is_gone = match error {
        TraceError::Process(error) => matches!(error, ProcError::Exited { .. } | ProcError::NoSuchProcess { .. }),
        TraceError::Attach(error) => error.is_gone(),
        _ => false,
    };
    (!is_gone).then(|| {
        format!("new code was not followed: what it allocates may be missing, and stacks through it are cut: {error}")
    })
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
