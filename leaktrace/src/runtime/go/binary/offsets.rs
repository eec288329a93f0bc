//! Where the runtime's structures keep their fields, per Go release.
//!
//! Owns the list of fields that the readers use and the parsing of the built-in table `offsets.tsv`, which
//! `cargo xtask go-offsets` generates: adding a release adds a column there and touches no code. Whether a layout fits
//! a process is not decided here (see `check`). Invariant: a [`Layout`] has every required field.

use std::sync::LazyLock;

use hashbrown::HashMap;

use super::version::GoVersion;
use crate::runtime::go::memory::word;

/// The generated table.
pub const TABLE: &str = include_str!("offsets.tsv");

/// Place of a field in its structure. For `*.size` rows the offset is the structure's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the structure's begin.
    pub offset: usize,
    /// Bytes of the field itself.
    pub size: usize,
}

impl Field {
    /// The field as an unsigned number, from a buffer that holds the structure; 0 behind the buffer's end.
    pub fn get(self, structure: &[u8]) -> u64 {
        let value = word_or_tail(structure, self.offset);
        match self.size {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// First offset behind the field.
    pub fn end(self) -> usize {
        self.offset + self.size
    }
}

fn word_or_tail(buffer: &[u8], at: usize) -> u64 {
    if at.checked_add(8).is_some_and(|end| end <= buffer.len()) {
        return word(buffer, at);
    }
    buffer
        .get(at..)
        .unwrap_or_default()
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// One column of the table, or what DWARF says of a binary.
pub type FieldMap = HashMap<String, Field>;

/// A structure lacks a field that the readers cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layout has no usable field `{0}`")]
pub struct MissingField(pub &'static str);

/// A field that lies within any structure there could be: what a binary's debug information says may be anything.
fn usable(map: &FieldMap, key: &str) -> Option<Field> {
    const MAX_OFFSET: usize = 1 << 20;
    const MAX_SIZE: usize = 1 << 16;
    let field = *map.get(key)?;
    let fits = if key.ends_with(".size") {
        (8..=MAX_SIZE).contains(&field.offset)
    } else {
        field.offset <= MAX_OFFSET && field.size <= MAX_SIZE
    };
    fits.then_some(field)
}

macro_rules! layout {
    ($($(#[$doc:meta])* $group:ident $type:ident { $($field:ident $key:literal $kind:ident),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub struct $type { $(#[doc = concat!("`", $key, "`")] pub $field: layout!(@type $kind),)* }
        )*

        /// The fields of all structures.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Layout { $($(#[$doc])* pub $group: $type,)* }

        impl Layout {
            /// Every field that is asked for, in the order of the table's rows.
            pub const FIELDS: &[&str] = &[$($($key),*),*];

            /// Picks the fields out of a map.
            pub fn from_map(map: &FieldMap) -> Result<Self, MissingField> {
                Ok(Self { $($group: $type { $($field: layout!(@get $kind map $key),)* },)* })
            }
        }
    };
    (@type must) => { Field };
    (@type may) => { Option<Field> };
    (@get must $map:ident $key:literal) => { usable($map, $key).ok_or(MissingField($key))? };
    (@get may $map:ident $key:literal) => { usable($map, $key) };
}

layout! {
    /// `runtime.g`: a goroutine.
    g Goroutine {
        size "g.size" must, stack_lo "g.stack.lo" must, stack_hi "g.stack.hi" must, m "g.m" must,
        sched_sp "g.sched.sp" must, sched_pc "g.sched.pc" must, syscall_sp "g.syscallsp" must,
        syscall_pc "g.syscallpc" must, status "g.atomicstatus" must, goid "g.goid" must,
        wait_since "g.waitsince" must, wait_reason "g.waitreason" must, parent "g.parentGoid" may,
        creator_pc "g.gopc" must, start_pc "g.startpc" must, waiting "g.waiting" must,
        locked_m "g.lockedm" must, labels "g.labels" may,
    }
    /// `runtime.sudog`: a goroutine in a channel's wait queue.
    sudog Sudog {
        size "sudog.size" must, g "sudog.g" must, next "sudog.next" must, wait_link "sudog.waitlink" must,
        channel "sudog.c" must,
    }
    /// `runtime.hchan`: a channel.
    channel Channel {
        size "hchan.size" must, count "hchan.qcount" must, capacity "hchan.dataqsiz" must,
        closed "hchan.closed" must, receivers "hchan.recvq.first" must, senders "hchan.sendq.first" must,
    }
    /// `runtime.memRecordCycle`: counters of a heap bucket in one cycle.
    record Record {
        size "memRecordCycle.size" must, allocs "memRecordCycle.allocs" must, frees "memRecordCycle.frees" must,
        alloc_bytes "memRecordCycle.alloc_bytes" may, free_bytes "memRecordCycle.free_bytes" may,
    }
    /// `runtime.mstats`: accounting that is not the heap's.
    stats Stats {
        last_gc "mstats.last_gc_unix" must, pause_total "mstats.pause_total_ns" must,
        pauses "mstats.pause_ns" must, pause_ends "mstats.pause_end" must, cycles "mstats.numgc" must,
        forced "mstats.numforcedgc" must, cpu_fraction "mstats.gc_cpu_fraction" must,
        mspan_sys "mstats.mspan_sys" may, mcache_sys "mstats.mcache_sys" may, buckets_sys "mstats.buckhash_sys" may,
        gc_sys "mstats.gcMiscSys" may, other_sys "mstats.other_sys" may, stacks_sys "mstats.stacks_sys" may,
    }
    /// `runtime.gcControllerState`: the pacer, which counts the heap.
    controller Controller {
        size "gcControllerState.size" must, percent "gcControllerState.gcPercent" must,
        memory_limit "gcControllerState.memoryLimit" must, triggered "gcControllerState.triggered" must,
        goal "gcControllerState.gcPercentHeapGoal" must, last_goal "gcControllerState.lastHeapGoal" must,
        live "gcControllerState.heapLive" must, marked "gcControllerState.heapMarked" must,
        in_use "gcControllerState.heapInUse" must, free "gcControllerState.heapFree" must,
        released "gcControllerState.heapReleased" must, total_alloc "gcControllerState.totalAlloc" must,
        total_free "gcControllerState.totalFree" must, last_stack_scan "gcControllerState.lastStackScan" may,
        globals_scan "gcControllerState.globalsScan" may, assist_time "gcControllerState.assistTime" may,
        dedicated_time "gcControllerState.dedicatedMarkTime" may,
        fractional_time "gcControllerState.fractionalMarkTime" may, idle_time "gcControllerState.idleMarkTime" may,
    }
    /// `runtime.work`: the current collection.
    work Work {
        size "work.size" must, start_sema "work.startSema" must, cycles "work.cycles" must,
        forced "work.userForced" may, stw_procs "work.stwprocs" may, procs "work.maxprocs" may,
        sweep_term "work.tSweepTerm" must, mark "work.tMark" must, mark_term "work.tMarkTerm" must,
        end "work.tEnd" must, pause "work.pauseNS" must, heap0 "work.heap0" must, heap1 "work.heap1" must,
        heap2 "work.heap2" must,
    }
    /// `runtime.mheap`.
    heap Heap { spans "mheap.allspans" must }
    /// `runtime.mspan`: a run of pages.
    span Span {
        size "mspan.size" must, start "mspan.startAddr" must, pages "mspan.npages" must,
        free_index "mspan.freeindex" must, elements "mspan.nelems" must, alloc_bits "mspan.allocBits" must,
        mark_bits "mspan.gcmarkBits" must, sweep_generation "mspan.sweepgen" must,
        allocated "mspan.allocCount" must, class "mspan.spanclass" must, state "mspan.state" must,
        element_size "mspan.elemsize" must, specials "mspan.specials" must,
    }
    /// `runtime.special` and `runtime.specialprofile`: what hangs on an object.
    special Special {
        next "special.next" must, offset "special.offset" must, kind "special.kind" must,
        size "specialprofile.size" must, bucket "specialprofile.b" must,
    }
    /// `runtime.moduledata`.
    module Module { text "moduledata.text" must, gofunc "moduledata.gofunc" must }
}

/// One release's column.
#[derive(Clone, Debug)]
pub struct Column {
    /// The release that it was made from.
    pub version: GoVersion,
    /// Its fields.
    pub map: FieldMap,
}

/// A line of the table that is not in its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset table, line {line}: {what}")]
pub struct TableError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// Parses a table: a line `version V1 V2 …`, then a line per field with `offset`, `offset/size` (where the size is not
/// 8) or `-` for each version. `#` begins a comment line.
pub fn parse_table(text: &str) -> Result<Vec<Column>, TableError> {
    let mut columns: Vec<Column> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let error = |what: String| TableError { line: index + 1, what };
        let mut cells = line.split_ascii_whitespace();
        match cells.next() {
            None => {}
            Some(first) if first.starts_with('#') => {}
            Some("version") => {
                for cell in cells {
                    let version = GoVersion::parse(&format!("go{cell}"))
                        .ok_or_else(|| error(format!("`{cell}` is no version")))?;
                    columns.push(Column {
                        version,
                        map: FieldMap::new(),
                    });
                }
            }
            Some(name) => {
                let cells: Vec<&str> = cells.collect();
                if cells.len() != columns.len() {
                    return Err(error(format!("{} cells for {} versions", cells.len(), columns.len())));
                }
                for (column, cell) in columns.iter_mut().zip(cells).filter(|(_, cell)| *cell != "-") {
                    let (offset, size) = cell.split_once('/').unwrap_or((cell, "8"));
                    let field = match (offset.parse(), size.parse()) {
                        (Ok(offset), Ok(size)) => Field { offset, size },
                        _ => return Err(error(format!("`{cell}` is no offset"))),
                    };
                    column.map.insert(name.to_owned(), field);
                }
            }
        }
    }
    Ok(columns)
}

static COLUMNS: LazyLock<Vec<Column>> =
    LazyLock::new(|| parse_table(TABLE).expect("the built-in table is generated, and parsed by a test"));

/// All built-in columns, oldest first.
pub fn columns() -> &'static [Column] {
    &COLUMNS
}

/// The columns to try for a version, best first: its own patch release, then the others of its minor release by
/// distance, older ones first. Empty for a minor release that the table does not hold.
pub fn candidates(version: &GoVersion) -> Vec<&'static Column> {
    let mut found: Vec<_> = columns()
        .iter()
        .filter(|column| column.version.release() == version.release())
        .collect();
    found.sort_by_key(|column| {
        let patch = column.version.patch;
        (patch.abs_diff(version.patch), patch > version.patch)
    });
    found
}

/// First and last minor release of the table, for messages.
pub fn supported() -> (u32, u32) {
    let minors = || columns().iter().map(|column| column.version.minor);
    (minors().min().unwrap_or(0), minors().max().unwrap_or(0))
}

/// `funcID_wrapper`: functions that the compiler made and tracebacks leave out.
pub fn wrapper_function_id(version: &GoVersion) -> u8 {
    match version.minor {
        ..=21 => 21,
        22..=24 => 22,
        _ => 23,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_the_built_in_table_is_a_layout() {
        let columns = parse_table(TABLE).unwrap();
        assert_eq!(supported(), (19, 27));
        for column in &columns {
            let layout = Layout::from_map(&column.map).unwrap_or_else(|error| panic!("{}: {error}", column.version));
            assert!(layout.g.size.offset > layout.g.start_pc.end(), "{}", column.version);
            assert_eq!(layout.module.text.offset, 176, "{}", column.version);
            assert!(layout.work.heap2.offset < layout.work.size.offset, "{}", column.version);
        }
    }

    #[test]
    fn rows_and_fields_agree() {
        let rows: Vec<&str> = TABLE
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("version"))
            .filter_map(|line| line.split_ascii_whitespace().next())
            .collect();
        assert_eq!(rows, Layout::FIELDS);
    }

    #[test]
    fn the_nearest_patch_release_comes_first() {
        let order = |text: &str| -> Vec<String> {
            candidates(&GoVersion::parse(text).unwrap())
                .iter()
                .map(|column| column.version.to_string())
                .collect()
        };
        assert_eq!(order("go1.23.5"), ["go1.23.5", "go1.23.1"]);
        assert_eq!(order("go1.23.2"), ["go1.23.1", "go1.23.5"]);
        assert_eq!(order("go1.23.9"), ["go1.23.5", "go1.23.1"]);
        assert_eq!(order("go1.24rc1").len(), 1);
        assert!(order("go1.18.3").is_empty());
    }

    #[test]
    fn fields_are_read_at_their_size() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(Field { offset: 1, size: 2 }.get(&bytes), 0x0302);
        assert_eq!(Field { offset: 8, size: 1 }.get(&bytes), 9);
        assert_eq!(Field { offset: 400, size: 8 }.get(&bytes), 0);
        assert_eq!(
            parse_table("version 1.19\ng.goid x").unwrap_err().to_string(),
            "offset table, line 2: `x` is no offset"
        );
    }
}
