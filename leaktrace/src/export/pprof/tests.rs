//! What is written is read back equal; what is damaged is refused, never a panic.

use proptest::prelude::*;

use super::*;
use crate::model::HeapKind;
use crate::report::{FrameLine, ProfileBuilder};

pub(crate) fn heap_profile() -> Profile {
    let mut builder = ProfileBuilder::heap();
    let mapping = builder.mapping(Mapping {
        start: 0x40_0000,
        limit: 0x40_2000,
        offset: 0x1000,
        file: "/bin/app".into(),
        build_id: "c0ffee".into(),
        ..Mapping::default()
    });
    let frame = |function, line| FrameLine {
        function,
        file: "/src/app.c",
        line,
        start_line: 9,
        ..FrameLine::default()
    };
    let leaf = builder.location(Some(mapping), 0x40_1010, &[frame("leak", 12), frame("handle", 40)]);
    let root = builder.location(Some(mapping), 0x40_1100, &[frame("main", 50)]);
    let labels = vec![TextLabel::heap(HeapKind::Native)];
    let numbers = vec![NumericLabel {
        key: "bytes".into(),
        value: 64,
        unit: "bytes".into(),
    }];
    builder.sample(vec![leaf, root], &[10, 640, 4, 256], labels, numbers);
    let profile = builder.profile_mut();
    profile.time_nanos = 1_700_000_000_000_000_000;
    profile.duration_nanos = 5_000_000_000;
    profile.period = 1;
    profile.drop_frames = "malloc|calloc".to_owned();
    profile.comments = vec!["attached at 2026-01-01".to_owned()];
    profile.metadata.comm = "app".to_owned();
    profile.metadata.pid = Some(42);
    profile.metadata.mode = "exact".to_owned();
    profile
        .metadata
        .losses
        .add("ring_full", 3, "allocations missing (their frees are kept)");
    builder.finish()
}

#[test]
fn a_heap_profile_survives_the_round_trip() {
    let profile = heap_profile();
    let mut file = Vec::new();
    write(&profile, &mut file).expect("writes to memory");
    assert_eq!(read(file.as_slice()).expect("reads back"), profile);
    let mut again = Vec::new();
    write(&profile, &mut again).expect("writes to memory");
    assert_eq!(file, again);
}

#[test]
fn a_heap_that_was_called_otherwise_is_read_as_what_it_is() {
    let labelled = |label: TextLabel| {
        let mut profile = heap_profile();
        profile
            .samples
            .iter_mut()
            .for_each(|sample| sample.labels = vec![label.clone()]);
        profile
    };
    let old = labelled(TextLabel {
        key: HeapKind::LABEL.into(),
        value: "asked".into(),
    });
    let new = labelled(TextLabel::heap(HeapKind::Reserved));
    assert_eq!(read(encode(&old).as_slice()).expect("reads"), new);
    // Words of other tools stay.
    let other = labelled(TextLabel {
        key: HeapKind::LABEL.into(),
        value: "arena".into(),
    });
    assert_eq!(read(encode(&other).as_slice()).expect("reads"), other);
}

#[test]
fn uncompressed_files_are_read_too() {
    assert_eq!(read(encode(&heap_profile()).as_slice()).expect("reads"), heap_profile());
}

#[test]
fn what_is_no_profile_is_refused_with_a_reason() {
    let refused = |bytes: &[u8]| read(bytes).expect_err("no profile").to_string();
    assert_eq!(refused(b""), "the file is empty");
    assert!(refused(b"#!/bin/sh\necho hello\n").starts_with("not a pprof profile"));
    assert!(refused(&[0x1f, 0x8b, 8, 0]).starts_with("damaged gzip data"));
    let mut file = Vec::new();
    write(&heap_profile(), &mut file).expect("writes to memory");
    assert!(refused(&file[..file.len() / 2]).starts_with("damaged gzip data"));
}

#[test]
fn dangling_references_are_refused() {
    let broken = |damage: fn(&mut wire::Profile)| {
        let mut message = wire::Profile::decode(encode(&heap_profile()).as_slice()).expect("decodes");
        damage(&mut message);
        decode(&message.encode_to_vec()).expect_err("damaged").to_string()
    };
    assert_eq!(broken(|m| m.sample[0].location_id[0] = 99), "a location id is unknown");
    assert_eq!(broken(|m| m.location[0].mapping_id = 99), "a mapping id is unknown");
    assert_eq!(
        broken(|m| m.location[0].line[0].function_id = 0),
        "a function id is unknown"
    );
    assert_eq!(broken(|m| m.function[0].name = -1), "a string index is out of range");
    assert_eq!(broken(|m| m.comment.push(10_000)), "a string index is out of range");
    assert_eq!(
        broken(|m| m.sample[0].value.truncate(1)),
        "a sample does not have one value per sample type"
    );
    assert_eq!(broken(|m| m.location[1].id = 1), "location ids are not unique");
    assert_eq!(broken(|m| m.mapping[0].id = 0), "mapping ids are not unique");
    assert_eq!(
        broken(|m| m.string_table[0] = b"x".to_vec()),
        "the string table does not begin with an empty string"
    );
}

#[test]
fn a_bomb_is_refused_in_bounded_memory() {
    // 1.1 GiB of zeros in about a megabyte.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::copy(&mut io::repeat(0).take(MAX_BYTES + (1 << 20)), &mut encoder).expect("compresses");
    let bomb = encoder.finish().expect("compresses");
    assert!(matches!(read(bomb.as_slice()), Err(DecodeError::TooLarge)));
}

/// Thousands of functions whose name is one string of a megabyte, and remarks that are that string again and again.
#[test]
fn a_string_is_held_once_however_often_it_is_referred_to() {
    const FUNCTIONS: u64 = 20_000;
    let name = "A".repeat(1 << 20);
    let message = wire::Profile {
        sample_type: vec![wire::ValueType { kind: 3, unit: 3 }; 100],
        function: (1..=FUNCTIONS)
            .map(|id| wire::Function {
                id,
                name: 3,
                system_name: 3,
                filename: 3,
                start_line: 0,
            })
            .collect(),
        comment: vec![3; 10_000],
        location: vec![wire::Location {
            id: 1,
            line: (1..=FUNCTIONS)
                .map(|function_id| wire::Line {
                    function_id,
                    ..wire::Line::default()
                })
                .collect(),
            ..wire::Location::default()
        }],
        sample: vec![wire::Sample {
            location_id: vec![1],
            value: vec![1; 100],
            label: vec![
                wire::Label {
                    key: 3,
                    str: 3,
                    ..wire::Label::default()
                };
                1000
            ],
        }],
        string_table: ["", "space", "bytes", &name]
            .map(|text| text.as_bytes().to_vec())
            .into(),
        drop_frames: 1,
        ..wire::Profile::default()
    };
    let mut profile = decode(&message.encode_to_vec()).expect("reads");
    let first = profile.functions[0].name.as_ptr();
    assert!(profile.functions.iter().all(|function| function.file.as_ptr() == first));
    assert!(
        profile.samples[0]
            .labels
            .iter()
            .all(|label| label.value.as_ptr() == first)
    );
    assert_eq!(profile.comments.len(), 1);
    crate::report::prune::prune(&mut profile).expect("an expression");
    let graph = crate::report::graph::GraphOptions::all(0);
    assert_eq!(crate::report::graph::Graph::new(&profile, &graph).nodes.len(), 1);
    let difference = crate::report::diff::diff(&profile, &profile).expect("compares");
    assert!(difference.samples.is_empty());
    assert!(encode(&profile).len() < (2 << 20) + 1_000_000);
}

prop_compose! {
    fn any_profile()(
        names in prop::collection::vec("[a-zA-Z:<>λ ]{1,12}", 1..6),
        addresses in prop::collection::vec((any::<u64>(), prop::collection::vec((0usize..6, 0u32..99, 0u32..9), 0..3)), 1..8),
        stacks in prop::collection::vec((prop::collection::vec(0usize..8, 0..6), any::<[i64; 4]>(), "[a-z]{0,4}", any::<i64>()), 0..12),
        file in "[a-z/]{0,9}",
        comments in prop::collection::vec("[a-z ]{0,9}", 0..3),
        times in any::<[i64; 3]>(),
        loss in any::<u64>(),
    ) -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping { file: file.into(), limit: 9, ..Mapping::default() });
        let locations: Vec<_> = addresses
            .iter()
            .map(|(address, lines)| {
                let frames: Vec<_> = lines
                    .iter()
                    .map(|(name, line, start)| FrameLine {
                        function: &names[name % names.len()], line: *line, start_line: *start, ..FrameLine::default()
                    })
                    .collect();
                builder.location((address % 2 == 0).then_some(mapping), *address, &frames)
            })
            .collect();
        for (stack, values, heap, bytes) in stacks {
            let stack = stack.iter().map(|position| locations[position % locations.len()]).collect();
            let labels = (!heap.is_empty()).then(|| TextLabel { key: HeapKind::LABEL.into(), value: heap.into() });
            let numbers = (bytes != 0).then(|| NumericLabel { key: "bytes".into(), value: bytes, unit: "".into() });
            builder.sample(stack, &values, labels.into_iter().collect(), numbers.into_iter().collect());
        }
        let profile = builder.profile_mut();
        [profile.time_nanos, profile.duration_nanos, profile.period] = times;
        // A remark counts once.
        profile.comments = std::collections::BTreeSet::from_iter(comments).into_iter().collect();
        profile.metadata.losses.add("x", loss, "y = (z)");
        builder.finish()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_profile_survives_the_round_trip(profile in any_profile()) {
        prop_assert_eq!(decode(&encode(&profile)).expect("reads back"), profile);
    }

    /// Any damage gives an error or another profile, never a panic, neither on reading nor in the views.
    #[test]
    fn damage_never_panics(profile in any_profile(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = encode(&profile);
        for (position, byte) in &damage {
            let position = position.index(bytes.len());
            bytes[position] = *byte;
        }
        if let Ok(mut profile) = decode(&bytes) {
            let _ = crate::report::prune::prune(&mut profile);
            if let Ok(sample_type) = profile.sample_type(None) {
                let graph = crate::report::graph::GraphOptions::trimmed(sample_type);
                crate::report::table::table(&profile, &crate::report::table::TableOptions { graph, width: Some(80) });
            }
            prop_assert_eq!(decode(&encode(&profile)).expect("reads back"), profile);
        }
        let mut file = Vec::new();
        write(&profile, &mut file).expect("writes to memory");
        for (position, byte) in &damage {
            let position = position.index(file.len());
            file[position] = *byte;
        }
        let _ = read(file.as_slice());
    }
}
