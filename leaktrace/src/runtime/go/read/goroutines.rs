//! All goroutines of a process with their stacks, while they run on.
//!
//! Goroutines are read, then their stacks, then the goroutines again; only where both copies agree did one not run in
//! between, and its stack is whole. Others are tried again and, if they never settle, kept
//! without a stack and counted. Memory is bounded: goroutines are read in groups, and a group's stacks are dropped once
//! they are unwound.

use hashbrown::HashMap;

use super::memory::{BATCH, Range, Target, word};
use crate::proc::memory::{MemoryError, MemoryReader};
use crate::runtime::go::check::MAX_GOROUTINES;
use crate::runtime::go::locate::Globals;
use crate::runtime::go::offsets::Layout;
use crate::runtime::go::pclntab::PclnTable;

/// Goroutines read together.
const GROUP: usize = BATCH / 3;
/// Goroutines whose stacks are read between two reads of them: the fewer, the shorter is the time in which one may run, come
/// back to where it was, and leave a stack of two moments.
const SETTLED: usize = 16;
/// Most bytes of one stack that are read; deeper ones are cut (and say so).
const MAX_STACK: usize = 256 << 10;
/// Most bytes of stacks that are held at a time.
const MAX_GROUP_BYTES: usize = 16 << 20;
/// Most frames of one stack.
const MAX_DEPTH: usize = 2048;
/// Most frames over all stacks (512 MB).
const MAX_FRAMES: usize = 1 << 26;
/// Reads of one goroutine that keeps running.
const RETRIES: usize = 5;

/// What a goroutine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Being created.
    Idle,
    /// Waiting for a processor.
    Runnable,
    /// Running Go code.
    Running,
    /// In a system call or in C.
    Syscall,
    /// Blocked.
    Waiting,
    /// Finished; kept for reuse.
    Dead,
    /// Its stack is being moved.
    CopyStack,
    /// Stopped by the scheduler.
    Preempted,
    /// Found leaked by the program's own goroutine leak profile (Go 1.27).
    Leaked,
    /// None of these.
    Other(u8),
}

impl Status {
    fn new(value: u64) -> Self {
        match value & 0xfff {
            0 => Self::Idle,
            1 => Self::Runnable,
            2 => Self::Running,
            3 => Self::Syscall,
            4 => Self::Waiting,
            6 | 11 => Self::Dead,
            8 => Self::CopyStack,
            9 => Self::Preempted,
            10 => Self::Leaked,
            other => Self::Other(other as u8),
        }
    }

    /// The word of the runtime's own dumps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Syscall => "syscall",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
            Self::CopyStack => "copystack",
            Self::Preempted => "preempted",
            Self::Leaked => "leaked",
            Self::Other(_) => "???",
        }
    }

    /// Off the processors, so that its stack stands still.
    fn is_parked(self) -> bool {
        matches!(
            self,
            Self::Runnable | Self::Syscall | Self::Waiting | Self::Preempted | Self::Leaked
        )
    }
}

/// Whether a goroutine's stack could be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackState {
    /// Down to its entry.
    Complete,
    /// It goes on beyond a limit of the reader.
    Cut,
    /// The walk ended before the entry.
    Incomplete,
    /// It was running, so there is no stack to read.
    Running,
    /// It changed during every read.
    Unsettled,
    /// Its memory is not readable.
    Unreadable,
}

/// One goroutine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Address of its `g`.
    pub address: u64,
    /// Number, as in the runtime's own dumps.
    pub id: u64,
    /// What it is doing.
    pub status: Status,
    /// The collector is scanning its stack.
    pub scanning: bool,
    /// Number of the reason that it waits for; 0 for none.
    pub wait_reason: u8,
    /// When the collector first found it waiting, in nanoseconds of the monotonic clock; 0: not yet.
    pub wait_since: u64,
    /// Stack bounds.
    pub stack_low: u64,
    /// End of the stack.
    pub stack_high: u64,
    /// The `go` statement that started it; 0 for the first goroutine.
    pub creator_pc: u64,
    /// First address of the function that it runs.
    pub start_pc: u64,
    /// Goroutine that started it; 0 if unknown (before Go 1.21).
    pub parent: u64,
    /// Tied to its thread.
    pub locked: bool,
    /// Its first place in a wait queue (`sudog`); 0 for none.
    pub waiting: u64,
    /// The channel of that place; 0 for none.
    pub channel: u64,
    /// Return addresses, innermost first; the first one is where it goes on.
    pub stack: Vec<u64>,
    /// How far that goes.
    pub state: StackState,
}

impl Goroutine {
    /// Bytes of stack that it holds.
    pub fn stack_size(&self) -> u64 {
        self.stack_high.saturating_sub(self.stack_low)
    }
}

/// All goroutines at about one moment; each by itself is consistent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoroutineSnapshot {
    /// Alive, in the order of the runtime's list. The runtime's own are among them.
    pub goroutines: Vec<Goroutine>,
    /// Finished ones, kept for reuse.
    pub dead: u64,
    /// Without a stack because they changed during every read.
    pub unsettled: u64,
    /// Parked ones whose walk ended early.
    pub incomplete: u64,
    /// Whose `g` could not be read.
    pub unreadable: u64,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum GoroutineError {
    /// The list was not found, or its length is absurd.
    #[error("the list of goroutines is not usable: {0}")]
    List(String),
    /// A read failed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Fields that must not change while the stack is read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    status: Status,
    id: u64,
    sp: u64,
    pc: u64,
    low: u64,
    high: u64,
}

/// One step of a walk: what an address says about its frame.
#[derive(Clone, Copy)]
struct Step {
    depth: Option<u64>,
    top: bool,
}

struct Reader<'r, M> {
    memory: &'r M,
    layout: &'r Layout,
    table: &'r PclnTable,
    steps: HashMap<u64, Step>,
    frames: usize,
}

/// Reads all goroutines.
pub fn read<M: MemoryReader>(
    memory: &M,
    globals: &Globals,
    layout: &Layout,
    table: &PclnTable,
) -> Result<GoroutineSnapshot, GoroutineError> {
    let missing = || GoroutineError::List("it was not found".to_owned());
    let (pointer, count) = (
        globals.goroutines.ok_or_else(missing)?,
        globals.goroutine_count.ok_or_else(missing)?,
    );
    let count = memory.u64_at(count)?;
    if count > MAX_GOROUTINES {
        return Err(GoroutineError::List(format!("it has {count} entries")));
    }
    // The list only grows, and old copies of it are kept by the runtime's readers; a moved one faults or holds stale
    // addresses of goroutines, which stay valid.
    let addresses = memory.bytes_at(memory.u64_at(pointer)?, count as usize * 8)?;
    let addresses: Vec<u64> = addresses.chunks_exact(8).map(|address| word(address, 0)).collect();
    let mut reader = Reader {
        memory,
        layout,
        table,
        steps: HashMap::new(),
        frames: 0,
    };
    let mut snapshot = GoroutineSnapshot::default();
    for group in addresses.chunks(GROUP) {
        reader.read_group(group, &mut snapshot)?;
    }
    reader.resolve_channels(&mut snapshot)?;
    Ok(snapshot)
}

impl<M: MemoryReader> Reader<'_, M> {
    fn key(&self, g: &[u8]) -> Key {
        let layout = &self.layout.g;
        let status = Status::new(layout.status.get(g) & !0x1000);
        let syscall_sp = layout.syscall_sp.get(g);
        let (sp, pc) = if status == Status::Syscall && syscall_sp != 0 {
            (syscall_sp, layout.syscall_pc.get(g))
        } else {
            (layout.sched_sp.get(g), layout.sched_pc.get(g))
        };
        let (low, high) = (layout.stack_lo.get(g), layout.stack_hi.get(g));
        Key {
            status,
            id: layout.goid.get(g),
            sp,
            pc,
            low,
            high,
        }
    }

    fn goroutine(&self, address: u64, g: &[u8], state: StackState) -> Goroutine {
        let layout = &self.layout.g;
        let key = self.key(g);
        Goroutine {
            address,
            id: key.id,
            status: key.status,
            scanning: layout.status.get(g) & 0x1000 != 0,
            wait_reason: layout.wait_reason.get(g) as u8,
            wait_since: layout.wait_since.get(g),
            stack_low: key.low,
            stack_high: key.high,
            creator_pc: layout.creator_pc.get(g),
            start_pc: layout.start_pc.get(g),
            parent: layout.parent.map_or(0, |parent| parent.get(g)),
            locked: layout.locked_m.get(g) != 0,
            waiting: layout.waiting.get(g),
            channel: 0,
            stack: Vec::new(),
            state,
        }
    }

    fn read_group(&mut self, group: &[u64], snapshot: &mut GoroutineSnapshot) -> Result<(), GoroutineError> {
        let mut pending: Vec<(u64, Key)> = Vec::with_capacity(group.len());
        let apart = self.read_keys(&runs(group, self.layout.g.size.offset), &mut pending)?;
        // A run with an unreadable byte: its goroutines one by one.
        let ones: Vec<&[u64]> = apart.chunks(1).collect();
        snapshot.unreadable += self.read_keys(&ones, &mut pending)?.len() as u64;
        for attempt in 0..RETRIES {
            let last = attempt + 1 == RETRIES;
            let mut again = Vec::new();
            let mut rest = pending.as_slice();
            while !rest.is_empty() {
                let mut total = 0;
                let take = rest.iter().take(SETTLED).take_while(|(_, key)| {
                    let fits = total == 0 || total + stack_len(key) <= MAX_GROUP_BYTES;
                    total += stack_len(key);
                    fits
                });
                let take = take.count();
                self.read_settled(&rest[..take], last, &mut again, snapshot)?;
                rest = &rest[take..];
            }
            if again.is_empty() {
                break;
            }
            pending = again;
        }
        Ok(())
    }

    /// A first look at each goroutine, which says where its stack is; those of runs that are not readable are returned.
    fn read_keys(&self, runs: &[&[u64]], keys: &mut Vec<(u64, Key)>) -> Result<Vec<u64>, GoroutineError> {
        let size = self.layout.g.size.offset;
        // Addresses within a run ascend.
        let range = |run: &&[u64]| {
            let first = run.first().copied().unwrap_or_default();
            let last = run.last().copied().unwrap_or_default();
            Range {
                address: first,
                len: (last - first) as usize + size,
            }
        };
        let ranges: Vec<Range> = runs.iter().map(range).collect();
        let mut bytes = Vec::new();
        let filled = self.memory.read_ranges(&ranges, &mut bytes)?;
        let mut apart = Vec::new();
        let mut rest = bytes.as_slice();
        for ((run, range), filled) in runs.iter().zip(ranges).zip(filled) {
            let (whole, behind) = rest.split_at(range.len);
            rest = behind;
            if filled {
                let key = |&address: &u64| (address, self.key(&whole[(address - range.address) as usize..][..size]));
                keys.extend(run.iter().map(key));
            } else {
                apart.extend_from_slice(run);
            }
        }
        Ok(apart)
    }

    /// Reads goroutine, stack, goroutine, and accepts those that stood still; the others go to `again`, unless this
    /// was the last try.
    fn read_settled(
        &mut self,
        pending: &[(u64, Key)],
        last: bool,
        again: &mut Vec<(u64, Key)>,
        snapshot: &mut GoroutineSnapshot,
    ) -> Result<(), GoroutineError> {
        let size = self.layout.g.size.offset;
        let wholes: Vec<Range> = pending
            .iter()
            .map(|&(address, _)| Range { address, len: size })
            .collect();
        let stacks: Vec<Range> = pending
            .iter()
            .map(|(_, key)| Range {
                address: key.sp,
                len: stack_len(key),
            })
            .collect();
        // Three calls: within one the order is not told.
        let (mut before, mut bytes, mut after) = (Vec::new(), Vec::new(), Vec::new());
        let first_filled = self.memory.read_ranges(&wholes, &mut before)?;
        let stack_filled = self.memory.read_ranges(&stacks, &mut bytes)?;
        let second_filled = self.memory.read_ranges(&wholes, &mut after)?;
        let mut rest = bytes.as_slice();
        for (index, &(address, expected)) in pending.iter().enumerate() {
            let (before, after) = (&before[index * size..][..size], &after[index * size..][..size]);
            let (stack, behind) = rest.split_at(stack_len(&expected));
            rest = behind;
            let filled = [first_filled[index], stack_filled[index], second_filled[index]];
            if !filled[0] || !filled[2] {
                snapshot.unreadable += 1;
                continue;
            }
            let (first, second) = (self.key(before), self.key(after));
            if second.status == Status::Dead {
                snapshot.dead += 1;
                continue;
            }
            let settled = first == second && (!second.status.is_parked() || stack_matches(&expected, &second));
            if !settled && !last {
                again.push((address, second));
                continue;
            }
            let state = match (settled, second.status.is_parked()) {
                (_, false) => StackState::Running,
                (false, true) => StackState::Unsettled,
                (true, true) if second.high == 0 || !filled[1] => StackState::Unreadable,
                (true, true) => StackState::Complete,
            };
            let mut goroutine = self.goroutine(address, after, state);
            if state == StackState::Complete {
                let frames = self.frames;
                let skip = (second.sp - expected.sp) as usize;
                self.unwind(&mut goroutine, &second, stack.get(skip..).unwrap_or_default());
                if goroutine.state == StackState::Incomplete && !last {
                    // It may have run and come back to the same place.
                    self.frames = frames;
                    again.push((address, second));
                    continue;
                }
            }
            snapshot.unsettled += u64::from(state == StackState::Unsettled);
            snapshot.incomplete += u64::from(matches!(
                goroutine.state,
                StackState::Incomplete | StackState::Unreadable
            ));
            snapshot.goroutines.push(goroutine);
        }
        Ok(())
    }

    fn step(&mut self, pc: u64) -> Step {
        if let Some(&step) = self.steps.get(&pc) {
            return step;
        }
        let step = match self.table.function_at(pc) {
            Some(function) => Step {
                depth: self.table.stack_depth(&function, pc),
                top: function.is_top_frame(),
            },
            None => Step {
                depth: None,
                top: false,
            },
        };
        // Every distinct address of the program's own code is one entry, so the text bounds this; a hostile stack does
        // not.
        if self.steps.len() < MAX_FRAMES / 16 {
            self.steps.insert(pc, step);
        }
        step
    }

    /// Walks a stack whose bytes begin at the key's stack pointer.
    fn unwind(&mut self, goroutine: &mut Goroutine, key: &Key, bytes: &[u8]) {
        let mut pc = key.pc;
        let mut at = 0usize;
        goroutine.state = StackState::Incomplete;
        while goroutine.stack.len() < MAX_DEPTH && self.frames < MAX_FRAMES {
            let step = self.step(pc);
            let Some(depth) = step.depth else { return };
            goroutine.stack.push(pc);
            self.frames += 1;
            if step.top {
                goroutine.state = StackState::Complete;
                return;
            }
            let Some(slot) = usize::try_from(depth).ok().and_then(|depth| at.checked_add(depth)) else {
                return;
            };
            if slot + 8 > bytes.len() {
                let cut = bytes.len() == MAX_STACK && key.high - key.sp > MAX_STACK as u64;
                goroutine.state = if cut { StackState::Cut } else { StackState::Incomplete };
                return;
            }
            pc = word(bytes, slot);
            at = slot + 8;
        }
        goroutine.state = StackState::Cut;
    }

    /// Reads which channel each waiting goroutine waits for.
    fn resolve_channels(&self, snapshot: &mut GoroutineSnapshot) -> Result<(), GoroutineError> {
        let sudog = &self.layout.sudog;
        let size = sudog.size.offset;
        let (waiting, ranges): (Vec<usize>, Vec<Range>) = snapshot
            .goroutines
            .iter()
            .enumerate()
            .filter(|(_, g)| g.waiting != 0 && matches!(g.status, Status::Waiting | Status::Leaked))
            .map(|(index, g)| {
                (
                    index,
                    Range {
                        address: g.waiting,
                        len: size,
                    },
                )
            })
            .unzip();
        let mut bytes = Vec::new();
        for (indices, ranges) in waiting.chunks(BATCH).zip(ranges.chunks(BATCH)) {
            let filled = self.memory.read_ranges(ranges, &mut bytes)?;
            for ((&index, bytes), filled) in indices.iter().zip(bytes.chunks_exact(size)).zip(filled) {
                let goroutine = &mut snapshot.goroutines[index];
                if filled && sudog.g.get(bytes) == goroutine.address {
                    // From Go 1.26 on two words, of which the second is the one to go by.
                    goroutine.channel = word(bytes, sudog.channel.end().saturating_sub(8));
                }
            }
        }
        Ok(())
    }
}

/// Addresses split where one does not lie close behind the one before. Goroutines that were started one after the other
/// do, and reading them as one range saves most of the time: a range costs the kernel more than its bytes.
fn runs(addresses: &[u64], size: usize) -> Vec<&[u64]> {
    // What the allocator's size classes leave between two; it also bounds what a hostile list can have read.
    const MAX_GAP: u64 = 256;
    let close = |before: &u64, behind: &u64| {
        let gap = behind
            .checked_sub(*before)
            .and_then(|stride| stride.checked_sub(size as u64));
        gap.is_some_and(|gap| gap <= MAX_GAP)
    };
    addresses.chunk_by(close).collect()
}

/// Bytes of a stack to read: from the stack pointer, within its bounds and the limit.
fn stack_len(key: &Key) -> usize {
    if !key.status.is_parked() || !(key.low..key.high).contains(&key.sp) {
        return 0;
    }
    ((key.high - key.sp) as usize).min(MAX_STACK)
}

/// The bytes read for `expected` cover the stack of `found`.
fn stack_matches(expected: &Key, found: &Key) -> bool {
    found.high == 0 || (expected.high == found.high && expected.sp <= found.sp && stack_len(expected) > 0)
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelState {
    /// Elements in its buffer.
    pub len: u64,
    /// Room of its buffer; 0 for none.
    pub capacity: u64,
    /// Closed.
    pub closed: bool,
}

/// Reads the state of channels; those that cannot be read are missing.
pub fn read_channels<M: MemoryReader>(
    memory: &M,
    layout: &Layout,
    channels: &[u64],
) -> Result<HashMap<u64, ChannelState>, MemoryError> {
    let size = layout.channel.size.offset;
    let mut states = HashMap::new();
    let mut bytes = Vec::new();
    for channels in channels.chunks(BATCH) {
        let ranges: Vec<Range> = channels.iter().map(|&address| Range { address, len: size }).collect();
        let filled = memory.read_ranges(&ranges, &mut bytes)?;
        for ((&channel, bytes), _) in channels
            .iter()
            .zip(bytes.chunks_exact(size))
            .zip(filled)
            .filter(|(_, ok)| *ok)
        {
            let state = ChannelState {
                len: layout.channel.count.get(bytes),
                capacity: layout.channel.capacity.get(bytes),
                closed: layout.channel.closed.get(bytes) != 0,
            };
            states.insert(channel, state);
        }
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn neighbours_are_read_as_one() {
        let addresses = [0x1000, 0x11c0, 0x1380, 0x9000, 0x91c0, 0x91c0, 0x100, 0, u64::MAX, 7];
        let found = runs(&addresses, 0x1b0);
        let expected: [&[u64]; 7] = [
            &[0x1000, 0x11c0, 0x1380],
            &[0x9000, 0x91c0],
            &[0x91c0],
            &[0x100],
            &[0],
            &[u64::MAX],
            &[7],
        ];
        assert_eq!(found, expected);
        assert!(runs(&[], 8).is_empty());
    }
}
