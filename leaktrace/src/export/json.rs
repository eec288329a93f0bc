//! JSON, for scripts. Schema version 1:
//!
//! ```text
//! {"version":1, "time_nanos":N, "duration_nanos":N, "comm":TEXT, "pid":N|null, "mode":TEXT,
//!  "sample_types":[{"type":TEXT,"unit":TEXT}], "totals":{TYPE:N},
//!  "losses":[{"name":TEXT,"count":N,"meaning":TEXT}], "comments":[TEXT],
//!  "age_bounds":[N], "growth_nanos":N,
//!  "samples":[{"stack":[{"function":TEXT,"file":TEXT,"line":N,"module":TEXT,"address":"0x…","inlined":BOOL}],
//!              "values":{TYPE:N}, "labels":{KEY:TEXT|N}, "growth":N, "ages":[N]}]}
//! ```
//!
//! `growth` is how many bytes more of the stack are in use than `growth_nanos` before the end. `ages` are its bytes in use
//! by age: for each of `age_bounds` (seconds, ascending) those that are younger and not counted before, then those that
//! are older than all of them. The four fields are there only in what `record` writes; `growth` is not there for memory
//! that was mapped directly, neither is there for Go's heap.
//!
//! Stacks are leaf first; a frame with `inlined` has no code of its own but is part of the next. Unknown texts are
//! empty, an unknown line is 0. The version grows when a field changes its meaning; new fields may come without that.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Serialize, Serializer};

use crate::report::{Location, Profile, Sample};

/// Version of the schema.
pub const VERSION: u32 = 1;

/// Writes the whole profile.
pub fn write(profile: &Profile, mut output: impl Write) -> io::Result<()> {
    let totals = profile.totals();
    let document = Document {
        version: VERSION,
        time_nanos: profile.time_nanos,
        duration_nanos: profile.duration_nanos,
        comm: &profile.metadata.comm,
        pid: profile.metadata.pid,
        mode: &profile.metadata.mode,
        sample_types: profile
            .sample_types
            .iter()
            .map(|value| ValueType {
                kind: &value.kind,
                unit: &value.unit,
            })
            .collect(),
        totals: totals
            .values
            .iter()
            .map(|(value_type, total)| (value_type.kind.as_str(), *total))
            .collect(),
        losses: profile
            .metadata
            .losses
            .iter()
            .map(|loss| Loss {
                name: &loss.name,
                count: loss.count,
                meaning: &loss.meaning,
            })
            .collect(),
        comments: &profile.comments,
        age_bounds: profile.trends.as_ref().map(|trends| trends.age_bounds.as_slice()),
        growth_nanos: profile.trends.as_ref().map(|trends| trends.growth_nanos),
        samples: Samples(profile),
    };
    serde_json::to_writer(&mut output, &document)?;
    output.write_all(b"\n")?;
    output.flush()
}

#[derive(Serialize)]
struct Document<'p> {
    version: u32,
    time_nanos: i64,
    duration_nanos: i64,
    comm: &'p str,
    pid: Option<u32>,
    mode: &'p str,
    sample_types: Vec<ValueType<'p>>,
    totals: BTreeMap<&'p str, i64>,
    losses: Vec<Loss<'p>>,
    comments: &'p [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    age_bounds: Option<&'p [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_nanos: Option<i64>,
    samples: Samples<'p>,
}

#[derive(Serialize)]
struct ValueType<'p> {
    #[serde(rename = "type")]
    kind: &'p str,
    unit: &'p str,
}

#[derive(Serialize)]
struct Loss<'p> {
    name: &'p str,
    count: u64,
    meaning: &'p str,
}

/// All samples, made one at a time while they are written.
struct Samples<'p>(&'p Profile);

impl Serialize for Samples<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.samples.iter().map(|sample| JsonSample::new(self.0, sample)))
    }
}

#[derive(Serialize)]
struct JsonSample<'p> {
    stack: Vec<Frame<'p>>,
    values: BTreeMap<&'p str, i64>,
    labels: BTreeMap<&'p str, Label<'p>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ages: Option<&'p [i64]>,
}

#[derive(Serialize)]
struct Frame<'p> {
    function: &'p str,
    file: &'p str,
    line: i64,
    module: &'p str,
    address: String,
    inlined: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Label<'p> {
    Text(&'p str),
    Number(i64),
}

impl<'p> JsonSample<'p> {
    fn new(profile: &'p Profile, sample: &'p Sample) -> Self {
        let texts = sample
            .labels
            .iter()
            .map(|label| (label.key.as_str(), Label::Text(&label.value)));
        let numbers = sample
            .numbers
            .iter()
            .map(|label| (label.key.as_str(), Label::Number(label.value)));
        let kinds = profile.sample_types.iter().map(|value| value.kind.as_str());
        Self {
            stack: profile
                .stack(sample)
                .flat_map(|location| frames(profile, location))
                .collect(),
            values: kinds.zip(sample.values.iter().copied()).collect(),
            labels: numbers.chain(texts).collect(),
            growth: sample.trend.as_ref().and_then(|trend| trend.growth),
            ages: sample.trend.as_ref().map(|trend| trend.ages.as_slice()),
        }
    }
}

fn frames<'p>(profile: &'p Profile, location: &'p Location) -> Vec<Frame<'p>> {
    let module = profile.mapping(location).map_or("", |mapping| &mapping.file);
    let frame = |function, file, line, inlined| Frame {
        function,
        file,
        line,
        module,
        address: format!("{:#x}", location.address),
        inlined,
    };
    if location.lines.is_empty() {
        return vec![frame("", "", 0, false)];
    }
    let outermost = location.lines.len() - 1;
    location
        .lines
        .iter()
        .enumerate()
        .map(|(depth, line)| {
            let function = profile.function(line);
            frame(&function.name, &function.file, line.line, depth < outermost)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeapKind;
    use crate::report::{FrameLine, Mapping, NumericLabel, ProfileBuilder, TextLabel, Trend, Trends};

    #[test]
    fn the_schema() {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            file: "/bin/app".into(),
            ..Mapping::default()
        });
        let frame = |function, line| FrameLine {
            function,
            file: "app.c",
            line,
            ..FrameLine::default()
        };
        let leak = builder.location(Some(mapping), 0x1010, &[frame("leak", 3), frame("main", 9)]);
        let hidden = builder.location(Some(mapping), 0x1020, &[]);
        let labels = vec![TextLabel::heap(HeapKind::Native)];
        let numbers = vec![NumericLabel {
            key: "bytes".into(),
            value: 64,
            unit: "".into(),
        }];
        builder.sample(vec![leak, hidden], &[2, 128, 1, 64], labels, numbers);
        builder.profile_mut().metadata.pid = Some(7);
        builder
            .profile_mut()
            .metadata
            .losses
            .add("ring_full", 1, "allocations missing");
        let mut text = Vec::new();
        write(&builder.finish(), &mut text).expect("writes");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("valid JSON");
        insta::assert_json_snapshot!(value, @r#"
        {
          "comm": "",
          "comments": [],
          "duration_nanos": 0,
          "losses": [
            {
              "count": 1,
              "meaning": "allocations missing",
              "name": "ring_full"
            }
          ],
          "mode": "",
          "pid": 7,
          "sample_types": [
            {
              "type": "alloc_objects",
              "unit": "count"
            },
            {
              "type": "alloc_space",
              "unit": "bytes"
            },
            {
              "type": "inuse_objects",
              "unit": "count"
            },
            {
              "type": "inuse_space",
              "unit": "bytes"
            }
          ],
          "samples": [
            {
              "labels": {
                "bytes": 64,
                "heap": "native"
              },
              "stack": [
                {
                  "address": "0x1010",
                  "file": "app.c",
                  "function": "leak",
                  "inlined": true,
                  "line": 3,
                  "module": "/bin/app"
                },
                {
                  "address": "0x1010",
                  "file": "app.c",
                  "function": "main",
                  "inlined": false,
                  "line": 9,
                  "module": "/bin/app"
                },
                {
                  "address": "0x1020",
                  "file": "",
                  "function": "",
                  "inlined": false,
                  "line": 0,
                  "module": "/bin/app"
                }
              ],
              "values": {
                "alloc_objects": 2,
                "alloc_space": 128,
                "inuse_objects": 1,
                "inuse_space": 64
              }
            }
          ],
          "time_nanos": 0,
          "totals": {
            "alloc_objects": 2,
            "alloc_space": 128,
            "inuse_objects": 1,
            "inuse_space": 64
          },
          "version": 1
        }
        "#);
    }

    #[test]
    fn growth_and_ages_of_a_stack() {
        let mut builder = ProfileBuilder::heap();
        let leak = builder.location(None, 1, &[]);
        let mapped = builder.location(None, 2, &[]);
        let other = builder.location(None, 3, &[]);
        let trend = |growth| {
            Some(Trend {
                growth,
                ages: vec![60, 4, 0],
            })
        };
        builder.sample_with_trend(vec![leak], &[2, 128, 1, 64], Vec::new(), Vec::new(), trend(Some(-3)));
        builder.sample_with_trend(vec![mapped], &[2, 128, 1, 64], Vec::new(), Vec::new(), trend(None));
        builder.sample(vec![other], &[1, 1, 1, 1], Vec::new(), Vec::new());
        builder.profile_mut().trends = Some(Trends {
            age_bounds: vec![1, 10],
            growth_nanos: 4_000_000_000,
        });
        let profile = builder.finish();
        let mut text = Vec::new();
        write(&profile, &mut text).expect("writes");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("valid JSON");
        assert_eq!(value["age_bounds"], serde_json::json!([1, 10]));
        assert_eq!(value["growth_nanos"], 4_000_000_000_i64);
        assert_eq!(value["samples"][0]["growth"], -3);
        assert_eq!(value["samples"][0]["ages"], serde_json::json!([60, 4, 0]));
        assert_eq!(value["samples"][1].get("growth"), None);
        assert_eq!(value["samples"][1]["ages"], serde_json::json!([60, 4, 0]));
        assert_eq!(value["samples"][2].get("ages"), None);

        // pprof has no place for them: its bytes are those of a profile without.
        let bytes = |profile: &Profile| {
            let mut bytes = Vec::new();
            crate::export::pprof::write(profile, &mut bytes).expect("writes");
            bytes
        };
        let mut without = profile.clone();
        without.trends = None;
        without.samples.iter_mut().for_each(|sample| sample.trend = None);
        assert_eq!(bytes(&profile), bytes(&without));
    }
}
