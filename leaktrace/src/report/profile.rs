//! [`Profile`]: stacks with values, and the tables they refer to.
//!
//! Plain data in the shape of pprof's, with indices in place of ids. No rendering, no files.
//! Invariant: ids are positions in the profile's own vectors, and `sample.values.len() == sample_types.len()`.

use std::borrow::Cow;

use super::loss::Losses;
use super::name::base;
use super::text::Text;
use crate::model::HeapKind;

macro_rules! index {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// The position as an index.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

index! {
    /// Position in [`Profile::mappings`].
    MappingId,
    /// Position in [`Profile::functions`].
    FunctionId,
    /// Position in [`Profile::locations`].
    LocationId
}

/// What a value counts: `inuse_space` in `bytes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueType {
    /// What is measured, such as `inuse_space`.
    pub kind: Text,
    /// In which unit, such as `bytes`.
    pub unit: Text,
}

impl ValueType {
    /// A value type from its two names.
    pub fn new(kind: &str, unit: &str) -> Self {
        Self {
            kind: kind.into(),
            unit: unit.into(),
        }
    }

    /// The four types of a heap profile, in the order that every reader of heap profiles expects.
    pub fn heap() -> Vec<Self> {
        vec![
            Self::new("alloc_objects", "count"),
            Self::new("alloc_space", "bytes"),
            Self::new("inuse_objects", "count"),
            Self::new("inuse_space", "bytes"),
        ]
    }
}

/// A file (or a named piece of memory) mapped into the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub limit: u64,
    /// Position in the file where the mapping begins.
    pub offset: u64,
    /// Path of the file as the target sees it, or a name such as `[vdso]`.
    pub file: Text,
    /// Build ID in lower-case hexadecimal digits; empty when there is none.
    pub build_id: Text,
    /// Functions of this mapping were named.
    pub has_functions: bool,
    /// Source files were found.
    pub has_filenames: bool,
    /// Line numbers were found.
    pub has_line_numbers: bool,
    /// Inlined functions were looked for in debug information.
    pub has_inline_frames: bool,
}

/// A function, or the placeholder for one that has no name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Function {
    /// Name as people read it (demangled).
    pub name: Text,
    /// Name as the symbol table has it.
    pub system_name: Text,
    /// Source file; empty when unknown.
    pub file: Text,
    /// Line where the function begins; 0 when unknown.
    pub start_line: i64,
}

/// One line of a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The function.
    pub function: FunctionId,
    /// Line number; 0 when unknown.
    pub line: i64,
    /// Column; 0 when unknown.
    pub column: i64,
}

/// An instruction, with the functions inlined there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    /// The mapping that holds the address; `None` when unknown.
    pub mapping: Option<MappingId>,
    /// Address in the process; 0 when unknown.
    pub address: u64,
    /// Innermost first; all but the last are inlined into the next.
    pub lines: Vec<Line>,
    /// Several symbols share this address (identical code folding).
    pub is_folded: bool,
}

/// A label with text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextLabel {
    /// Name, such as `heap`.
    pub key: Text,
    /// Value, such as `native`.
    pub value: Text,
}

impl TextLabel {
    /// The label that says of which heap a sample is.
    pub fn heap(kind: HeapKind) -> Self {
        Self {
            key: HeapKind::LABEL.into(),
            value: kind.name().into(),
        }
    }
}

/// A label with a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumericLabel {
    /// Name, such as `bytes`.
    pub key: Text,
    /// Value.
    pub value: i64,
    /// Unit; empty for the one that the key implies.
    pub unit: Text,
}

/// What a recording knows of a stack's memory over time. pprof has no place for it; JSON has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trend {
    /// Bytes in use more than [`Trends::growth_nanos`] ago; `None` when unknown.
    pub growth: Option<i64>,
    /// Bytes in use by age: one number for each of [`Trends::age_bounds`], and one for what is older.
    pub ages: Vec<i64>,
}

/// What the samples' [`Trend`]s are measured by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trends {
    /// Upper bounds of the age classes in seconds, ascending.
    pub age_bounds: Vec<u32>,
    /// How far back growth reaches, in nanoseconds.
    pub growth_nanos: i64,
}

/// A stack with its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Leaf first.
    pub locations: Vec<LocationId>,
    /// One per sample type; negative in differences.
    pub values: Vec<i64>,
    /// Sorted by key and value.
    pub labels: Vec<TextLabel>,
    /// Sorted by key, value and unit.
    pub numbers: Vec<NumericLabel>,
    /// Growth and ages, where the recording knows them.
    pub trend: Option<Trend>,
}

impl Sample {
    /// Of which heap it is; `None` where it does not say so, or says a word that is not known.
    pub fn heap(&self) -> Option<HeapKind> {
        let label = self.labels.iter().find(|label| label.key == HeapKind::LABEL)?;
        HeapKind::parse(&label.value)
    }
}

/// What is known about the recording. Carried in pprof files as comments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Name of the process; empty when unknown.
    pub comm: String,
    /// Its process id.
    pub pid: Option<u32>,
    /// `exact`, `sampled`, …; empty when unknown.
    pub mode: String,
    /// What the recording missed.
    pub losses: Losses,
}

/// Stacks with values, and the tables they refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// What the values of each sample are.
    pub sample_types: Vec<ValueType>,
    /// The type to show first; empty for the last one.
    pub default_sample_type: String,
    /// What a sampling period counts.
    pub period_type: ValueType,
    /// Mean distance of samples in that type; 0 when not sampled, 1 when everything was recorded.
    pub period: i64,
    /// When the recording was taken, in nanoseconds since 1970; 0 when unknown.
    pub time_nanos: i64,
    /// How long it lasted; 0 when unknown.
    pub duration_nanos: i64,
    /// Mapped files. The first is the main program where it is known.
    pub mappings: Vec<Mapping>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Instructions.
    pub locations: Vec<Location>,
    /// Stacks.
    pub samples: Vec<Sample>,
    /// Free text, one remark each.
    pub comments: Vec<String>,
    /// Regular expression (anchored at both ends): these functions and what they call are left out by readers.
    pub drop_frames: String,
    /// Regular expression: exceptions from `drop_frames`.
    pub keep_frames: String,
    /// Where the profile is explained; empty for nowhere.
    pub doc_url: String,
    /// What is known about the recording.
    pub metadata: Metadata,
    /// What growth and ages are measured by; `None` where no sample has any.
    pub trends: Option<Trends>,
}

/// Sum of the values of all samples, per sample type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// In the order of the sample types.
    pub values: Vec<(ValueType, i64)>,
}

impl Totals {
    /// The total of a sample type by its name.
    pub fn get(&self, kind: &str) -> Option<i64> {
        self.values
            .iter()
            .find(|(value_type, _)| value_type.kind == kind)
            .map(|(_, value)| *value)
    }
}

/// A sample type that the profile does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the profile has no sample type `{wanted}`; it has {}", .present.join(", "))]
pub struct UnknownSampleType {
    /// What was asked for.
    pub wanted: String,
    /// What there is.
    pub present: Vec<String>,
}

impl Trend {
    /// Joins what is known of two parts of one stack's memory: growth is known if it is of both.
    pub fn add(&mut self, other: &Self) {
        self.growth = self
            .growth
            .zip(other.growth)
            .map(|(one, other)| one.saturating_add(other));
        self.ages.resize(self.ages.len().max(other.ages.len()), 0);
        for (sum, bytes) in self.ages.iter_mut().zip(&other.ages) {
            *sum = sum.saturating_add(*bytes);
        }
    }
}

impl Profile {
    /// Sums over all samples; sums that do not fit saturate.
    pub fn totals(&self) -> Totals {
        let mut sums = vec![0i64; self.sample_types.len()];
        for sample in &self.samples {
            for (sum, value) in sums.iter_mut().zip(&sample.values) {
                *sum = sum.saturating_add(*value);
            }
        }
        Totals {
            values: self.sample_types.iter().cloned().zip(sums).collect(),
        }
    }

    /// Position of the sample type to show: the one asked for, else the profile's default, else the last.
    /// The older names without `inuse_`/`alloc_` prefix and positions (`"3"`) are understood too, as pprof does.
    pub fn sample_type(&self, wanted: Option<&str>) -> Result<usize, UnknownSampleType> {
        let position = |name: &str| self.sample_types.iter().position(|value_type| value_type.kind == name);
        let unknown = |wanted: &str| UnknownSampleType {
            wanted: wanted.to_owned(),
            present: self
                .sample_types
                .iter()
                .map(|value_type| value_type.kind.to_string())
                .collect(),
        };
        let last = self.sample_types.len().checked_sub(1);
        match wanted {
            None => position(&self.default_sample_type).or(last).ok_or_else(|| unknown("")),
            Some(name) => position(name)
                .or_else(|| name.strip_prefix("inuse_").and_then(position))
                .or_else(|| {
                    name.parse::<usize>()
                        .ok()
                        .filter(|index| *index < self.sample_types.len())
                })
                .ok_or_else(|| unknown(name)),
        }
    }

    /// The function of a line.
    pub fn function(&self, line: &Line) -> &Function {
        &self.functions[line.function.index()]
    }

    /// The mapping of a location.
    pub fn mapping(&self, location: &Location) -> Option<&Mapping> {
        location.mapping.map(|id| &self.mappings[id.index()])
    }

    /// Function names at a location, innermost first; at least one, as it may be that of the file.
    pub fn names<'p>(&'p self, location: &'p Location) -> impl DoubleEndedIterator<Item = Cow<'p, str>> {
        let nameless = || Cow::Owned(nameless(self, location));
        let lines = location
            .lines
            .iter()
            .map(move |line| match self.function(line).name.as_str() {
                "" => nameless(),
                name => Cow::Borrowed(name),
            });
        lines.chain(location.lines.is_empty().then(nameless))
    }

    /// The same, shared.
    pub fn texts<'p>(&'p self, location: &'p Location) -> impl DoubleEndedIterator<Item = Text> {
        let nameless = || Text::from(nameless(self, location));
        let lines = location.lines.iter().map(move |line| match &self.function(line).name {
            name if name.is_empty() => nameless(),
            name => name.clone(),
        });
        lines.chain(location.lines.is_empty().then(nameless))
    }

    /// Locations of a sample, leaf first.
    pub fn stack<'p>(&'p self, sample: &'p Sample) -> impl DoubleEndedIterator<Item = &'p Location> {
        sample.locations.iter().map(|id| &self.locations[id.index()])
    }
}

/// What stands for code without a function name.
fn nameless(profile: &Profile, location: &Location) -> String {
    match profile.mapping(location) {
        Some(mapping) if !mapping.file.is_empty() => format!("[{}]", base(&mapping.file)),
        _ => "<unknown>".to_owned(),
    }
}

impl Location {
    /// Where the address lies in the mapped file, in bytes; the address itself without a mapping.
    pub fn file_offset(&self, mapping: Option<&Mapping>) -> u64 {
        mapping.map_or(self.address, |mapping| {
            self.address.wrapping_sub(mapping.start).wrapping_add(mapping.offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_types() -> Profile {
        Profile {
            sample_types: vec![ValueType::new("objects", "count"), ValueType::new("space", "bytes")],
            samples: vec![
                Sample {
                    values: vec![1, 10],
                    ..Sample::default()
                },
                Sample {
                    values: vec![2, i64::MAX],
                    ..Sample::default()
                },
            ],
            ..Profile::default()
        }
    }

    #[test]
    fn sample_types_by_default_name_prefix_and_position() {
        let mut profile = two_types();
        assert_eq!(profile.sample_type(None), Ok(1));
        profile.default_sample_type = "objects".to_owned();
        assert_eq!(profile.sample_type(None), Ok(0));
        assert_eq!(profile.sample_type(Some("inuse_space")), Ok(1));
        assert_eq!(profile.sample_type(Some("0")), Ok(0));
        let error = profile.sample_type(Some("cpu")).expect_err("no such type");
        assert_eq!(
            error.to_string(),
            "the profile has no sample type `cpu`; it has objects, space"
        );
    }

    #[test]
    fn totals_saturate() {
        let totals = two_types().totals();
        assert_eq!(totals.get("objects"), Some(3));
        assert_eq!(totals.get("space"), Some(i64::MAX));
        assert_eq!(totals.get("cpu"), None);
    }
}
