//! Field offsets from a Go binary's own debug information, for releases that the built-in table does not fit.
//!
//! Looks at no more than the structures that [`Layout`] names. Sections are read by position, decompressed up to a
//! limit, and every walk is bounded, as the file belongs to the target.

use std::io::Read;

use gimli::{AttributeValue, DebugInfoOffset, DwAt, EndianArcSlice, LittleEndian, SectionId, UnitSectionOffset};
use hashbrown::HashMap;

use super::executable::Executable;
use super::offsets::{Field, FieldMap, Layout};
use crate::runtime::go::memory::word;

type Reader = EndianArcSlice<LittleEndian>;
type Dwarf = gimli::Dwarf<Reader>;
type Unit = gimli::Unit<Reader>;
type Entry = gimli::DebuggingInformationEntry<Reader>;

/// Most bytes of one section, decompressed.
const MAX_SECTION: u64 = 512 << 20;
/// Most entries that are looked at in all.
const MAX_ENTRIES: usize = 50_000_000;
/// Typedefs and qualifiers around a structure.
const MAX_WRAPPING: usize = 8;
/// Longest path of members.
const MAX_PATH: usize = 4;
const ELF_COMPRESS_ZLIB: u64 = 1;

/// The layout that the debug information states; `None` without debug information, or if it lacks a field.
pub fn layout(executable: &Executable) -> Option<Layout> {
    Layout::from_map(&fields(executable)?).ok()
}

/// All fields of [`Layout::FIELDS`] that the debug information has.
pub fn fields(executable: &Executable) -> Option<FieldMap> {
    let load = |id: SectionId| -> Result<Reader, gimli::Error> {
        let bytes = section(executable, id.name()).unwrap_or_default();
        Ok(Reader::new(bytes.into(), LittleEndian))
    };
    let debug = Debug::new(Dwarf::load(load).ok()?)?;
    let types = debug.find_types();
    let mut map = FieldMap::new();
    for &key in Layout::FIELDS {
        let Some((structure, path)) = key.split_once('.') else {
            continue;
        };
        let Some(&at) = types.get(structure) else { continue };
        if let Some(field) = debug.field(at, path) {
            map.insert(key.to_owned(), field);
        }
    }
    Some(map)
}

fn section(executable: &Executable, name: &str) -> Option<Vec<u8>> {
    let section = executable.section(name).filter(|section| section.len <= MAX_SECTION)?;
    let bytes = executable.file_bytes(section.offset, section.len)?;
    if !section.compressed {
        return Some(bytes);
    }
    if word(&bytes, 0) & 0xffff_ffff != ELF_COMPRESS_ZLIB {
        return None;
    }
    let mut out = Vec::new();
    flate2::read::ZlibDecoder::new(bytes.get(24..)?)
        .take(MAX_SECTION)
        .read_to_end(&mut out)
        .ok()?;
    Some(out)
}

struct Debug {
    dwarf: Dwarf,
    /// By begin.
    units: Vec<(usize, Unit)>,
}

impl Debug {
    fn new(dwarf: Dwarf) -> Option<Self> {
        let mut units = Vec::new();
        let mut headers = dwarf.units();
        while let Ok(Some(header)) = headers.next() {
            let Some(DebugInfoOffset(start)) = header.debug_info_offset() else {
                continue;
            };
            units.push((start, dwarf.unit(header).ok()?));
        }
        (!units.is_empty()).then_some(Self { dwarf, units })
    }

    fn name(&self, unit: &Unit, entry: &Entry) -> Option<String> {
        let value = entry.attr_value(gimli::DW_AT_name)?;
        let text = self.dwarf.attr_string(unit, value).ok()?;
        Some(gimli::Reader::to_string_lossy(&text).ok()?.into_owned())
    }

    /// Where the structures are described that fields are wanted of.
    fn find_types(&self) -> HashMap<String, usize> {
        let mut wanted: Vec<&str> = Layout::FIELDS
            .iter()
            .filter_map(|key| Some(key.split_once('.')?.0))
            .collect();
        wanted.dedup();
        let mut found = HashMap::new();
        let mut budget = MAX_ENTRIES;
        for (start, unit) in &self.units {
            let mut entries = unit.entries();
            while let Ok(Some(entry)) = entries.next_dfs() {
                budget = match budget.checked_sub(1) {
                    Some(left) if found.len() < wanted.len() => left,
                    _ => return found,
                };
                let variable = entry.tag() == gimli::DW_TAG_variable;
                if !variable && !matches!(entry.tag(), gimli::DW_TAG_typedef | gimli::DW_TAG_structure_type) {
                    continue;
                }
                let Some(name) = self.name(unit, entry) else { continue };
                let Some(name) = name
                    .strip_prefix("runtime.")
                    .and_then(|name| wanted.iter().find(|w| **w == name))
                else {
                    continue;
                };
                // The structure of the variable `work` has no name of its own; nothing else is found by variable.
                let at = match variable {
                    true if *name == "work" => self.reference(*start, unit, entry, gimli::DW_AT_type),
                    true => None,
                    false => Some(start + entry.offset().0),
                };
                if let Some(at) = at {
                    found.entry((*name).to_owned()).or_insert(at);
                }
            }
        }
        found
    }

    /// Offset in `.debug_info` that an attribute refers to.
    fn reference(&self, start: usize, unit: &Unit, entry: &Entry, attribute: DwAt) -> Option<usize> {
        match entry.attr_value(attribute)? {
            AttributeValue::UnitRef(offset) => match offset.to_unit_section_offset(unit) {
                UnitSectionOffset(at) => Some(at).filter(|at| *at >= start),
            },
            AttributeValue::DebugInfoRef(DebugInfoOffset(at)) => Some(at),
            _ => None,
        }
    }

    fn unit_of(&self, at: usize) -> Option<(usize, &Unit)> {
        let index = self.units.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, unit) = &self.units[index];
        Some((*start, unit))
    }

    fn entry(&self, at: usize) -> Option<(usize, &Unit, Entry)> {
        let (start, unit) = self.unit_of(at)?;
        Some((start, unit, unit.entry(gimli::UnitOffset(at - start)).ok()?))
    }

    /// The structure behind typedefs and qualifiers.
    fn structure(&self, mut at: usize) -> Option<usize> {
        for _ in 0..MAX_WRAPPING {
            let (start, unit, entry) = self.entry(at)?;
            if entry.tag() == gimli::DW_TAG_structure_type {
                return Some(at);
            }
            at = self.reference(start, unit, &entry, gimli::DW_AT_type)?;
        }
        None
    }

    fn byte_size(&self, mut at: usize) -> Option<usize> {
        for _ in 0..MAX_WRAPPING {
            let (start, unit, entry) = self.entry(at)?;
            match entry
                .attr_value(gimli::DW_AT_byte_size)
                .and_then(|value| value.udata_value())
            {
                Some(size) => return usize::try_from(size).ok(),
                // Pointers state none in some releases; typedefs never do.
                None if entry.tag() == gimli::DW_TAG_pointer_type => return Some(8),
                None => at = self.reference(start, unit, &entry, gimli::DW_AT_type)?,
            }
        }
        None
    }

    /// Offset and size of `sched.sp` and the like; `size` is the structure's own.
    fn field(&self, at: usize, path: &str) -> Option<Field> {
        let mut at = self.structure(at)?;
        if path == "size" {
            return Some(Field {
                offset: self.byte_size(at)?,
                size: 8,
            });
        }
        let mut field = Field { offset: 0, size: 8 };
        for name in path.split('.').take(MAX_PATH) {
            let (offset, kind) = self.member(self.structure(at)?, name)?;
            field = Field {
                offset: field.offset.checked_add(offset)?,
                size: self.byte_size(kind).unwrap_or(8),
            };
            at = kind;
        }
        Some(field)
    }

    fn member(&self, at: usize, wanted: &str) -> Option<(usize, usize)> {
        const MAX_MEMBERS: usize = 4096;
        let (start, unit) = self.unit_of(at)?;
        let mut tree = unit.entries_tree(Some(gimli::UnitOffset(at - start))).ok()?;
        let mut members = tree.root().ok()?.children();
        for _ in 0..MAX_MEMBERS {
            let node = members.next().ok()??;
            let entry = node.entry();
            if entry.tag() == gimli::DW_TAG_member && self.name(unit, entry).as_deref() == Some(wanted) {
                let offset = entry.attr_value(gimli::DW_AT_data_member_location)?.udata_value()?;
                let kind = self.reference(start, unit, entry, gimli::DW_AT_type)?;
                return Some((usize::try_from(offset).ok()?, kind));
            }
        }
        None
    }
}
