//! The functions of a program without symbols: who calls whom, and which strings, addresses and constants each refers to.
//!
//! Functions begin where the entries of `.eh_frame` do, which stripping leaves; where a library has none (musl), where calls
//! lead. A part that the compiler split off is reached by jumps alone, and belongs to who jumps there.
//! Invariant: no more than [`MAX_TEXT`] bytes of code and [`MAX_DATA`] of data are searched, for no more than
//! [`MAX_FUNCTIONS`] functions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::Found;
use crate::model::ElfAddress;
use crate::object::image::{ElfImage, Segment};

/// Most code that is searched.
const MAX_TEXT: u64 = 32 << 20;
/// Most data that is searched for strings.
const MAX_DATA: u64 = 64 << 20;
/// Largest `.eh_frame`.
const MAX_FRAMES: u64 = 16 << 20;
/// Most functions.
const MAX_FUNCTIONS: usize = 1 << 18;
/// Most places at which a string is found.
const MAX_PLACES: usize = 256;
/// Most functions that a question follows.
const MAX_FOLLOWED: usize = 4096;
/// Most calls, and most jumps, between functions.
const MAX_JUMPS: usize = 1 << 20;
/// Longest name or table that is searched for.
const MAX_NEEDLE: usize = 128;

/// One function.
#[derive(Debug, Default)]
pub(super) struct Function {
    /// Behind its last byte.
    pub end: u64,
    /// Where the functions begin that it calls, or jumps to at its end.
    pub callees: BTreeSet<u64>,
    /// Which places it refers to, by the numbers that they were given, and which constants.
    pub refers: BTreeSet<usize>,
    /// It multiplies two registers, as for the size of an array.
    pub multiplies: bool,
}

/// All functions of a program, by the address of their first instruction.
#[derive(Debug, Default)]
pub(super) struct Graph {
    functions: BTreeMap<u64, Function>,
    callers: BTreeMap<u64, BTreeSet<u64>>,
    /// Those that are reached by jumps of others alone.
    parts: BTreeSet<u64>,
}

/// What is looked for.
pub(super) struct Search<'a> {
    /// Addresses, and the number of each.
    pub places: &'a BTreeMap<u64, usize>,
    /// Constants, and the number of each.
    pub constants: &'a [(u64, usize)],
    /// Functions begin where calls lead, too.
    pub by_calls: bool,
}

impl Graph {
    /// Searches a program.
    ///
    /// # Errors
    /// Why nothing can be said of it.
    pub fn read(image: &ElfImage, search: &Search<'_>) -> Result<Self, String> {
        let code = read(image, |segment| segment.executable, MAX_TEXT, "code")?;
        let mut functions = boundaries(image, &code, search.by_calls)?;
        let mut jumps: Vec<(u64, u64)> = Vec::new();
        let mut called: BTreeSet<u64> = BTreeSet::new();
        let mut calls = 0;
        for (base, bytes) in &code {
            let inside = functions.range_mut(*base..base.saturating_add(bytes.len() as u64));
            for (start, function) in inside {
                let mut first = true;
                for instruction in instructions(*base, bytes, *start..function.end) {
                    let is_first = first;
                    first &= instruction.mnemonic() == Mnemonic::Endbr64;
                    let multiplies = matches!(instruction.mnemonic(), Mnemonic::Mul | Mnemonic::Imul);
                    function.multiplies |= multiplies && instruction.op0_kind() == OpKind::Register;
                    for value in values(&instruction) {
                        function.refers.extend(search.places.get(&value));
                        let constants = search.constants.iter().filter(|(constant, _)| *constant == value);
                        function.refers.extend(constants.map(|(_, number)| *number));
                    }
                    let Some(target) = target(&instruction) else { continue };
                    if instruction.mnemonic() == Mnemonic::Call {
                        called.insert(target);
                        calls += usize::from(function.callees.insert(target));
                    } else if !(*start..function.end).contains(&target) {
                        // Nothing but a jump: another name for where it leads to.
                        if is_first && instruction.mnemonic() == Mnemonic::Jmp {
                            called.insert(target);
                        }
                        jumps.push((*start, target));
                    }
                    if jumps.len().max(calls) > MAX_JUMPS {
                        return Err(format!("its functions have more than {MAX_JUMPS} calls"));
                    }
                }
            }
        }
        let mut graph = Self {
            functions,
            ..Self::default()
        };
        graph.join(&jumps, &called)?;
        Ok(graph)
    }

    /// Jumps to functions that are called are calls, made last; all others lead to parts of who jumps.
    fn join(&mut self, jumps: &[(u64, u64)], called: &BTreeSet<u64>) -> Result<(), String> {
        let mut parts: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (from, to) in jumps {
            let Some((part, _)) = self.functions.range(..=*to).next_back() else {
                continue;
            };
            if !called.contains(part) {
                parts.entry(*from).or_default().insert(*part);
            } else if part == to
                && let Some(function) = self.functions.get_mut(from)
            {
                function.callees.insert(*to);
            }
        }
        let mut left = MAX_JUMPS;
        let mut joined = Vec::new();
        for from in parts.keys().filter(|from| called.contains(from)) {
            let mut seen = BTreeSet::from([*from]);
            let mut pending = vec![*from];
            while let Some(at) = pending.pop() {
                let next = parts.get(&at).into_iter().flatten();
                pending.extend(next.filter(|part| seen.insert(**part)));
                left = left.checked_sub(1).ok_or("its functions are too much entangled")?;
            }
            seen.remove(from);
            self.parts.extend(&seen);
            joined.push((*from, seen));
        }
        for (from, parts) in joined {
            for part in parts {
                let Some(split) = self.functions.get(&part) else {
                    continue;
                };
                let (callees, refers, multiplies) = (split.callees.clone(), split.refers.clone(), split.multiplies);
                if let Some(function) = self.functions.get_mut(&from) {
                    function.callees.extend(callees);
                    function.callees.insert(part);
                    function.refers.extend(refers);
                    function.multiplies |= multiplies;
                }
            }
        }
        let edges = self.functions.iter();
        let edges = edges.flat_map(|(from, function)| function.callees.iter().map(|to| (*to, *from)));
        for (to, from) in edges.collect::<Vec<_>>() {
            self.callers.entry(to).or_default().insert(from);
        }
        Ok(())
    }

    /// The function that begins at an address.
    pub fn function(&self, start: u64) -> Option<&Function> {
        self.functions.get(&start)
    }

    /// Functions that refer to one of these, themselves or in a part of them.
    pub fn referring(&self, numbers: &[usize]) -> BTreeSet<u64> {
        let functions = self.functions.iter().filter(|(start, _)| !self.parts.contains(start));
        let refers = |function: &Function| numbers.iter().any(|number| function.refers.contains(number));
        functions
            .filter(|(_, function)| refers(function))
            .map(|(start, _)| *start)
            .collect()
    }

    /// Those that none of the others calls.
    pub fn outermost(&self, functions: &BTreeSet<u64>) -> BTreeSet<u64> {
        let is_called = |function: &u64| {
            let mut callers = self.callers_of(*function);
            callers.any(|caller| caller != *function && functions.contains(&caller))
        };
        functions
            .iter()
            .copied()
            .filter(|function| !is_called(function))
            .collect()
    }

    /// A function under a name.
    pub fn found(&self, name: &'static str, start: u64) -> Found {
        let size = self.function(start).map_or(0, |function| function.end - start);
        Found { name, start, size }
    }

    /// Functions that a function calls.
    pub fn callees(&self, start: u64) -> impl Iterator<Item = u64> {
        self.functions
            .get(&start)
            .into_iter()
            .flat_map(|function| function.callees.iter().copied())
            .filter(|callee| self.functions.contains_key(callee))
    }

    /// Functions that call a function.
    pub fn callers_of(&self, start: u64) -> impl Iterator<Item = u64> {
        self.callers.get(&start).into_iter().flatten().copied()
    }

    /// How many calls lead from a function to one of `wanted`, if it is at most `most`.
    pub fn distance(&self, start: u64, wanted: &BTreeSet<u64>, most: usize) -> Option<usize> {
        let mut seen = BTreeSet::from([start]);
        let mut front = vec![start];
        for distance in 0..=most {
            if front.iter().any(|function| wanted.contains(function)) {
                return Some(distance);
            }
            let next: Vec<u64> = front.iter().flat_map(|function| self.callees(*function)).collect();
            front = next.into_iter().filter(|function| seen.insert(*function)).collect();
            if seen.len() > MAX_FOLLOWED {
                return None;
            }
        }
        None
    }
}

/// The address that a jump or call leads to.
fn target(instruction: &Instruction) -> Option<u64> {
    let near = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
    near.then(|| instruction.near_branch_target())
}

/// Addresses and constants that an instruction takes.
fn values(instruction: &Instruction) -> impl Iterator<Item = u64> {
    (0..instruction.op_count()).filter_map(|operand| match instruction.op_kind(operand) {
        OpKind::Memory if instruction.is_ip_rel_memory_operand() => Some(instruction.ip_rel_memory_address()),
        OpKind::Memory if instruction.memory_base() == Register::None => Some(instruction.memory_displacement64()),
        OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(operand)),
        _ => None,
    })
}

/// The instructions of a range of a segment, one behind the other.
fn instructions(base: u64, bytes: &[u8], range: Range<u64>) -> impl Iterator<Item = Instruction> {
    let end = (range.end.saturating_sub(base) as usize).min(bytes.len());
    let part = bytes.get((range.start - base) as usize..end).unwrap_or_default();
    let mut decoder = Decoder::with_ip(64, part, range.start, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// Loadable segments with their bytes.
fn read(
    image: &ElfImage,
    wanted: fn(&Segment) -> bool,
    limit: u64,
    what: &'static str,
) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let mut left = limit;
    let mut segments = Vec::new();
    for segment in image.segments().iter().filter(|segment| wanted(segment)) {
        left = left
            .checked_sub(segment.file_size)
            .ok_or_else(|| format!("it has more than {} MiB of {what}", limit >> 20))?;
        let bytes = image.read(segment.offset, segment.file_size, limit, what);
        segments.push((segment.address.0, bytes.map_err(|error| error.to_string())?));
    }
    Ok(segments)
}

/// Where these bytes are in a program's constants, by the number of each. Strings are looked for behind a zero byte.
///
/// # Errors
/// There is more than is searched.
pub(super) fn places(image: &ElfImage, needles: &[&[u8]], strings: bool) -> Result<BTreeMap<u64, usize>, String> {
    let mut places = BTreeMap::new();
    for (base, bytes) in read(image, |segment| !segment.writable, MAX_DATA, "constant data")? {
        let mut before = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let begins = !strings || before == 0;
            before = *byte;
            if !begins || !needles.iter().any(|needle| needle.first() == Some(byte)) {
                continue;
            }
            let rest = bytes.get(at..(at + MAX_NEEDLE).min(bytes.len())).unwrap_or_default();
            let found = needles.iter().position(|needle| rest.starts_with(needle));
            if let Some(needle) = found.filter(|_| places.len() < MAX_PLACES) {
                places.insert(base + at as u64, needle);
            }
        }
    }
    Ok(places)
}

/// Where functions begin and end.
fn boundaries(image: &ElfImage, code: &[(u64, Vec<u8>)], by_calls: bool) -> Result<BTreeMap<u64, Function>, String> {
    let mut functions = match entries(image) {
        Ok(entries) => entries,
        Err(_) if by_calls => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    let mut starts = BTreeSet::new();
    if by_calls {
        for (base, bytes) in code {
            let end = base.saturating_add(bytes.len() as u64);
            let mut jumped = BTreeSet::new();
            let mut behind_ends = BTreeSet::new();
            let mut ended = true;
            for instruction in instructions(*base, bytes, *base..end) {
                if ended {
                    behind_ends.insert(instruction.ip());
                }
                let padding = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
                let jumps = instruction.mnemonic() == Mnemonic::Jmp;
                ended = jumps || instruction.mnemonic() == Mnemonic::Ret || (ended && padding);
                let Some(target) = target(&instruction) else { continue };
                if instruction.mnemonic() == Mnemonic::Call {
                    starts.insert(target);
                } else if jumps {
                    jumped.insert(target);
                }
                if starts.len() + jumped.len() > 2 * MAX_FUNCTIONS {
                    return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
                }
            }
            starts.extend(jumped.intersection(&behind_ends));
        }
    }
    for start in starts.into_iter().filter(|start| image.is_code(ElfAddress(*start))) {
        functions.entry(start).or_insert_with(|| Function {
            end: u64::MAX,
            ..Function::default()
        });
    }
    if functions.len() > MAX_FUNCTIONS {
        return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
    }
    // None reaches into the next, so that each byte is decoded once.
    let starts: Vec<u64> = functions.keys().copied().collect();
    for pair in starts.windows(2) {
        if let Some(function) = functions.get_mut(&pair[0]) {
            function.end = function.end.min(pair[1]);
        }
    }
    for (base, bytes) in code {
        let end = base.saturating_add(bytes.len() as u64);
        for (_, function) in functions.range_mut(*base..end) {
            function.end = function.end.min(end);
        }
    }
    Ok(functions)
}

/// Where functions begin and end, by the entries of `.eh_frame`.
fn entries(image: &ElfImage) -> Result<BTreeMap<u64, Function>, String> {
    let section = image.section(".eh_frame").ok_or("it has no .eh_frame")?;
    let bytes = image
        .section_bytes(section, MAX_FRAMES)
        .map_err(|error| error.to_string())?;
    let frames = EhFrame::new(&bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address.0);
    let mut entries = frames.entries(&bases);
    let mut functions = BTreeMap::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let Ok(entry) = partial.parse(|_, bases, offset| frames.cie_from_offset(bases, offset)) else {
            continue;
        };
        let start = entry.initial_address();
        let Some(end) = start.checked_add(entry.len()) else {
            continue;
        };
        if !image.is_code(ElfAddress(start)) {
            continue;
        }
        if functions.len() == MAX_FUNCTIONS {
            return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
        }
        functions.insert(
            start,
            Function {
                end,
                ..Function::default()
            },
        );
    }
    Ok(functions)
}
