//! How stacks pass through the code of a Go binary: what its text is, and the few functions that switch stacks.
//!
//! Reads one ELF file and nothing else, so that it works before the program runs. It states facts (ranges of addresses,
//! displacements found by decoding) and knows nothing of unwind tables. Invariant: every range lies in the text that the
//! pclntab describes, and a function that does not look as expected has no entry rather than a guessed one.
//!
//! Compiled Go keeps frame pointers, and so does `runtime.cgocallback`, whose frame pointer stays that of its frame on the
//! thread's stack: the chain leads from `cgocallbackg` on the goroutine's stack back to it. Not so at three places:
//! `asmcgocall` leaves its own stack, `crosscall2` moves its frame pointer away from its frame, and the frame pointer that
//! C code gave back to `cgocall` is an old one if the goroutine's stack moved during a callback.

use std::ops::Range;
use std::sync::Arc;

use hashbrown::HashMap;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::executable::{Executable, FileInlineData};
use super::module;
use super::offsets::{self, Layout, wrapper_function_id};
use super::pclntab::{Frame, Function, PclnTable};
use super::version::GoVersion;
use crate::runtime::go::memory::word;

/// Longest special function; `cgocall` is under 300 bytes.
const MAX_CODE: u64 = 4096;
/// Most of a writable segment that is searched for the moduledata.
const MAX_SEARCH: u64 = 256 << 20;
/// Offsets in a moduledata, the same in all releases: `funcnametab`, the length of `ftab`, `text`.
const NAMES: u64 = 8;
const FUNCTION_COUNT: u64 = 136;
const TEXT: u64 = 176;
/// Bytes of a moduledata that matter here.
const MODULE_LEN: u64 = 640;
/// Where `g.stack.hi` is.
const STACK_HI: u64 = 8;

/// Functions that are the outermost, besides those that the linker marked as such.
const OUTERMOST: [&str; 2] = ["runtime.mcall", "runtime.goexit"];
/// Functions whose callers are found by the stack pointer: the frame pointer is not theirs, or not to be relied on.
const BY_STACK_POINTER: [&str; 8] = [
    "crosscall2",
    "runtime.cgocall",
    // Assembly without a frame of its own, from which system calls are made.
    "runtime.sysMmap",
    "runtime.sysMunmap",
    "runtime/internal/syscall.Syscall6",
    "internal/runtime/syscall.Syscall6",
    "internal/runtime/syscall/linux.Syscall6",
    "syscall.rawVforkSyscall",
];

/// A function whose stack pointer lies at a fixed distance below its caller's wherever it calls others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedFrame {
    /// Its code with the whole frame in place.
    pub range: Range<u64>,
    /// From the stack pointer to the caller's stack pointer.
    pub size: u32,
    /// The caller's frame pointer is saved below the return address; else it was not touched.
    pub saves_frame_pointer: bool,
}

/// `runtime.asmcgocall`, which calls C on the thread's own stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgoCall {
    /// Its code.
    pub range: Range<u64>,
    /// Where it keeps the goroutine, from the stack pointer at the call of C; 0 is kept there if no stack was switched.
    pub goroutine: i16,
    /// Where it keeps how far its stack pointer lay below the goroutine's `stack.hi`; without a goroutine it is that
    /// stack pointer itself.
    pub depth: i16,
    /// From that stack pointer to the return address. If not 0, the caller's frame pointer is saved below.
    pub frame: u8,
}

/// What was found of a Go binary. Addresses are those of the file.
#[derive(Clone, Debug)]
pub struct GoCode {
    table: PclnTable,
    version: Option<GoVersion>,
    /// Code that keeps frame pointers.
    pub frame_pointer: Vec<Range<u64>>,
    /// Functions without a caller.
    pub outermost: Vec<Range<u64>>,
    /// Exceptions from `frame_pointer`.
    pub fixed: Vec<FixedFrame>,
    /// The way into C; more than one copy does not occur, none in programs without C.
    pub cgocall: Option<CgoCall>,
}

impl GoCode {
    /// Reads a file; `None` if it is no Go binary of a known format.
    pub fn read(executable: &Executable) -> Option<Self> {
        // Where there are section headers they say what the file is; else the whole file is searched.
        let is_go = |name: &str| name.ends_with("gopclntab") || name == ".go.buildinfo";
        if !executable.sections.is_empty() && !executable.sections.iter().any(|section| is_go(&section.name)) {
            return None;
        }
        let (module, table) = find_module(executable)?;
        let version = module::build_info(executable).and_then(|info| GoVersion::parse(&info.version));
        // Where the inline trees are differs from release to release; without them only inlining is not shown.
        let layout = version
            .as_ref()
            .and_then(|version| Layout::from_map(&offsets::candidates(version).first()?.map).ok());
        let inline = layout.and_then(|layout| {
            let gofunc = module.word(executable, layout.module.gofunc.offset as u64)?;
            FileInlineData::new(executable, gofunc)
        });
        let table = match inline {
            Some(inline) => table.with_inline_data(Arc::new(inline)),
            None => table,
        };
        Some(Self::of_table(table, version, |range| {
            executable.bytes_at(range.start, range.end.checked_sub(range.start)?.min(MAX_CODE))
        }))
    }

    /// `code` gives the bytes of a range of addresses.
    fn of_table(table: PclnTable, version: Option<GoVersion>, code: impl Fn(&Range<u64>) -> Option<Vec<u8>>) -> Self {
        let mut found = Self {
            table: table.clone(),
            version,
            frame_pointer: Vec::new(),
            outermost: Vec::new(),
            fixed: Vec::new(),
            cgocall: None,
        };
        for function in (0..table.len()).filter_map(|index| table.function(index)) {
            // C code that the Go linker took in has an entry, but no stack depths.
            if table.stack_depth(&function, function.entry).is_none() || function.end <= function.entry {
                continue;
            }
            let range = function.entry..function.end;
            match found.frame_pointer.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => found.frame_pointer.push(range.clone()),
            }
            let name = table.name(&function);
            if function.is_top_frame() || OUTERMOST.contains(&&*name) {
                found.outermost.push(range);
            } else if BY_STACK_POINTER.contains(&&*name) {
                let code = code(&range);
                found
                    .fixed
                    .extend(code.and_then(|code| fixed_frame(&table, &function, &code)));
            } else if name == "runtime.asmcgocall" && found.cgocall.is_none() {
                // A wrapper for the other calling convention has the same name.
                found.cgocall = code(&range).and_then(|code| cgocall(&table, &function, &code));
            }
        }
        found
    }

    /// The table, with addresses of the file.
    pub fn table(&self) -> &PclnTable {
        &self.table
    }

    /// Toolchain, where the file states it.
    pub fn version(&self) -> Option<&GoVersion> {
        self.version.as_ref()
    }

    /// Whether the table knows the code at an address; C code in the same text it does not.
    pub fn covers(&self, address: u64) -> bool {
        let after = self.frame_pointer.partition_point(|range| range.end <= address);
        self.frame_pointer
            .get(after)
            .is_some_and(|range| range.start <= address)
    }

    /// The frames at an address as Go's own profiles show them: without those that the compiler made. Empty where none
    /// is left.
    pub fn frames(&self, address: u64) -> Vec<Frame<'_>> {
        let wrapper = self.version.as_ref().map(wrapper_function_id);
        let mut frames = self.table.frames(address);
        frames.retain(|frame| Some(frame.func_id) != wrapper && frame.function != "runtime.goexit");
        frames
    }
}

/// A moduledata in the file.
struct FileModule {
    address: u64,
    /// Addresses that the loader puts into it.
    relocated: HashMap<u64, u64>,
}

impl FileModule {
    fn word(&self, executable: &Executable, offset: u64) -> Option<u64> {
        let at = self.address.checked_add(offset)?;
        match self.relocated.get(&at) {
            Some(value) => Some(*value),
            None => Some(word(&executable.bytes_at(at, 8)?, 0)),
        }
    }

    /// The table that it describes, if it is the moduledata of that table.
    fn table(&self, executable: &Executable, header: u64, table: &PclnTable) -> Option<PclnTable> {
        let names = self.word(executable, NAMES)?;
        let functions = self.word(executable, FUNCTION_COUNT)?;
        if names != header.wrapping_add(table.names_offset()) || functions != table.len() as u64 + 1 {
            return None;
        }
        let text = self.word(executable, TEXT)?;
        executable.file_position(text)?;
        Some(table.with_text(text))
    }
}

/// Finds the moduledata by its first word, the address of the table: stored, or to be stored by the loader.
fn find_module(executable: &Executable) -> Option<(FileModule, PclnTable)> {
    let candidates = module::candidates(executable);
    if candidates.is_empty() {
        return None;
    }
    let relocations = executable.relative_relocations();
    for (header, bytes) in candidates {
        let Ok(table) = PclnTable::new(bytes, 0) else { continue };
        let relocated = relocations.iter().filter(|(_, value)| *value == header);
        let mut places: Vec<u64> = relocated.map(|(place, _)| *place).collect();
        if relocations.is_empty() {
            places = stored(executable, header);
        }
        for address in places {
            let end = address.saturating_add(MODULE_LEN);
            let module = FileModule {
                address,
                relocated: relocations
                    .iter()
                    .filter(|(place, _)| (address..end).contains(place))
                    .copied()
                    .collect(),
            };
            if let Some(table) = module.table(executable, header, &table) {
                return Some((module, table));
            }
        }
    }
    None
}

/// Addresses in writable segments whose word is `value`.
fn stored(executable: &Executable, value: u64) -> Vec<u64> {
    let mut places = Vec::new();
    for segment in executable.segments.iter().filter(|segment| segment.write) {
        let Some(bytes) = executable.file_bytes(segment.offset, segment.file_len.min(MAX_SEARCH)) else {
            continue;
        };
        let words = bytes.chunks_exact(8).enumerate();
        let equal = words.filter(|(_, bytes)| word(bytes, 0) == value);
        places.extend(equal.map(|(index, _)| segment.address.wrapping_add(index as u64 * 8)));
    }
    places
}

fn instructions(function: &Function, code: &[u8]) -> Vec<Instruction> {
    Decoder::with_ip(64, code, function.entry, DecoderOptions::NONE)
        .into_iter()
        .collect()
}

/// The frame at its largest, which is where calls are made.
fn fixed_frame(table: &PclnTable, function: &Function, code: &[u8]) -> Option<FixedFrame> {
    let code = instructions(function, code);
    let depth_at = |instruction: &Instruction| table.stack_depth(function, instruction.ip());
    let depth = code.iter().filter_map(depth_at).max()?;
    let start = code
        .iter()
        .find(|instruction| depth_at(instruction) == Some(depth))?
        .ip();
    Some(FixedFrame {
        range: start..function.end,
        size: u32::try_from(depth).ok()?.checked_add(8)?,
        saves_frame_pointer: depth > 0 && saves_frame_pointer(table, function, &code),
    })
}

/// Whether the frame pointer as the caller left it goes to the slot below the return address.
fn saves_frame_pointer(table: &PclnTable, function: &Function, code: &[Instruction]) -> bool {
    for instruction in code {
        let depth = table.stack_depth(function, instruction.ip());
        if instruction.code() == Code::Push_r64 && instruction.op0_register() == Register::RBP {
            return depth == Some(0);
        }
        if stores(instruction, Register::RBP) {
            return depth == Some(instruction.memory_displacement64().wrapping_add(8));
        }
    }
    false
}

/// `mov [rsp+…], register`.
fn stores(instruction: &Instruction, register: Register) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
        && instruction.segment_prefix() == Register::None
        && instruction.op1_kind() == OpKind::Register
        && instruction.op1_register() == register
}

/// `asmcgocall` notes its stack pointer in RDX, keeps the goroutine (RDI), turns RDI into `stack.hi` less RDX, and keeps
/// that too.
fn cgocall(table: &PclnTable, function: &Function, code: &[u8]) -> Option<CgoCall> {
    let code = instructions(function, code);
    let registers = |instruction: &Instruction, mnemonic, to, from| {
        instruction.mnemonic() == mnemonic
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register() == to
            && instruction.op1_kind() == OpKind::Register
            && instruction.op1_register() == from
    };
    let noted = code
        .iter()
        .find(|instruction| registers(instruction, Mnemonic::Mov, Register::RDX, Register::RSP))?;
    let subtracted = code
        .iter()
        .position(|instruction| registers(instruction, Mnemonic::Sub, Register::RDI, Register::RDX))?;
    let [goroutine, end] = code.get(subtracted.checked_sub(2)?..subtracted)? else {
        return None;
    };
    let depth = code.get(subtracted + 1)?;
    let is_stack_end = end.mnemonic() == Mnemonic::Mov
        && end.op0_register() == Register::RDI
        && end.op1_kind() == OpKind::Memory
        && end.memory_base() == Register::RDI
        && end.memory_displacement64() == STACK_HI;
    if !is_stack_end || !stores(goroutine, Register::RDI) || !stores(depth, Register::RDI) {
        return None;
    }
    let frame = table.stack_depth(function, noted.ip())?;
    if frame != 0 && (frame != 8 || !saves_frame_pointer(table, function, &code)) {
        return None;
    }
    Some(CgoCall {
        range: function.entry..function.end,
        goroutine: i16::try_from(goroutine.memory_displacement64()).ok()?,
        depth: i16::try_from(depth.memory_displacement64()).ok()?,
        frame: u8::try_from(frame).ok()?,
    })
}

#[cfg(test)]
mod tests;
