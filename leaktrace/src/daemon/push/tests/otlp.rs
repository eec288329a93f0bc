//! What OTLP receivers get.

use std::{collections::HashSet, io::Read};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::profiles::v1development::{
        ExportProfilesPartialSuccess, ExportProfilesServiceRequest, ExportProfilesServiceResponse,
    },
    common::v1::{AnyValue, any_value::Value},
    profiles::v1development::{KeyValueAndUnit, ProfilesDictionary},
};
use prost::Message;

use super::{
    super::otlp::request,
    Kind, export, profile,
    servers::{answer, grpc, http},
    settings, start, until,
};
use crate::{
    export::pprof,
    report::profile::{Profile, Sample, TextLabel},
};

/// A value, its stack (leaf first) and its labels, in text.
type Seen = (String, Vec<String>, Vec<String>, i64);

/// What a profile says.
fn said_by_profile(profile: &Profile) -> Vec<Seen> {
    let mut seen = Vec::new();
    for (index, kind) in profile.sample_types.iter().enumerate() {
        for sample in profile.samples.iter().filter(|sample| sample.values[index] != 0) {
            let frames = profile.stack(sample).map(|location| {
                let mapping = profile.mapping(location);
                let lines: Vec<_> = location
                    .lines
                    .iter()
                    .map(|line| {
                        let function = profile.function(line);
                        format!(
                            "{}|{}|{}:{}",
                            function.name, function.system_name, function.file, line.line
                        )
                    })
                    .collect();
                let mapping = mapping.map(|mapping| {
                    let has = (mapping.has_functions, mapping.has_filenames, mapping.has_line_numbers);
                    format!(
                        "{:x} {:x} {:x} {} {} {has:?}",
                        mapping.start, mapping.limit, mapping.offset, mapping.file, mapping.build_id
                    )
                });
                format!("{:x} {} {lines:?} in {mapping:?}", location.address, location.is_folded)
            });
            let texts = sample
                .labels
                .iter()
                .map(|label| format!("{}={}", label.key, label.value));
            let numbers = sample
                .numbers
                .iter()
                .map(|label| format!("{}={} {}", label.key, label.value, label.unit));
            let labels = texts.chain(numbers).collect();
            seen.push((
                format!("{}/{}", kind.kind, kind.unit),
                frames.collect(),
                labels,
                sample.values[index],
            ));
        }
    }
    seen.sort();
    seen
}

fn text(dictionary: &ProfilesDictionary, index: i32) -> &str {
    &dictionary.string_table[index as usize]
}

fn show(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::ArrayValue(array)) => {
            format!(
                "{:?}",
                array.values.iter().map(|value| show(Some(value))).collect::<Vec<_>>()
            )
        }
        other => format!("{other:?}"),
    }
}

/// Keys, values and units of attributes.
fn attributes<'d>(dictionary: &'d ProfilesDictionary, indices: &[i32]) -> Vec<(&'d str, String, &'d str)> {
    let pairs: Vec<_> = indices
        .iter()
        .map(|index| {
            let KeyValueAndUnit {
                key_strindex,
                value,
                unit_strindex,
            } = &dictionary.attribute_table[*index as usize];
            (
                text(dictionary, *key_strindex),
                show(value.as_ref()),
                text(dictionary, *unit_strindex),
            )
        })
        .collect();
    let keys: HashSet<_> = pairs.iter().map(|(key, ..)| key).collect();
    assert_eq!(keys.len(), pairs.len(), "keys are unique: {pairs:?}");
    pairs
}

/// What a message says, by its own tables alone.
fn said_by_message(message: &ExportProfilesServiceRequest) -> Vec<Seen> {
    let dictionary = message.dictionary.as_ref().expect("a dictionary");
    let mut seen = Vec::new();
    for profile in &message.resource_profiles[0].scope_profiles[0].profiles {
        let kind = profile.sample_type.expect("a sample type");
        let kind = format!(
            "{}/{}",
            text(dictionary, kind.type_strindex),
            text(dictionary, kind.unit_strindex)
        );
        for sample in &profile.samples {
            let stack = &dictionary.stack_table[sample.stack_index as usize];
            let frames = stack.location_indices.iter().map(|index| {
                let location = &dictionary.location_table[*index as usize];
                let lines: Vec<_> = location
                    .lines
                    .iter()
                    .map(|line| {
                        let function = &dictionary.function_table[line.function_index as usize];
                        let of = |index| text(dictionary, index);
                        format!(
                            "{}|{}|{}:{}",
                            of(function.name_strindex),
                            of(function.system_name_strindex),
                            of(function.filename_strindex),
                            line.line
                        )
                    })
                    .collect();
                let mapping = (location.mapping_index != 0).then(|| {
                    let mapping = &dictionary.mapping_table[location.mapping_index as usize];
                    let about = attributes(dictionary, &mapping.attribute_indices);
                    let of = |key: &str| {
                        about
                            .iter()
                            .find(|(known, ..)| *known == key)
                            .map_or("", |(_, value, _)| value.as_str())
                    };
                    format!(
                        "{:x} {:x} {:x} {} {} ({}, {}, {})",
                        mapping.memory_start,
                        mapping.memory_limit,
                        mapping.file_offset,
                        text(dictionary, mapping.filename_strindex),
                        of("process.executable.build_id.gnu"),
                        of("pprof.mapping.has_functions"),
                        of("pprof.mapping.has_filenames"),
                        of("pprof.mapping.has_line_numbers"),
                    )
                });
                let folded = attributes(dictionary, &location.attribute_indices).contains(&(
                    "pprof.location.is_folded",
                    "true".to_owned(),
                    "",
                ));
                format!("{:x} {folded} {lines:?} in {mapping:?}", location.address)
            });
            let labels = attributes(dictionary, &sample.attribute_indices)
                .into_iter()
                .map(|(key, value, unit)| {
                    let space = if unit.is_empty() { "" } else { " " };
                    format!("{key}={value}{space}{unit}")
                });
            assert_eq!(sample.values.len(), 1);
            seen.push((kind.clone(), frames.collect(), labels.collect(), sample.values[0]));
        }
    }
    seen.sort();
    seen
}

/// Entry 0 of each table is its zero value, and no entry is there twice.
fn check_tables(dictionary: &ProfilesDictionary) {
    fn check<T: Message + Default + PartialEq + std::fmt::Debug>(table: &[T]) {
        assert_eq!(table.first(), Some(&T::default()));
        let distinct: HashSet<_> = table.iter().map(Message::encode_to_vec).collect();
        assert_eq!(distinct.len(), table.len(), "an entry is there twice");
    }
    check(&dictionary.mapping_table);
    check(&dictionary.location_table);
    check(&dictionary.function_table);
    check(&dictionary.link_table);
    check(&dictionary.attribute_table);
    check(&dictionary.stack_table);
    assert_eq!(dictionary.string_table.first().map(String::as_str), Some(""));
    let distinct: HashSet<_> = dictionary.string_table.iter().collect();
    assert_eq!(distinct.len(), dictionary.string_table.len());
}

/// All that a message should say about `export(1)`.
fn check_message(message: &ExportProfilesServiceRequest) {
    assert_eq!(said_by_message(message), said_by_profile(&profile()));
    let dictionary = message.dictionary.as_ref().expect("a dictionary");
    check_tables(dictionary);
    let resource = message.resource_profiles[0].resource.as_ref().expect("a resource");
    let about = |key: &str| {
        let found = resource.attributes.iter().find(|attribute| attribute.key == key);
        show(found.and_then(|attribute| attribute.value.as_ref()))
    };
    assert_eq!(about("service.name"), "leaky");
    assert_eq!(about("process.pid"), "4242");
    assert_eq!(about("process.executable.path"), "/bin/leaky");
    assert_eq!(about("host.name"), "the-host");
    assert_eq!(about("container.id"), "c0ffee");
    let profiles = &message.resource_profiles[0].scope_profiles[0].profiles;
    let kinds: Vec<_> = profiles
        .iter()
        .map(|profile| text(dictionary, profile.sample_type.expect("a type").type_strindex))
        .collect();
    assert_eq!(kinds, ["inuse_space", "alloc_objects", "alloc_space", "inuse_objects"]);
    let ids: HashSet<_> = profiles.iter().map(|profile| profile.profile_id.clone()).collect();
    assert_eq!(ids.len(), 4);
    for profile in profiles {
        assert_eq!(profile.time_unix_nano, 1_700_000_001_000_000_000);
        assert_eq!(profile.duration_nano, 60_000_000_000);
        assert_eq!(profile.period, 512 << 10);
        assert_eq!(profile.profile_id.len(), 16);
        let about = attributes(dictionary, &profile.attribute_indices);
        let remarks = r#"["mode: sampled", "loss: ring_full = 3 (allocations are missing)", "a remark"]"#;
        assert!(
            about.contains(&("pprof.profile.comment", remarks.to_owned(), "")),
            "{about:?}"
        );
        assert!(about.contains(&("pprof.profile.drop_frames", "malloc".to_owned(), "")));
    }
}

#[tokio::test]
async fn a_grpc_receiver_gets_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "first\n").expect("a file");
    let server = grpc(|_| Ok(ExportProfilesServiceResponse::default())).await;
    let mut settings = settings(Kind::OtlpGrpc, &server.url);
    settings.headers.push(("X-Scope-OrgID".to_owned(), "seven".to_owned()));
    settings.token_file = Some(token_file.clone());
    let pusher = start(settings);
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!(
        (figures.sent, figures.failed, figures.dropped, figures.error),
        (1, 0, 0, None)
    );
    let calls = server.take();
    assert_eq!(calls.len(), 1);
    check_message(&calls[0].message);
    let header = |call: &super::servers::Call, name: &str| {
        call.metadata
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    assert_eq!(header(&calls[0], "authorization").as_deref(), Some("Bearer first"));
    assert_eq!(header(&calls[0], "x-scope-orgid").as_deref(), Some("seven"));
    std::fs::write(&token_file, "second\n").expect("a file");
    pusher.offer(export(2));
    until(&pusher, |figures| figures.sent == 2).await;
    assert_eq!(
        header(&server.take()[0], "authorization").as_deref(),
        Some("Bearer second")
    );
}

#[tokio::test]
async fn an_http_receiver_gets_all() {
    let server = http(0, |_, _| async { answer(200, "") }).await;
    let mut settings = settings(Kind::OtlpHttp, &server.url);
    settings.original_payload = true;
    let pusher = start(settings);
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.error), (1, None));
    let posts = server.take();
    assert_eq!(posts.len(), 1);
    assert_eq!(posts[0].uri, "/v1development/profiles");
    assert_eq!(posts[0].header("content-type"), "application/x-protobuf");
    assert_eq!(posts[0].header("content-encoding"), "gzip");
    let mut bytes = Vec::new();
    GzDecoder::new(posts[0].body.as_slice())
        .read_to_end(&mut bytes)
        .expect("gzip");
    let message = ExportProfilesServiceRequest::decode(bytes.as_slice()).expect("a message");
    check_message(&message);
    let profiles = &message.resource_profiles[0].scope_profiles[0].profiles;
    assert_eq!(profiles[0].original_payload_format, "pprof");
    let original = pprof::read(profiles[0].original_payload.as_slice()).expect("a profile");
    assert_eq!(said_by_profile(&original), said_by_profile(&profile()));
    assert!(profiles[1].original_payload.is_empty(), "once is enough");
}

#[tokio::test]
async fn what_a_receiver_rejects_is_counted() {
    let server = grpc(|number| {
        let rejected_profiles = [1, 4, 0][number];
        Ok(ExportProfilesServiceResponse {
            partial_success: Some(ExportProfilesPartialSuccess {
                rejected_profiles,
                error_message: "too old".to_owned(),
            }),
        })
    })
    .await;
    let pusher = start(settings(Kind::OtlpGrpc, &server.url));
    pusher.offer(export(1));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.failed, figures.dropped), (1, 1, 0));
    insta::assert_snapshot!(figures.error.unwrap_or_default(), @"failed to send the profile of pid 4242 to `there`: the receiver rejected 1 of its 4 parts: too old");
    pusher.offer(export(2));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!((figures.sent, figures.failed, figures.dropped), (1, 2, 1));
    pusher.offer(export(3));
    let figures = until(&pusher, |figures| figures.queued == 0).await;
    assert_eq!(
        (figures.sent, figures.failed, figures.dropped, figures.error),
        (2, 2, 1, None),
        "a warning is no error"
    );
}

#[test]
fn equal_exports_give_equal_messages() {
    let bytes = |n| request(&export(n), "h", false).map(|message| message.encode_to_vec());
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn nothing_to_tell_is_no_message() {
    let mut empty = export(1);
    empty.profile = std::sync::Arc::new(Profile::default());
    assert_eq!(request(&empty, "h", true), None);
}

#[test]
fn a_key_that_comes_twice_is_one_attribute() {
    let mut export = export(1);
    let mut profile = profile();
    let label = |value: &str| TextLabel {
        key: "tag".into(),
        value: value.into(),
    };
    profile.samples = vec![Sample {
        labels: vec![label("a"), label("b")],
        values: vec![0, 0, 0, -5],
        ..Sample::default()
    }];
    export.profile = std::sync::Arc::new(profile);
    let message = request(&export, "h", false).expect("a message");
    let seen = said_by_message(&message);
    assert_eq!(
        seen,
        [(
            "inuse_space/bytes".to_owned(),
            vec![],
            vec![r#"tag=["a", "b"]"#.to_owned()],
            -5
        )]
    );
}
