//! Goroutines of a process, in the words of the API.

use super::super::source::SourceError;
use crate::{
    daemon::api,
    runtime::go::pclntab::Frame,
    runtime::go::{GoProcess, clock, groups::group, stacks::Symbolizer},
};

/// Most groups; the smallest are left out.
const MAX_GROUPS: usize = 2_000;
/// Most frames of a stack.
const MAX_FRAMES: usize = 100;
/// Most ids of a group.
const MAX_IDS: usize = 32;

/// Reads them. The largest group comes first.
///
/// # Errors
/// When they cannot be read.
pub fn read(go: &GoProcess) -> Result<api::Goroutines, SourceError> {
    let snapshot = go.goroutines()?;
    let now = clock::monotonic();
    let mut symbolizer = Symbolizer::new(go.table(), &go.version);
    let mut groups = group(&snapshot, |_| true);
    let total = groups.iter().map(|group| group.goroutines.len() as u64).sum();
    groups.sort_by_key(|group| std::cmp::Reverse(group.goroutines.len()));
    let groups = groups
        .iter()
        .take(MAX_GROUPS)
        .map(|group| {
            let first = group.goroutines.first();
            let wait_reason = first
                .map(|goroutine| go.wait_text(goroutine))
                .filter(|text| !text.is_empty());
            let channels = group.channels();
            api::GoroutineGroup {
                count: group.goroutines.len() as u64,
                state: group.key.status.name().to_owned(),
                wait_reason: wait_reason.map(str::to_owned),
                longest_wait: group.waits(now).map(|(shortest, longest)| shortest.max(longest)),
                stack_bytes: group.stack_bytes(),
                channel: channels
                    .first()
                    .filter(|_| channels.len() == 1)
                    .map(|(address, _)| *address),
                stack: symbolizer
                    .goroutine_stack(&group.key.stack)
                    .iter()
                    .flat_map(|place| place.frames.iter().map(frame))
                    .take(MAX_FRAMES)
                    .collect(),
                created_by: match group.key.creator_pc {
                    0 => None,
                    // The address behind the `go` statement's call.
                    address => symbolizer.frames(address - 1).first().map(frame),
                },
                ids: group
                    .goroutines
                    .iter()
                    .take(MAX_IDS)
                    .map(|goroutine| goroutine.id)
                    .collect(),
            }
        })
        .collect();
    Ok(api::Goroutines { total, groups })
}

fn frame(frame: &Frame<'_>) -> api::Frame {
    api::Frame {
        function: frame.display().into_owned(),
        file: (!frame.file.is_empty()).then(|| frame.file.to_string()),
        line: (frame.line != 0).then(|| frame.line.into()),
    }
}
