//! [`ProfileBuilder`]: collects stacks into a [`Profile`].
//!
//! Interns mappings, functions and locations, and merges samples of the same stack and labels.
//! Invariant: the result depends on the order of the calls alone, never on hashing.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::profile::{
    Function, FunctionId, Line, Location, LocationId, Mapping, MappingId, NumericLabel, Profile, Sample, TextLabel,
    Trend, ValueType,
};
use super::text::Text;

/// One function at a location, as a symbolizer found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameLine<'a> {
    /// Name as people read it. Never empty: use [`FrameLine::placeholder`] where there is no name.
    pub function: &'a str,
    /// Name in the symbol table; empty for the same as `function`.
    pub system_name: &'a str,
    /// Source file; empty when unknown.
    pub file: &'a str,
    /// Line number; 0 when unknown.
    pub line: u32,
    /// Column; 0 when unknown.
    pub column: u32,
    /// Line where the function begins; 0 when unknown.
    pub start_line: u32,
    /// `function` is no name but stands for one (`libfoo.so+0x1234`): the mapping does not count as having functions.
    pub placeholder: bool,
}

/// What makes a mapping the same one: its place, its file and its build ID.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MappingKey {
    start: u64,
    limit: u64,
    offset: u64,
    file: Text,
    build_id: Text,
}

/// Collects stacks into a [`Profile`].
#[derive(Debug)]
pub struct ProfileBuilder {
    profile: Profile,
    mappings: HashMap<MappingKey, MappingId>,
    functions: HashMap<Function, FunctionId>,
    locations: HashMap<Location, LocationId>,
    /// Positions of samples by stack and labels, which stand in the samples alone: there may be a million.
    samples: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl ProfileBuilder {
    /// A builder for a heap profile: four sample types, `inuse_space` shown first, period type `space/bytes`.
    pub fn heap() -> Self {
        let mut builder = Self::new(ValueType::heap());
        builder.profile.default_sample_type = "inuse_space".to_owned();
        builder.profile.period_type = ValueType::new("space", "bytes");
        builder
    }

    /// A builder for values of these types.
    pub fn new(sample_types: Vec<ValueType>) -> Self {
        Self {
            profile: Profile {
                sample_types,
                ..Profile::default()
            },
            mappings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            samples: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// The profile so far, to set times, comments and metadata. Do not touch its tables and samples.
    pub fn profile_mut(&mut self) -> &mut Profile {
        &mut self.profile
    }

    /// Interns a mapping. Its `has_*` flags are set by [`ProfileBuilder::location`] from what is found there;
    /// flags set here stay set.
    pub fn mapping(&mut self, mapping: Mapping) -> MappingId {
        let key = MappingKey {
            start: mapping.start,
            limit: mapping.limit,
            offset: mapping.offset,
            file: mapping.file.clone(),
            build_id: mapping.build_id.clone(),
        };
        let next = MappingId(count(&self.profile.mappings));
        let id = *self.mappings.entry(key).or_insert(next);
        if id == next {
            self.profile.mappings.push(mapping);
        } else {
            let known = &mut self.profile.mappings[id.index()];
            known.has_functions |= mapping.has_functions;
            known.has_filenames |= mapping.has_filenames;
            known.has_line_numbers |= mapping.has_line_numbers;
            known.has_inline_frames |= mapping.has_inline_frames;
        }
        id
    }

    /// Interns a function.
    pub fn function(&mut self, function: Function) -> FunctionId {
        intern(&mut self.functions, &mut self.profile.functions, function, FunctionId)
    }

    /// Interns a location from what a symbolizer found there, innermost first, and notes in the mapping's flags what
    /// kind of information it has.
    pub fn location(&mut self, mapping: Option<MappingId>, address: u64, frames: &[FrameLine<'_>]) -> LocationId {
        if let Some(mapping) = mapping.and_then(|id| self.profile.mappings.get_mut(id.index())) {
            let named = || frames.iter().filter(|frame| !frame.placeholder);
            mapping.has_functions |= named().next().is_some();
            mapping.has_filenames |= named().any(|frame| !frame.file.is_empty());
            mapping.has_line_numbers |= named().any(|frame| frame.line != 0);
            // Line numbers come from debug information, which is where inlined functions are looked up too.
            mapping.has_inline_frames |= frames.len() > 1 || named().any(|frame| frame.line != 0);
        }
        let lines = frames
            .iter()
            .map(|frame| Line {
                function: self.function(Function {
                    name: frame.function.into(),
                    system_name: if frame.system_name.is_empty() {
                        frame.function
                    } else {
                        frame.system_name
                    }
                    .into(),
                    file: frame.file.into(),
                    start_line: frame.start_line.into(),
                }),
                line: frame.line.into(),
                column: frame.column.into(),
            })
            .collect();
        self.raw_location(Location {
            mapping,
            address,
            lines,
            is_folded: false,
        })
    }

    /// Interns a location whose lines are interned already.
    pub fn raw_location(&mut self, location: Location) -> LocationId {
        intern(&mut self.locations, &mut self.profile.locations, location, LocationId)
    }

    /// Makes room for so many more samples, neither less nor more.
    pub fn reserve_samples(&mut self, additional: usize) {
        self.profile.samples.reserve_exact(additional);
    }

    /// Adds values to the sample with this stack (leaf first) and these labels. Sums that do not fit saturate.
    ///
    /// # Panics
    /// Where the number of values is not the number of sample types: that is an error of the caller, not of its input.
    pub fn sample(
        &mut self,
        locations: Vec<LocationId>,
        values: &[i64],
        labels: Vec<TextLabel>,
        numbers: Vec<NumericLabel>,
    ) {
        self.sample_with_trend(locations, values, labels, numbers, None);
    }

    /// As [`ProfileBuilder::sample`], with growth and ages. A sample that is made of parts has them if all parts do.
    ///
    /// # Panics
    /// As [`ProfileBuilder::sample`].
    pub fn sample_with_trend(
        &mut self,
        locations: Vec<LocationId>,
        values: &[i64],
        mut labels: Vec<TextLabel>,
        mut numbers: Vec<NumericLabel>,
        trend: Option<Trend>,
    ) {
        assert_eq!(
            values.len(),
            self.profile.sample_types.len(),
            "one value per sample type"
        );
        labels.sort();
        numbers.sort();
        let samples = &mut self.profile.samples;
        let hash = |locations: &[LocationId], labels: &[TextLabel], numbers: &[NumericLabel]| {
            self.hasher.hash_one((locations, labels, numbers))
        };
        let hashed = hash(&locations, &labels, &numbers);
        let known = self.samples.find(hashed, |position| {
            let known = &samples[*position as usize];
            known.locations == locations && known.labels == labels && known.numbers == numbers
        });
        let Some(known) = known else {
            let position = count(samples);
            samples.push(Sample {
                locations,
                values: values.to_vec(),
                labels,
                numbers,
                trend,
            });
            self.samples.insert_unique(hashed, position, |position| {
                let known = &samples[*position as usize];
                hash(&known.locations, &known.labels, &known.numbers)
            });
            return;
        };
        let known = &mut samples[*known as usize];
        known.trend = known.trend.take().zip(trend).map(|(mut sum, part)| {
            sum.add(&part);
            sum
        });
        for (sum, value) in known.values.iter_mut().zip(values) {
            *sum = sum.saturating_add(*value);
        }
    }

    /// The finished profile. Samples whose values are all 0 are left out.
    pub fn finish(mut self) -> Profile {
        self.profile
            .samples
            .retain(|sample| sample.values.iter().any(|value| *value != 0));
        self.profile
    }
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).expect("tables hold fewer than 2^32 entries: each takes over 16 bytes")
}

fn intern<T: Clone + Eq + Hash, I: Copy>(
    known: &mut HashMap<T, I>,
    table: &mut Vec<T>,
    item: T,
    id: impl Fn(u32) -> I,
) -> I {
    if let Some(id) = known.get(&item) {
        return *id;
    }
    let new = id(count(table));
    table.push(item.clone());
    known.insert(item, new);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeapKind;

    #[test]
    fn equal_stacks_merge_and_flags_tell_the_truth() {
        let mut builder = ProfileBuilder::heap();
        let mapped = |file: &str| Mapping {
            start: 0x1000,
            limit: 0x2000,
            file: file.into(),
            ..Mapping::default()
        };
        let program = builder.mapping(mapped("/bin/a"));
        let library = builder.mapping(mapped("/lib/b.so"));
        assert_eq!(program, builder.mapping(mapped("/bin/a")));
        let frame = FrameLine {
            function: "f",
            file: "f.c",
            line: 3,
            ..FrameLine::default()
        };
        let leaf = builder.location(Some(program), 0x1010, &[frame]);
        assert_eq!(leaf, builder.location(Some(program), 0x1010, &[frame]));
        let hidden = FrameLine {
            function: "b.so+0x10",
            placeholder: true,
            ..FrameLine::default()
        };
        let root = builder.location(Some(library), 0x1010, &[hidden]);
        let native = || vec![TextLabel::heap(HeapKind::Native)];
        builder.sample(vec![leaf, root], &[1, 2, 3, 4], native(), Vec::new());
        builder.sample(vec![leaf, root], &[1, 2, 3, 4], native(), Vec::new());
        builder.sample(vec![leaf, root], &[5, 5, 5, 5], Vec::new(), Vec::new());
        builder.sample(vec![root], &[0, 0, 0, 0], Vec::new(), Vec::new());
        let profile = builder.finish();
        assert_eq!(profile.samples.len(), 2);
        assert_eq!(profile.samples[0].values, [2, 4, 6, 8]);
        assert!(profile.mappings[0].has_line_numbers && profile.mappings[0].has_functions);
        assert!(!profile.mappings[1].has_functions && !profile.mappings[1].has_inline_frames);
        assert_eq!(profile.functions[0].system_name, "f");
    }

    #[test]
    fn growth_and_ages_are_summed_where_all_parts_have_them() {
        let mut builder = ProfileBuilder::heap();
        let trend = |growth, ages: &[i64]| {
            Some(Trend {
                growth,
                ages: ages.to_vec(),
            })
        };
        let mut add = |address, trend| {
            let place = builder.location(None, address, &[]);
            builder.sample_with_trend(vec![place], &[1, 1, 1, 1], Vec::new(), Vec::new(), trend);
        };
        add(1, trend(Some(5), &[1, 2]));
        add(1, trend(Some(-7), &[3, 4]));
        add(2, trend(Some(5), &[1, 2]));
        add(2, trend(None, &[1, 2]));
        add(3, trend(Some(5), &[1, 2]));
        add(3, None);
        let trends: Vec<_> = builder
            .finish()
            .samples
            .into_iter()
            .map(|sample| sample.trend)
            .collect();
        assert_eq!(trends, [trend(Some(-2), &[4, 6]), trend(None, &[2, 4]), None]);
    }
}
