//! The code of traced processes in the arrays that the kernel side walks stacks by: which mappings a process has, and the
//! unwind table of each file, once for all processes.
//!
//! Where not everything fits, who has most is cut first ([`super::shares`]): stacks end at code that is left out, and the
//! process's profile tells so. Invariant: a run of an array is given to somebody else only when no program in the kernel
//! can be reading it any more.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use leaktrace_common::{
    config::{CodeMapping, MAPPING_FRAME_POINTER, MAX_MAPPINGS},
    unwind::BLOCK_SHIFT,
};

use super::{
    address_space::CodeSpan,
    shares::{self, Holder, Thing},
    survey::CodeFile,
};
use crate::{
    bpf::tables::{TablePlace, UnwindArrays},
    proc::{files::FileVersion, maps::FileId},
};

/// How long a run that was replaced is kept at least, so that one wait for the programs that may be reading it serves many.
const RETIREMENT: Duration = Duration::from_secs(1);

/// Runs of arrays that a program in the kernel may still be reading.
enum Retired {
    Mappings(Range<u32>),
    Table(TablePlace),
}

type TableKey = (FileId, FileVersion);

/// A file's table.
struct StoredTable {
    place: TablePlace,
    /// Users by process.
    holders: BTreeMap<u32, u32>,
}

/// Where a process has which code.
#[derive(Default)]
pub struct Code {
    /// Of files, in the order of addresses.
    pub spans: Vec<(CodeSpan, Arc<CodeFile>)>,
    /// Made by the program itself.
    pub made: Vec<Range<u64>>,
}

/// What of a process's code stacks cannot be followed through, for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Executable mappings that are left out,
    pub mappings: usize,
    /// of so many,
    pub of_mappings: usize,
    /// and files whose unwind table is.
    pub tables: usize,
}

impl LeftOut {
    /// Whether something is.
    pub fn is_some(&self) -> bool {
        self.mappings > 0 || self.tables > 0
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mappings,
            of_mappings,
            tables,
        } = self;
        write!(
            formatter,
            "{mappings} of {of_mappings} executable mappings and {tables} unwind tables do not fit into the kernel's arrays, \
             and stacks end there: a process may have {MAX_MAPPINGS} mappings, and of what all processes share no more than \
             is left by users and processes with less; trace it alone, or fewer processes at once"
        )
    }
}

/// What is stored of a process.
struct Stored {
    holder: Holder,
    code: Code,
    /// Records that all of its code takes.
    wanted: u32,
    /// How many it may have.
    limit: u32,
    run: Range<u32>,
    left_out: LeftOut,
}

/// Has a process's entry in the kernel refer to another run of mappings.
pub type Switch<'a> = dyn FnMut(u32, Range<u32>, LeftOut) + 'a;

/// What is stored.
pub struct CodeTables {
    arrays: UnwindArrays,
    tables: HashMap<TableKey, StoredTable>,
    processes: BTreeMap<u32, Stored>,
    retired: Vec<(Instant, Retired)>,
    /// The half of the mapping array that is in use: when it has holes that are too small, its runs are put together in
    /// the other one.
    half: Range<u32>,
}

impl CodeTables {
    /// Nothing is stored yet.
    pub fn new(arrays: UnwindArrays) -> Self {
        let half = 0..arrays.mappings.usage().1 / 2;
        Self {
            arrays,
            tables: HashMap::new(),
            processes: BTreeMap::new(),
            retired: Vec::new(),
            half,
        }
    }

    /// Writes a process's code, and the tables that it needs, to the arrays, and switches it over. Processes that have more
    /// than their share are cut for it, and switched over, too.
    pub fn store(&mut self, holder: Holder, code: Code, switch: &mut Switch<'_>) {
        self.release_retired(false);
        let pid = holder.pid;
        let stored = self.processes.entry(pid).or_insert_with(|| Stored {
            holder,
            code: Code::default(),
            wanted: 0,
            limit: 0,
            run: 0..0,
            left_out: LeftOut::default(),
        });
        stored.holder = holder;
        stored.code = code;
        self.hold_tables(holder, switch);
        self.limit_mappings(pid, switch);
        self.write(pid, switch);
    }

    /// The process runs another program: nothing is known of what that makes.
    pub fn forget_made(&mut self, pid: u32) {
        if let Some(stored) = self.processes.get_mut(&pid) {
            stored.code.made.clear();
        }
    }

    /// Whether some process's code is left out.
    pub fn is_short(&self) -> bool {
        self.processes.values().any(|stored| stored.left_out.is_some())
    }

    /// A process is not traced any more, and its entry in the kernel is gone.
    pub fn remove(&mut self, pid: u32) {
        for table in self.tables.values_mut() {
            table.holders.remove(&pid);
        }
        if let Some(stored) = self.processes.remove(&pid) {
            self.retire(Retired::Mappings(stored.run));
        }
    }

    /// Code of a process, as it was stored last.
    pub fn code(&self, pid: u32) -> Option<&Code> {
        self.processes.get(&pid).map(|stored| &stored.code)
    }

    /// Gives up the unwind tables of files that no traced process maps any more.
    pub fn drop_unused(&mut self) {
        self.release_retired(false);
        self.drop_unused_tables();
    }

    /// Gives processes that were cut what has become free.
    pub fn extend(&mut self, switch: &mut Switch<'_>) {
        let cut = self.processes.values().filter(|stored| stored.left_out.is_some());
        for holder in cut.map(|stored| stored.holder).collect::<Vec<_>>() {
            let before = self.processes.get(&holder.pid).map(|stored| stored.left_out);
            if before.is_some_and(|before| before.tables > 0) {
                self.hold_tables(holder, switch);
            }
            self.limit_mappings(holder.pid, switch);
            let records = self.records(holder.pid);
            if records.is_some_and(|(_, left_out)| Some(left_out) != before) {
                self.write(holder.pid, switch);
            }
        }
    }

    fn retire(&mut self, what: Retired) {
        self.retired.push((Instant::now(), what));
    }

    /// Sees to the tables of a process's files, and to those alone.
    fn hold_tables(&mut self, holder: Holder, switch: &mut Switch<'_>) {
        let Some(stored) = self.processes.get(&holder.pid) else {
            return;
        };
        let mut needed: Vec<(TableKey, Arc<CodeFile>)> = Vec::new();
        let mut seen = HashSet::new();
        for (_, file) in &stored.code.spans {
            let key = (file.id, file.version);
            if matches!(file.table, Some(Ok(_))) && seen.insert(key) {
                needed.push((key, Arc::clone(file)));
            }
        }
        for (key, table) in &mut self.tables {
            if seen.contains(key) {
                table.holders.insert(holder.pid, holder.user);
            } else {
                table.holders.remove(&holder.pid);
            }
        }
        for (key, file) in needed {
            if !self.tables.contains_key(&key) {
                self.store_table(holder, key, &file, switch);
            }
        }
    }

    /// Stores a table. Who has more than the process gives up some of it if need be; where nobody has, it is not stored.
    fn store_table(&mut self, holder: Holder, key: TableKey, file: &CodeFile, switch: &mut Switch<'_>) {
        let Some(Ok(table)) = &file.table else {
            return;
        };
        // Each turn frees something.
        loop {
            let full = match self.arrays.store_table(&table.blocks, &table.rows) {
                Ok(place) => {
                    let holders = BTreeMap::from([(holder.pid, holder.user)]);
                    self.tables.insert(key, StoredTable { place, holders });
                    return;
                }
                Err(full) => full,
            };
            if self.release_retired(true) || self.drop_unused_tables() {
                continue;
            }
            let size = self.arrays.cost(&table.blocks, &table.rows).of(full.array);
            let things: Vec<Thing<TableKey>> = self
                .tables
                .iter()
                .map(|(key, table)| Thing {
                    key: *key,
                    size: self.arrays.place_cost(&table.place).of(full.array),
                    holders: table.holders.iter().map(|(&pid, &user)| Holder { user, pid }).collect(),
                })
                .collect();
            match shares::victim(&things, holder, size) {
                Some(victim) => self.evict(victim, switch),
                None => {
                    tracing::debug!(
                        "no unwind table of {} for pid {}: {full}",
                        file.path.display(),
                        holder.pid
                    );
                    return;
                }
            }
        }
    }

    /// Takes a table away from those who use it.
    fn evict(&mut self, key: TableKey, switch: &mut Switch<'_>) {
        let Some(table) = self.tables.remove(&key) else {
            return;
        };
        for pid in table.holders.keys() {
            self.write(*pid, switch);
        }
        self.retire(Retired::Table(table.place));
    }

    /// Gives up tables that no process uses. Returns whether there were any.
    fn drop_unused_tables(&mut self) -> bool {
        let unused = |(key, table): (&TableKey, &StoredTable)| table.holders.is_empty().then_some(*key);
        let unused: Vec<TableKey> = self.tables.iter().filter_map(unused).collect();
        for key in &unused {
            if let Some(table) = self.tables.remove(key) {
                self.retire(Retired::Table(table.place));
            }
        }
        !unused.is_empty()
    }

    /// Says how many records a process may have; who has more than its share has fewer from now on.
    fn limit_mappings(&mut self, pid: u32, switch: &mut Switch<'_>) {
        let wanted = self.processes.get(&pid).map_or(0, |stored| self.groups(&stored.code).1);
        if let Some(stored) = self.processes.get_mut(&pid) {
            stored.wanted = wanted.min(MAX_MAPPINGS);
        }
        let demands: Vec<(Holder, u32)> = self
            .processes
            .values()
            .map(|stored| (stored.holder, stored.wanted))
            .collect();
        let limits = shares::divide(&demands, self.half.end - self.half.start);
        let mut cut = Vec::new();
        for (stored, limit) in self.processes.values_mut().zip(limits) {
            stored.limit = limit;
            if stored.holder.pid != pid && stored.run.end - stored.run.start > limit {
                cut.push(stored.holder.pid);
            }
        }
        for pid in cut {
            self.write(pid, switch);
        }
    }

    /// Writes the records of a process and switches it over.
    fn write(&mut self, pid: u32, switch: &mut Switch<'_>) {
        let Some((records, left_out)) = self.records(pid) else {
            return;
        };
        let run = self.store_records(pid, &records, switch);
        if let Some(stored) = self.processes.get_mut(&pid) {
            let old = std::mem::replace(&mut stored.run, run.clone());
            stored.left_out = left_out;
            switch(pid, run, left_out);
            self.retire(Retired::Mappings(old));
        }
    }

    fn store_records(&mut self, pid: u32, records: &[CodeMapping], switch: &mut Switch<'_>) -> Range<u32> {
        let store = |tables: &mut Self| {
            let (half, records) = (tables.half.clone(), records.iter().copied());
            tables.arrays.mappings.store_within(records, half).ok()
        };
        if let Some(run) = store(self) {
            return run;
        }
        if self.release_retired(true)
            && let Some(run) = store(self)
        {
            return run;
        }
        self.put_together(pid, switch);
        // All shares together fit into a half. Stacks of a process without records have one frame.
        store(self).unwrap_or(0..0)
    }

    /// Puts all runs of mappings together, in the half that is not in use, but that of the process that gets another one.
    fn put_together(&mut self, without: u32, switch: &mut Switch<'_>) {
        let size = self.half.end - self.half.start;
        self.half = if self.half.start == 0 { size..2 * size } else { 0..size };
        for (pid, stored) in &mut self.processes {
            if *pid == without || stored.run.is_empty() {
                continue;
            }
            let records = self.arrays.mappings.read(stored.run.clone());
            let stored_again = self
                .arrays
                .mappings
                .store_within(records.into_iter(), self.half.clone());
            let old = std::mem::replace(&mut stored.run, stored_again.unwrap_or(0..0));
            switch(*pid, stored.run.clone(), stored.left_out);
            self.retired.push((Instant::now(), Retired::Mappings(old)));
        }
    }

    /// The records of a process's code, in the order of addresses. If there are too many, a file's second mapping is less
    /// important than another one's first.
    fn records(&self, pid: u32) -> Option<(Vec<CodeMapping>, LeftOut)> {
        let stored = self.processes.get(&pid)?;
        let (mut groups, wanted) = self.groups(&stored.code);
        let has_no_table =
            |(key, file): &(TableKey, &CodeFile)| matches!(file.table, Some(Ok(_))) && !self.tables.contains_key(key);
        let files = stored.code.spans.iter();
        let files: HashMap<TableKey, &CodeFile> = files.map(|(_, file)| ((file.id, file.version), &**file)).collect();
        let mut left_out = LeftOut {
            mappings: 0,
            of_mappings: groups.len(),
            tables: files.into_iter().filter(has_no_table).count(),
        };
        if wanted > stored.limit {
            groups.sort_by_key(|(rank, _)| *rank);
            let mut room = stored.limit as usize;
            let fitting = groups.iter().take_while(|(_, records)| {
                let fits = records.len() <= room;
                room = room.saturating_sub(records.len());
                fits
            });
            let count = fitting.count();
            left_out.mappings = groups.len() - count;
            groups.truncate(count);
        }
        let mut records: Vec<CodeMapping> = groups.into_iter().flat_map(|(_, records)| records).collect();
        records.sort_by_key(|record| record.start);
        Some((records, left_out))
    }

    /// The records of each piece of code, with its number among those of its file; and how many records there are.
    fn groups(&self, code: &Code) -> (Vec<(u32, Vec<CodeMapping>)>, u32) {
        let mut groups = Vec::with_capacity(code.spans.len() + code.made.len());
        let mut seen: HashMap<TableKey, u32> = HashMap::new();
        for (span, file) in &code.spans {
            let key = (file.id, file.version);
            let rank = seen.entry(key).or_default();
            let base = match &file.table {
                Some(Ok(table)) => Some(span.start.wrapping_sub(span.elf_start.wrapping_sub(table.base.0))),
                _ => None,
            };
            groups.push((*rank, span_records(span, self.tables.get(&key).zip(base))));
            *rank += 1;
        }
        // Such code keeps frame pointers or cannot be followed.
        groups.extend((0..).zip(&code.made).map(|(rank, range)| {
            let record = CodeMapping {
                start: range.start,
                end: range.end,
                flags: MAPPING_FRAME_POINTER,
                ..CodeMapping::default()
            };
            (rank, vec![record])
        }));
        let count = groups.iter().map(|(_, records)| records.len()).sum::<usize>();
        (groups, u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Gives runs free that were retired some time ago, or all of them. Returns whether there were any.
    fn release_retired(&mut self, all: bool) -> bool {
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|(since, _)| all || since.elapsed() >= RETIREMENT);
        self.retired = kept;
        if let Some(youngest) = due.iter().map(|(since, _)| *since).max() {
            self.arrays.grace.wait_for_programs_of(youngest);
        }
        let any = !due.is_empty();
        for (_, what) in due {
            match what {
                Retired::Mappings(run) => self.arrays.mappings.release(run),
                Retired::Table(place) => self.arrays.release_table(place),
            }
        }
        any
    }
}

/// The records of one piece of a file's code: one, or as many as its table has pieces there. `table` comes with the address
/// in the process that its first block is for.
fn span_records(span: &CodeSpan, table: Option<(&StoredTable, u64)>) -> Vec<CodeMapping> {
    let whole = CodeMapping {
        start: span.start,
        end: span.end,
        ..CodeMapping::default()
    };
    let Some((table, base)) = table else {
        return vec![whole];
    };
    // Positions from the table's beginning, which a piece of code may begin before.
    let position = |block: u32| i64::from(block) << BLOCK_SHIFT;
    let (first, end) = (
        span.start.wrapping_sub(base).cast_signed(),
        span.end.wrapping_sub(base).cast_signed(),
    );
    let pieces = &table.place.pieces;
    let mut records = Vec::with_capacity(1);
    for (index, piece) in pieces.iter().enumerate() {
        // What lies before the table, or behind it, is the first piece's and the last one's: no row is found there.
        let is_last = index + 1 == pieces.len();
        let low = if index == 0 { i64::MIN } else { position(piece.first) };
        let high = if is_last {
            i64::MAX
        } else {
            position(piece.first + piece.count())
        };
        let (low, high) = (low.max(first), high.min(end));
        if low < high {
            records.push(CodeMapping {
                start: base.wrapping_add_signed(low),
                end: base.wrapping_add_signed(high),
                delta: base.wrapping_add_signed(position(piece.first)),
                block_first: piece.blocks.start,
                block_count: piece.count(),
                ..CodeMapping::default()
            });
        }
    }
    if records.is_empty() { vec![whole] } else { records }
}

#[cfg(test)]
mod tests;
