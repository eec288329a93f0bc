//! Which allocations are taken: all, or a Poisson sample by bytes.
//!
//! Sampling points lie on the stream of allocated bytes of a thread, at exponentially distributed distances. An
//! allocation is taken if a point falls into it, so with a mean distance R one of `size` bytes is taken with the
//! probability 1 − exp(−size/R), which is what userspace divides by. Exponential variates come from a table of
//! quantiles made by userspace. Its last entry stands for the tail: that one adds the tail's beginning and draws again,
//! which by the distribution's lack of memory is exact.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use leaktrace_common::config::{EXPONENTIAL_ONE, EXPONENTIAL_TABLE, Process};

use crate::{
    maps::EXPONENTIALS,
    thread::{Stream, Thread},
};

/// How often a draw may land in the tail; the chance of reaching this is 2^-48.
const MAX_TAIL_DRAWS: u32 = 4;

/// An exponentially distributed distance with the mean `interval`.
#[inline(never)]
fn draw(interval: u64) -> u64 {
    let mut sum = 0u64;
    for _ in 0..MAX_TAIL_DRAWS {
        // SAFETY: takes no argument and cannot fail.
        let index = unsafe { bpf_get_prandom_u32() } & (EXPONENTIAL_TABLE - 1);
        sum += EXPONENTIALS.get(index).copied().unwrap_or(EXPONENTIAL_ONE);
        if index != EXPONENTIAL_TABLE - 1 {
            break;
        }
    }
    // The table's greatest value is about 8.3 << 16: no overflow for intervals below 2^42.
    (sum * (interval >> 4)) >> 12
}

/// Whether the allocation is taken.
#[inline(always)]
pub fn takes(thread: &mut Thread, process: &Process, size: u64) -> bool {
    if size < process.min_size {
        return false;
    }
    let interval = process.sample_interval;
    interval == 0 || passes(&mut thread.allocated, interval, size)
}

/// Whether a sampling point lies in the next `size` bytes of a stream.
#[inline(always)]
pub fn passes(stream: &mut Stream, interval: u64, size: u64) -> bool {
    if stream.interval != interval {
        stream.interval = interval;
        stream.until = draw(interval) as i64;
    }
    let size = if size > i64::MAX as u64 { i64::MAX } else { size as i64 };
    let left = stream.until.wrapping_sub(size);
    if left > 0 && left < stream.until || size == 0 {
        stream.until = left;
        return false;
    }
    stream.until = draw(interval) as i64;
    true
}
