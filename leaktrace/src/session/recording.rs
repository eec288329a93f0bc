//! One recording from start to end: survey, load, attach, follow, detach, profile.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    process::Child,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    launch::{Held, LaunchError},
    managed::ManagedHeap,
    profile::{Context, Mode, Subject},
    program::Program,
    pump::{self, Captured, Figures, Notice, NoticeReceiver, Outcome, Pump},
    source::KernelSource,
    stack_memory::StackMemory,
    survey::{Survey, Surveyor},
    tracer::{self, Settings, TraceError, Tracer},
};
use crate::{
    allocator::detect::DetectError,
    bpf::{
        kernel::{Kernel, LoadError},
        log::KernelLog,
    },
    model::ProcessKey,
    probe::plan::Refused,
    proc::{ProcError, living},
    report::{loss::Losses, profile::Profile},
    runtime::Runtime,
    symbolize::Symbolizer,
};

/// What to record.
#[derive(Clone, Debug)]
pub enum Target {
    /// Running processes.
    Processes(Vec<u32>),
    /// A command to start.
    Command(Vec<OsString>),
}

/// Memory that a recording may take.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Size of the ring buffer, a power of two.
    pub ring_bytes: u32,
    /// For the stacks of all processes.
    pub stack_bytes: usize,
}

/// Why a recording could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A process could not be looked at.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// Nothing to probe.
    #[error("failed to trace pid {pid}: {cause}")]
    NoAllocator {
        /// The process.
        pid: u32,
        /// Where was looked.
        cause: DetectError,
    },
    /// There is something to probe, and none of it can be.
    #[error("failed to trace pid {pid}: no allocation function can be probed: {cause}")]
    NotProbed {
        /// The process.
        pid: u32,
        /// The first function, and why not.
        cause: Refused,
    },
    /// The kernel side could not be set up.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A process could not be traced.
    #[error(transparent)]
    Trace(TraceError),
    /// The command could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The process ended while it was being attached to.
    #[error("the process with pid {0} exited while it was being attached to")]
    Gone(u32),
    /// A thread could not be started.
    #[error("failed to start the reader thread: {0}")]
    Thread(std::io::Error),
    /// The thread that attaches is busy, or its kernel is slow.
    #[error("attaching took longer than {0:?}: nothing is traced; try again when this machine is less busy")]
    NoAnswer(std::time::Duration),
}

impl From<TraceError> for RecordError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Process(error) => Self::Process(error),
            TraceError::Load(error) => Self::Load(error),
            error => Self::Trace(error),
        }
    }
}

/// Whether something of the process can be probed.
pub(super) fn check_probes(survey: &Survey) -> Result<(), RecordError> {
    let pid = survey.key().pid;
    match (&survey.detection, survey.plan.nothing_left()) {
        (Err(cause), _) => Err(RecordError::NoAllocator {
            pid,
            cause: cause.clone(),
        }),
        (Ok(_), Some(cause)) => Err(RecordError::NotProbed {
            pid,
            cause: cause.clone(),
        }),
        (Ok(_), None) => Ok(()),
    }
}
/// Remarks that a profile has at most.
const MAX_REMARKS: usize = 32;
/// Bytes that the names which processes give to their own code may take.
const NAMES: usize = 256 << 20;
/// How often files with such names are looked for.
const NAMES_INTERVAL: Duration = Duration::from_secs(1);

/// A recording under way.
pub struct Recording {
    tracer: Tracer,
    pump: Pump,
    notices: NoticeReceiver,
    logger: KernelLog,
    settings: Settings,
    pids: Vec<ProcessKey>,
    /// Those that have ended.
    ended: HashSet<u32>,
    managed: HashMap<u32, ManagedHeap>,
    child: Option<Child>,
    names_held: Instant,
    started: Instant,
    attached: SystemTime,
    /// What the profile has to tell of what happened meanwhile.
    remarks: Vec<String>,
}

/// A recording that is over.
pub struct Finished {
    /// The processes, with their code.
    pub processes: Vec<Program>,
    /// What the reader thread left.
    pub outcome: Outcome,
    /// Heaps of managed runtimes, by process.
    pub managed: HashMap<u32, ManagedHeap>,
    /// What the profile has to tell besides.
    pub context: Context,
    /// The command, if one was started and still runs.
    pub child: Option<Child>,
}

impl Recording {
    /// Surveys the targets, loads the kernel side and attaches. On return everything is traced.
    pub fn start(target: &Target, settings: Settings, room: Room) -> Result<Self, RecordError> {
        match target {
            Target::Processes(pids) => Self::attach(pids, settings, room),
            Target::Command(command) => Self::launch(command, settings, room),
        }
    }

    fn attach(pids: &[u32], settings: Settings, room: Room) -> Result<Self, RecordError> {
        let mut surveyor = Surveyor::new();
        let mut surveys = Vec::new();
        for &pid in pids {
            let survey = surveyor.survey(pid)?;
            // The heap of a managed runtime needs no probes.
            if survey.runtime().is_none() {
                check_probes(&survey)?;
            }
            surveys.push(survey);
        }
        let mut recording = Self::load(surveyor, &surveys, settings, room)?;
        for survey in surveys {
            let key = survey.key();
            let runtime = survey.runtime();
            recording.add(survey)?;
            recording.pids.push(key);
            if let Some(runtime) = runtime {
                recording.managed.insert(key.pid, ManagedHeap::begin(runtime, key.pid));
            }
        }
        for key in &recording.pids {
            recording.tracer.set_active(key.pid, true);
        }
        recording.started = Instant::now();
        recording.attached = SystemTime::now();
        Ok(recording)
    }

    fn launch(command: &[OsString], settings: Settings, room: Room) -> Result<Self, RecordError> {
        let held = Held::start(command)?;
        let pid = held.pid();
        let mut recording = match Self::prepare(pid, settings, room) {
            Ok(recording) => recording,
            Err(error) => {
                held.kill();
                return Err(error);
            }
        };
        let child = held.run_startup(|| recording.tracer.refresh(pid).map_err(RecordError::from))?;
        recording.child = Some(child);
        Ok(recording)
    }

    /// Attaches to a command that has not begun.
    fn prepare(pid: u32, settings: Settings, room: Room) -> Result<Self, RecordError> {
        let mut surveyor = Surveyor::new();
        let survey = surveyor.survey(pid)?;
        let key = survey.key();
        let runtime = survey.runtime();
        // Its allocator may come with its libraries, but they are of its own kind.
        let is_foreign = survey.files.iter().all(|file| file.inspected.is_none());
        let survey = match survey {
            Survey {
                detection: Err(cause), ..
            } if is_foreign => return Err(RecordError::NoAllocator { pid, cause }),
            survey => survey,
        };
        let mut recording = Self::load(surveyor, std::slice::from_ref(&survey), settings, room)?;
        recording.add(survey)?;
        if let Some(runtime) = runtime {
            recording.managed.insert(pid, ManagedHeap::of_new_program(runtime));
        }
        recording.pids.push(key);
        recording.tracer.set_active(pid, true);
        Ok(recording)
    }

    fn add(&mut self, survey: Survey) -> Result<(), RecordError> {
        let pid = survey.key().pid;
        match self.tracer.add(survey, self.settings) {
            Err(TraceError::Attach(error)) if error.is_gone() => Err(RecordError::Gone(pid)),
            result => Ok(result?),
        }
    }

    fn load(surveyor: Surveyor, surveys: &[Survey], settings: Settings, room: Room) -> Result<Self, RecordError> {
        let parts = Kernel::load(tracer::sizes(surveys, room.ring_bytes))?;
        let (sender, notices) = pump::notice_channel();
        let tracer = Tracer::new(parts.kernel, parts.arrays, parts.processes, surveyor)?;
        let source = KernelSource::new(parts.ring, parts.deferred, parts.lost, parts.counters);
        let stacks = StackMemory::Each(room.stack_bytes / surveys.len().max(1));
        let pump = Pump::start(source, sender, stacks).map_err(RecordError::Thread)?;
        Ok(Self {
            tracer,
            pump,
            notices,
            logger: parts.log,
            settings,
            pids: Vec::new(),
            ended: HashSet::new(),
            managed: HashMap::new(),
            child: None,
            names_held: Instant::now(),
            started: Instant::now(),
            attached: SystemTime::now(),
            remarks: Vec::new(),
        })
    }

    /// The processes being recorded.
    pub fn processes(&self) -> impl Iterator<Item = &Program> {
        self.pids.iter().filter_map(|key| self.tracer.program(key.pid))
    }

    /// The managed runtime of a process whose heap is recorded too.
    pub fn runtime(&self, pid: u32) -> Option<&'static dyn Runtime> {
        self.managed.get(&pid).map(ManagedHeap::runtime)
    }

    /// Figures for the progress line.
    pub fn figures(&self) -> &Figures {
        self.pump.figures()
    }

    /// How long it has lasted.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells when there is something to [`follow`](Self::follow).
    pub fn noticed(&self) -> Arc<tokio::sync::Notify> {
        self.notices.wake()
    }

    /// Acts on what the kernel side noticed: new code, new programs. To be called soon: until then the stacks of new code
    /// are cut short.
    pub fn follow(&mut self) {
        self.logger.flush();
        for notice in self.notices.take() {
            if let Notice::Exec(pid) = notice
                && let Some(heap) = self.managed.get_mut(&pid)
            {
                heap.note_exec();
            }
            let done = self.tracer.act_on(notice);
            self.leave_out_doubtful(done, || format!("{notice:?}"));
            if let Notice::Exec(pid) = notice {
                self.find_managed(pid);
            }
        }
    }

    /// Leaves out what may have been freed unseen, and says so, as it does of new code that was not followed.
    fn leave_out_doubtful(&mut self, done: Result<(), TraceError>, what: impl FnOnce() -> String) {
        let Err(error) = done else {
            return;
        };
        let remark = if let Some(pid) = error.doubtful() {
            self.pump.take(pid);
            Some(error.to_string())
        } else {
            tracing::debug!("failed to follow {}: {error}", what());
            tracer::not_followed(&error).filter(|_| self.remarks.len() < MAX_REMARKS)
        };
        self.remarks
            .extend(remark.filter(|remark| !self.remarks.contains(remark)));
    }

    /// Begins to record the heap of a process whose new program has a managed runtime.
    fn find_managed(&mut self, pid: u32) {
        if let Some(runtime) = self.tracer.program(pid).and_then(Program::runtime) {
            self.managed.entry(pid).or_insert_with(|| {
                let mut heap = ManagedHeap::of_new_program(runtime);
                heap.note_exec();
                heap
            });
        }
    }

    /// Looks at the heaps of managed runtimes, so that something is known of those whose process ends by itself. To be called
    /// several times a second.
    pub fn look_at_managed(&mut self) {
        for (pid, heap) in &mut self.managed {
            if !self.ended.contains(pid) {
                heap.look(*pid);
            }
        }
    }

    /// Looks for what comes without a notice, or was left for later: new code of programs that make it all the time, and the
    /// files in which they name it. To be called several times a second.
    pub fn catch_up(&mut self) {
        self.tracer.catch_up();
        let room = self.tracer.make_room_for_samples();
        self.leave_out_doubtful(room, String::new);
        if self.names_held.elapsed() >= NAMES_INTERVAL {
            self.names_held = Instant::now();
            self.tracer.hold_names();
        }
    }

    /// Whether every process has ended (or the command, which then is waited for).
    pub fn is_over(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && let Ok(Some(_)) = child.try_wait()
        {
            self.child = None;
            return true;
        }
        for key in &self.pids {
            if !self.ended.contains(&key.pid) && !living::is_running(*key) {
                // Another process may get its pid while the others are recorded.
                self.ended.insert(key.pid);
                self.tracer.end(key.pid);
            }
        }
        self.ended.len() == self.pids.len()
    }

    /// Detaches, reads what is left and hands everything over.
    pub fn finish(mut self) -> Finished {
        let duration = self.started.elapsed();
        for key in &self.pids {
            self.tracer.set_active(key.pid, false);
            self.tracer.read_names(key.pid, NAMES);
        }
        for key in &self.pids {
            if let Some(heap) = self.managed.get_mut(&key.pid) {
                heap.finish(key.pid, living::is_running(*key));
            }
        }
        let processes = self.pids.iter().filter_map(|key| self.tracer.remove(key.pid)).collect();
        let outcome = self.pump.stop();
        let context = Context {
            mode: if self.settings.sample_interval == 0 {
                Mode::Exact
            } else {
                Mode::Sampled
            },
            sample_interval: self.settings.sample_interval,
            min_size: self.settings.min_size,
            attached: self.attached,
            duration,
            counters: outcome.counters,
            undecodable: outcome.undecodable,
            remarks: self.remarks,
        };
        Finished {
            processes,
            outcome,
            managed: self.managed,
            context,
            child: self.child,
        }
    }
}

impl Finished {
    /// What was lost, if calls were made and not one of them was recorded.
    pub fn all_lost(&self) -> Option<Losses> {
        let recorded = self.outcome.ledgers.values().map(|ledger| ledger.notes().returns).sum();
        let counters = &self.outcome.counters;
        super::profile::all_lost(counters, recorded)
            .then(|| super::profile::kernel_losses(counters, self.outcome.undecodable))
    }

    /// Why nothing could be traced, if that is so: no process runs a program with an allocator that is known, and nothing
    /// else was recorded.
    pub fn untraceable(&self) -> Option<String> {
        let causes: Option<Vec<String>> = self
            .processes
            .iter()
            .map(|program| {
                let pid = program.key.pid;
                let cause = program
                    .untraceable
                    .as_ref()
                    .filter(|_| !self.managed.contains_key(&pid))?;
                let is_empty = self.outcome.capture(pid).snapshot.rows.is_empty();
                is_empty.then(|| format!("failed to trace pid {pid}: {cause}"))
            })
            .collect();
        causes
            .filter(|causes| !causes.is_empty())
            .map(|causes| causes.join("; "))
    }

    /// One profile of all processes, or of one of them.
    pub fn profile(&self, only: Option<u32>, symbolizer: &Symbolizer) -> Profile {
        let chosen = || {
            let processes = self.processes.iter();
            processes.filter(|program| only.is_none_or(|pid| pid == program.key.pid))
        };
        let captured: Vec<Captured> = chosen().map(|program| self.outcome.capture(program.key.pid)).collect();
        let subjects: Vec<Subject<'_>> = chosen()
            .zip(&captured)
            .map(|(program, captured)| Subject {
                program,
                snapshot: &captured.snapshot,
                notes: captured.notes,
                managed: self.managed.get(&program.key.pid),
            })
            .collect();
        super::profile::build(&subjects, &self.context, symbolizer)
    }
}
