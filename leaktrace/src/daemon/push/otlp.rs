//! OTLP profiles, `v1development` as the crate `opentelemetry-proto` has it.
//!
//! Owns the conversion of a [`Profile`] and what a receiver answers; sends nothing. A message holds one profile per
//! sample type, the default one first, since readers show the first. A value of 0 says nothing and is left out, and so
//! is what only such values refer to. Invariants: entry 0 of each table is its zero value, no entry is there twice, and
//! equal exports give equal messages.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
};

use flate2::{Compression, write::GzEncoder};
use hashbrown::HashMap;
use opentelemetry_proto::tonic::{
    collector::profiles::v1development::{ExportProfilesServiceRequest, ExportProfilesServiceResponse},
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value},
    profiles::v1development as proto,
};
use prost::Message;

use super::{
    Export,
    failure::{Failure, Receipt, Retryable, of_http, printable, status_message},
    http::Poster,
    resource::resource,
};
use crate::report::profile::{LocationId, MappingId, Profile, Sample, ValueType};

/// A profile as a request; `None` when there is nothing in it to tell. With `original` the pprof file goes along.
pub(super) fn request(export: &Export, host: &str, original: bool) -> Option<ExportProfilesServiceRequest> {
    let profile = &*export.profile;
    let mut dictionary = Dictionary::new(profile);
    let mut profiles = Vec::new();
    let mut order = Vec::new();
    for index in shown_order(profile) {
        if let Some(mut converted) = dictionary.profile(export, host, index) {
            if original && profiles.is_empty() {
                "pprof".clone_into(&mut converted.original_payload_format);
                converted.original_payload = export.pprof.to_vec();
            }
            profiles.push(converted);
            order.push(index);
        }
    }
    if profiles.is_empty() {
        return None;
    }
    let scope = InstrumentationScope {
        name: "leaktrace".into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        attributes: scope_attributes(profile, &order),
        dropped_attributes_count: 0,
    };
    Some(ExportProfilesServiceRequest {
        resource_profiles: vec![proto::ResourceProfiles {
            resource: Some(resource(&export.identity, host)),
            scope_profiles: vec![proto::ScopeProfiles {
                scope: Some(scope),
                profiles,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
        dictionary: Some(dictionary.tables),
    })
}

/// Positions of the sample types, the one to show first in front.
fn shown_order(profile: &Profile) -> Vec<usize> {
    let first = profile.sample_type(None).ok();
    let others = (0..profile.sample_types.len()).filter(|index| Some(*index) != first);
    first.into_iter().chain(others).collect()
}

/// What lets a reader make the pprof file again.
fn scope_attributes(profile: &Profile, order: &[usize]) -> Vec<KeyValue> {
    let order: Vec<_> = order.iter().map(|index| Value::IntValue(*index as i64)).collect();
    let mut attributes = vec![("pprof.scope.sample_type_order", array(order))];
    if !profile.default_sample_type.is_empty() {
        let name = Value::StringValue(profile.default_sample_type.clone());
        attributes.push(("pprof.scope.default_sample_type", name));
    }
    let pair = |(key, value): (&str, Value)| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        key_strindex: 0,
    };
    attributes.into_iter().map(pair).collect()
}

fn array(values: Vec<Value>) -> Value {
    let values = values
        .into_iter()
        .map(|value| AnyValue { value: Some(value) })
        .collect();
    Value::ArrayValue(ArrayValue { values })
}

/// The tables under construction, and where things are in them.
struct Dictionary<'p> {
    profile: &'p Profile,
    tables: proto::ProfilesDictionary,
    strings: HashMap<String, i32>,
    /// By position in the profile; 0 for what is in no table yet.
    mappings: Vec<i32>,
    functions: Vec<i32>,
    locations: Vec<i32>,
    known_mappings: HashMap<proto::Mapping, i32>,
    known_functions: HashMap<proto::Function, i32>,
    /// By their encoding, since floating-point values have no hash.
    known_locations: HashMap<Vec<u8>, i32>,
    known_attributes: HashMap<Vec<u8>, i32>,
    stacks: HashMap<proto::Stack, i32>,
}

impl<'p> Dictionary<'p> {
    fn new(profile: &'p Profile) -> Self {
        Self {
            profile,
            tables: proto::ProfilesDictionary {
                mapping_table: vec![proto::Mapping::default()],
                location_table: vec![proto::Location::default()],
                function_table: vec![proto::Function::default()],
                link_table: vec![proto::Link::default()],
                string_table: vec![String::new()],
                attribute_table: vec![proto::KeyValueAndUnit::default()],
                stack_table: vec![proto::Stack::default()],
            },
            strings: HashMap::from([(String::new(), 0)]),
            mappings: vec![0; profile.mappings.len()],
            functions: vec![0; profile.functions.len()],
            locations: vec![0; profile.locations.len()],
            known_mappings: HashMap::from([(proto::Mapping::default(), 0)]),
            known_functions: HashMap::from([(proto::Function::default(), 0)]),
            known_locations: HashMap::from([(Vec::new(), 0)]),
            known_attributes: HashMap::from([(Vec::new(), 0)]),
            stacks: HashMap::from([(proto::Stack::default(), 0)]),
        }
    }

    /// One sample type; `None` when all its values are 0.
    fn profile(&mut self, export: &Export, host: &str, index: usize) -> Option<proto::Profile> {
        let profile = self.profile;
        let value = |sample: &Sample| sample.values.get(index).copied().unwrap_or(0);
        let samples: Vec<_> = profile
            .samples
            .iter()
            .filter(|sample| value(sample) != 0)
            .map(|sample| proto::Sample {
                stack_index: self.stack(&sample.locations),
                attribute_indices: self.labels(sample),
                link_index: 0,
                values: vec![value(sample)],
                timestamps_unix_nano: Vec::new(),
            })
            .collect();
        if samples.is_empty() {
            return None;
        }
        let period_type = (profile.period_type != ValueType::default()).then(|| self.value_type(&profile.period_type));
        Some(proto::Profile {
            sample_type: profile.sample_types.get(index).map(|kind| self.value_type(kind)),
            samples,
            time_unix_nano: export.begin,
            duration_nano: export.end.saturating_sub(export.begin),
            period_type,
            period: profile.period,
            profile_id: profile_id(export, host, index),
            attribute_indices: self.about_profile(),
            ..proto::Profile::default()
        })
    }

    fn string(&mut self, text: &str) -> i32 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = position(&self.tables.string_table);
        self.tables.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, kind: &ValueType) -> proto::ValueType {
        proto::ValueType {
            type_strindex: self.string(&kind.kind),
            unit_strindex: self.string(&kind.unit),
        }
    }

    fn attribute(&mut self, key: &str, value: Value, unit: &str) -> i32 {
        let entry = proto::KeyValueAndUnit {
            key_strindex: self.string(key),
            value: Some(AnyValue { value: Some(value) }),
            unit_strindex: self.string(unit),
        };
        let bytes = entry.encode_to_vec();
        intern(
            &mut self.known_attributes,
            &mut self.tables.attribute_table,
            bytes,
            entry,
        )
    }

    /// Remarks, and what tells readers which frames to leave out.
    fn about_profile(&mut self) -> Vec<i32> {
        let profile = self.profile;
        let metadata = &profile.metadata;
        let mode = (!metadata.mode.is_empty()).then(|| format!("mode: {}", metadata.mode));
        let losses = metadata
            .losses
            .iter()
            .map(|loss| format!("loss: {} = {} ({})", loss.name, loss.count, loss.meaning));
        let comments = mode.into_iter().chain(losses).chain(profile.comments.iter().cloned());
        let comments: Vec<_> = comments.map(Value::StringValue).collect();
        let mut indices = Vec::new();
        if !comments.is_empty() {
            indices.push(self.attribute("pprof.profile.comment", array(comments), ""));
        }
        for (key, text) in [
            ("pprof.profile.drop_frames", &profile.drop_frames),
            ("pprof.profile.keep_frames", &profile.keep_frames),
            ("pprof.profile.doc_url", &profile.doc_url),
        ] {
            if !text.is_empty() {
                indices.push(self.attribute(key, Value::StringValue(text.clone()), ""));
            }
        }
        indices
    }

    /// Labels as attributes. Keys have to be unique: what one key says several times becomes one array.
    fn labels(&mut self, sample: &Sample) -> Vec<i32> {
        let texts = sample
            .labels
            .iter()
            .map(|label| (label.key.as_str(), Value::StringValue(label.value.to_string()), ""));
        let numbers = sample
            .numbers
            .iter()
            .map(|label| (label.key.as_str(), Value::IntValue(label.value), label.unit.as_str()));
        let mut attributes: Vec<(&str, Vec<Value>, &str)> = Vec::new();
        for (key, value, unit) in texts.chain(numbers) {
            match attributes.iter_mut().find(|(known, ..)| *known == key) {
                Some((_, values, _)) => values.push(value),
                None => attributes.push((key, vec![value], unit)),
            }
        }
        attributes
            .into_iter()
            .map(|(key, mut values, unit)| {
                let value = if values.len() == 1 {
                    values.swap_remove(0)
                } else {
                    array(values)
                };
                self.attribute(key, value, unit)
            })
            .collect()
    }

    fn stack(&mut self, locations: &[LocationId]) -> i32 {
        let location_indices = locations.iter().map(|id| self.location(*id)).collect();
        let stack = proto::Stack { location_indices };
        intern(&mut self.stacks, &mut self.tables.stack_table, stack.clone(), stack)
    }

    fn location(&mut self, id: LocationId) -> i32 {
        let (Some(known), Some(location)) = (self.locations.get(id.index()), self.profile.locations.get(id.index()))
        else {
            return 0;
        };
        if *known != 0 {
            return *known;
        }
        let mut attribute_indices = Vec::new();
        if location.is_folded {
            attribute_indices.push(self.attribute("pprof.location.is_folded", Value::BoolValue(true), ""));
        }
        let lines = location
            .lines
            .iter()
            .map(|line| proto::Line {
                function_index: self.function(line.function.index()),
                line: line.line,
                column: line.column,
            })
            .collect();
        let entry = proto::Location {
            mapping_index: location.mapping.map_or(0, |mapping| self.mapping(mapping)),
            address: location.address,
            lines,
            attribute_indices,
        };
        let bytes = entry.encode_to_vec();
        let index = intern(&mut self.known_locations, &mut self.tables.location_table, bytes, entry);
        self.locations[id.index()] = index;
        index
    }

    fn function(&mut self, position: usize) -> i32 {
        let (Some(known), Some(function)) = (self.functions.get(position), self.profile.functions.get(position)) else {
            return 0;
        };
        if *known != 0 {
            return *known;
        }
        let entry = proto::Function {
            name_strindex: self.string(&function.name),
            system_name_strindex: self.string(&function.system_name),
            filename_strindex: self.string(&function.file),
            start_line: function.start_line,
        };
        let index = intern(&mut self.known_functions, &mut self.tables.function_table, entry, entry);
        self.functions[position] = index;
        index
    }

    fn mapping(&mut self, id: MappingId) -> i32 {
        let (Some(known), Some(mapping)) = (self.mappings.get(id.index()), self.profile.mappings.get(id.index()))
        else {
            return 0;
        };
        if *known != 0 {
            return *known;
        }
        let mut attribute_indices = Vec::new();
        if !mapping.build_id.is_empty() {
            let build_id = Value::StringValue(mapping.build_id.to_string());
            attribute_indices.push(self.attribute("process.executable.build_id.gnu", build_id, ""));
        }
        for (key, has) in [
            ("pprof.mapping.has_functions", mapping.has_functions),
            ("pprof.mapping.has_filenames", mapping.has_filenames),
            ("pprof.mapping.has_line_numbers", mapping.has_line_numbers),
            ("pprof.mapping.has_inline_frames", mapping.has_inline_frames),
        ] {
            attribute_indices.push(self.attribute(key, Value::BoolValue(has), ""));
        }
        let entry = proto::Mapping {
            memory_start: mapping.start,
            memory_limit: mapping.limit,
            file_offset: mapping.offset,
            filename_strindex: self.string(&mapping.file),
            attribute_indices,
        };
        let index = intern(
            &mut self.known_mappings,
            &mut self.tables.mapping_table,
            entry.clone(),
            entry,
        );
        self.mappings[id.index()] = index;
        index
    }
}

/// Position of an entry, which is added if it is new.
fn intern<K: Hash + Eq, T>(known: &mut HashMap<K, i32>, table: &mut Vec<T>, key: K, entry: T) -> i32 {
    *known.entry(key).or_insert_with(|| {
        let index = position(table);
        table.push(entry);
        index
    })
}

/// Position of the next entry. Tables that large do not fit into memory.
fn position<T>(table: &[T]) -> i32 {
    i32::try_from(table.len()).unwrap_or(i32::MAX)
}

/// The same for each attempt to send a profile, so that receivers can tell copies.
fn profile_id(export: &Export, host: &str, index: usize) -> Vec<u8> {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, host).hash(&mut hasher);
        let who = &export.identity;
        (who.pid, who.start_time, export.begin, export.end, index).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    };
    [half(1), half(2)].concat()
}

/// Parts of a request that a receiver may reject one by one.
pub(super) fn parts(request: &ExportProfilesServiceRequest) -> u64 {
    let scopes = request
        .resource_profiles
        .iter()
        .flat_map(|resource| &resource.scope_profiles);
    scopes.map(|scope| scope.profiles.len() as u64).sum()
}

/// What an answer says.
pub(super) fn receipt(answer: &ExportProfilesServiceResponse, parts: u64) -> Receipt {
    let partial = answer.partial_success.as_ref();
    let rejected = partial.map_or(0, |partial| partial.rejected_profiles);
    Receipt {
        parts,
        rejected: u64::try_from(rejected).unwrap_or(0).min(parts),
        note: partial.map_or_else(String::new, |partial| printable(&partial.error_message)),
    }
}

/// A request as the compressed body of a POST.
pub(super) fn body(request: &ExportProfilesServiceRequest) -> Result<Vec<u8>, Failure> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder
        .write_all(&request.encode_to_vec())
        .and_then(|()| encoder.finish());
    written.map_err(|error| Failure::Permanent(format!("failed to compress the profile: {error}")))
}

/// Sends a body made by [`body`], which has so many parts.
pub(super) async fn post(poster: &Poster, body: Vec<u8>, parts: u64) -> Result<Receipt, Failure> {
    const PROTOBUF: &str = "application/x-protobuf";
    let answer = poster.post(poster.url().clone(), PROTOBUF, true, body).await?;
    let bytes = answer.body.unwrap_or_default();
    let protobuf = answer.content_type.starts_with(PROTOBUF);
    if answer.status.is_success() {
        let taken = Receipt {
            parts,
            ..Receipt::default()
        };
        let decoded = ExportProfilesServiceResponse::decode(bytes.as_slice())
            .ok()
            .filter(|_| protobuf);
        return Ok(decoded.map_or(taken, |answer| receipt(&answer, parts)));
    }
    let said = status_message(&bytes)
        .filter(|_| protobuf)
        .unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
    Err(of_http(answer.status, answer.after, &said, Retryable::Otlp))
}
