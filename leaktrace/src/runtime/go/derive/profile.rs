//! Snapshots of heap and goroutines as samples of a [`Profile`], in the form that Go's own pprof writes them.
//!
//! Frames of the runtime above the program's own functions are left out, as Go does, unless there is nothing else.

use super::stacks::{Place, Symbolizer, is_runtime};
use crate::model::HeapKind;
use crate::proc::maps::read_maps;
use crate::proc::memory::MemoryReader;
use crate::report::{FrameLine, Mapping, MappingId, NumericLabel, Profile, ProfileBuilder, TextLabel, ValueType};
use crate::runtime::go::goroutines::{Goroutine, GoroutineSnapshot};
use crate::runtime::go::heap::{Bucket, Counts, HeapSnapshot, Scaled, View};
use crate::runtime::go::process::GoProcess;
use hashbrown::HashMap;

/// The mapping of the program's text.
pub fn text_mapping<M: MemoryReader>(process: &GoProcess<M>) -> Mapping {
    let text = process.table().text();
    let found = read_maps(process.pid())
        .ok()
        .and_then(|maps| maps.into_iter().find(|map| (map.start.0..map.end.0).contains(&text)));
    let file = process.exe.display().to_string();
    let build_id = process.executable.build_id();
    // pclntab has all of this, whatever was stripped off.
    let flags = Mapping {
        has_functions: true,
        has_filenames: true,
        has_line_numbers: true,
        has_inline_frames: true,
        ..Mapping::default()
    };
    match found {
        Some(map) => Mapping {
            start: map.start.0,
            limit: map.end.0,
            offset: map.offset.0,
            file: file.into(),
            build_id: build_id.into(),
            ..flags
        },
        None => Mapping {
            start: text,
            limit: process.table().text_end(),
            offset: 0,
            file: file.into(),
            build_id: build_id.into(),
            ..flags
        },
    }
}

/// Interns a place.
pub fn add_place(builder: &mut ProfileBuilder, mapping: MappingId, place: &Place<'_>) -> crate::report::LocationId {
    // Profiles carry type arguments, as Go's own do; tracebacks do not.
    let lines: Vec<FrameLine<'_>> = place
        .frames
        .iter()
        .map(|frame| FrameLine {
            function: if frame.function.is_empty() {
                "<unknown>"
            } else {
                &frame.function
            },
            file: &frame.file,
            line: frame.line,
            start_line: frame.start_line,
            placeholder: frame.function.is_empty(),
            ..FrameLine::default()
        })
        .collect();
    builder.location(Some(mapping), place.address, &lines)
}

/// Takes off the runtime's frames at the leaf.
pub fn hide_runtime(places: &mut Vec<Place<'_>>) {
    let visible = |place: &Place<'_>| place.frames.iter().position(|frame| !is_runtime(&frame.function));
    let Some((first, frame)) = places
        .iter()
        .enumerate()
        .find_map(|(at, place)| Some((at, visible(place)?)))
    else {
        return;
    };
    places.drain(..first);
    places[0].frames.drain(..frame);
}

/// Adds the samples of a snapshot, with the labels `heap` and `bytes`. With a `start`, allocations are those since
/// then; what is in use is as of `end`.
pub fn add_heap<M: MemoryReader>(
    builder: &mut ProfileBuilder,
    process: &GoProcess<M>,
    start: Option<&HeapSnapshot>,
    end: &HeapSnapshot,
    view: View,
) {
    let mapping = builder.mapping(text_mapping(process));
    let before = start.map(|start| {
        start
            .view(view)
            .map(|(bucket, counts)| (bucket.address, counts.allocs))
            .collect()
    });
    add_heap_labelled(builder, mapping, process, before.as_ref(), end, view, &[]);
}

/// As [`add_heap`], with a mapping that is interned already, and with further labels. `before` are the objects that had been
/// allocated by address of their bucket.
pub fn add_heap_labelled<M: MemoryReader>(
    builder: &mut ProfileBuilder,
    mapping: MappingId,
    process: &GoProcess<M>,
    before: Option<&HashMap<u64, u64>>,
    end: &HeapSnapshot,
    view: View,
    labels: &[NumericLabel],
) {
    let mut symbolizer = Symbolizer::new(process.table(), &process.version);
    let before = |bucket: &Bucket| before.and_then(|before| before.get(&bucket.address)).copied();
    for (bucket, counts) in end.view(view) {
        let since = Counts {
            allocs: counts.allocs.saturating_sub(before(bucket).unwrap_or(0)),
            frees: 0,
        };
        let Scaled {
            inuse_objects,
            inuse_bytes,
            ..
        } = end.scale(bucket, counts);
        let Scaled {
            alloc_objects,
            alloc_bytes,
            ..
        } = end.scale(bucket, since);
        let values = [alloc_objects, alloc_bytes, inuse_objects, inuse_bytes];
        if values != [0; 4] {
            let locations = stack(builder, mapping, &mut symbolizer, bucket);
            let mut numbers = labels.to_vec();
            numbers.push(size_label(bucket.size));
            builder.sample(locations, &values, vec![TextLabel::heap(HeapKind::Go)], numbers);
        }
    }
}

/// The stack from the first function on that is not the runtime's. Go's own profiles decide that by the return address,
/// which at the end of an inlined call belongs to another function than the call; so it is decided here, to show the
/// same stacks.
fn visible_stack<'s>(symbolizer: &mut Symbolizer<'_>, stack: &'s [u64]) -> &'s [u64] {
    let is_visible = |&pc: &u64| {
        let frames = symbolizer.frames(pc);
        frames.first().is_some_and(|frame| !is_runtime(&frame.function))
    };
    stack.iter().position(is_visible).map_or(stack, |first| &stack[first..])
}

fn stack(
    builder: &mut ProfileBuilder,
    mapping: MappingId,
    symbolizer: &mut Symbolizer<'_>,
    bucket: &Bucket,
) -> Vec<crate::report::LocationId> {
    let visible = visible_stack(symbolizer, &bucket.stack);
    let mut places = symbolizer.heap_stack(visible);
    end_at_entry(&mut places);
    places.iter().map(|place| add_place(builder, mapping, place)).collect()
}

fn size_label(size: u64) -> NumericLabel {
    NumericLabel {
        key: "bytes".into(),
        value: i64::try_from(size).unwrap_or(i64::MAX),
        unit: "bytes".into(),
    }
}

/// A whole profile of one snapshot. `time_nanos` is when it was taken, since 1970.
pub fn heap_profile<M: MemoryReader>(
    process: &GoProcess<M>,
    snapshot: &HeapSnapshot,
    view: View,
    time_nanos: i64,
) -> Profile {
    let mut builder = ProfileBuilder::heap();
    add_heap(&mut builder, process, None, snapshot, view);
    let profile = builder.profile_mut();
    profile.period = i64::try_from(snapshot.rate).unwrap_or(i64::MAX);
    profile.time_nanos = time_nanos;
    profile.metadata.comm = process
        .exe
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    profile.metadata.pid = Some(process.pid());
    profile.metadata.mode = match snapshot.rate {
        0 => "off".to_owned(),
        1 => "exact".to_owned(),
        _ => "sampled".to_owned(),
    };
    profile.metadata.losses = losses(snapshot, view);
    profile.comments.push(format!(
        "Go heap profile read from outside: {}, view {}, profile cycle {}, one sample per {} bytes",
        process.version,
        match view {
            View::Now => "now",
            View::Pprof => "pprof",
            View::LastGc => "last-gc",
        },
        snapshot.cycle,
        snapshot.rate
    ));
    builder.finish()
}

/// Go's goroutine profile: one sample per stack, its value the number of goroutines.
pub fn goroutine_profile<M: MemoryReader>(
    process: &GoProcess<M>,
    snapshot: &GoroutineSnapshot,
    time_nanos: i64,
    keep: impl Fn(&Goroutine) -> bool,
) -> Profile {
    let mut builder = ProfileBuilder::new(vec![ValueType::new("goroutine", "count")]);
    let mapping = builder.mapping(text_mapping(process));
    let mut symbolizer = Symbolizer::new(process.table(), &process.version);
    let mut stackless = 0;
    for goroutine in snapshot.goroutines.iter().filter(|goroutine| keep(goroutine)) {
        if goroutine.stack.is_empty() {
            stackless += 1;
        }
        let mut places = symbolizer.goroutine_stack(&goroutine.stack);
        end_at_entry(&mut places);
        let locations = places
            .iter()
            .map(|place| add_place(&mut builder, mapping, place))
            .collect();
        builder.sample(locations, &[1], Vec::new(), Vec::new());
    }
    let profile = builder.profile_mut();
    profile.default_sample_type = "goroutine".to_owned();
    profile.period_type = ValueType::new("goroutine", "count");
    profile.period = 1;
    profile.time_nanos = time_nanos;
    profile.metadata.comm = process
        .exe
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    profile.metadata.pid = Some(process.pid());
    profile.metadata.losses.add(
        "go_stackless",
        stackless,
        "goroutines that ran while they were read: no stack",
    );
    builder.finish()
}

/// Takes off `runtime.goexit`, which is below every goroutine's entry, and places without frames.
fn end_at_entry(places: &mut Vec<Place<'_>>) {
    places.retain(|place| {
        place
            .frames
            .first()
            .is_some_and(|frame| frame.function != "runtime.goexit")
    });
}

/// What a snapshot missed.
pub fn losses(snapshot: &HeapSnapshot, view: View) -> crate::report::Losses {
    let mut losses = crate::report::Losses::new();
    losses.add(
        "go_torn",
        snapshot.torn,
        "heap buckets that kept changing while they were read; left out",
    );
    losses.add(
        "go_cut",
        u64::from(snapshot.cut.is_some()),
        "the bucket list ended early: the profile is incomplete",
    );
    let moved = !snapshot.stable && view != View::Now;
    losses.add(
        "go_cycle_moved",
        u64::from(moved),
        "a collection ended while the buckets were read; the view mixes both",
    );
    losses
}
