//! What a recording knows of Go: unwind rules for Go's code, and the Go heap at its begin and end.
//!
//! Reading the heap may fail for many good reasons; that is a comment in the profile and never ends a recording.
//! Invariant: samples of a [`GoHeap`] whose start was read are of the same program run as its end.

use std::{fs::File, sync::Arc};

use leaktrace_common::unwind::{RULE_GO_CGOCALL, RULE_SP, Row, pack_deref};

use crate::{
    model::ElfAddress,
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
    heap: HeapSnapshot,
    collector: Option<CollectorState>,
}

impl Look {
    fn at(pid: u32) -> Result<Self, GoError> {
        let process = GoProcess::attach(pid)?;
        let heap = process.heap()?;
        let collector = process.collector().ok();
        Ok(Self {
            process,
            heap,
            collector,
        })
    }

    fn is_same_run(&self, other: &Self) -> bool {
        self.process.key == other.process.key
            && self.process.exe == other.process.exe
            && self.process.module.address == other.process.module.address
    }
}

/// The Go heap of a process at the begin and the end of a recording.
pub struct GoHeap {
    start: Option<Look>,
    end: Option<Look>,
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
            comments: Vec::new(),
        }
    }

    /// Reads the heap again. To be called once, at the end.
    pub fn finish(&mut self, pid: u32) {
        match Look::at(pid) {
            Ok(look) => {
                if let Some(start) = &self.start
                    && !look.is_same_run(start)
                {
                    self.start = None;
                    self.comments.push(
                        "the process runs another program than at the start: Go allocations are since its begin"
                            .to_owned(),
                    );
                } else if self.start.is_none() && !self.comments.is_empty() {
                    self.comments
                        .push("Go allocations are since the begin of the program".to_owned());
                }
                self.comments.push(facts(self.start.as_ref(), &look));
                self.end = Some(look);
            }
            Err(error) => self
                .comments
                .push(format!("Go heap not read at the end, so it is not included: {error}")),
        }
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

fn facts(start: Option<&Look>, end: &Look) -> String {
    let version = &end.process.version;
    let mut text = match end.heap.rate {
        0 => {
            format!("Go heap ({version}): the program does not profile itself (MemProfileRate is 0): no samples of it")
        }
        1 => format!("Go heap ({version}): every allocation that the runtime's profile holds"),
        rate => format!("Go heap ({version}): one sample per {rate} bytes on average, scaled"),
    };
    text.push_str("; inuse includes what the next collection will free");
    if let Some(collector) = &end.collector {
        let before = start.and_then(|start| start.collector.as_ref());
        let since = |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0));
        let collections = since(collector.finished, before.map(|state| state.finished));
        let pauses = since(collector.pause_total, before.map(|state| state.pause_total));
        text.push_str(&format!(
            "; {collections} collections while recording, {:.3} ms of pauses; {} bytes live, the next collection at {}",
            pauses as f64 / 1e6,
            collector.live,
            collector.goal
        ));
    }
    text
}
