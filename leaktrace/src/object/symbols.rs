//! The symbols of an image: dynamic, static, and the compressed mini symbol table of stripped files.
//!
//! Symbols are visited, not collected: tables hold millions, callers want a few. Invariant: one table of each kind is
//! read, and all names together cost a bounded amount, however they overlap.

use object::LittleEndian as LE;
use object::elf::{self, Sym64};
use object::pod::slice_from_bytes;

use crate::model::{ElfAddress, FileOffset};
use crate::object::image::{ElfImage, MAX_STRINGS, Section};
use crate::object::mini;

/// Most symbols of one table.
const MAX_SYMBOLS: u64 = 16 << 20;
/// Symbols read at once.
const CHUNK: u64 = 8192;
/// Longest name; longer ones are cut, and then are nobody's. Those of C++ templates have some kilobytes.
const MAX_NAME: usize = 16 << 10;
/// Bytes of names that are read in one table. Names may share their ends, so they may be more than the strings: linkers
/// save less than half so.
const MAX_NAMES: usize = 512 << 20;

/// Which table a symbol is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `.dynsym`: what the file exports.
    Dynamic,
    /// `.symtab`.
    Static,
    /// `.gnu_debugdata`.
    Mini,
}

/// A function (or untyped) symbol with a definition in the file.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Name as stored, without a terminating zero; any bytes.
    pub name: &'a [u8],
    /// Address.
    pub address: ElfAddress,
    /// Size in bytes, 0 if unknown.
    pub size: u64,
    /// The address is that of a resolver which returns the function (`STT_GNU_IFUNC`).
    pub indirect: bool,
}

/// Visits every defined function symbol of every table. Tables that cannot be read are passed over: returns what was wrong.
pub fn for_each_symbol(image: &ElfImage, mut visit: impl FnMut(Table, Symbol<'_>)) -> Vec<String> {
    let mut complaints = Vec::new();
    for (table, kind) in [(Table::Dynamic, elf::SHT_DYNSYM), (Table::Static, elf::SHT_SYMTAB)] {
        let mut tables = image.sections().iter().filter(|section| section.kind == kind.0);
        let Some(section) = tables.next() else { continue };
        if let Err(complaint) = visit_table(image, section, |symbol| visit(table, symbol)) {
            complaints.push(format!("{}: {complaint}", section.name));
        }
        let more = tables.count();
        if more > 0 {
            complaints.push(format!("{}: {more} more tables of its kind are not read", section.name));
        }
    }
    match mini_image(image) {
        Some(Ok(mini)) => {
            if let Some(section) = mini.sections().iter().find(|section| section.kind == elf::SHT_SYMTAB.0) {
                // Its own segments hold no bytes: addresses are checked against the outer file.
                let outcome = visit_table(&mini, section, |symbol| {
                    if image.is_code(symbol.address) {
                        visit(Table::Mini, symbol);
                    }
                });
                complaints.extend(outcome.err().map(|complaint| format!("{}: {complaint}", mini::SECTION)));
            }
        }
        Some(Err(complaint)) => complaints.push(format!("{}: {complaint}", mini::SECTION)),
        None => {}
    }
    complaints
}

fn mini_image(image: &ElfImage) -> Option<Result<ElfImage, String>> {
    let bytes = mini::unpack(image)?;
    Some(bytes.and_then(|bytes| ElfImage::new(Box::new(bytes)).map_err(|error| error.to_string())))
}

/// Visits every defined variable of the static symbol table. A table that cannot be read has none.
pub fn for_each_object(image: &ElfImage, visit: impl FnMut(Symbol<'_>)) {
    let mut sections = image.sections().iter();
    if let Some(table) = sections.find(|section| section.kind == elf::SHT_SYMTAB.0) {
        let _ = visit_kinds(image, table, &[elf::STT_OBJECT], visit);
    }
}

/// Where this file itself defines a dynamic symbol.
pub fn find_definition(image: &ElfImage, name: &[u8]) -> Option<ElfAddress> {
    let table = image
        .sections()
        .iter()
        .find(|section| section.kind == elf::SHT_DYNSYM.0)?;
    let mut found = None;
    let outcome = visit_table(image, table, |symbol| {
        if symbol.name == name && !symbol.indirect {
            found = Some(symbol.address);
        }
    });
    outcome.ok().and(found).filter(|address| image.is_code(*address))
}

/// Functions and what may be one.
fn visit_table(image: &ElfImage, table: &Section, visit: impl FnMut(Symbol<'_>)) -> Result<(), String> {
    let kinds = [elf::STT_FUNC, elf::STT_GNU_IFUNC, elf::STT_NOTYPE];
    visit_kinds(image, table, &kinds, visit)
}

fn visit_kinds(
    image: &ElfImage,
    table: &Section,
    kinds: &[elf::SymbolType],
    mut visit: impl FnMut(Symbol<'_>),
) -> Result<(), String> {
    let strings = image.sections().get(table.link as usize).ok_or("no string table")?;
    let strings = image
        .section_bytes(strings, MAX_STRINGS)
        .map_err(|error| error.to_string())?;
    let size = size_of::<Sym64<LE>>() as u64;
    let count = table.size / size;
    if count > MAX_SYMBOLS {
        return Err(format!("{count} symbols are more than {MAX_SYMBOLS}"));
    }
    let mut first = 0;
    let mut names_left = MAX_NAMES;
    while first < count {
        let chunk = CHUNK.min(count - first);
        let offset = table
            .offset
            .0
            .checked_add(first * size)
            .ok_or("position out of range")?;
        let bytes = image
            .read(FileOffset(offset), chunk * size, CHUNK * size, "symbols")
            .map_err(|e| e.to_string())?;
        let (symbols, _) = slice_from_bytes::<Sym64<LE>>(&bytes, chunk as usize).map_err(|()| "misaligned symbols")?;
        for symbol in symbols {
            let kind = symbol.st_type();
            let address = symbol.st_value.get(LE);
            if !kinds.contains(&kind) || symbol.st_shndx.get(LE).0 == 0 || address == 0 {
                continue;
            }
            let Some(rest) = strings.get(symbol.st_name.get(LE) as usize..) else {
                continue;
            };
            let rest = &rest[..rest.len().min(MAX_NAME)];
            let end = rest.iter().position(|byte| *byte == 0);
            names_left = names_left
                .checked_sub(end.unwrap_or(rest.len()))
                .ok_or_else(|| format!("its names take more than {MAX_NAMES} bytes; the rest is not searched"))?;
            let Some(end) = end else {
                continue;
            };
            visit(Symbol {
                name: &rest[..end],
                address: ElfAddress(address),
                size: symbol.st_size.get(LE),
                indirect: kind == elf::STT_GNU_IFUNC,
            });
        }
        first += chunk;
    }
    Ok(())
}
