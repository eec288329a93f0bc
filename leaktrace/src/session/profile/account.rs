//! What a profile says of itself: what was lost, by cause, and the comments.

use std::collections::{BTreeMap, BTreeSet};

use leaktrace_common::reason::{Counter, WalkEnd};

use super::{Context, Mode, Subject};
use crate::{ledger::Notes, model::HeapKind, report::loss::Losses, symbolize::Symbolizer};

/// Files whose names lack something and that are told, at most.
const MAX_FILES: usize = 16;
/// What is told of each, at most.
const MAX_PARTS: usize = 4;

/// What the kernel side lost, by its counters.
pub fn kernel_losses(counters: &[u64; Counter::COUNT], undecodable: u64) -> Losses {
    let count = |counter: Counter| counters[counter as usize];
    let mut losses = Losses::new();
    let entries = [
        (
            "alloc_lost",
            count(Counter::AllocLost),
            "allocations missing from this profile: the ring buffer was full",
        ),
        (
            "alloc_bytes_lost",
            count(Counter::AllocBytesLost),
            "requested bytes of those",
        ),
        (
            "free_lost",
            count(Counter::FreeLost),
            "frees missed: the blocks that they may have been are left out",
        ),
        (
            "thread_table_full",
            count(Counter::ThreadTableFull),
            "calls not seen: the kernel gave no memory to remember their threads",
        ),
        (
            "sampled_set_full",
            count(Counter::SampledSetFull),
            "samples not taken: too many outstanding, in all or of one process or user",
        ),
        (
            "return_missed",
            count(Counter::ReturnMissed),
            "calls whose return was not seen: they threw or jumped away, or the kernel dropped the probe",
        ),
        (
            "result_unreadable",
            count(Counter::ResultUnreadable),
            "allocations whose address could not be read",
        ),
        (
            "mapping_lost",
            count(Counter::MappingLost),
            "mmap and mremap calls missing from this profile: the ring buffer was full",
        ),
        (
            "unmap_lost",
            count(Counter::UnmapLost),
            "munmap or mremap calls missed: the mappings that they may have concerned are left out",
        ),
        (
            "exec_lost",
            count(Counter::ExecLost),
            "execs missed: what the programs before held is left out",
        ),
        (
            "notice_lost",
            count(Counter::NoticeLost),
            "notices of new code or processes missed",
        ),
        (
            "growth_lost",
            count(Counter::GrowthLost),
            "samples of growth missing from this profile: the ring buffer was full",
        ),
        (
            "growth_bytes_lost",
            count(Counter::GrowthBytesLost),
            "bytes of those, before scaling",
        ),
        (
            "map_refused",
            count(Counter::MapRefused),
            "samples that the kernel refused to note or to strike out",
        ),
        ("undecodable", undecodable, "records that could not be decoded"),
    ];
    add_losses(&mut losses, &entries);
    losses
}

/// Processes that a comment names.
const MAX_SHARERS: usize = 8;

/// Calls that were seen and are in no ledger, by the kernel side's counters.
fn lost_calls(counters: &[u64; Counter::COUNT]) -> u64 {
    let causes = [
        Counter::AllocLost,
        Counter::ThreadTableFull,
        Counter::SampledSetFull,
        Counter::MapRefused,
        Counter::ReturnMissed,
    ];
    causes.iter().map(|cause| counters[*cause as usize]).sum()
}

/// Whether calls were made and not one of them was recorded, of which `recorded` came to a ledger: then the numbers say
/// nothing about the program.
pub fn all_lost(counters: &[u64; Counter::COUNT], recorded: u64) -> bool {
    recorded == 0 && lost_calls(counters) > 0
}

fn add_losses(losses: &mut Losses, entries: &[(&str, u64, &str)]) {
    for (name, count, meaning) in entries {
        if *count != 0 {
            losses.add(name, *count, meaning);
        }
    }
}

pub(super) fn losses(context: &Context, notes: &Notes, truncated: &BTreeMap<WalkEnd, f64>) -> Losses {
    let mut losses = kernel_losses(&context.counters, context.undecodable);
    add_losses(
        &mut losses,
        &[
            (
                "missed_free",
                notes.missed_frees,
                "blocks whose address was allocated again without a free; repaired",
            ),
            (
                "left_out",
                notes.left_out,
                "blocks and mappings missing from this profile: a call that gave one of them back was lost",
            ),
            (
                "crowded_pages",
                notes.crowded_pages,
                "samples of growth missing from this profile: too many are resident",
            ),
            (
                "unknown_stack",
                notes.unknown_stacks,
                "allocations whose stack is not known",
            ),
            (
                "other_stacks",
                notes.other_stacks,
                "allocations that are shown as [other stacks]: there are more different stacks than there is memory for \
                 (record: --stack-memory)",
            ),
            (
                "truncated_stack",
                notes.truncated_stacks,
                "allocations whose stack is incomplete",
            ),
        ],
    );
    for (end, objects) in truncated {
        let (name, meaning) = match end {
            WalkEnd::Bottom => continue,
            WalkEnd::NoMapping => ("truncated_no_mapping", "stacks cut at an address outside known code"),
            WalkEnd::NoRule => ("truncated_no_rule", "stacks cut at code without an unwind rule"),
            WalkEnd::UnreadableStack => ("truncated_unreadable", "stacks cut at memory that could not be read"),
            WalkEnd::TooDeep => ("truncated_too_deep", "stacks cut: they are deeper than 4096 frames"),
            WalkEnd::NotProgressing => ("truncated_not_progressing", "stacks cut at a frame that leads nowhere"),
        };
        losses.add(name, objects.round() as u64, meaning);
    }
    losses
}

/// Moments without probes, and programs without any.
pub(super) fn add_gaps(losses: &mut Losses, subjects: &[Subject<'_>]) {
    let gaps = subjects.iter().map(|subject| subject.program.gaps).sum();
    let left_out = subjects.iter().map(|subject| &subject.program.left_out);
    let left_out: usize = left_out.map(|left_out| left_out.mappings + left_out.tables).sum();
    let untraceable = subjects.iter().filter(|subject| subject.program.untraceable.is_some());
    add_losses(
        losses,
        &[
            (
                "probe_gap",
                gaps,
                "times that the thread ended which the probes were attached through; calls were missed until they were \
                 attached through another one, a few milliseconds: what was freed then is shown",
            ),
            (
                "code_left_out",
                left_out as u64,
                "executable mappings and unwind tables that the kernel's arrays had no room for: stacks end there; the \
                 comments say whose and what helps",
            ),
            (
                "not_traced",
                untraceable.count() as u64,
                "processes whose program has no allocator that is known: nothing of it is shown; the comments say why",
            ),
        ],
    );
}

pub(super) fn comments(subjects: &[Subject<'_>], context: &Context, notes: &Notes) -> Vec<String> {
    let mut comments = Vec::new();
    match context.mode {
        Mode::Exact => comments.push("mode: exact".to_owned()),
        Mode::Sampled => comments.push(format!(
            "mode: sampled, one sample per {} bytes on average, scaled; memory mapped directly (mmap) is followed in exact \
             mode only",
            context.sample_interval
        )),
        Mode::Growth => comments.push(format!(
            "mode: growth without probes, one sample per {} bytes on average. In use (`heap` = `{}`): anonymous memory \
             that became resident and still is, in pages, by the stack that touched it first. Allocated (`heap` = `{}`): \
             address space reserved by brk, mmap and mremap",
            context.sample_interval,
            HeapKind::Resident,
            HeapKind::Reserved
        )),
    }
    if context.min_size > 0 {
        comments.push(format!("allocations below {} bytes are not included", context.min_size));
    }
    comments.push(match context.mode {
        Mode::Growth => "memory from before it was followed is not included".to_owned(),
        Mode::Exact | Mode::Sampled => "memory allocated before tracing began is not included".to_owned(),
    });
    let count = |counter: Counter| context.counters[counter as usize];
    comments.push(format!(
        "events: {}; frees of memory from before tracing began: {}; frees and unmaps told late: {}; nested calls: {}; failed allocations: {}",
        notes.events,
        notes.unknown_frees,
        count(Counter::FreeDeferred) + count(Counter::ReallocBeginDeferred) + count(Counter::UnmapDeferred),
        count(Counter::Nested),
        count(Counter::AllocFailed)
    ));
    if notes.execs > 0 {
        comments.push(format!(
            "programs that ran before this one in the same process, not included: {}",
            notes.execs
        ));
    }
    for subject in subjects {
        if subject.program.children > 0 {
            comments.push(format!(
                "children of pid {}, not traced: at least {}",
                subject.program.key.pid, subject.program.children
            ));
        }
        if !subject.program.sharers.is_empty() {
            let sharers: Vec<String> = subject
                .program
                .sharers
                .iter()
                .take(MAX_SHARERS)
                .map(u32::to_string)
                .collect();
            comments.push(format!(
                "processes that use the memory of pid {}, whose calls are included: {} in all, such as {}",
                subject.program.key.pid,
                subject.program.sharers.len(),
                sharers.join(", ")
            ));
        }
        if let Some(cause) = &subject.program.untraceable {
            comments.push(format!(
                "the program of pid {} ({}) is not traced: {cause}",
                subject.program.key.pid, subject.program.comm
            ));
        }
        if subject.program.left_out.is_some() {
            comments.push(format!(
                "code of pid {}: {}",
                subject.program.key.pid, subject.program.left_out
            ));
        }
        let skipped = subject.program.jit.as_ref().map_or(0, |jit| jit.map().skipped());
        if skipped > 0 {
            comments.push(format!(
                "names of code that pid {} made itself, left out: {skipped} lines of its perf map, not understood or too many",
                subject.program.key.pid
            ));
        }
        comments.extend(
            subject
                .managed
                .into_iter()
                .flat_map(|heap| heap.comments().iter().cloned()),
        );
        comments.extend(
            subject
                .program
                .unread
                .iter()
                .map(|file| format!("not read wholly: {file}")),
        );
        for file in &subject.program.plan.files {
            if let Some(library) = file.shape {
                let names: Vec<&str> = file.probes.iter().map(|probe| probe.symbol.as_str()).collect();
                comments.push(format!(
                    "{} has no symbols; found by shape: {library}'s {}",
                    file.path.display(),
                    names.join(", ")
                ));
            }
        }
        for refused in &subject.program.plan.refused {
            comments.push(format!(
                "not hooked: {} in {}: {}",
                refused.symbol,
                refused.path.display(),
                refused.reason
            ));
        }
    }
    comments
}

/// Files whose names lack something, once each.
pub(super) fn left_out(subjects: &[Subject<'_>], symbolizer: &Symbolizer) -> BTreeSet<String> {
    let files = subjects.iter().flat_map(|subject| &subject.program.files);
    let told = files.flat_map(|file| {
        let parts = symbolizer.left_out(&file.file);
        let told = !parts.is_empty();
        let parts: Vec<String> = parts.into_iter().take(MAX_PARTS).collect();
        told.then(|| format!("not read wholly: {}: {}", file.path.display(), parts.join("; ")))
    });
    told.take(MAX_FILES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(counter: Counter, count: u64) -> [u64; Counter::COUNT] {
        let mut counters = [0; Counter::COUNT];
        counters[counter as usize] = count;
        counters
    }

    #[test]
    fn a_recording_without_any_of_the_calls_is_a_failure() {
        for cause in [
            Counter::AllocLost,
            Counter::ThreadTableFull,
            Counter::SampledSetFull,
            Counter::ReturnMissed,
        ] {
            assert!(all_lost(&counters(cause, 1), 0), "{cause:?}");
            assert!(!all_lost(&counters(cause, 52208), 1), "{cause:?}");
        }
    }

    #[test]
    fn a_process_that_made_no_calls_lost_none() {
        assert!(!all_lost(&[0; Counter::COUNT], 0));
        // Those are no lost calls.
        for cause in [
            Counter::Nested,
            Counter::AllocFailed,
            Counter::FreeDeferred,
            Counter::MappingLost,
        ] {
            assert!(!all_lost(&counters(cause, 7), 0), "{cause:?}");
        }
    }
}
