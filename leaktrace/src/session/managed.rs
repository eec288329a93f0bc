//! The heap of a managed runtime at the begin and the end of a recording.
//!
//! Reading it may fail for many good reasons; that is a comment in the profile and never ends a recording.
//! Invariant: samples of a [`ManagedHeap`] whose start was read are of the same program run as its end.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    proc::identity,
    report::{builder::ProfileBuilder, loss::Losses, profile::MappingId, profile::NumericLabel},
    runtime::{Attached, Heap, HeapMarks, Run, Runtime, RuntimeError},
};

/// One look at a heap.
struct Look {
    process: Box<dyn Attached>,
    /// The program that ran; not the file with the runtime, which may be a library.
    program: Option<PathBuf>,
    heap: Box<dyn Heap>,
}

impl Look {
    fn at(runtime: &dyn Runtime, pid: u32) -> Result<Self, RuntimeError> {
        let program = program(pid);
        let process = runtime.attach(pid)?;
        let heap = process.heap()?;
        Ok(Self { process, program, heap })
    }

    /// Reads again what is still the same program; `None` where it is not.
    fn again(&self) -> Option<Box<dyn Heap>> {
        let unchanged = self.process.is_alive() && program(self.process.run().key.pid) == self.program;
        unchanged.then(|| self.process.heap().ok()).flatten()
    }
}

/// What a recording begins with.
struct Start {
    run: Run,
    program: Option<PathBuf>,
    marks: HeapMarks,
}

impl Start {
    fn of(look: &Look) -> Self {
        Self {
            run: look.process.run(),
            program: look.program.clone(),
            marks: look.heap.marks(),
        }
    }

    fn is_same_run(&self, look: &Look) -> bool {
        self.program == look.program && self.run == look.process.run()
    }
}

/// What a process runs.
fn program(pid: u32) -> Option<PathBuf> {
    identity::read_identity(pid).ok()?.exe
}

/// Time between two looks at a program that may end by itself, at first and at last: nothing can be read of it then.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// A look may take so much of the time until the next one.
const LOOK_SHARE: u32 = 20;

/// The heap of a process's runtime at the begin and the end of a recording.
pub struct ManagedHeap {
    runtime: &'static dyn Runtime,
    start: Option<Start>,
    end: Option<Look>,
    /// When the end was read.
    finished: Option<Instant>,
    /// The last look meanwhile, and when it was. For a program that ends by itself.
    between: Option<(Look, Instant)>,
    next: Instant,
    pace: Duration,
    /// Programs that ran before, told by exec.
    execs: u32,
    comments: Vec<String>,
}

impl ManagedHeap {
    /// Whose heap it is.
    pub fn runtime(&self) -> &'static dyn Runtime {
        self.runtime
    }

    /// Reads the heap of a running process.
    pub fn begin(runtime: &'static dyn Runtime, pid: u32) -> Self {
        let mut heap = Self::of_new_program(runtime);
        match Look::at(runtime, pid) {
            Ok(look) => heap.start = Some(Start::of(&look)),
            Err(error) => heap
                .comments
                .push(format!("{} heap not read at the start: {error}", runtime.title())),
        }
        heap
    }

    /// For a program that is recorded from its first instruction on: nothing was allocated before.
    pub fn of_new_program(runtime: &'static dyn Runtime) -> Self {
        Self {
            runtime,
            start: None,
            end: None,
            finished: None,
            between: None,
            next: Instant::now() + FIRST_LOOK,
            pace: FIRST_LOOK,
            execs: 0,
            comments: Vec::new(),
        }
    }

    /// Looks, if it is time. What is seen counts if the program ends before the recording does, since nothing is left to
    /// read then. To be called several times a second; looks once a second at most in the long run.
    pub fn look(&mut self, pid: u32) {
        let begin = Instant::now();
        if begin < self.next {
            return;
        }
        match &mut self.between {
            Some((look, at)) => {
                if let Some(heap) = look.again() {
                    look.heap = heap;
                    *at = begin;
                }
            }
            // Fails as long as the runtime is not set up.
            None => self.between = Look::at(self.runtime, pid).ok().map(|look| (look, begin)),
        }
        let end = Instant::now();
        self.next = end + self.pace.max((end - begin) * LOOK_SHARE);
        self.pace = (self.pace * 2).min(LAST_LOOK);
    }

    /// The process runs another program, or the same one anew.
    pub fn note_exec(&mut self) {
        self.execs += 1;
        self.start = None;
        self.between = None;
        self.comments.clear();
        self.next = Instant::now() + FIRST_LOOK;
        self.pace = FIRST_LOOK;
    }

    /// Reads the heap again. To be called once, at the end.
    ///
    /// A process that has ended (`is_there` is false) is not asked: another one may have its pid.
    pub fn finish(&mut self, pid: u32, is_there: bool) {
        let title = self.runtime.title();
        let another =
            || format!("the process runs another program than at the start: {title} allocations are since its begin");
        if self.execs > 0 {
            self.comments.push(another());
        }
        let now = Instant::now();
        let looked = if is_there {
            Look::at(self.runtime, pid).map_err(|error| error.to_string())
        } else {
            Err("the process has ended".to_owned())
        };
        match looked {
            Ok(look) => {
                self.finished = Some(now);
                if let Some(start) = &self.start
                    && !start.is_same_run(&look)
                {
                    self.start = None;
                    self.comments.push(another());
                } else if self.start.is_none() && self.execs == 0 && !self.comments.is_empty() {
                    self.comments.push(self.since_begin());
                }
                self.end_with(look);
            }
            Err(error) => match self.between.take() {
                Some((look, at)) if !look.process.is_alive() => {
                    self.comments.push(format!(
                        "the program ended by itself: its {title} heap is as of {:.3} s before this profile",
                        at.elapsed().as_secs_f64()
                    ));
                    self.end_with(look);
                }
                _ => self.comments.push(format!(
                    "{title} heap not read at the end, so it is not included: {error}"
                )),
            },
        }
    }

    fn end_with(&mut self, look: Look) {
        self.comments.push(look.heap.facts(self.since()));
        self.end = Some(look);
    }

    fn since(&self) -> Option<&HeapMarks> {
        self.start.as_ref().map(|start| &start.marks)
    }

    /// What a profile says whose allocations go further back than the recording.
    pub fn since_begin(&self) -> String {
        format!(
            "{} allocations are since the begin of the program",
            self.runtime.title()
        )
    }

    /// What was read at the end, for another profile of the same process should it have ended by then; `None` where nothing
    /// was read.
    pub fn kept(self) -> Option<Self> {
        let look = self.end?;
        Some(Self {
            between: Some((look, self.finished?)),
            ..Self::of_new_program(self.runtime)
        })
    }

    /// Bytes of memory that it takes, roughly.
    pub fn memory(&self) -> usize {
        let looks = self.end.iter().chain(self.between.as_ref().map(|(look, _)| look));
        let read: usize = looks.map(|look| look.heap.memory()).sum();
        read + self.since().map_or(0, HeapMarks::memory)
    }

    /// What to say of it in the profile.
    pub fn comments(&self) -> &[String] {
        &self.comments
    }

    /// Adds its samples. `mapping` finds the mapping of an address of the program, `numbers` are labels of each sample.
    pub fn add_samples(
        &self,
        builder: &mut ProfileBuilder,
        mapping: &dyn Fn(u64) -> Option<MappingId>,
        numbers: &[NumericLabel],
    ) {
        if let Some(end) = &self.end {
            end.heap.add_samples(builder, mapping, self.since(), numbers);
        }
    }

    /// Adds what it missed.
    pub fn add_losses(&self, losses: &mut Losses) {
        if let Some(end) = &self.end {
            for loss in end.heap.losses().iter() {
                losses.add(&loss.name, loss.count, &loss.meaning);
            }
        }
    }
}
