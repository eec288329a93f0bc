//! The code of one file as functions that refer to each other and to the file's own variables.
//!
//! Knows which function calls what and touches which variable, by decoding; not what an allocator is. Invariant: work and
//! memory are bounded by [`MAX_TEXT`], [`MAX_FUNCTIONS`] and [`MAX_REACHED`], and a file beyond one of them is an error, not
//! half an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::allocator::partial::names::is_own;
use crate::model::ElfAddress;
use crate::object::code::{Callee, CodeReader, Target};
use crate::object::image::{ElfImage, Kind, SlotTarget};
use crate::object::symbols::{for_each_object, for_each_symbol};

/// Most code that is searched: half a second of decoding.
const MAX_TEXT: u64 = 96 << 20;
/// Most functions and variables of a file, each.
const MAX_FUNCTIONS: usize = 2 << 20;
/// Most functions behind the entry points of an allocator.
const MAX_REACHED: usize = 256;
/// Longest function among those, in bytes.
const MAX_BODY: u64 = 1 << 18;
/// Most places that refer to what is asked for.
const MAX_USES: usize = 1 << 18;
/// Where the stack protector's value is, behind the thread pointer.
const STACK_PROTECTOR: u64 = 0x28;

/// A function, or a part of one that the compiler split off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    /// Its first byte.
    pub start: u64,
    /// Behind its last, and what pads it.
    pub end: u64,
    /// It has a name, and belongs neither to Rust's library nor to another language.
    own: bool,
}

/// What an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// Jumps there, or calls it.
    Code(u64),
    /// Takes this address.
    Address(u64),
    /// Reads or writes there.
    Data(u64),
    /// A variable of the thread at this distance from the thread pointer; `None` if it is not known at which.
    Thread(Option<u64>),
}

/// One place that refers to something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    /// The function that it is in.
    pub by: Function,
    /// To what.
    pub of: Reference,
}

/// What some functions reach.
#[derive(Clone, Debug, Default)]
pub(super) struct Reached {
    /// The functions themselves and those that they call, by address.
    pub functions: BTreeSet<u64>,
    /// Variables that these name, as ranges of addresses.
    pub variables: BTreeSet<(u64, u64)>,
    /// Variables of the thread.
    pub of_thread: BTreeSet<u64>,
    /// There are others of the thread.
    pub of_thread_unknown: bool,
}

impl Reached {
    /// Whether they touch anything that stays.
    pub fn touches(&self) -> bool {
        !self.variables.is_empty() || !self.of_thread.is_empty() || self.of_thread_unknown
    }
}

/// The decoded file.
pub(super) struct Code<'a> {
    image: &'a ElfImage,
    segments: Vec<(u64, Vec<u8>)>,
    functions: Vec<Function>,
    /// Variables with a name: first address, size, is the allocator's own.
    variables: Vec<(u64, u64, bool)>,
    writable: Vec<Range<u64>>,
    slots: Vec<Range<u64>>,
    resolved: HashMap<u64, Option<u64>>,
}

impl<'a> Code<'a> {
    /// Reads code and symbols. The functions at `roots` count as own whatever they are called.
    ///
    /// # Errors
    /// There is more of them than is searched.
    pub fn read(image: &'a ElfImage, roots: &BTreeSet<u64>) -> Result<Self, String> {
        let executable = || image.segments().iter().filter(|segment| segment.executable);
        let size = executable().fold(0u64, |size, segment| size.saturating_add(segment.file_size));
        if size > MAX_TEXT {
            return Err(format!("its code of {} MiB is too large to search", size >> 20));
        }
        let mut segments = Vec::new();
        for segment in executable() {
            let bytes = image.read(segment.offset, segment.file_size, MAX_TEXT, "code");
            segments.push((
                segment.address.0,
                bytes.map_err(|error| format!("failed to read its code: {error}"))?,
            ));
        }
        let sections = |wanted: fn(&str) -> bool| -> Vec<Range<u64>> {
            let sections = image.sections().iter();
            let sections = sections.filter(|section| section.allocated && wanted(&section.name));
            sections
                .map(|section| section.address.0..section.address.0.saturating_add(section.size))
                .collect()
        };
        Ok(Self {
            image,
            functions: functions(image, &segments, roots)?,
            segments,
            variables: variables(image)?,
            writable: sections(is_writable),
            slots: sections(|name| name == ".got" || name == ".got.plt"),
            resolved: HashMap::new(),
        })
    }

    /// The image.
    pub fn image(&self) -> &'a ElfImage {
        self.image
    }

    /// The function that begins at an address.
    pub fn function(&self, start: u64) -> Option<Function> {
        let index = self
            .functions
            .binary_search_by_key(&start, |function| function.start)
            .ok()?;
        Some(self.functions[index])
    }

    /// Whether a function of the program's own crates, which has a name, begins there.
    pub fn is_own(&self, start: u64) -> bool {
        self.function(start).is_some_and(|function| function.own)
    }

    /// The variable of the file that an address belongs to; one without a name is taken to be a word long. `None` if it
    /// is nobody's, constant, or one of Rust's library.
    pub fn variable(&self, address: u64) -> Option<(u64, u64)> {
        if !self.writable.iter().any(|range| range.contains(&address)) {
            return None;
        }
        let next = self.variables.partition_point(|(start, _, _)| *start <= address);
        match next.checked_sub(1).map(|index| self.variables[index]) {
            Some((start, size, own)) if address - start < size => own.then_some((start, start + size)),
            _ => Some((address, address.saturating_add(8))),
        }
    }

    /// All instructions of a function, in order of address.
    pub fn instructions(&self, function: Function) -> impl Iterator<Item = Instruction> {
        let part = self.segments.iter().find_map(|(base, bytes)| {
            let first = usize::try_from(function.start.checked_sub(*base)?).ok()?;
            let last = usize::try_from(function.end - base).ok()?.min(bytes.len());
            bytes.get(first..last)
        });
        let mut decoder = Decoder::with_ip(64, part.unwrap_or(&[]), function.start, DecoderOptions::NONE);
        std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
    }

    /// What one instruction refers to.
    pub fn references(&mut self, instruction: &Instruction) -> Vec<Reference> {
        let mut found = Vec::new();
        let flow = instruction.flow_control();
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::NearBranch64 => found.push(Reference::Code(instruction.near_branch_target())),
                OpKind::Memory => found.extend(self.memory_reference(instruction, flow)),
                OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
                    if self.image.kind() == Kind::Fixed =>
                {
                    found.push(Reference::Address(instruction.immediate(operand)));
                }
                _ => {}
            }
        }
        found
    }

    fn memory_reference(&mut self, instruction: &Instruction, flow: FlowControl) -> Option<Reference> {
        let displacement = instruction.memory_displacement64();
        let alone = instruction.memory_base() == Register::None && instruction.memory_index() == Register::None;
        if matches!(instruction.segment_prefix(), Register::FS | Register::GS) {
            return match displacement {
                STACK_PROTECTOR if alone => None,
                0 => Some(Reference::Thread(None)),
                distance if alone => Some(Reference::Thread(Some(distance))),
                _ => Some(Reference::Thread(None)),
            };
        }
        let fixed = self.image.kind() == Kind::Fixed;
        if !instruction.is_ip_rel_memory_operand() && !alone && !fixed {
            return None;
        }
        if instruction.mnemonic() == Mnemonic::Lea {
            return Some(Reference::Address(displacement));
        }
        if self.slots.iter().any(|range| range.contains(&displacement)) {
            let target = self.slot(displacement)?;
            return Some(match flow {
                FlowControl::IndirectCall | FlowControl::IndirectBranch => Reference::Code(target),
                _ => Reference::Address(target),
            });
        }
        Some(Reference::Data(displacement))
    }

    /// The address in this file that a slot of the linkage table holds.
    fn slot(&mut self, slot: u64) -> Option<u64> {
        if let Some(known) = self.resolved.get(&slot) {
            return *known;
        }
        let target = match self.image.slot_target(ElfAddress(slot)) {
            SlotTarget::Local(address) => Some(address.0),
            SlotTarget::Symbol(_) | SlotTarget::Unknown => None,
        };
        self.resolved.insert(slot, target);
        target
    }

    /// What these functions reach by direct calls, through functions of the program's own crates.
    ///
    /// # Errors
    /// It is more than is followed.
    pub fn reach(&mut self, roots: &BTreeSet<u64>) -> Result<Reached, String> {
        let mut reached = Reached {
            functions: roots.clone(),
            ..Reached::default()
        };
        let mut pending: Vec<u64> = roots.iter().copied().collect();
        while let Some(start) = pending.pop() {
            let Some(function) = self.function(start).filter(|f| f.end - f.start <= MAX_BODY) else {
                return Err("a function behind them cannot be followed".into());
            };
            for instruction in self.instructions(function).collect::<Vec<_>>() {
                for reference in self.references(&instruction) {
                    match reference {
                        Reference::Code(target) if self.is_own(target) => {
                            if reached.functions.insert(target) {
                                pending.push(target);
                            }
                        }
                        Reference::Code(target) if self.is_thread_lookup(target) => reached.of_thread_unknown = true,
                        Reference::Code(_) => {}
                        Reference::Address(address) | Reference::Data(address) => {
                            reached.variables.extend(self.variable(address));
                        }
                        Reference::Thread(Some(distance)) => {
                            reached.of_thread.insert(distance);
                        }
                        Reference::Thread(None) => reached.of_thread_unknown = true,
                    }
                }
            }
            if reached.functions.len() > MAX_REACHED {
                return Err("too much code stands behind them to be followed".into());
            }
        }
        Ok(reached)
    }

    /// Whether a linkage stub leads to the function that finds a library's thread variables.
    fn is_thread_lookup(&self, target: u64) -> bool {
        if self.function(target).is_some_and(|function| function.own) {
            return false;
        }
        let callee = CodeReader::new(self.image).callee(Target::Address(ElfAddress(target)));
        matches!(callee, Callee::Symbol(name) if name == b"__tls_get_addr")
    }

    /// Every place in the file that refers to one of these functions or variables.
    ///
    /// # Errors
    /// There are more than are noted.
    pub fn uses(&mut self, wanted: &Reached) -> Result<Vec<Use>, String> {
        let functions: HashSet<u64> = wanted.functions.iter().copied().collect();
        let variables: BTreeMap<u64, u64> = wanted.variables.iter().copied().collect();
        let of_variable = |address: u64| {
            let before = variables.range(..=address).next_back();
            before.is_some_and(|(_, end)| address < *end)
        };
        let mut uses = Vec::new();
        for index in 0..self.functions.len() {
            let by = self.functions[index];
            let part = self.segments.iter().position(|(base, bytes)| {
                by.start
                    .checked_sub(*base)
                    .is_some_and(|distance| distance < bytes.len() as u64)
            });
            let Some((base, bytes)) = part.map(|part| std::mem::take(&mut self.segments[part])) else {
                continue;
            };
            let code = &bytes[(by.start - base) as usize..((by.end - base) as usize).min(bytes.len())];
            let mut decoder = Decoder::with_ip(64, code, by.start, DecoderOptions::NONE);
            let mut instruction = Instruction::default();
            while decoder.can_decode() {
                decoder.decode_out(&mut instruction);
                if instruction.op_count() == 0 {
                    continue;
                }
                for of in self.references(&instruction) {
                    let hit = match of {
                        Reference::Code(target) => functions.contains(&target),
                        Reference::Address(address) => functions.contains(&address) || of_variable(address),
                        Reference::Data(address) => of_variable(address),
                        Reference::Thread(Some(distance)) => wanted.of_thread.contains(&distance),
                        Reference::Thread(None) => false,
                    };
                    if hit {
                        uses.push(Use { by, of });
                    }
                }
            }
            if let Some(part) = part {
                self.segments[part] = (base, bytes);
            }
            if uses.len() > MAX_USES {
                return Err("too many places refer to what stands behind them".into());
            }
        }
        Ok(uses)
    }
}

/// Sections of variables. Those of the loader, and constants that it relocates, are none.
fn is_writable(name: &str) -> bool {
    let part = |section: &str| {
        name.strip_prefix(section)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    (part(".data") && !name.starts_with(".data.rel.ro")) || [".bss", ".ldata", ".lbss"].into_iter().any(part)
}

/// Where functions begin, by symbols and by the unwind table's index.
fn functions(image: &ElfImage, segments: &[(u64, Vec<u8>)], roots: &BTreeSet<u64>) -> Result<Vec<Function>, String> {
    let mut starts: BTreeMap<u64, Option<bool>> = BTreeMap::new();
    let mut full = false;
    for_each_symbol(image, |_, symbol| {
        if symbol.size == 0 || !image.is_code(symbol.address) {
            return;
        }
        full |= starts.len() >= MAX_FUNCTIONS;
        if !full {
            let own = is_own(symbol.name);
            let known = starts.entry(symbol.address.0).or_default();
            // Identical code may have been folded: it is own if it is so by all names.
            *known = Some(known.unwrap_or(true) && own);
        }
    });
    if full || image.function_starts().len() > MAX_FUNCTIONS {
        return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
    }
    for start in image.function_starts() {
        starts.entry(*start).or_default();
    }
    let mut functions = Vec::with_capacity(starts.len());
    let mut starts = starts.into_iter().peekable();
    while let Some((start, named)) = starts.next() {
        let segment = segments
            .iter()
            .map(|(base, bytes)| *base..base.saturating_add(bytes.len() as u64))
            .find(|range| range.contains(&start));
        let Some(segment) = segment else { continue };
        let next = starts.peek().map_or(u64::MAX, |(next, _)| *next);
        functions.push(Function {
            start,
            end: next.min(segment.end),
            own: named == Some(true) || roots.contains(&start),
        });
    }
    Ok(functions)
}

/// Variables with a name, by address.
fn variables(image: &ElfImage) -> Result<Vec<(u64, u64, bool)>, String> {
    let mut variables = Vec::new();
    let mut full = false;
    for_each_object(image, |symbol| {
        full |= variables.len() >= MAX_FUNCTIONS;
        if !full && symbol.size > 0 && symbol.address.0.checked_add(symbol.size).is_some() {
            let own = is_own(symbol.name) || !symbol.name.starts_with(b"_");
            variables.push((symbol.address.0, symbol.size, own));
        }
    });
    if full {
        return Err(format!("it has more than {MAX_FUNCTIONS} variables"));
    }
    variables.sort_unstable();
    Ok(variables)
}
