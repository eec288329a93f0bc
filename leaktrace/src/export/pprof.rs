//! pprof files: gzip-compressed `profile.proto` messages, written and read.
//!
//! Owns the wire messages and the checks on reading. Invariants: a file that is read without error has all indices in
//! range and one value per sample type; what is written is read back equal.
//!
//! [`Metadata`] travels as comments (`comm: …`, `pid: …`, `mode: …`, `loss: NAME = COUNT (MEANING)`), which every reader
//! of pprof files shows.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use hashbrown::{HashMap, HashSet};
use prost::Message;

use crate::model::HeapKind;
use crate::report::text::Text;
use crate::report::{
    Function, FunctionId, Line, Location, LocationId, Losses, Mapping, MappingId, Metadata, NumericLabel, Profile,
    Sample, TextLabel, ValueType,
};

/// Largest profile that is read, after decompression.
pub const MAX_BYTES: u64 = 1 << 30;

/// Why bytes are not a profile.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It could not be read at all.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The gzip stream is damaged or ends early.
    #[error("damaged gzip data: {0}")]
    Gzip(#[source] io::Error),
    /// More than [`MAX_BYTES`].
    #[error("holds more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// Not a protocol buffer of this kind.
    #[error("not a pprof profile: {0}")]
    NotAProfile(#[source] prost::DecodeError),
    /// A protocol buffer, but its parts do not fit together.
    #[error("{0}")]
    Inconsistent(&'static str),
}

mod wire {
    //! The messages of `profile.proto`. Strings are indices into the string table.

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        pub string_table: Vec<Vec<u8>>,
        #[prost(int64, tag = "7")]
        pub drop_frames: i64,
        #[prost(int64, tag = "8")]
        pub keep_frames: i64,
        #[prost(int64, tag = "9")]
        pub time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub duration_nanos: i64,
        #[prost(message, optional, tag = "11")]
        pub period_type: Option<ValueType>,
        #[prost(int64, tag = "12")]
        pub period: i64,
        #[prost(int64, repeated, tag = "13")]
        pub comment: Vec<i64>,
        #[prost(int64, tag = "14")]
        pub default_sample_type: i64,
        #[prost(int64, tag = "15")]
        pub doc_url: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct ValueType {
        #[prost(int64, tag = "1")]
        pub kind: i64,
        #[prost(int64, tag = "2")]
        pub unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        pub location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub label: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Label {
        #[prost(int64, tag = "1")]
        pub key: i64,
        #[prost(int64, tag = "2")]
        pub str: i64,
        #[prost(int64, tag = "3")]
        pub num: i64,
        #[prost(int64, tag = "4")]
        pub num_unit: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Mapping {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub memory_start: u64,
        #[prost(uint64, tag = "3")]
        pub memory_limit: u64,
        #[prost(uint64, tag = "4")]
        pub file_offset: u64,
        #[prost(int64, tag = "5")]
        pub filename: i64,
        #[prost(int64, tag = "6")]
        pub build_id: i64,
        #[prost(bool, tag = "7")]
        pub has_functions: bool,
        #[prost(bool, tag = "8")]
        pub has_filenames: bool,
        #[prost(bool, tag = "9")]
        pub has_line_numbers: bool,
        #[prost(bool, tag = "10")]
        pub has_inline_frames: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(uint64, tag = "2")]
        pub mapping_id: u64,
        #[prost(uint64, tag = "3")]
        pub address: u64,
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
        #[prost(bool, tag = "5")]
        pub is_folded: bool,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
        #[prost(int64, tag = "3")]
        pub column: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "3")]
        pub system_name: i64,
        #[prost(int64, tag = "4")]
        pub filename: i64,
        #[prost(int64, tag = "5")]
        pub start_line: i64,
    }
}

/// Bytes of the message that are put together before they are compressed.
const PIECE: usize = 64 << 10;

/// Writes a profile as gzip-compressed pprof. Equal profiles give equal bytes (the gzip header carries no time).
pub fn write(profile: &Profile, output: impl Write) -> io::Result<()> {
    let mut encoder = GzEncoder::new(output, Compression::fast());
    encode_to(profile, &mut encoder)?;
    encoder.finish()?.flush()
}

/// A profile as an uncompressed `profile.proto` message.
pub fn encode(profile: &Profile) -> Vec<u8> {
    let mut message = Vec::new();
    encode_to(profile, &mut message).expect("memory takes all that is written to it");
    message
}

/// The message piece by piece, in the order of its fields: as a whole it would take more memory than the profile.
fn encode_to(profile: &Profile, output: &mut impl Write) -> io::Result<()> {
    let mut strings = Strings::default();
    let value_type = |strings: &mut Strings, value: &ValueType| wire::ValueType {
        kind: strings.add_text(&value.kind),
        unit: strings.add_text(&value.unit),
    };
    let mut message = Fields {
        output,
        piece: Vec::with_capacity(PIECE),
    };
    for value in &profile.sample_types {
        message.add(1, &value_type(&mut strings, value))?;
    }
    for sample in &profile.samples {
        message.add(2, &encode_sample(sample, &mut strings))?;
    }
    for (id, mapping) in (1..).zip(&profile.mappings) {
        message.add(3, &encode_mapping(id, mapping, &mut strings))?;
    }
    for (id, location) in (1..).zip(&profile.locations) {
        message.add(4, &encode_location(id, location))?;
    }
    for (id, function) in (1..).zip(&profile.functions) {
        let function = wire::Function {
            id,
            name: strings.add_text(&function.name),
            system_name: strings.add_text(&function.system_name),
            filename: strings.add_text(&function.file),
            start_line: function.start_line,
        };
        message.add(5, &function)?;
    }
    let rest = wire::Profile {
        drop_frames: strings.add(&profile.drop_frames),
        keep_frames: strings.add(&profile.keep_frames),
        time_nanos: profile.time_nanos,
        duration_nanos: profile.duration_nanos,
        period_type: (profile.period_type != ValueType::default())
            .then(|| value_type(&mut strings, &profile.period_type)),
        period: profile.period,
        comment: metadata_comments(&profile.metadata)
            .iter()
            .chain(&profile.comments)
            .map(|comment| strings.add(comment))
            .collect(),
        default_sample_type: strings.add(&profile.default_sample_type),
        doc_url: strings.add(&profile.doc_url),
        ..wire::Profile::default()
    };
    for text in &strings.table {
        message.add_text(6, text)?;
    }
    // Messages that follow each other are one message with the fields of all.
    message.piece.extend(rest.encode_to_vec());
    message.flush()
}

/// Fields of a message on their way out.
struct Fields<'a, W> {
    output: &'a mut W,
    piece: Vec<u8>,
}

impl<W: Write> Fields<'_, W> {
    fn add(&mut self, tag: u32, message: &impl Message) -> io::Result<()> {
        prost::encoding::message::encode(tag, message, &mut self.piece);
        self.flush_full()
    }

    fn add_text(&mut self, tag: u32, text: &Text) -> io::Result<()> {
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut self.piece);
        prost::encoding::encode_varint(text.len() as u64, &mut self.piece);
        self.piece.extend(text.as_bytes());
        self.flush_full()
    }

    fn flush_full(&mut self) -> io::Result<()> {
        if self.piece.len() >= PIECE {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }
}

/// String table under construction: index 0 is the empty string, as the format demands.
struct Strings {
    table: Vec<Text>,
    known: HashMap<Text, i64>,
    /// By place: a shared text is looked up without a look at its bytes.
    places: HashMap<(usize, usize), i64>,
}

impl Default for Strings {
    fn default() -> Self {
        Self {
            table: vec![Text::default()],
            known: HashMap::from([(Text::default(), 0)]),
            places: HashMap::new(),
        }
    }
}

impl Strings {
    fn add(&mut self, text: &str) -> i64 {
        self.add_new(text.into())
    }

    fn add_text(&mut self, text: &Text) -> i64 {
        if let Some(index) = self.places.get(&text.place()) {
            return *index;
        }
        let index = self.add_new(text.clone());
        self.places.insert(text.place(), index);
        index
    }

    fn add_new(&mut self, text: Text) -> i64 {
        *self.known.entry(text).or_insert_with_key(|text| {
            self.table.push(text.clone());
            self.table.len() as i64 - 1
        })
    }
}

fn encode_sample(sample: &Sample, strings: &mut Strings) -> wire::Sample {
    let texts = sample
        .labels
        .iter()
        .map(|label| (&label.key, Some(&label.value), 0, None));
    let numbers = sample
        .numbers
        .iter()
        .map(|label| (&label.key, None, label.value, Some(&label.unit)));
    wire::Sample {
        location_id: sample.locations.iter().map(|id| u64::from(id.0) + 1).collect(),
        value: sample.values.clone(),
        label: texts
            .chain(numbers)
            .map(|(key, text, num, unit)| wire::Label {
                key: strings.add_text(key),
                str: text.map_or(0, |text| strings.add_text(text)),
                num,
                num_unit: unit.map_or(0, |unit| strings.add_text(unit)),
            })
            .collect(),
    }
}

fn encode_mapping(id: u64, mapping: &Mapping, strings: &mut Strings) -> wire::Mapping {
    wire::Mapping {
        id,
        memory_start: mapping.start,
        memory_limit: mapping.limit,
        file_offset: mapping.offset,
        filename: strings.add_text(&mapping.file),
        build_id: strings.add_text(&mapping.build_id),
        has_functions: mapping.has_functions,
        has_filenames: mapping.has_filenames,
        has_line_numbers: mapping.has_line_numbers,
        has_inline_frames: mapping.has_inline_frames,
    }
}

fn encode_location(id: u64, location: &Location) -> wire::Location {
    wire::Location {
        id,
        mapping_id: location.mapping.map_or(0, |mapping| u64::from(mapping.0) + 1),
        address: location.address,
        line: location
            .lines
            .iter()
            .map(|line| wire::Line {
                function_id: u64::from(line.function.0) + 1,
                line: line.line,
                column: line.column,
            })
            .collect(),
        is_folded: location.is_folded,
    }
}

fn metadata_comments(metadata: &Metadata) -> Vec<String> {
    let mut comments = Vec::new();
    if !metadata.comm.is_empty() {
        comments.push(format!("comm: {}", metadata.comm));
    }
    comments.extend(metadata.pid.map(|pid| format!("pid: {pid}")));
    if !metadata.mode.is_empty() {
        comments.push(format!("mode: {}", metadata.mode));
    }
    comments.extend(
        metadata
            .losses
            .iter()
            .map(|loss| format!("loss: {} = {} ({})", loss.name, loss.count, loss.meaning)),
    );
    comments
}

/// Takes the comments that are metadata out of `comments`.
fn take_metadata(comments: &mut Vec<String>) -> Metadata {
    let mut metadata = Metadata {
        losses: Losses::new(),
        ..Metadata::default()
    };
    comments.retain(|comment| !note(&mut metadata, comment));
    metadata
}

/// Whether the comment was metadata. The first comment of a kind counts, others stay comments.
fn note(metadata: &mut Metadata, comment: &str) -> bool {
    let Some((key, value)) = comment.split_once(": ") else {
        return false;
    };
    match key {
        "comm" if metadata.comm.is_empty() => metadata.comm = value.to_owned(),
        "mode" if metadata.mode.is_empty() => metadata.mode = value.to_owned(),
        "pid" if metadata.pid.is_none() => match value.parse() {
            Ok(pid) => metadata.pid = Some(pid),
            Err(_) => return false,
        },
        "loss" => {
            let loss = value.split_once(" = ").and_then(|(name, rest)| {
                let (count, meaning) = rest.split_once(' ')?;
                let meaning = meaning.strip_prefix('(')?.strip_suffix(')')?;
                Some((name, count.parse().ok().filter(|count| *count > 0)?, meaning))
            });
            let Some((name, count, meaning)) = loss else {
                return false;
            };
            metadata.losses.add(name, count, meaning);
        }
        _ => return false,
    }
    true
}

/// Reads a profile, gzip-compressed or not. At most [`MAX_BYTES`] are held.
pub fn read(mut input: impl Read) -> Result<Profile, DecodeError> {
    let mut head = Vec::with_capacity(2);
    input
        .by_ref()
        .take(2)
        .read_to_end(&mut head)
        .map_err(DecodeError::Read)?;
    let compressed = head == [0x1f, 0x8b];
    let whole = head.as_slice().chain(input);
    let bytes = if compressed {
        bounded(MultiGzDecoder::new(whole), DecodeError::Gzip)?
    } else {
        bounded(whole, DecodeError::Read)?
    };
    decode(&bytes)
}

fn bounded(input: impl Read, error: impl Fn(io::Error) -> DecodeError) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_BYTES {
        Err(DecodeError::TooLarge)
    } else {
        Ok(bytes)
    }
}

/// Reads an uncompressed `profile.proto` message and checks it.
pub fn decode(bytes: &[u8]) -> Result<Profile, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Inconsistent("the file is empty"));
    }
    let mut message = wire::Profile::decode(bytes).map_err(DecodeError::NotAProfile)?;
    // Each string once, whoever refers to it.
    let strings: Vec<Text> = std::mem::take(&mut message.string_table)
        .into_iter()
        .map(|bytes| String::from_utf8_lossy(&bytes).as_ref().into())
        .collect();
    if strings.first().is_some_and(|first| !first.is_empty()) {
        return Err(DecodeError::Inconsistent(
            "the string table does not begin with an empty string",
        ));
    }
    let text = |index: i64| -> Result<Text, DecodeError> {
        match usize::try_from(index).ok().and_then(|index| strings.get(index)) {
            Some(text) => Ok(text.clone()),
            None if index == 0 => Ok(Text::default()),
            None => Err(DecodeError::Inconsistent("a string index is out of range")),
        }
    };
    let value_type = |value: &wire::ValueType| -> Result<ValueType, DecodeError> {
        Ok(ValueType {
            kind: text(value.kind)?,
            unit: text(value.unit)?,
        })
    };
    if message.sample_type.is_empty() {
        return Err(DecodeError::Inconsistent(
            "not a pprof profile: it names no sample types",
        ));
    }

    let mapping_ids = ids(
        message.mapping.iter().map(|mapping| mapping.id),
        "mapping ids are not unique",
    )?;
    let function_ids = ids(
        message.function.iter().map(|function| function.id),
        "function ids are not unique",
    )?;
    let location_ids = ids(
        message.location.iter().map(|location| location.id),
        "location ids are not unique",
    )?;

    // A remark that is made again says nothing more.
    let mut seen = HashSet::new();
    let mut comments = std::mem::take(&mut message.comment);
    comments.retain(|index| seen.insert(*index));

    let mut profile = Profile {
        sample_types: message.sample_type.iter().map(value_type).collect::<Result<_, _>>()?,
        default_sample_type: text(message.default_sample_type)?.to_string(),
        period_type: message
            .period_type
            .as_ref()
            .map(value_type)
            .transpose()?
            .unwrap_or_default(),
        period: message.period,
        time_nanos: message.time_nanos,
        duration_nanos: message.duration_nanos,
        comments: comments
            .into_iter()
            .map(|index| Ok(text(index)?.to_string()))
            .collect::<Result<_, DecodeError>>()?,
        drop_frames: text(message.drop_frames)?.to_string(),
        keep_frames: text(message.keep_frames)?.to_string(),
        doc_url: text(message.doc_url)?.to_string(),
        ..Profile::default()
    };
    profile.metadata = take_metadata(&mut profile.comments);
    for mapping in &message.mapping {
        profile.mappings.push(Mapping {
            start: mapping.memory_start,
            limit: mapping.memory_limit,
            offset: mapping.file_offset,
            file: text(mapping.filename)?,
            build_id: text(mapping.build_id)?,
            has_functions: mapping.has_functions,
            has_filenames: mapping.has_filenames,
            has_line_numbers: mapping.has_line_numbers,
            has_inline_frames: mapping.has_inline_frames,
        });
    }
    for function in &message.function {
        profile.functions.push(Function {
            name: text(function.name)?,
            system_name: text(function.system_name)?,
            file: text(function.filename)?,
            start_line: function.start_line,
        });
    }
    for location in &message.location {
        profile
            .locations
            .push(decode_location(location, &mapping_ids, &function_ids)?);
    }
    for sample in &message.sample {
        if sample.value.len() != message.sample_type.len() {
            return Err(DecodeError::Inconsistent(
                "a sample does not have one value per sample type",
            ));
        }
        profile.samples.push(decode_sample(sample, &location_ids, &text)?);
    }
    Ok(profile)
}

/// Ids to positions. Id 0 is reserved for "none".
fn ids(ids: impl Iterator<Item = u64>, error: &'static str) -> Result<HashMap<u64, u32>, DecodeError> {
    let mut positions = HashMap::new();
    for (position, id) in (0u32..).zip(ids) {
        if id == 0 || positions.insert(id, position).is_some() {
            return Err(DecodeError::Inconsistent(error));
        }
    }
    Ok(positions)
}

fn decode_location(
    location: &wire::Location,
    mappings: &HashMap<u64, u32>,
    functions: &HashMap<u64, u32>,
) -> Result<Location, DecodeError> {
    let mapping = match location.mapping_id {
        0 => None,
        id => Some(
            mappings
                .get(&id)
                .map(|id| MappingId(*id))
                .ok_or(DecodeError::Inconsistent("a mapping id is unknown"))?,
        ),
    };
    let lines = location
        .line
        .iter()
        .map(|line| {
            let function = *functions
                .get(&line.function_id)
                .ok_or(DecodeError::Inconsistent("a function id is unknown"))?;
            Ok(Line {
                function: FunctionId(function),
                line: line.line,
                column: line.column,
            })
        })
        .collect::<Result<_, DecodeError>>()?;
    Ok(Location {
        mapping,
        address: location.address,
        lines,
        is_folded: location.is_folded,
    })
}

fn decode_sample(
    sample: &wire::Sample,
    locations: &HashMap<u64, u32>,
    text: &impl Fn(i64) -> Result<Text, DecodeError>,
) -> Result<Sample, DecodeError> {
    let mut decoded = Sample {
        values: sample.value.clone(),
        ..Sample::default()
    };
    for id in &sample.location_id {
        let position = locations
            .get(id)
            .ok_or(DecodeError::Inconsistent("a location id is unknown"))?;
        decoded.locations.push(LocationId(*position));
    }
    for label in &sample.label {
        let (key, value, unit) = (text(label.key)?, text(label.str)?, text(label.num_unit)?);
        if !value.is_empty() {
            // Profiles of earlier releases compare with those of this one.
            let renamed = (key == HeapKind::LABEL).then(|| HeapKind::parse(&value)).flatten();
            decoded
                .labels
                .push(renamed.map_or(TextLabel { key, value }, TextLabel::heap));
        } else if label.num != 0 || !unit.is_empty() {
            decoded.numbers.push(NumericLabel {
                key,
                value: label.num,
                unit,
            });
        }
    }
    decoded.labels.sort();
    decoded.numbers.sort();
    Ok(decoded)
}

#[cfg(test)]
pub(crate) mod tests;
