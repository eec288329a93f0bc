//! The kernel side and the processes it traces: which there are and how each is traced.
//!
//! `attach` brings code and probes to the kernel side, `follow` acts on what changes in a process, `withdraw` takes probes
//! away where calls were missed. Invariant: tracing of a process begins at one moment when all of its probes are in place, and
//! ends at one moment before the first is taken away ([`Tracer::set_active`]).

mod attach;
mod follow;
mod withdraw;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use attach::flags;
pub(super) use attach::wanted;
use leaktrace_common::config::{MAX_MAPPINGS, MAX_SAMPLES, Process};

use super::{
    code::CodeTables,
    program::Program,
    survey::{Survey, Surveyor},
};
use crate::{
    bpf::{
        btf::Places,
        growth::GrowthProbes,
        kernel::{Kernel, LoadError, Sizes, UprobeMechanism},
        links::{AttachError, Links},
        processes::{ProcessTable, ProcessTableError, Slot},
        program_set::ProgramSet,
        tables::UnwindArrays,
        usage::Usage,
    },
    model::ProcessKey,
    probe::plan::Refused,
    proc::{ProcError, living, maps::FileId},
};

/// How many sets of programs are kept for later.
const SPARE_PROGRAMS: usize = 4;

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
    /// Another process has come to use its memory, and is seen from now on.
    #[error(
        "pid {sharer} has come to use the memory of pid {pid}: what was recorded before is left out, since it may have been \
         freed by pid {sharer} before its calls were seen"
    )]
    Shared {
        /// Process.
        pid: u32,
        /// The other one.
        sharer: u32,
    },
    /// The same, and there was no room to note it, or no way to attach to it.
    #[error(
        "tracing of pid {pid} has ended, and what was recorded of it is left out: pid {sharer} uses its memory, and what that \
         one frees cannot be seen"
    )]
    SharerMissed {
        /// Process.
        pid: u32,
        /// The other one.
        sharer: u32,
    },
    /// It had more samples than others, for which there was no room any more.
    #[error(
        "what was sampled of pid {pid} before is left out: it held {samples} of the {MAX_SAMPLES} samples that all processes \
         share, and there was hardly any room left for others; with larger intervals between samples there is"
    )]
    TooManySamples {
        /// Process.
        pid: u32,
        /// How many it held.
        samples: u64,
    },
    /// It uses the memory of a process that is traced.
    #[error(
        "pid {pid} uses the memory of pid {owner}, which is traced: what pid {pid} allocates and frees is included there; \
         name pid {owner} alone"
    )]
    Shares {
        /// Process.
        pid: u32,
        /// The traced one.
        owner: u32,
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
    /// Its user, as it was seen last.
    user: u32,
    /// What told which file's code is where.
    file_code: Vec<(u64, u64, u64, FileId)>,
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
    /// The process has ended.
    has_ended: bool,
    /// Processes that use its memory were sought.
    has_sought_sharers: bool,
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
    /// There is room again for code that was left out.
    has_room: bool,
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
            has_room: false,
        })
    }

    /// Makes a process known whose growth is to be followed, without any probe.
    pub fn add_growth(&mut self, survey: Survey, interval: u64) -> Result<(), TraceError> {
        self.refuse_sharer(survey.key().pid)?;
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

    /// One memory is traced once.
    fn refuse_sharer(&self, pid: u32) -> Result<(), TraceError> {
        let owner = self.table.owner_of(pid);
        match owner.filter(|owner| self.processes.contains_key(owner)) {
            Some(owner) => Err(TraceError::Shares { pid, owner }),
            None => Ok(()),
        }
    }

    fn add_with(&mut self, survey: Survey, settings: Settings, programs: Option<ProgramSet>) -> Result<(), TraceError> {
        let key = survey.key();
        self.refuse_sharer(key.pid)?;
        let traced = Traced {
            program: Program::new(key, survey.identity.comm.clone()),
            settings,
            programs,
            links: Links::new(),
            thread: key.pid,
            probed: HashSet::new(),
            user: survey.identity.uid,
            file_code: Vec::new(),
            looked: Instant::now(),
            is_due: false,
            seed: seed(key, 0),
            slot: None,
            process: Process::default(),
            active: false,
            withdrawn: HashSet::new(),
            ended: false,
            has_ended: false,
            has_sought_sharers: false,
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
        self.code.remove(pid);
        self.has_room = self.code.is_short();
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

/// A different seed for each program that a process runs, so that no two of their stacks share an id.
fn seed(key: ProcessKey, program: u64) -> u64 {
    let mixed = (u64::from(key.pid) << 32 ^ key.start_time).wrapping_add(program.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9) << 3
}
