//! What a recording knows of Go: unwind rules for Go's code, and the Go heap at its begin and end.
//!
//! Reading the heap may fail for many good reasons; that is a comment in the profile and never ends a recording.
//! Invariant: samples of a [`GoHeap`] whose start was read are of the same program run as its end.

use std::{
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use leaktrace_common::unwind::{RULE_GO_CGOCALL, RULE_SP, Row, pack_deref};

use crate::{
    model::ElfAddress,
    proc::identity,
    report::{builder::ProfileBuilder, loss::Losses, profile::MappingId, profile::NumericLabel},
    runtime::go::{
        GoError, GoProcess,
        code::{CgoCall, FixedFrame, GoCode},
        executable::Executable,
        gc::CollectorState,
        heap::{HeapSnapshot, View},
        profile,
    },
    unwind::ForcedRule,
};

/// What a saved frame pointer below the return address is from the CFA.
const BELOW_RETURN_ADDRESS: i16 = -16;

/// Reads what a file has of Go; `None` if it is no Go binary.
pub(super) fn read_code(file: &File) -> Option<Arc<GoCode>> {
    let executable = Executable::new(file.try_clone().ok()?).ok()?;
    GoCode::read(&executable).map(Arc::new)
}

/// Rules for the code of a Go binary, the general ones first.
pub(super) fn forced_rules(code: &GoCode) -> Vec<ForcedRule> {
    let range = |range: &std::ops::Range<u64>| ElfAddress(range.start)..ElfAddress(range.end);
    let mut rules: Vec<ForcedRule> = code
        .frame_pointer
        .iter()
        .map(|text| ForcedRule::FramePointer(range(text)))
        .collect();
    rules.extend(code.outermost.iter().map(|function| ForcedRule::End(range(function))));
    rules.extend(
        code.fixed
            .iter()
            .map(|frame| ForcedRule::Row(range(&frame.range), fixed(frame))),
    );
    rules.extend(
        code.cgocall
            .iter()
            .map(|call| ForcedRule::Row(range(&call.range), cgocall(call))),
    );
    rules
}

fn fixed(frame: &FixedFrame) -> Row {
    Row {
        low: 0,
        rule: RULE_SP,
        bp_offset: if frame.saves_frame_pointer {
            BELOW_RETURN_ADDRESS
        } else {
            0
        },
        cfa: i32::try_from(frame.size).unwrap_or(i32::MAX),
    }
}

fn cgocall(call: &CgoCall) -> Row {
    Row {
        low: 0,
        rule: RULE_GO_CGOCALL,
        bp_offset: call.frame.into(),
        cfa: pack_deref(call.goroutine, call.depth),
    }
}

/// One look at a Go heap.
struct Look {
    process: GoProcess,
    /// The program that ran; not the file with the runtime, which may be a library.
    program: Option<PathBuf>,
    heap: HeapSnapshot,
    collector: Option<CollectorState>,
}

impl Look {
    fn at(pid: u32) -> Result<Self, GoError> {
        let program = program(pid);
        let process = GoProcess::attach(pid)?;
        let heap = process.heap()?;
        let collector = process.collector().ok();
        Ok(Self {
            process,
            program,
            heap,
            collector,
        })
    }

    /// Reads again what is still the same program; `None` where it is not.
    fn again(&self) -> Option<HeapSnapshot> {
        let unchanged = self.process.is_alive() && program(self.process.pid()) == self.program;
        unchanged.then(|| self.process.heap().ok()).flatten()
    }

    fn is_same_run(&self, other: &Self) -> bool {
        self.process.key == other.process.key
            && self.program == other.program
            && self.process.exe == other.process.exe
            && self.process.module.address == other.process.module.address
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

/// The Go heap of a process at the begin and the end of a recording.
pub struct GoHeap {
    start: Option<Look>,
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

impl GoHeap {
    /// Reads the heap of a running process.
    pub fn begin(pid: u32) -> Self {
        let mut heap = Self::of_new_program();
        match Look::at(pid) {
            Ok(look) => heap.start = Some(look),
            Err(error) => heap.comments.push(format!("Go heap not read at the start: {error}")),
        }
        heap
    }

    /// For a program that is recorded from its first instruction on: nothing was allocated before.
    pub fn of_new_program() -> Self {
        Self {
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
                    look.collector = look.process.collector().ok();
                    look.heap = heap;
                    *at = begin;
                }
            }
            // Fails as long as the runtime is not set up.
            None => self.between = Look::at(pid).ok().map(|look| (look, begin)),
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
        if self.execs > 0 {
            self.comments.push(
                "the process runs another program than at the start: Go allocations are since its begin".to_owned(),
            );
        }
        let now = Instant::now();
        let looked = if is_there {
            Look::at(pid).map_err(|error| error.to_string())
        } else {
            Err("the process has ended".to_owned())
        };
        match looked {
            Ok(look) => {
                self.finished = Some(now);
                if let Some(start) = &self.start
                    && !look.is_same_run(start)
                {
                    self.start = None;
                    self.comments.push(
                        "the process runs another program than at the start: Go allocations are since its begin"
                            .to_owned(),
                    );
                } else if self.start.is_none() && self.execs == 0 && !self.comments.is_empty() {
                    self.comments
                        .push("Go allocations are since the begin of the program".to_owned());
                }
                self.comments.push(facts(self.start.as_ref(), &look));
                self.end = Some(look);
            }
            Err(error) => match self.between.take() {
                Some((look, at)) if !look.process.is_alive() => {
                    self.comments.push(format!(
                        "the program ended by itself: its Go heap is as of {:.3} s before this profile",
                        at.elapsed().as_secs_f64()
                    ));
                    self.comments.push(facts(self.start.as_ref(), &look));
                    self.end = Some(look);
                }
                _ => self
                    .comments
                    .push(format!("Go heap not read at the end, so it is not included: {error}")),
            },
        }
    }

    /// What was read at the end, for another profile of the same process should it have ended by then; `None` where nothing
    /// was read.
    pub fn kept(self) -> Option<Self> {
        let look = self.end?;
        Some(Self {
            between: Some((look, self.finished?)),
            ..Self::of_new_program()
        })
    }

    /// Bytes of memory that it takes, roughly: the table of functions, and the heap's stacks.
    pub fn memory(&self) -> usize {
        let looks = [&self.start, &self.end].into_iter().flatten();
        let looks = looks.chain(self.between.as_ref().map(|(look, _)| look));
        looks
            .map(|look| look.process.table().memory() + look.heap.memory())
            .sum()
    }

    /// What to say of it in the profile.
    pub fn comments(&self) -> &[String] {
        &self.comments
    }

    /// Adds its samples. `mapping` finds the mapping of an address of the program, `numbers` are labels of each sample.
    pub fn add_samples(
        &self,
        builder: &mut ProfileBuilder,
        mapping: impl Fn(u64) -> Option<MappingId>,
        numbers: &[NumericLabel],
    ) {
        let Some(end) = &self.end else { return };
        let mapping =
            mapping(end.process.table().text()).unwrap_or_else(|| builder.mapping(profile::text_mapping(&end.process)));
        let start = self.start.as_ref().map(|start| &start.heap);
        profile::add_heap_labelled(builder, mapping, &end.process, start, &end.heap, View::Now, numbers);
    }

    /// Adds what it missed.
    pub fn add_losses(&self, losses: &mut Losses) {
        if let Some(end) = &self.end {
            for loss in profile::losses(&end.heap, View::Now).iter() {
                losses.add(&loss.name, loss.count, &loss.meaning);
            }
        }
    }
}

/// Bytes in use that were allocated since the last collection: what of them is garbage the next one will tell.
fn since_collection(heap: &HeapSnapshot) -> i64 {
    let in_use = |view| -> i64 {
        heap.view(view)
            .map(|(bucket, counts)| heap.scale(bucket, counts).inuse_bytes)
            .sum()
    };
    in_use(View::Now).saturating_sub(in_use(View::LastGc)).max(0)
}

fn facts(start: Option<&Look>, end: &Look) -> String {
    let version = &end.process.version;
    let mut text = match end.heap.rate {
        0 => {
            format!("Go heap ({version}): the program does not profile itself (MemProfileRate is 0): no samples of it")
        }
        1 => format!("Go heap ({version}): every allocation that the runtime's profile holds"),
        rate => format!("Go heap ({version}): one sample per {rate} bytes on average, scaled"),
    };
    text.push_str(&format!(
        "; inuse is as of the end and includes {} bytes allocated since the last collection, garbage or not",
        since_collection(&end.heap)
    ));
    if let Some(collector) = &end.collector {
        let before = start.and_then(|start| start.collector.as_ref());
        let since = |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0));
        let collections = since(collector.finished, before.map(|state| state.finished));
        let pauses = since(collector.pause_total, before.map(|state| state.pause_total));
        text.push_str(&format!(
            "; {collections} collections while recording, {:.3} ms of pauses; {} bytes live, {}",
            pauses as f64 / 1e6,
            collector.live,
            next_collection(collector)
        ));
    }
    text
}

fn next_collection(collector: &CollectorState) -> String {
    match collector.next_goal() {
        Some(goal) => format!("the next collection at {goal}"),
        None => "garbage collection is off (GOGC=off)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_is_off_has_no_next_collection() {
        let with_goal = |goal| CollectorState {
            goal,
            ..CollectorState::default()
        };
        assert_eq!(next_collection(&with_goal(4 << 20)), "the next collection at 4194304");
        assert_eq!(
            next_collection(&with_goal(u64::MAX)),
            "garbage collection is off (GOGC=off)"
        );
    }
}
