//! The difference of two profiles: what grew and what shrank, per stack.
//!
//! Two runs place code at other addresses, so stacks are matched by function, file and line, and where there is no name
//! by module and position in it. Invariant: for each sample type, total of the difference = total of new − total of base.

use hashbrown::HashMap;

use super::builder::ProfileBuilder;
use super::name::base as base_name;
use super::profile::{Function, Location, LocationId, Profile, Sample, TextLabel};
use super::text::Text;

/// The two profiles do not measure the same things.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profiles have different sample types: {} against {}", .base.join(", "), .new.join(", "))]
pub struct IncompatibleProfiles {
    /// Sample types of the base profile, as `type/unit`.
    pub base: Vec<String>,
    /// Sample types of the new profile.
    pub new: Vec<String>,
}

/// New minus base. Sample types are those of `new`; `base` must have them all, in any order. Text labels
/// must match; numeric labels (sizes) are left out, since a stack may have several.
pub fn diff(base: &Profile, new: &Profile) -> Result<Profile, IncompatibleProfiles> {
    let columns: Option<Vec<usize>> = new
        .sample_types
        .iter()
        .map(|wanted| base.sample_types.iter().position(|present| present == wanted))
        .collect();
    let columns = columns.ok_or_else(|| {
        let names = |profile: &Profile| {
            profile
                .sample_types
                .iter()
                .map(|value| format!("{}/{}", value.kind, value.unit))
                .collect()
        };
        IncompatibleProfiles {
            base: names(base),
            new: names(new),
        }
    })?;

    let mut subtraction = Subtraction {
        builder: ProfileBuilder::new(new.sample_types.clone()),
        known: Stacks::default(),
    };
    subtraction.add(new, |sample| sample.values.clone());
    subtraction.add(base, |sample| {
        columns
            .iter()
            .map(|column| sample.values[*column].saturating_neg())
            .collect()
    });
    let profile = subtraction.builder.profile_mut();
    profile.default_sample_type.clone_from(&new.default_sample_type);
    profile.period_type = new.period_type.clone();
    profile.period = new.period;
    profile.time_nanos = new.time_nanos;
    if base.time_nanos > 0 && new.time_nanos > base.time_nanos {
        profile.duration_nanos = new.time_nanos - base.time_nanos;
    }
    profile.doc_url.clone_from(&new.doc_url);
    profile.metadata = new.metadata.clone();
    for loss in base.metadata.losses.iter() {
        profile.metadata.losses.add(&loss.name, loss.count, &loss.meaning);
    }
    Ok(subtraction.builder.finish())
}

struct Subtraction {
    builder: ProfileBuilder,
    known: Stacks,
}

/// Numbers for frames, and the stack of the result for each sequence of them.
#[derive(Default)]
struct Stacks {
    frames: HashMap<(Text, Text, u64), u32>,
    stacks: HashMap<StackKey, Vec<LocationId>>,
}

#[derive(PartialEq, Eq, Hash)]
struct StackKey {
    frames: Vec<u32>,
    labels: Vec<TextLabel>,
}

impl Stacks {
    fn frame(&mut self, name: Text, file: Text, position: u64) -> u32 {
        let next = self.frames.len() as u32;
        *self.frames.entry((name, file, position)).or_insert(next)
    }

    /// The numbers of a location's frames.
    fn frames(&mut self, profile: &Profile, location: &Location) -> Vec<u32> {
        if location.lines.is_empty() {
            let mapping = profile.mapping(location);
            let module = format!("[{}]", mapping.map_or("", |mapping| base_name(&mapping.file)));
            return vec![self.frame(module.into(), Text::default(), location.file_offset(mapping))];
        }
        let lines = location.lines.iter();
        lines
            .map(|line| {
                let function = profile.function(line);
                self.frame(function.name.clone(), function.file.clone(), line.line.cast_unsigned())
            })
            .collect()
    }
}

impl Subtraction {
    fn add(&mut self, profile: &Profile, values: impl Fn(&Sample) -> Vec<i64>) {
        let frames: Vec<Vec<u32>> = profile
            .locations
            .iter()
            .map(|location| self.known.frames(profile, location))
            .collect();
        let mut copied: Vec<Option<LocationId>> = vec![None; profile.locations.len()];
        for sample in &profile.samples {
            let key = StackKey {
                frames: sample
                    .locations
                    .iter()
                    .flat_map(|id| &frames[id.index()])
                    .copied()
                    .collect(),
                labels: sample.labels.clone(),
            };
            let builder = &mut self.builder;
            let locations = self.known.stacks.entry(key).or_insert_with(|| {
                let copy = |id: &LocationId| {
                    let location = &profile.locations[id.index()];
                    *copied[id.index()].get_or_insert_with(|| copy(builder, profile, location))
                };
                sample.locations.iter().map(copy).collect()
            });
            self.builder
                .sample(locations.clone(), &values(sample), sample.labels.clone(), Vec::new());
        }
    }
}

fn copy(builder: &mut ProfileBuilder, profile: &Profile, location: &Location) -> LocationId {
    let mapping = profile
        .mapping(location)
        .map(|mapping| builder.mapping(mapping.clone()));
    let mut copied = Location {
        mapping,
        ..location.clone()
    };
    for line in &mut copied.lines {
        let function: &Function = profile.function(line);
        line.function = builder.function(function.clone());
    }
    builder.raw_location(copied)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{FrameLine, Mapping, NumericLabel, ValueType};

    /// A profile of stacks `f<n> → main`, loaded at `shift`, with 1 object of `value` bytes each.
    fn loaded_at(shift: u64, stacks: &[(u32, i64)]) -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            start: shift,
            limit: shift + 0x1000,
            file: "/bin/a".into(),
            ..Mapping::default()
        });
        let main = builder.location(
            Some(mapping),
            shift + 1,
            &[FrameLine {
                function: "main",
                ..FrameLine::default()
            }],
        );
        for (number, value) in stacks {
            let name = format!("f{number}");
            let frames = [FrameLine {
                function: &name,
                line: *number,
                ..FrameLine::default()
            }];
            // Number 0 has no name.
            let frames = if *number == 0 { &[] } else { &frames[..] };
            let leaf = builder.location(Some(mapping), shift + 2 + u64::from(*number), frames);
            let numbers = vec![NumericLabel {
                key: "bytes".into(),
                value: *value,
                unit: "".into(),
            }];
            builder.sample(vec![leaf, main], &[1, *value, 1, *value], Vec::new(), numbers);
        }
        builder.finish()
    }

    fn growth(profile: &Profile) -> Vec<(String, i64)> {
        let name = |sample: &Sample| {
            profile
                .stack(sample)
                .next()
                .and_then(|leaf| leaf.lines.first())
                .map_or("?".to_owned(), |line| profile.function(line).name.to_string())
        };
        profile
            .samples
            .iter()
            .map(|sample| (name(sample), sample.values[3]))
            .collect()
    }

    #[test]
    fn stacks_match_by_name_although_loaded_elsewhere() {
        let base = loaded_at(0x40_0000, &[(0, 7), (1, 100), (2, 50), (3, 20)]);
        let new = loaded_at(0x7f00_0000, &[(0, 9), (1, 100), (2, 80), (4, 5)]);
        let difference = diff(&base, &new).expect("compatible");
        let expected = [("?", 2), ("f2", 30), ("f4", 5), ("f3", -20)].map(|(name, value)| (name.to_owned(), value));
        assert_eq!(growth(&difference), expected);
    }

    #[test]
    fn sample_types_may_come_in_another_order_but_not_be_missing() {
        let mut base = loaded_at(0, &[(1, 100)]);
        base.sample_types.reverse();
        base.samples.iter_mut().for_each(|sample| sample.values.reverse());
        let new = loaded_at(0, &[(1, 150)]);
        assert_eq!(
            diff(&base, &new).expect("compatible").totals().get("inuse_space"),
            Some(50)
        );
        base.sample_types[0] = ValueType::new("cpu", "nanoseconds");
        let error = diff(&base, &new).expect_err("incompatible").to_string();
        assert!(
            error.contains("cpu/nanoseconds") && error.contains("inuse_space/bytes"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn totals_subtract(base in prop::collection::vec((0u32..9, -99i64..99), 0..20), new in prop::collection::vec((0u32..9, -99i64..99), 0..20)) {
            let (base, new) = (loaded_at(0x1000, &base), loaded_at(0x9000, &new));
            let difference = diff(&base, &new).expect("compatible");
            for ((value_type, difference), (_, new)) in difference.totals().values.iter().zip(&new.totals().values) {
                prop_assert_eq!(*difference, new - base.totals().get(&value_type.kind).expect("present"));
            }
            prop_assert!(diff(&new, &new).expect("compatible").samples.is_empty());
        }
    }
}
