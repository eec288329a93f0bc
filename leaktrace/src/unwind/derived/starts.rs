//! Where functions begin in code without call-frame information: by symbols, by calls, by addresses that are taken.
//!
//! Invariant: no more than [`MAX_SWEPT`] bytes of code and [`MAX_WORDS`] words of data are read for that, and no more than
//! [`MAX_SYMBOLS`] symbols.

use std::collections::HashSet;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use object::{Object, ObjectSegment, ObjectSymbol, ReadRef, RelocationTarget, SegmentFlags, SymbolKind, elf};

use super::super::sections::MAX_SEGMENTS;
use super::walk::is_padding;

/// Most code that is searched for calls into what is analysed.
const MAX_SWEPT: u64 = 32 << 20;
/// Most words of writable data that are searched for addresses.
const MAX_WORDS: usize = 1 << 20;
/// Most places that are noted of each kind.
const MAX_NOTED: usize = 1 << 18;
/// Most symbols and relocations that are searched, of each table.
const MAX_SYMBOLS: usize = 1 << 20;

/// Where functions begin.
#[derive(Default)]
pub(super) struct Starts {
    /// For certain: something calls it, or names it.
    pub known: Vec<u64>,
    /// Where an address is taken of code that control does not run into from before.
    pub likely: Vec<u64>,
}

/// Searches a file, in vain if there is more than is noted. `analysed` is the code that is asked about, sorted; `text` all
/// code.
pub(super) fn find<'data, R: ReadRef<'data>>(
    file: &object::File<'data, R>,
    analysed: &[(u64, &'data [u8])],
    text: &[Range<u64>],
) -> Option<Starts> {
    let mut sweep = Sweep {
        analysed,
        known: symbols(file, analysed),
        taken: data(file, analysed).into_iter().collect(),
        behind_ends: HashSet::new(),
    };
    let known: Vec<u64> = sweep.known.iter().copied().collect();
    for (start, bytes) in analysed {
        sweep.linear(*start, bytes, &known, true);
    }
    let mut left = MAX_SWEPT;
    for segment in file.segments().take(MAX_SEGMENTS) {
        let is_text = text.iter().any(|range| range.contains(&segment.address()));
        let (_, in_file) = segment.file_range();
        if is_text && in_file <= left {
            left -= in_file;
            if let Ok(bytes) = segment.data() {
                sweep.linear(segment.address(), bytes, &[], false);
            }
        }
    }
    if sweep.is_full() {
        return None;
    }
    let mut known: Vec<u64> = sweep.known.iter().copied().collect();
    known.sort_unstable();
    let is_likely = |at: &&u64| sweep.behind_ends.contains(at) && !sweep.known.contains(at);
    let mut likely: Vec<u64> = sweep.taken.iter().filter(is_likely).copied().collect();
    likely.sort_unstable();
    Some(Starts { known, likely })
}

/// Whether an address lies in one of these pieces of code, which are sorted.
pub(super) fn piece<'a>(pieces: &[(u64, &'a [u8])], at: u64) -> Option<(u64, &'a [u8])> {
    let index = pieces.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
    let (start, bytes) = *pieces.get(index)?;
    (at - start < bytes.len() as u64).then_some((start, bytes))
}

struct Sweep<'a> {
    analysed: &'a [(u64, &'a [u8])],
    known: HashSet<u64>,
    taken: HashSet<u64>,
    /// Instructions that the one before does not run into, or only if a call returns.
    behind_ends: HashSet<u64>,
}

impl Sweep<'_> {
    fn is_analysed(&self, at: u64) -> bool {
        piece(self.analysed, at).is_some()
    }

    /// All instructions one behind the other, anew at each of `resume`.
    fn linear(&mut self, start: u64, bytes: &[u8], resume: &[u64], own: bool) {
        let mut cuts: Vec<u64> = resume
            .iter()
            .copied()
            .filter(|at| *at > start && at - start < bytes.len() as u64)
            .collect();
        cuts.sort_unstable();
        cuts.push(start.saturating_add(bytes.len() as u64));
        let mut from = start;
        let mut ended = true;
        for to in cuts {
            let part = bytes
                .get((from - start) as usize..(to - start) as usize)
                .unwrap_or_default();
            let mut decoder = Decoder::with_ip(64, part, from, DecoderOptions::NONE);
            let mut instruction = Instruction::default();
            while decoder.can_decode() && !self.is_full() {
                decoder.decode_out(&mut instruction);
                self.note(&instruction);
                if own {
                    if ended {
                        self.behind_ends.insert(instruction.ip());
                    }
                    ended = (ended && is_padding(&instruction)) || ends(&instruction);
                }
            }
            from = to;
        }
    }

    fn is_full(&self) -> bool {
        let most = self.known.len().max(self.taken.len()).max(self.behind_ends.len());
        most > MAX_NOTED
    }

    fn note(&mut self, instruction: &Instruction) {
        for operand in 0..instruction.op_count() {
            match instruction.op_kind(operand) {
                OpKind::NearBranch64 if instruction.mnemonic() == Mnemonic::Call => {
                    let target = instruction.near_branch_target();
                    if target != instruction.next_ip() && self.is_analysed(target) {
                        self.known.insert(target);
                    }
                }
                OpKind::Memory if instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() => {
                    let target = instruction.ip_rel_memory_address();
                    if self.is_analysed(target) {
                        self.taken.insert(target);
                    }
                }
                OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                    let value = instruction.immediate(operand);
                    if self.is_analysed(value) {
                        self.taken.insert(value);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether control does not run on behind an instruction, or does not have to.
fn ends(instruction: &Instruction) -> bool {
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
            instruction.mnemonic() == Mnemonic::Hlt
        }
        FlowControl::Call => instruction.mnemonic() == Mnemonic::Call || instruction.mnemonic() == Mnemonic::Syscall,
        _ => true,
    }
}

/// Functions with a name.
fn symbols<'data, R: ReadRef<'data>>(file: &object::File<'data, R>, analysed: &[(u64, &[u8])]) -> HashSet<u64> {
    let tables = file
        .dynamic_symbols()
        .take(MAX_SYMBOLS)
        .chain(file.symbols().take(MAX_SYMBOLS));
    let functions = tables.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    let addresses = functions.map(|symbol| symbol.address());
    addresses.filter(|at| piece(analysed, *at).is_some()).collect()
}

/// Addresses of code in writable data, and those that the dynamic linker will put there.
fn data<'data, R: ReadRef<'data>>(file: &object::File<'data, R>, analysed: &[(u64, &[u8])]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut left = MAX_WORDS;
    for segment in file.segments().take(MAX_SEGMENTS) {
        let writable = matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags & elf::PF_W == elf::PF_W);
        let (_, in_file) = segment.file_range();
        if !writable || in_file / 8 > left as u64 {
            continue;
        }
        let bytes = segment.data().unwrap_or_default();
        left -= bytes.len() / 8;
        let skipped = (segment.address().wrapping_neg() & 7) as usize;
        let (words, _) = bytes.get(skipped..).unwrap_or_default().as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        found.extend(words.filter(|at| piece(analysed, *at).is_some()));
    }
    for (_, relocation) in file.dynamic_relocations().into_iter().flatten().take(MAX_SYMBOLS) {
        if relocation.target() == RelocationTarget::Absolute && piece(analysed, relocation.addend() as u64).is_some() {
            found.push(relocation.addend() as u64);
        }
    }
    found
}
