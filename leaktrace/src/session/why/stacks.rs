//! Which memory the stacks of threads are in.
//!
//! A thread says where its stack pointer is only while it waits; one that runs is asked again, a few times. Nothing says
//! how large a stack is: it ends at its guard, an area without any access, and at the usual size at the latest.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::kinds::Range;
use crate::proc::{identity, read_bounded, smaps::Area};

/// Threads that are asked at most.
const MAX_THREADS: usize = 1 << 14;
/// How long asking may take.
const BUDGET: Duration = Duration::from_secs(2);
/// How often threads that run are asked, and after which time again.
const ROUNDS: usize = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// Size of a stack where nothing limits it.
const USUAL: u64 = 8 << 20;
/// More is no limit.
const MAX_LIMIT: u64 = 1 << 30;

/// Where the threads of a process are on their stacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Stack pointers, ascending.
    pub known: Vec<u64>,
    /// Threads without one: they ran whenever they were asked, or there was no time.
    pub unknown: usize,
}

/// Asks the threads of a process.
pub fn read_pointers(pid: u32) -> Pointers {
    let begin = Instant::now();
    let mut waiting = identity::read_threads(pid).unwrap_or_default();
    let beyond = waiting.len().saturating_sub(MAX_THREADS);
    waiting.truncate(MAX_THREADS);
    let mut known = Vec::new();
    for round in 0..ROUNDS {
        if round > 0 && !waiting.is_empty() {
            thread::sleep(PAUSE);
        }
        waiting.retain(|tid| {
            if begin.elapsed() > BUDGET {
                return true;
            }
            let text = read_bounded(pid, &format!("task/{tid}/syscall"), 512).unwrap_or_default();
            match stack_pointer(&text) {
                Some(pointer) => {
                    known.push(pointer);
                    false
                }
                None => true,
            }
        });
    }
    known.sort_unstable();
    Pointers {
        known,
        unknown: waiting.len() + beyond,
    }
}

/// The last but one word of `NUMBER ARGUMENT… SP PC`; `running` has none.
fn stack_pointer(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace().rev();
    let (_, pointer) = (words.next()?, words.next()?);
    u64::from_str_radix(pointer.strip_prefix("0x")?, 16)
        .ok()
        .filter(|pointer| *pointer != 0)
}

/// Bytes that the stack of a thread may take: what the C library takes for the size of a new one.
pub fn size_limit(pid: u32) -> u64 {
    read_bounded(pid, "limits", 16 << 10)
        .ok()
        .and_then(|text| parse_limit(&text))
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .unwrap_or(USUAL)
}

fn parse_limit(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max stack size"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The stacks, each in the area with this index, that these pointers are in. Without a guard below it an area is a stack
/// only if it is no larger than one.
pub fn locate(areas: &[Area], pointers: &[u64], limit: u64) -> Vec<(usize, Range)> {
    let mut found: Vec<(usize, Range)> = Vec::new();
    for pointer in pointers {
        let index = areas.partition_point(|area| area.end <= *pointer);
        let Some(area) = areas.get(index).filter(|area| area.start <= *pointer) else {
            continue;
        };
        if !area.is_plain() || !area.write || found.last().is_some_and(|(last, _)| *last == index) {
            continue;
        }
        let guarded = index
            .checked_sub(1)
            .and_then(|below| areas.get(below))
            .is_some_and(|below| below.end == area.start && !below.accessible && !below.has_inode);
        let end = area.end.min(area.start.saturating_add(limit));
        let inside = (area.start..end).contains(pointer);
        if inside && (guarded || area.len() <= limit) {
            found.push((index, area.start..end));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_tells_its_stack_pointer() {
        let line = b"202 0x7f0 0x189 0x0 0x0 0x0 0xffffffff 0x7f01020304a0 0x7f0e7a5d2bd7\n";
        assert_eq!(stack_pointer(line), Some(0x7f01_0203_04a0));
        assert_eq!(stack_pointer(b"-1 0x7ffd00 0x7f00\n"), Some(0x7ffd00));
        assert_eq!(stack_pointer(b"running\n"), None);
        assert_eq!(stack_pointer(b"0 0x0 0x0\n"), None);
        assert!(!read_pointers(std::process::id()).known.is_empty() || read_pointers(std::process::id()).unknown > 0);
    }

    #[test]
    fn the_limit_is_the_soft_one() {
        let text =
            b"Limit  Soft  Hard  Units\nMax stack size            8388608              unlimited            bytes\n";
        assert_eq!(parse_limit(text), Some(8 << 20));
        assert_eq!(parse_limit(b"Max stack size  unlimited  unlimited  bytes\n"), None);
        assert!(size_limit(std::process::id()) > 0);
    }

    #[test]
    fn stacks_end_at_their_guards() {
        let area = |start: u64, end: u64, accessible: bool| Area {
            start,
            end,
            accessible,
            write: accessible,
            ..Area::default()
        };
        let areas = [
            area(0x1000, 0x2000, false),
            // A stack, and what the kernel joined to it.
            area(0x2000, 0x9000, true),
            // No guard: small enough to be one, or not.
            area(0x10000, 0x12000, true),
            area(0x20000, 0x40000, true),
        ];
        let found = locate(&areas, &[0x2800, 0x2900, 0x8000, 0x10100, 0x20100, 0x50000], 0x4000);
        assert_eq!(found, [(1, 0x2000..0x6000), (2, 0x10000..0x12000)]);
        // Go's stacks lie in its heap, and one that is in `[heap]` or a file is none of a thread's own.
        let named = [Area {
            name: "[heap]".to_owned(),
            ..area(0x2000, 0x3000, true)
        }];
        assert_eq!(locate(&named, &[0x2100], 0x4000), []);
    }
}
