//! From a ledger to a profile: addresses get names here, at the end, and not while events arrive.

mod account;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use leaktrace_common::{
    config::{MAX_FRAMES, OMITTED_FRAMES},
    reason::{Counter, WalkEnd},
};

pub use account::{all_lost, kernel_losses};

use super::{managed::ManagedHeap, program::Program};
use crate::{
    ledger::{AGE_BOUNDS, Ages, Interval, Notes, Row, Snapshot},
    model::{HeapKind, ProcessAddress},
    report::{
        builder::{FrameLine, ProfileBuilder},
        profile::{LocationId, Mapping, Metadata, NumericLabel, Profile, TextLabel, Trend, Trends},
        text::Text,
    },
    runtime::Runtime,
    symbolize::{Addresses, Frame, SymbolSource, Symbolizer},
};

/// Allocation functions: who calls them is who allocates. Readers leave them out, JSON keeps them. Readers match names
/// without their argument lists.
const DROP_FRAMES: &str = "(operator new(\\[\\])?(\\(.*)?|__rust_(alloc|alloc_zeroed|realloc)|__rdl_(alloc|alloc_zeroed|realloc)|\
                           __rust_alloc_error_handler.*|alloc::alloc::(alloc|alloc_zeroed|realloc|Global::.*)|\
                           <alloc::alloc::Global as .*|<.* as core::alloc::global::GlobalAlloc>::(alloc|alloc_zeroed|realloc)|\
                           dlmalloc::.*)";

/// How memory was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every allocation, by probes.
    Exact,
    /// Allocations by samples, by probes.
    Sampled,
    /// Growth by samples, without probes.
    Growth,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Sampled => "sampled",
            Self::Growth => "growth",
        }
    }
}

/// What a recording knows besides its ledgers.
pub struct Context {
    /// How memory was followed.
    pub mode: Mode,
    /// Mean bytes between samples; 0 in exact mode.
    pub sample_interval: u64,
    /// Smallest allocation taken.
    pub min_size: u64,
    /// When tracing began.
    pub attached: SystemTime,
    /// How long it lasted.
    pub duration: Duration,
    /// The kernel side's counters.
    pub counters: [u64; Counter::COUNT],
    /// Records that could not be decoded.
    pub undecodable: u64,
    /// What else is to be said, such as changes of the interval.
    pub remarks: Vec<String>,
}

/// A process to report on.
pub struct Subject<'a> {
    /// Where its code is.
    pub program: &'a Program,
    /// What it holds.
    pub snapshot: &'a Snapshot,
    /// What its ledger noticed.
    pub notes: Notes,
    /// The heap of its managed runtime, if it has one.
    pub managed: Option<&'a ManagedHeap>,
}

/// Makes one profile of one or more processes; with more than one, samples carry the label `pid`.
pub fn build(subjects: &[Subject<'_>], context: &Context, symbolizer: &Symbolizer) -> Profile {
    let mut builder = ProfileBuilder::heap();
    let mut notes = Notes::default();
    let mut truncated = BTreeMap::new();
    let mut outline = Outline::default();
    let mut mapped = BTreeMap::new();
    for subject in subjects {
        let label = (subjects.len() > 1).then_some(subject.program.key.pid);
        add_process(
            &mut builder,
            subject,
            label,
            symbolizer,
            &mut truncated,
            &mut outline,
            &mut mapped,
        );
        add_notes(&mut notes, subject.notes);
    }
    let mut losses = account::losses(context, &notes, &truncated);
    account::add_gaps(&mut losses, subjects);
    for heap in subjects.iter().filter_map(|subject| subject.managed) {
        heap.add_losses(&mut losses);
    }
    let profile = builder.profile_mut();
    profile.period = context.sample_interval.max(1) as i64;
    profile.time_nanos = nanos(
        context
            .attached
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    );
    profile.duration_nanos = nanos(context.duration);
    profile.drop_frames = DROP_FRAMES.to_owned();
    profile.comments = account::comments(subjects, context, &notes);
    profile.comments.extend(account::left_out(subjects, symbolizer));
    profile.comments.extend(outline.comments());
    profile.comments.extend(context.remarks.iter().cloned());
    let problems = symbolizer.take_problems();
    profile.comments.extend(
        problems
            .into_iter()
            .map(|problem| format!("names are missing: {problem}")),
    );
    profile.trends = Some(Trends {
        age_bounds: AGE_BOUNDS.to_vec(),
        growth_nanos: nanos(Duration::from_secs_f64(outline.seconds)),
    });
    let mapped = mapped.into_iter().map(|(runtime, bytes)| {
        format!("mapped by the {runtime} runtime for its heap and not shown again: {bytes:.0} bytes")
    });
    profile.comments.extend(mapped);
    profile.metadata = Metadata {
        comm: subjects
            .first()
            .map(|subject| subject.program.comm.clone())
            .unwrap_or_default(),
        pid: subjects.first().map(|subject| subject.program.key.pid),
        mode: context.mode.name().to_owned(),
        losses,
    };
    builder.finish()
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn add_notes(sum: &mut Notes, notes: Notes) {
    sum.events += notes.events;
    sum.returns += notes.returns;
    sum.unknown_frees += notes.unknown_frees;
    sum.missed_frees += notes.missed_frees;
    sum.unknown_stacks += notes.unknown_stacks;
    sum.other_stacks += notes.other_stacks;
    sum.truncated_stacks += notes.truncated_stacks;
    sum.crowded_pages += notes.crowded_pages;
    sum.left_out += notes.left_out;
    sum.execs += notes.execs;
}

/// How old the outstanding memory is, and whether it grows: over all stacks.
#[derive(Default)]
struct Outline {
    ages: Ages,
    growth: f64,
    /// Seconds that the growth is measured over.
    seconds: f64,
    /// Objects through stacks that are shown without their middle.
    deep: f64,
}

impl Outline {
    fn add(&mut self, row: &Row, growth_since: u32, now: u32) {
        self.ages
            .iter_mut()
            .zip(row.ages)
            .for_each(|(sum, bytes)| *sum += bytes);
        self.growth += row.growth;
        self.seconds = self.seconds.max(f64::from(now.saturating_sub(growth_since)) / 100.0);
    }

    fn comments(&self) -> Vec<String> {
        let mut comments = Vec::new();
        if self.deep > 0.0 {
            comments.push(format!(
                "stacks of more than {MAX_FRAMES} frames are shown without the frames in their middle: {:.0} allocations",
                self.deep
            ));
        }
        let total: f64 = self.ages.iter().sum();
        if total <= 0.0 {
            return comments;
        }
        let limits = AGE_BOUNDS.map(|bound| humantime::format_duration(Duration::from_secs(bound.into())).to_string());
        let names = limits
            .iter()
            .map(|limit| format!("under {limit}"))
            .chain(["older".to_owned()]);
        let shares: Vec<String> = names
            .zip(self.ages)
            .filter(|(_, bytes)| *bytes > 0.0)
            .map(|(name, bytes)| format!("{name} {:.1}%", bytes / total * 100.0))
            .collect();
        comments.push(format!("age of the outstanding memory: {}", shares.join(", ")));
        comments.push(format!(
            "growth over the last {:.1}s: {:+.0} bytes in native allocations",
            self.seconds, self.growth
        ));
        comments
    }
}

/// A return address points behind its call; the call is what is looked up and shown.
fn call_address(address: ProcessAddress) -> ProcessAddress {
    ProcessAddress(address.0.saturating_sub(1))
}

/// Names of addresses, by file and address in it.
type Names = HashMap<(usize, u64), Vec<Frame>>;

/// Bytes that managed runtimes mapped for their heaps, by the runtime's title.
type Mapped = BTreeMap<&'static str, f64>;

/// Adds the samples of a process. What its managed runtime mapped is added to `mapped`: that is what the runtime's heap is
/// made of, as the mappings of `malloc` are, and no heap of its own kind.
fn add_process(
    builder: &mut ProfileBuilder,
    subject: &Subject<'_>,
    pid: Option<u32>,
    symbolizer: &Symbolizer,
    truncated: &mut BTreeMap<WalkEnd, f64>,
    outline: &mut Outline,
    mapped: &mut Mapped,
) {
    let snapshot = subject.snapshot;
    let code = Code::new(subject.program, snapshot);
    let names = symbolize(&code, symbolizer);
    let mut labels = Labels::new(pid, &subject.program.threads);
    let mappings = intern_mappings(builder, subject.program);
    let mut locations: HashMap<(u64, Option<Place>), Option<LocationId>> = HashMap::new();
    builder.reserve_samples(snapshot.rows.len());
    let mut frames = Vec::new();
    for row in &snapshot.rows {
        if row.kind == HeapKind::Mmap
            && let Some(runtime) = mapped_by(&code, &names, row)
        {
            *mapped.entry(runtime.title()).or_default() += row.allocated.bytes;
            continue;
        }
        outline.add(row, snapshot.growth_since, snapshot.at);
        if row.end != WalkEnd::Bottom {
            *truncated.entry(row.end).or_default() += row.allocated.objects.max(row.live.objects);
        }
        let mut is_deep = false;
        frames.clear();
        frames.extend(snapshot.frames(row));
        let mut stack = Vec::with_capacity(frames.len().max(1));
        stack.extend(frames.iter().enumerate().filter_map(|(index, address)| {
            if is_omission(index, *address) {
                is_deep = true;
                return Some(placeholder(builder, "[frames omitted]"));
            }
            let address = call_address(*address);
            let place = code.find(address, row);
            *locations
                .entry((address.0, place))
                .or_insert_with(|| location(builder, subject.program, &mappings, &names, address, place))
        }));
        if is_deep {
            outline.deep += row.allocated.objects.max(row.live.objects);
        }
        if row.is_other {
            stack.push(placeholder(builder, "[other stacks]"));
        } else if stack.is_empty() {
            stack.push(placeholder(builder, "[stack not recorded]"));
        }
        labels.add_row(builder, row, stack);
    }
    if let Some(heap) = subject.managed {
        let mapping = |address| {
            let (span, _) = subject.program.space.find(ProcessAddress(address), Interval::ALWAYS)?;
            mappings.get(&(span.start, span.file)).copied()
        };
        heap.add_samples(builder, &mapping, &pid.map(pid_label).into_iter().collect::<Vec<_>>());
    }
}

/// What stands for frames that have no address.
fn placeholder(builder: &mut ProfileBuilder, text: &str) -> LocationId {
    let line = FrameLine {
        function: text,
        placeholder: true,
        ..FrameLine::default()
    };
    builder.location(None, 0, &[line])
}

/// Whether this stands for the frames in the middle of a deep stack. The first frame is what the program was at, which may
/// be anything.
fn is_omission(index: usize, address: ProcessAddress) -> bool {
    index > 0 && address.0 == OMITTED_FRAMES
}

/// The managed runtime that mapped this for its own heap.
fn mapped_by(code: &Code<'_>, names: &Names, row: &Row) -> Option<&'static dyn Runtime> {
    code.snapshot.frames(row).find_map(|address| {
        let place = code.find(call_address(address), row)?;
        let managed = code.program.files[place.file].managed_at(place.address)?;
        let frames = names.get(&(place.file, place.address))?;
        let maps = frames.iter().any(|frame| managed.maps_heap(&frame.function));
        maps.then(|| managed.runtime())
    })
}

fn pid_label(pid: u32) -> NumericLabel {
    NumericLabel {
        key: "pid".into(),
        value: pid.into(),
        unit: "".into(),
    }
}

/// The labels of one process's samples. They share their texts: there may be a million samples.
struct Labels<'a> {
    /// By kind of memory.
    heaps: HashMap<HeapKind, TextLabel>,
    thread: Text,
    names: HashMap<u32, Text>,
    threads: &'a HashMap<u32, String>,
    bytes: Text,
    pid: Option<NumericLabel>,
}

impl<'a> Labels<'a> {
    fn new(pid: Option<u32>, threads: &'a HashMap<u32, String>) -> Self {
        Self {
            heaps: HashMap::new(),
            thread: "thread".into(),
            names: HashMap::new(),
            threads,
            bytes: "bytes".into(),
            pid: pid.map(pid_label),
        }
    }

    fn add_row(&mut self, builder: &mut ProfileBuilder, row: &Row, stack: Vec<LocationId>) {
        let whole = |value: f64| value.round() as i64;
        let values = [
            whole(row.allocated.objects),
            whole(row.allocated.bytes),
            whole(row.live.objects),
            whole(row.live.bytes),
        ];
        let heap = self
            .heaps
            .entry(row.kind)
            .or_insert_with(|| TextLabel::heap(row.kind))
            .clone();
        let thread = row.thread.and_then(|tid| {
            let name = self.threads.get(&tid)?;
            Some(TextLabel {
                key: self.thread.clone(),
                value: self.names.entry(tid).or_insert_with(|| name.into()).clone(),
            })
        });
        let mean_size = if row.allocated.objects > 0.0 {
            row.allocated.bytes / row.allocated.objects
        } else {
            0.0
        };
        let size = NumericLabel {
            key: self.bytes.clone(),
            value: whole(mean_size),
            unit: self.bytes.clone(),
        };
        let trend = Trend {
            // Mappings are cut and joined: what a stack had of them earlier is not kept.
            growth: (row.kind == HeapKind::Native).then(|| whole(row.growth)),
            ages: row.ages.map(whole).to_vec(),
        };
        let labels = match thread {
            Some(thread) => vec![heap, thread],
            None => vec![heap],
        };
        let numbers = match self.pid.clone() {
            Some(pid) => vec![size, pid],
            None => vec![size],
        };
        builder.sample_with_trend(stack, &values, labels, numbers, Some(trend));
    }
}

/// A place in a file's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// First address of the code in the process.
    start: u64,
    /// Index of the file.
    file: usize,
    /// Address in the file's terms.
    address: u64,
}

/// Where the addresses of stacks lead, each in its time.
struct Code<'a> {
    program: &'a Program,
    snapshot: &'a Snapshot,
    /// What was asked before: stacks share their frames.
    known: RefCell<HashMap<(u64, u64), Option<Place>>>,
}

impl<'a> Code<'a> {
    fn new(program: &'a Program, snapshot: &'a Snapshot) -> Self {
        Self {
            program,
            snapshot,
            known: RefCell::default(),
        }
    }

    /// The code at an address when the row's stack came.
    fn find(&self, address: ProcessAddress, row: &Row) -> Option<Place> {
        let find = || {
            let during = self.snapshot.code.interval(address, row.code);
            let (span, elf_address) = self.program.space.find(address, during)?;
            Some(Place {
                start: span.start,
                file: span.file,
                address: elf_address.0,
            })
        };
        *self
            .known
            .borrow_mut()
            .entry((address.0, row.code))
            .or_insert_with(find)
    }
}

fn symbolize(code: &Code<'_>, symbolizer: &Symbolizer) -> Names {
    let mut wanted: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for row in &code.snapshot.rows {
        let frames = code.snapshot.frames(row);
        let places = frames.filter_map(|address| code.find(call_address(address), row));
        for place in places {
            wanted.entry(place.file).or_default().insert(place.address);
        }
    }
    let mut names = Names::new();
    for (index, addresses) in wanted {
        let file = &code.program.files[index];
        // A managed runtime's own tables have exact inlining and the names that its profiles have, stripped or not.
        let mut native = Vec::new();
        for address in addresses {
            match file.managed_at(address) {
                Some(code) => drop(names.insert((index, address), code.frames(address))),
                None => native.push(address),
            }
        }
        let path = file.path.to_string_lossy();
        let source = SymbolSource::File {
            file: &file.file,
            path: &path,
        };
        let frames = symbolizer.symbolize(&source, Addresses::Elf(&native));
        names.extend(native.into_iter().map(|address| (index, address)).zip(frames));
    }
    names
}

/// Ids of mappings by first address and file.
type Mappings = HashMap<(u64, usize), crate::report::profile::MappingId>;

/// Interns the process's mappings, the executable's first.
fn intern_mappings(builder: &mut ProfileBuilder, program: &Program) -> Mappings {
    let mut spans: Vec<_> = program.space.iter().collect();
    spans.sort_by_key(|span| (span.file, span.start));
    spans
        .into_iter()
        .map(|span| {
            let file = &program.files[span.file];
            let mapping = Mapping {
                start: span.start,
                limit: span.end,
                offset: span.offset,
                file: file.path.to_string_lossy().into_owned().into(),
                build_id: file.build_id().map(ToString::to_string).unwrap_or_default().into(),
                ..Mapping::default()
            };
            ((span.start, span.file), builder.mapping(mapping))
        })
        .collect()
}

/// `None` for code that has no place in a stack, such as wrappers that a runtime's compiler made.
fn location(
    builder: &mut ProfileBuilder,
    program: &Program,
    mappings: &Mappings,
    names: &Names,
    address: ProcessAddress,
    place: Option<Place>,
) -> Option<LocationId> {
    let Some(place) = place else {
        if let Some(entry) = program.jit.as_ref().and_then(|jit| jit.map().find(address.0)) {
            let line = FrameLine {
                function: &entry.name,
                ..FrameLine::default()
            };
            return Some(builder.location(None, address.0, &[line]));
        }
        let name = format!("[unknown]+{address}");
        let line = FrameLine {
            function: &name,
            placeholder: true,
            ..FrameLine::default()
        };
        return Some(builder.location(None, address.0, &[line]));
    };
    let mapping = mappings.get(&(place.start, place.file)).copied();
    let frames = names.get(&(place.file, place.address)).map_or(&[][..], Vec::as_slice);
    if frames.is_empty() && program.files[place.file].managed_at(place.address).is_some() {
        return None;
    }
    let lines: Vec<FrameLine<'_>> = frames
        .iter()
        .map(|frame| FrameLine {
            function: &frame.function,
            system_name: &frame.system_name,
            file: &frame.file,
            line: frame.line,
            column: frame.column,
            start_line: frame.start_line,
            placeholder: frame.placeholder,
        })
        .collect();
    Some(builder.location(mapping, address.0, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::prune::prune;

    fn leaf_without(allocation_function: &str) -> String {
        let mut builder = ProfileBuilder::heap();
        let mut place = |address, function| {
            let line = FrameLine {
                function,
                ..FrameLine::default()
            };
            builder.location(None, address, &[line])
        };
        let stack = vec![place(1, allocation_function), place(2, "leak(int)"), place(3, "main")];
        builder.sample(stack, &[1, 1, 1, 1], Vec::new(), Vec::new());
        let mut profile = builder.finish();
        profile.drop_frames = DROP_FRAMES.to_owned();
        prune(&mut profile).expect("a regular expression");
        let leaf = profile
            .stack(&profile.samples[0])
            .next()
            .expect("stacks are never empty");
        profile.names(leaf).next().expect("it has a name").into_owned()
    }

    #[test]
    fn allocation_functions_are_left_out_by_readers() {
        for name in [
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "__rust_alloc",
            "alloc::alloc::alloc_zeroed",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
        ] {
            assert_eq!(leaf_without(name), "leak(int)", "{name}");
        }
        assert_eq!(leaf_without("operator new_id(int)"), "operator new_id(int)");
    }
}
