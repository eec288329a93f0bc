//! Tracing many processes for a long time: they come and go, and profiles are made meanwhile.
//!
//! Every process is traced by samples, so that the distance between samples can change: blocks keep the distance that
//! they were taken with, and estimates stay unbiased. Invariant: a process that is not traced any more has left nothing
//! behind, neither in the kernel nor here.

mod launch;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use leaktrace_common::{reason::Counter, signature::Op};
use tokio::sync::Notify;

use super::{
    managed::ManagedHeap,
    profile::{Context, Mode, Subject},
    program::Program,
    pump::{self, Captured, Held, NoticeReceiver, Pump},
    recording::{RecordError, check_probes},
    source::KernelSource,
    stack_memory::StackMemory,
    survey::{Survey, Surveyor, uretprobes_kill},
    tracer::{Settings, TraceError, Tracer, not_followed},
};
use crate::{
    bpf::{
        btf::Places,
        kernel::{Kernel, Sizes},
        log::KernelLog,
        trap::{TrapError, Traps},
        usage::Usage,
    },
    model::ProcessKey,
    proc::{identity, living, pagemap, release::Release},
    report::profile::Profile,
    runtime::Runtime,
    symbolize::Symbolizer,
};

/// Room for the code of many programs, at 8 bytes a row and 8 a block. The kernel counts these arrays as memory of who
/// maps them, so there is no more than what some hundred programs with their libraries need; a process whose code does
/// not fit is refused, with the array's name.
const ROWS: u32 = 3 << 20;
const BLOCKS: u32 = 1 << 20;
const MAPPINGS: u32 = 16 << 10;
/// Bytes that the names which processes give to their own code may take, of all together.
const NAMES: usize = 16 << 20;
/// Bytes that the stacks of all processes may take: by samples there are few, and this leaves most of a daemon's memory to
/// others.
const STACKS: usize = 32 << 20;
/// Remarks that a profile has at most; the last ones.
const MAX_REMARKS: usize = 32;

/// Counters of the kernel side, and records that could not be decoded.
type Losses = ([u64; Counter::COUNT], u64);

/// One process that is traced.
struct Attached {
    key: ProcessKey,
    mode: Mode,
    runtime: Option<&'static dyn Runtime>,
    settings: Settings,
    started: Instant,
    attached: SystemTime,
    /// What was lost before.
    before: Losses,
    remarks: Vec<String>,
}

impl Attached {
    /// Notes what profiles have to tell of this moment.
    fn remark(&mut self, what: String) {
        if self.remarks.len() >= MAX_REMARKS {
            self.remarks.remove(0);
        }
        let after = self.started.elapsed().as_secs_f64();
        self.remarks.push(format!("after {after:.1}s: {what}"));
    }
}

/// The kernel side with the processes that it traces at the moment.
pub struct Live {
    tracer: Tracer,
    pump: Pump,
    notices: NoticeReceiver,
    logger: KernelLog,
    attached: HashMap<u32, Attached>,
    /// Processes whose tracing has ended by itself, and why.
    withdrawn: Vec<(ProcessKey, String)>,
}

/// All that a profile is made of, copied while tracing goes on.
pub struct Moment {
    program: Program,
    captured: Captured,
    context: Context,
    runtime: Option<&'static dyn Runtime>,
}

impl Live {
    /// Loads the kernel side; traces nothing yet. `ring_bytes` is a power of two.
    ///
    /// # Errors
    /// When this kernel, or the privileges, do not allow it.
    pub fn start(ring_bytes: u32) -> Result<Self, RecordError> {
        let parts = Kernel::load(Sizes {
            ring_bytes,
            rows: ROWS,
            blocks: BLOCKS,
            mappings: MAPPINGS,
            places: Places::of_kernel().unwrap_or_default(),
        })?;
        let (sender, notices) = pump::notice_channel();
        let tracer = Tracer::new(parts.kernel, parts.arrays, parts.processes, Surveyor::new())?;
        let source = KernelSource::new(parts.ring, parts.deferred, parts.lost, parts.counters);
        let pump = Pump::start(source, sender, StackMemory::Shared(STACKS)).map_err(RecordError::Thread)?;
        Ok(Self {
            tracer,
            pump,
            notices,
            logger: parts.log,
            attached: HashMap::new(),
            withdrawn: Vec::new(),
        })
    }

    /// Begins to trace a process with a mean of `interval` bytes between samples. One that is traced already goes on.
    ///
    /// # Errors
    /// It is gone, it has no known allocator, or the kernel refuses.
    pub fn add(&mut self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        if self.is_attached(key, Mode::Sampled) {
            return Ok(());
        }
        let survey = self.survey(key)?;
        check_probes(&survey)?;
        let runtime = survey.runtime();
        let settings = Settings::sampled(interval, 0);
        self.attach(survey, settings)?;
        self.begin(key, Mode::Sampled, runtime, settings);
        Ok(())
    }

    /// Begins to follow the growth of a process, without any probe, with a mean of `interval` bytes between samples. One
    /// whose growth is followed already goes on; one that is traced is not any more.
    ///
    /// # Errors
    /// It is gone, or the kernel refuses.
    pub fn add_growth(&mut self, key: ProcessKey, interval: u64) -> Result<(), RecordError> {
        if self.is_attached(key, Mode::Growth) {
            return Ok(());
        }
        let survey = self.survey(key)?;
        self.tracer.add_growth(survey, interval)?;
        // What a managed runtime tells of its heap would be the same memory once more.
        self.begin(key, Mode::Growth, None, Settings::growth(interval));
        Ok(())
    }

    fn is_attached(&self, key: ProcessKey, mode: Mode) -> bool {
        let known = self.attached.get(&key.pid);
        known.is_some_and(|known| known.key == key && known.mode == mode)
    }

    /// Looks at a process that is to be followed from now on, in another way than before if at all.
    fn survey(&mut self, key: ProcessKey) -> Result<Survey, RecordError> {
        self.remove(key.pid);
        let survey = self.tracer.survey(key.pid)?;
        if survey.key() == key {
            Ok(survey)
        } else {
            Err(RecordError::Gone(key.pid))
        }
    }

    fn begin(&mut self, key: ProcessKey, mode: Mode, runtime: Option<&'static dyn Runtime>, settings: Settings) {
        let attached = Attached {
            key,
            mode,
            runtime,
            settings,
            started: Instant::now(),
            attached: SystemTime::now(),
            before: self.losses(),
            remarks: Vec::new(),
        };
        self.attached.insert(key.pid, attached);
        self.tracer.set_active(key.pid, true);
    }

    fn attach(&mut self, survey: Survey, settings: Settings) -> Result<(), RecordError> {
        let pid = survey.key().pid;
        match self.tracer.add_measured(survey, settings) {
            Err(TraceError::Attach(error)) if error.is_gone() => Err(RecordError::Gone(pid)),
            result => Ok(result?),
        }
    }

    /// Ends tracing a process and forgets what it held. Returns whether it was traced.
    pub fn remove(&mut self, pid: u32) -> bool {
        let Some(_) = self.attached.remove(&pid) else {
            return false;
        };
        self.tracer.remove(pid);
        self.pump.take(pid);
        self.tracer.drop_unused();
        true
    }

    /// Changes the mean distance of samples, and says so, with the reason, in later profiles.
    pub fn set_interval(&mut self, pid: u32, interval: u64, reason: &str) {
        let Some(attached) = self.attached.get_mut(&pid) else {
            return;
        };
        self.tracer.set_interval(pid, interval);
        let old = attached.settings.sample_interval;
        attached.settings = Settings::sampled(interval, attached.settings.min_size);
        let new = attached.settings.sample_interval;
        attached.remark(format!(
            "mean distance of samples changed from {old} to {new} bytes: {reason}"
        ));
    }

    /// Tells when there is something to [`follow`](Self::follow).
    pub fn noticed(&self) -> Arc<Notify> {
        self.notices.wake()
    }

    /// Acts on what the kernel side noticed: new code, new programs, children.
    pub fn follow(&mut self) {
        self.logger.flush();
        for notice in self.notices.take() {
            let pid = notice.pid();
            let done = self.tracer.act_on(notice);
            self.leave_out_doubtful(done, Some(pid), || format!("{notice:?}"));
        }
        self.catch_up();
    }

    /// Processes whose probes were taken away since the last call, since their code is not what it was; and why. They count
    /// as traced until they are [removed](Self::remove).
    pub fn take_withdrawn(&mut self) -> Vec<(ProcessKey, String)> {
        std::mem::take(&mut self.withdrawn)
    }

    /// Leaves out what may have been freed unseen, and says so; what was not followed is told in the profile of `pid`.
    fn leave_out_doubtful(&mut self, done: Result<(), TraceError>, pid: Option<u32>, what: impl FnOnce() -> String) {
        let Err(error) = done else {
            return;
        };
        if let Some(doubtful) = error.doubtful() {
            self.pump.take(doubtful);
            if let Some(attached) = self.attached.get_mut(&doubtful) {
                attached.remark(error.to_string());
                if matches!(error, TraceError::Withdrawn { .. }) {
                    self.withdrawn.push((attached.key, error.to_string()));
                }
            }
            return;
        }
        tracing::debug!("failed to follow {}: {error}", what());
        if let Some(remark) = not_followed(&error)
            && let Some(attached) = pid.and_then(|pid| self.attached.get_mut(&pid))
        {
            attached.remark(remark);
        }
    }

    /// Makes room for samples if there is hardly any left. To be called from time to time.
    pub fn make_room_for_samples(&mut self) {
        let room = self.tracer.make_room_for_samples();
        self.leave_out_doubtful(room, None, String::new);
    }

    /// When [`catch_up`](Self::catch_up) has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.tracer.due()
    }

    /// Looks at processes that made code of late.
    pub fn catch_up(&mut self) {
        self.tracer.catch_up();
    }

    /// Processes that are traced.
    pub fn traced(&self) -> impl Iterator<Item = ProcessKey> {
        self.attached.values().map(|attached| attached.key)
    }

    /// Mean distance of a process's samples.
    pub fn interval(&self, pid: u32) -> Option<u64> {
        self.attached
            .get(&pid)
            .map(|attached| attached.settings.sample_interval)
    }

    /// How often the probes of a process were hit, while the kernel counted.
    pub fn usage(&self, pid: u32) -> Option<Usage> {
        self.tracer.usage(pid)
    }

    /// The same of the programs that tell growth, for all processes together; `None` while none is attached.
    pub fn growth_usage(&self) -> Option<(u64, Duration)> {
        self.tracer.growth_usage()
    }

    /// Whether a process's probes for an operation are at instructions that the kernel executes step by step, which costs
    /// much more.
    pub fn is_stepped(&self, pid: u32, op: Op) -> bool {
        self.tracer
            .program(pid)
            .is_some_and(|program| program.plan.is_stepped(op))
    }

    /// Whether only samples of a process have their return seen: a session skips the return of a call that is not taken.
    pub fn skips_returns(&self, pid: u32) -> bool {
        self.tracer.skips_returns(pid)
    }

    /// Measures what traps cost on this machine.
    ///
    /// # Errors
    /// As [`Kernel::measure_traps`]; also when that would end this program.
    pub fn measure_traps(&self) -> Result<Traps, TrapError> {
        let own = identity::read_identity(std::process::id())?;
        if uretprobes_kill(own.seccomp, Release::running().version()) {
            return Err(TrapError::Deadly);
        }
        self.tracer.kernel().measure_traps()
    }

    /// What each traced process holds.
    pub fn held(&self) -> HashMap<u32, Held> {
        self.pump.held().unwrap_or_default()
    }

    /// What was lost so far, over all processes.
    pub fn losses(&self) -> Losses {
        self.pump.counters().unwrap_or(([0; Counter::COUNT], 0))
    }

    /// Looks which of the memory that became resident in a process still is. To be done from time to time: there is
    /// room for so many samples only.
    pub fn look_at_pages(&self, pid: u32) {
        let Some(pages) = self.pump.pages(pid).filter(|pages| !pages.is_empty()) else {
            return;
        };
        // Of a process that is gone, what was known last counts.
        if let Ok(gone) = pagemap::gone(pid, &pages) {
            self.pump.leave_pages(pid, gone);
        }
    }

    /// Copies what a profile of a process is made of.
    pub fn capture(&mut self, pid: u32) -> Option<Moment> {
        if self.attached.get(&pid)?.mode == Mode::Growth {
            self.look_at_pages(pid);
        }
        let attached = self.attached.get(&pid)?;
        self.tracer.read_names(pid, NAMES);
        let program = self.tracer.program(pid)?.clone();
        let captured = self.pump.capture(pid)?;
        let now = self.losses();
        let mut counters = [0; Counter::COUNT];
        for ((counter, now), before) in counters.iter_mut().zip(now.0).zip(attached.before.0) {
            *counter = now.wrapping_sub(before);
        }
        Some(Moment {
            program,
            captured,
            context: Context {
                mode: attached.mode,
                sample_interval: attached.settings.sample_interval.max(attached.settings.growth_interval),
                min_size: attached.settings.min_size,
                attached: attached.attached,
                duration: attached.started.elapsed(),
                counters,
                undecodable: now.1.wrapping_sub(attached.before.1),
                remarks: attached.remarks.clone(),
            },
            runtime: attached.runtime,
        })
    }
}

impl Moment {
    /// Whether growth was followed, not allocations.
    pub fn is_growth(&self) -> bool {
        self.context.mode == Mode::Growth
    }

    /// Where its allocations are counted from: when the process was attached to, and the number of programs that it ran
    /// since before this one. Where either is another, counts have begun anew.
    pub fn origin(&self) -> (SystemTime, u64) {
        (self.context.attached, self.captured.notes.execs)
    }

    /// How long ago the process was attached to.
    pub fn age(&self) -> Duration {
        self.context.duration
    }

    /// Whether the profile has samples of a managed runtime's heap.
    pub fn is_managed(&self) -> bool {
        self.runtime.is_some()
    }

    /// The profile without a managed heap: names every address.
    pub fn native_profile(&self, symbolizer: &Symbolizer) -> Profile {
        let subject = Subject {
            program: &self.program,
            snapshot: &self.captured.snapshot,
            notes: self.captured.notes,
            managed: None,
        };
        super::profile::build(std::slice::from_ref(&subject), &self.context, symbolizer)
    }

    /// Makes the profile: names every address, which may take a second, and reads the heap of a managed runtime as of now.
    /// Of a process that ended, the heap that an earlier profile left stands in; the one that this profile leaves comes with
    /// it.
    pub fn profile(mut self, symbolizer: &Symbolizer, earlier: Option<ManagedHeap>) -> (Profile, Option<ManagedHeap>) {
        let managed = self.runtime.map(|runtime| {
            let mut heap = earlier.unwrap_or_else(|| ManagedHeap::of_new_program(runtime));
            heap.finish(self.program.key.pid, living::is_running(self.program.key));
            self.context.remarks.push(heap.since_begin());
            heap
        });
        let subject = Subject {
            program: &self.program,
            snapshot: &self.captured.snapshot,
            notes: self.captured.notes,
            managed: managed.as_ref(),
        };
        let profile = super::profile::build(std::slice::from_ref(&subject), &self.context, symbolizer);
        (profile, managed.and_then(ManagedHeap::kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{capability, features};

    fn pumps() -> usize {
        let tasks = std::fs::read_dir("/proc/self/task").expect("our own threads");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name == "pump\n").count()
    }

    #[test]
    fn giving_the_kernel_side_up_ends_its_thread() {
        let missing = capability::missing(capability::effective(), features::circumstances());
        if !missing.is_empty() {
            eprintln!("skipped: loading the kernel side needs root");
            return;
        }
        let _alone = super::super::KERNEL_SIDE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = Live::start(1 << 20).expect("the kernel side");
        // Its answer shows that it runs.
        live.losses();
        assert_eq!(pumps(), 1);
        drop(live);
        assert_eq!(pumps(), 0);
    }
}
