//! The collector's state: cycles, pauses, phases, the pacer's view of the heap.
//!
//! Read in one call, so that numbers of one cycle belong together unless a cycle ends in that very moment. Owns telling
//! what happened between two reads ([`Follower`]) and the text of gctrace's lines.

use std::fmt;

use super::memory::word;
use crate::model::ProcessAddress;
use crate::proc::memory::{MemoryError, MemoryReader, ReadRequest};
use crate::runtime::go::check::PAUSES;
use crate::runtime::go::locate::Globals;
use crate::runtime::go::offsets::{Field, Layout};

/// One read of the collector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CollectorState {
    /// Collections that ended.
    pub finished: u64,
    /// Collections that started; one more while one runs.
    pub started: u64,
    /// Collections that the program asked for.
    pub forced: u64,
    /// When the last one ended, in nanoseconds since 1970.
    pub last_end: u64,
    /// All pauses, in nanoseconds.
    pub pause_total: u64,
    /// Pauses of the last 256 collections, in nanoseconds; collection `n` (from 1) is at `(n − 1) % 256`.
    pub pauses: Vec<u64>,
    /// When they ended, in nanoseconds since 1970.
    pub pause_ends: Vec<u64>,
    /// Share of the program's CPU time since its start that the collector used.
    pub cpu_fraction: f64,
    /// `GOGC`; −1: off.
    pub percent: i32,
    /// `GOMEMLIMIT` in bytes; the largest number for none.
    pub memory_limit: u64,
    /// Bytes that the collector takes for live: marked by the last collection, or allocated since.
    pub live: u64,
    /// Bytes that the last collection marked.
    pub marked: u64,
    /// Heap size at which the next collection shall have ended, in bytes; the largest number if there is to be none (see
    /// [`next_goal`](Self::next_goal)).
    pub goal: u64,
    /// That of the last collection.
    pub last_goal: u64,
    /// Bytes in spans in use.
    pub in_use: u64,
    /// Bytes in free spans that are still backed by memory.
    pub free: u64,
    /// Bytes of address space given back to the system.
    pub released: u64,
    /// Bytes allocated since the start.
    pub total_alloc: u64,
    /// Bytes freed since the start.
    pub total_free: u64,
    /// Bytes of stacks scanned.
    pub stack_scan: u64,
    /// Bytes of global variables scanned.
    pub globals_scan: u64,
    /// Phases of the current or last collection.
    pub phases: Phases,
}

/// What the runtime notes about one collection; partly that of the next one as soon as it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// Monotonic times, in nanoseconds: sweep termination, concurrent mark, mark termination, end.
    pub sweep_term: u64,
    /// Begin of concurrent marking.
    pub mark: u64,
    /// Begin of mark termination.
    pub mark_term: u64,
    /// End.
    pub end: u64,
    /// Heap at the start, at mark termination, and what was marked, in bytes.
    pub heap: [u64; 3],
    /// Nanoseconds of CPU: assists.
    pub assist: u64,
    /// Nanoseconds of CPU: dedicated and fractional workers.
    pub workers: u64,
    /// Nanoseconds of CPU: idle processors that marked.
    pub idle: u64,
    /// Processors stopped.
    pub stw_procs: u64,
    /// Processors.
    pub procs: u64,
    /// The program asked for it.
    pub forced: bool,
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// A global variable is missing.
    #[error("the collector's state was not found")]
    NotFound,
    /// A read failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Reads the collector's state.
pub fn read<M: MemoryReader>(memory: &M, globals: &Globals, layout: &Layout) -> Result<CollectorState, CollectorError> {
    let mut state = CollectorState::default();
    read_into(memory, globals, layout, &mut Vec::new(), &mut state)?;
    Ok(state)
}

/// As [`read`], into what is there already: for those who look often. `buffer` holds what was read; a failed read leaves
/// `state` as it was.
pub fn read_into<M: MemoryReader>(
    memory: &M,
    globals: &Globals,
    layout: &Layout,
    buffer: &mut Vec<u8>,
    state: &mut CollectorState,
) -> Result<(), CollectorError> {
    let (Some(stats), Some(controller), Some(sema)) = (globals.stats, globals.controller, globals.work_start_sema)
    else {
        return Err(CollectorError::NotFound);
    };
    let (s, c, w) = (&layout.stats, &layout.controller, &layout.work);
    let begin = s.last_gc.offset;
    let (stats_len, control_len) = (s.cpu_fraction.end().saturating_sub(begin), c.size.offset);
    buffer.clear();
    buffer.resize(stats_len + control_len + w.size.offset, 0);
    let (stats_bytes, rest) = buffer.split_at_mut(stats_len);
    let (control_bytes, work_bytes) = rest.split_at_mut(control_len);
    read_all(
        memory,
        [
            (stats.wrapping_add(begin as u64), stats_bytes),
            (controller, control_bytes),
            (sema.wrapping_sub(w.start_sema.offset as u64), work_bytes),
        ],
    )?;
    let (stats, rest) = buffer.split_at(stats_len);
    let (control, work) = rest.split_at(control_len);
    let stat = |field: Field| {
        Field {
            offset: field.offset.wrapping_sub(begin),
            ..field
        }
        .get(stats)
    };
    let ring = |field: Field, ring: &mut Vec<u64>| {
        ring.clear();
        ring.extend((0..PAUSES as usize).map(|index| word(stats, field.offset.wrapping_sub(begin) + index * 8)));
    };
    ring(s.pauses, &mut state.pauses);
    ring(s.pause_ends, &mut state.pause_ends);
    let maybe = |field: Option<Field>, bytes: &[u8]| field.map_or(0, |field| field.get(bytes));
    *state = CollectorState {
        finished: stat(s.cycles),
        started: w.cycles.get(work),
        forced: stat(s.forced),
        last_end: stat(s.last_gc),
        pause_total: stat(s.pause_total),
        pauses: std::mem::take(&mut state.pauses),
        pause_ends: std::mem::take(&mut state.pause_ends),
        cpu_fraction: f64::from_bits(stat(s.cpu_fraction)),
        percent: c.percent.get(control) as u32 as i32,
        memory_limit: c.memory_limit.get(control),
        live: c.live.get(control),
        marked: c.marked.get(control),
        goal: c.goal.get(control),
        last_goal: c.last_goal.get(control),
        in_use: c.in_use.get(control),
        free: c.free.get(control),
        released: c.released.get(control),
        total_alloc: c.total_alloc.get(control),
        total_free: c.total_free.get(control),
        stack_scan: maybe(c.last_stack_scan, control),
        globals_scan: maybe(c.globals_scan, control),
        phases: Phases {
            sweep_term: w.sweep_term.get(work),
            mark: w.mark.get(work),
            mark_term: w.mark_term.get(work),
            end: w.end.get(work),
            heap: [w.heap0.get(work), w.heap1.get(work), w.heap2.get(work)],
            assist: maybe(c.assist_time, control),
            workers: maybe(c.dedicated_time, control).wrapping_add(maybe(c.fractional_time, control)),
            idle: maybe(c.idle_time, control),
            stw_procs: maybe(w.stw_procs, work),
            procs: maybe(w.procs, work),
            forced: maybe(w.forced, work) & 0xff != 0,
        },
    };
    Ok(())
}

/// What tells whether there is something to see, and how soon there can be: half a KB instead of 5, for those who look
/// often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// Collections that ended.
    pub finished: u64,
    /// Collections that started.
    pub started: u64,
    /// `GOGC`; −1: off.
    pub percent: i32,
    /// `GOMEMLIMIT` in bytes; the largest number for none.
    pub memory_limit: u64,
    /// Bytes marked by the last collection, or allocated since.
    pub live: u64,
    /// Bytes that the last collection marked.
    pub marked: u64,
    /// Heap size at which the next collection shall have ended, by `GOGC`.
    pub goal: u64,
    /// Bytes allocated since the start.
    pub total_alloc: u64,
}

/// Reads a glance. `buffer` holds what was read.
pub fn read_glance<M: MemoryReader>(
    memory: &M,
    globals: &Globals,
    layout: &Layout,
    buffer: &mut Vec<u8>,
) -> Result<Glance, CollectorError> {
    let (Some(stats), Some(controller), Some(sema)) = (globals.stats, globals.controller, globals.work_start_sema)
    else {
        return Err(CollectorError::NotFound);
    };
    let (finished, c, w) = (layout.stats.cycles, &layout.controller, &layout.work);
    buffer.clear();
    buffer.resize(finished.size + c.size.offset + w.cycles.size, 0);
    let (stats_bytes, rest) = buffer.split_at_mut(finished.size);
    let (control_bytes, work_bytes) = rest.split_at_mut(c.size.offset);
    let work = sema.wrapping_sub(w.start_sema.offset as u64);
    read_all(
        memory,
        [
            (stats.wrapping_add(finished.offset as u64), stats_bytes),
            (controller, control_bytes),
            (work.wrapping_add(w.cycles.offset as u64), work_bytes),
        ],
    )?;
    let (stats, rest) = buffer.split_at(finished.size);
    let (control, work) = rest.split_at(c.size.offset);
    Ok(Glance {
        finished: Field { offset: 0, ..finished }.get(stats),
        started: Field { offset: 0, ..w.cycles }.get(work),
        percent: c.percent.get(control) as u32 as i32,
        memory_limit: c.memory_limit.get(control),
        live: c.live.get(control),
        marked: c.marked.get(control),
        goal: c.goal.get(control),
        total_alloc: c.total_alloc.get(control),
    })
}

/// Fills all buffers in one call, or none.
fn read_all<M: MemoryReader, const N: usize>(memory: &M, ranges: [(u64, &mut [u8]); N]) -> Result<(), CollectorError> {
    let mut requests = ranges.map(|(address, buffer)| ReadRequest {
        address: ProcessAddress(address),
        buffer,
        filled: false,
    });
    memory.read_many(&mut requests)?;
    match requests.iter().find(|request| !request.filled) {
        Some(missing) => Err(MemoryError::Unmapped {
            pid: 0,
            address: missing.address,
            len: missing.buffer.len(),
        }
        .into()),
        None => Ok(()),
    }
}

impl CollectorState {
    /// What a glance would have told.
    pub fn glance(&self) -> Glance {
        Glance {
            finished: self.finished,
            started: self.started,
            percent: self.percent,
            memory_limit: self.memory_limit,
            live: self.live,
            marked: self.marked,
            goal: self.goal,
            total_alloc: self.total_alloc,
        }
    }

    /// Heap size at which the next collection shall have ended, in bytes; `None` while none is to come: `GOGC=off`, and no
    /// memory limit in sight.
    pub fn next_goal(&self) -> Option<u64> {
        (self.goal != u64::MAX).then_some(self.goal)
    }

    /// A collection is running.
    pub fn is_running(&self) -> bool {
        self.started != self.finished
    }

    fn slot(number: u64) -> usize {
        (number.wrapping_sub(1) % PAUSES) as usize
    }

    /// Total pause of a collection, if the ring still has it.
    pub fn pause(&self, number: u64) -> Option<u64> {
        let kept = number >= 1 && number <= self.finished && self.finished - number < PAUSES;
        kept.then(|| self.pauses.get(Self::slot(number)).copied()).flatten()
    }

    /// When a collection ended, in nanoseconds since 1970, if the ring still has it.
    pub fn end(&self, number: u64) -> Option<u64> {
        self.pause(number)
            .and_then(|_| self.pause_ends.get(Self::slot(number)).copied())
    }

    /// Pauses that the ring still has, oldest first.
    pub fn recent_pauses(&self) -> Vec<u64> {
        let first = self.finished.saturating_sub(PAUSES - 1).max(1);
        (first..=self.finished)
            .filter_map(|number| self.pause(number))
            .collect()
    }
}

/// One collection, as far as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection<'s> {
    /// Number, from 1.
    pub number: u64,
    /// When it ended, in nanoseconds since 1970; `None` if the ring of 256 has lost it.
    pub end: Option<u64>,
    /// Its pauses together, in nanoseconds.
    pub pause: Option<u64>,
    /// The state behind it, where it was read before the next collection began.
    pub state: Option<&'s CollectorState>,
}

/// Turns reads into collections.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    seen: Option<u64>,
}

/// Collections that one read can report; older ones were not seen.
const MAX_REPORTED: u64 = PAUSES;

impl Follower {
    /// Follows from this state on.
    pub fn after(state: &CollectorState) -> Self {
        Self {
            seen: Some(state.finished),
        }
    }

    /// Collections that ended since the last read; none at the first.
    pub fn follow<'s>(&mut self, state: &'s CollectorState) -> impl Iterator<Item = Collection<'s>> + use<'s> {
        let last = self.seen.replace(state.finished).unwrap_or(state.finished);
        let first = (last + 1).max(state.finished.saturating_sub(MAX_REPORTED - 1));
        (first..=state.finished).map(move |number| Collection {
            number,
            end: state.end(number),
            pause: state.pause(number),
            state: (number == state.finished && !state.is_running()).then_some(state),
        })
    }
}

/// Nanoseconds as milliseconds with two digits of precision, as gctrace prints them.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 10_000_000 {
            return write!(f, "{}", self.0 / 1_000_000);
        }
        let mut value = self.0 / 1000;
        if value == 0 {
            return f.write_str("0");
        }
        let mut decimals = 3;
        while value >= 100 {
            value /= 10;
            decimals -= 1;
        }
        write!(f, "{:.*}", decimals, value as f64 / 10f64.powi(decimals as i32))
    }
}

/// A collection as one line in the format of `GODEBUG=gctrace=1`. One whose phases were overwritten before they were
/// read has its pause alone.
pub struct TraceLine<'c> {
    collection: &'c Collection<'c>,
    start: u64,
}

/// The line of a collection. `start` is when the process started, of the monotonic clock, in nanoseconds.
pub fn trace_line<'c>(collection: &'c Collection<'c>, start: u64) -> TraceLine<'c> {
    TraceLine { collection, start }
}

impl fmt::Display for TraceLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gc {}", self.collection.number)?;
        let Some(state) = self.collection.state else {
            return match self.collection.pause {
                Some(pause) => write!(f, ": {} ms pause (phases not caught)", Millis(pause)),
                None => f.write_str(": ? ms pause (phases not caught)"),
            };
        };
        let p = &state.phases;
        let at = p.sweep_term.saturating_sub(self.start) / 1_000_000;
        let percent = (state.cpu_fraction * 100.0) as i64;
        write!(f, " @{}.{:03}s {percent}%: ", at / 1000, at % 1000)?;
        let sweep = p.mark.saturating_sub(p.sweep_term);
        let mark = p.mark_term.saturating_sub(p.mark);
        let term = p.end.saturating_sub(p.mark_term);
        write!(f, "{}+{}+{} ms clock, ", Millis(sweep), Millis(mark), Millis(term))?;
        write!(
            f,
            "{}+{}/{}/{}+{} ms cpu, ",
            Millis(p.stw_procs.saturating_mul(sweep)),
            Millis(p.assist),
            Millis(p.workers),
            Millis(p.idle),
            Millis(p.stw_procs.saturating_mul(term)),
        )?;
        let [before, after, live] = p.heap.map(|bytes| bytes >> 20);
        write!(
            f,
            "{before}->{after}->{live} MB, {} MB goal, {} MB stacks, {} MB globals, {} P",
            state.last_goal >> 20,
            state.stack_scan >> 20,
            state.globals_scan >> 20,
            p.procs
        )?;
        f.write_str(if p.forced { " (forced)" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_like_gctrace() {
        let shown: Vec<String> = [0, 999, 1_000, 18_300, 123_456, 1_234_567, 9_999_999, 12_345_678]
            .into_iter()
            .map(|nanos| Millis(nanos).to_string())
            .collect();
        assert_eq!(shown, ["0", "0", "0.001", "0.018", "0.12", "1.2", "9.9", "12"]);
    }

    #[test]
    fn collections_between_reads_are_told_once() {
        let mut follower = Follower::default();
        let state = |finished: u64, started: u64| CollectorState {
            finished,
            started,
            pauses: (0..256).collect(),
            pause_ends: vec![7; 256],
            ..CollectorState::default()
        };
        assert_eq!(follower.follow(&state(10, 10)).count(), 0);
        let third = state(13, 13);
        let seen: Vec<_> = follower.follow(&third).collect();
        assert_eq!(
            seen.iter().map(|c| (c.number, c.pause)).collect::<Vec<_>>(),
            [(11, Some(10)), (12, Some(11)), (13, Some(12))]
        );
        assert!(seen[0].state.is_none() && seen[2].state.is_some());
        let running = state(14, 15);
        assert!(
            follower.follow(&running).all(|seen| seen.state.is_none()),
            "the next one is running already"
        );
        assert_eq!(follower.follow(&running).count(), 0);
        assert_eq!(follower.follow(&state(5000, 5000)).count(), 256);
    }

    #[test]
    fn a_line_of_gctrace() {
        let state = CollectorState {
            cpu_fraction: 0.019,
            last_goal: 10 << 20,
            phases: Phases {
                sweep_term: 2_012_345_678,
                mark: 2_012_365_678,
                mark_term: 2_013_565_678,
                end: 2_013_568_678,
                heap: [9 << 20, 10 << 20, 3 << 20],
                assist: 400_000,
                workers: 1_000_000,
                idle: 0,
                stw_procs: 8,
                procs: 8,
                forced: true,
            },
            ..CollectorState::default()
        };
        let line = trace_line(
            &Collection {
                number: 3,
                end: None,
                pause: None,
                state: Some(&state),
            },
            2_000_000_000,
        )
        .to_string();
        assert_eq!(
            line,
            "gc 3 @0.012s 1%: 0.020+1.2+0.003 ms clock, 0.16+0.40/1.0/0+0.024 ms cpu, 9->10->3 MB, 10 MB goal, \
             0 MB stacks, 0 MB globals, 8 P (forced)"
        );
        let missed = Collection {
            number: 4,
            end: None,
            pause: Some(23_000),
            state: None,
        };
        assert_eq!(
            trace_line(&missed, 0).to_string(),
            "gc 4: 0.023 ms pause (phases not caught)"
        );
    }
}
