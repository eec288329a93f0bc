//! Go's `.gopclntab`: functions, lines, inlining and stack depths of a Go binary, stripped or not.
//!
//! Owns the format of Go 1.18 to 1.27 (`fffffff0` and `fffffff1` headers). Does no I/O: the bytes of the table are
//! given, and the inline trees, which the linker keeps outside it, come from an [`InlineData`]. Every offset is checked
//! against the table's own bytes, so that a hostile table gives wrong names at worst.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Flag of a function at which a walk ends (`runtime.goexit`, `runtime.mstart`, …).
pub const FLAG_TOP_FRAME: u8 = 1;

const HEADER_LEN: usize = 72;
const MAGIC_1_18: u32 = 0xffff_fff0;
const MAGIC_1_20: u32 = 0xffff_fff1;
const PCDATA_INLINE_TREE_INDEX: u32 = 2;
const FUNCDATA_INLINE_TREE: u32 = 3;
/// Frames that one address may expand to; the compiler's own limit on nesting is far below.
const MAX_INLINED: usize = 64;
/// Steps of one pc-value table; a function of a megabyte of code has fewer.
const MAX_STEPS: usize = 1 << 20;
const MAX_NAME: usize = 4096;

/// Why bytes are not a usable pc-line table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PclnError {
    /// Shorter than its header, or than what the header announces.
    #[error("pclntab is cut short: {have} bytes, {need} needed")]
    Truncated {
        /// Bytes there.
        have: usize,
        /// Bytes that the header announces.
        need: usize,
    },
    /// The first four bytes name no known format.
    #[error("pclntab begins with {0:#010x}, which no Go version from 1.18 on writes")]
    Magic(u32),
    /// The header is for another machine.
    #[error("pclntab is for pointers of {0} bytes; only 8 is read")]
    PointerSize(u8),
    /// A function table that is not sorted or is empty.
    #[error("pclntab has an unusable function table: {0}")]
    Functions(&'static str),
}

/// Where the inline trees (`go:func.*`) are read from.
pub trait InlineData: Send + Sync {
    /// Fills `buf` from `offset` behind moduledata's `gofunc`; false if there is no such data.
    fn read(&self, offset: u64, buf: &mut [u8]) -> bool;
}

impl InlineData for Vec<u8> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(found) = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buf.len()))
        else {
            return false;
        };
        buf.copy_from_slice(found);
        true
    }
}

/// One function of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// First address, in the address space that [`PclnTable::new`]'s `text` is in.
    pub entry: u64,
    /// First address of the next function.
    pub end: u64,
    /// The runtime's id for functions that it treats specially; its values move between versions.
    pub func_id: u8,
    /// `FLAG_*` bits.
    pub flag: u8,
    /// Line of the `func` keyword; 0 before Go 1.20.
    pub start_line: u32,
    name: u32,
    pcsp: u32,
    pcfile: u32,
    pcln: u32,
    cu: u32,
    inline_index: u32,
    inline_tree: u32,
}

impl Function {
    /// A walk up the stack ends here.
    pub fn is_top_frame(&self) -> bool {
        self.flag & FLAG_TOP_FRAME != 0
    }
}

/// One source-level frame: several for one address where functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<'t> {
    /// Qualified name, `main.(*T).method`.
    pub function: Cow<'t, str>,
    /// Path of the source file as the compiler saw it; empty if unknown.
    pub file: Cow<'t, str>,
    /// Line in it; 0 if unknown.
    pub line: u32,
    /// Line of the `func` keyword; 0 if unknown (inlined functions and Go before 1.20).
    pub start_line: u32,
    /// The runtime's special function id.
    pub func_id: u8,
    /// This function's code was inlined into the next frame.
    pub inlined: bool,
}

impl Frame<'_> {
    /// The name as Go shows it: `[...]` for type arguments.
    pub fn display(&self) -> Cow<'_, str> {
        without_type_arguments(&self.function)
    }
}

/// `main.(*List[...]).Push` for `main.(*List[go.shape.int]).Push`, as tracebacks and profiles show generic functions.
pub fn without_type_arguments(name: &str) -> Cow<'_, str> {
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => format!("{}[...]{}", &name[..open], &name[close + 1..]).into(),
        _ => name.into(),
    }
}

/// A parsed table. Cheap to clone.
#[derive(Clone)]
pub struct PclnTable {
    data: Arc<[u8]>,
    text: u64,
    functions: usize,
    names: usize,
    cus: usize,
    files: usize,
    values: usize,
    table: usize,
    /// Header of 1.18 (40-byte functions, 20-byte inline entries) rather than of 1.20 (44 and 16).
    old: bool,
    inline: Option<Arc<dyn InlineData>>,
}

impl PclnTable {
    /// Bytes that it takes in memory.
    pub fn memory(&self) -> usize {
        self.data.len()
    }
}

impl fmt::Debug for PclnTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PclnTable")
            .field("text", &format_args!("{:#x}", self.text))
            .field("functions", &self.functions)
            .field("old", &self.old)
            .finish_non_exhaustive()
    }
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Position of the next thing that looks like a table's header at or behind `from`, 8-byte aligned or not.
pub fn find_header(data: &[u8], from: usize) -> Option<usize> {
    let tail = data.get(from..)?;
    let hit = tail
        .windows(8)
        .position(|window| matches!(window, [0xf0 | 0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8]))?;
    Some(from + hit)
}

/// A header whose offsets and function table lie within the bytes.
struct Header {
    functions: usize,
    names: usize,
    cus: usize,
    files: usize,
    values: usize,
    table: usize,
    old: bool,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, PclnError> {
        let truncated = |need: usize| PclnError::Truncated { have: data.len(), need };
        let magic = u32_at(data, 0).ok_or_else(|| truncated(HEADER_LEN))?;
        let old = match magic {
            MAGIC_1_18 => true,
            MAGIC_1_20 => false,
            other => return Err(PclnError::Magic(other)),
        };
        let pointer = *data.get(7).ok_or_else(|| truncated(HEADER_LEN))?;
        if pointer != 8 {
            return Err(PclnError::PointerSize(pointer));
        }
        let word = |index: usize| -> Result<usize, PclnError> {
            let value = u64_at(data, 8 + index * 8).ok_or_else(|| truncated(HEADER_LEN))?;
            usize::try_from(value).map_err(|_| truncated(usize::MAX))
        };
        let functions = word(0)?;
        let (names, cus, files, values, table) = (word(3)?, word(4)?, word(5)?, word(6)?, word(7)?);
        for offset in [names, cus, files, values, table] {
            if offset > data.len() {
                return Err(truncated(offset));
            }
        }
        if functions == 0 {
            return Err(PclnError::Functions("it has no functions"));
        }
        let need = functions
            .checked_mul(8)
            .and_then(|len| len.checked_add(4)?.checked_add(table));
        match need {
            Some(need) if need <= data.len() => {}
            other => return Err(truncated(other.unwrap_or(usize::MAX))),
        }
        if u32_at(data, table + functions * 8) <= u32_at(data, table) {
            return Err(PclnError::Functions("it is not sorted"));
        }
        Ok(Self {
            functions,
            names,
            cus,
            files,
            values,
            table,
            old,
        })
    }
}

/// Whether the bytes begin with a header whose table lies within them.
pub fn is_table(data: &[u8]) -> bool {
    Header::parse(data).is_ok()
}

impl PclnTable {
    /// Parses `data`, which begins with the header. `text` is where the text that the table describes begins: the
    /// moduledata's `text` for process addresses, the same less the load bias for addresses of the file.
    pub fn new(data: impl Into<Arc<[u8]>>, text: u64) -> Result<Self, PclnError> {
        let data = data.into();
        let header = Header::parse(&data)?;
        let Header {
            functions,
            names,
            cus,
            files,
            values,
            table,
            old,
        } = header;
        Ok(Self {
            data,
            text,
            functions,
            names,
            cus,
            files,
            values,
            table,
            old,
            inline: None,
        })
    }

    /// The same table with inline trees.
    pub fn with_inline_data(mut self, inline: Arc<dyn InlineData>) -> Self {
        self.inline = Some(inline);
        self
    }

    /// The same table with the text somewhere else (the bytes are shared).
    pub fn with_text(&self, text: u64) -> Self {
        Self { text, ..self.clone() }
    }

    /// The bytes that the table was made from.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// First address of the text.
    pub fn text(&self) -> u64 {
        self.text
    }

    /// First address behind the last function.
    pub fn text_end(&self) -> u64 {
        self.text
            .saturating_add(u64::from(self.entry_offset(self.functions).unwrap_or(0)))
    }

    /// How many functions there are.
    pub fn len(&self) -> usize {
        self.functions
    }

    /// Never true: a table without functions is refused.
    pub fn is_empty(&self) -> bool {
        self.functions == 0
    }

    /// Offset of the function name table behind the header, as the header states it.
    pub fn names_offset(&self) -> u64 {
        self.names as u64
    }

    fn entry_offset(&self, index: usize) -> Option<u32> {
        u32_at(&self.data, self.table + index * 8)
    }

    /// The function at this position in address order.
    pub fn function(&self, index: usize) -> Option<Function> {
        if index >= self.functions {
            return None;
        }
        let start = self.entry_offset(index)?;
        let end = self.entry_offset(index + 1)?;
        let at = self
            .table
            .checked_add(u32_at(&self.data, self.table + index * 8 + 4)? as usize)?;
        let field = |offset: usize| u32_at(&self.data, at.checked_add(offset)?);
        let npcdata = field(28)?;
        let (tail, size) = if self.old { (36, 40) } else { (40, 44) };
        let packed = field(tail)?.to_le_bytes();
        let nfuncdata = u32::from(packed[3]);
        let word = |index: u32| field(size + index as usize * 4);
        Some(Function {
            entry: self.text.wrapping_add(u64::from(start)),
            end: self.text.wrapping_add(u64::from(end)),
            func_id: packed[0],
            flag: packed[1],
            start_line: if self.old { 0 } else { field(36)? },
            name: field(4)?,
            pcsp: field(16)?,
            pcfile: field(20)?,
            pcln: field(24)?,
            cu: field(32)?,
            inline_index: if npcdata > PCDATA_INLINE_TREE_INDEX {
                word(PCDATA_INLINE_TREE_INDEX)?
            } else {
                0
            },
            inline_tree: if nfuncdata > FUNCDATA_INLINE_TREE && npcdata < 64 {
                word(npcdata + FUNCDATA_INLINE_TREE)?
            } else {
                u32::MAX
            },
        })
    }

    /// The function that covers `pc`.
    pub fn function_at(&self, pc: u64) -> Option<Function> {
        let offset = u32::try_from(pc.checked_sub(self.text)?).ok()?;
        if offset >= self.entry_offset(self.functions)? {
            return None;
        }
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry_offset(middle)? <= offset {
                low = middle + 1
            } else {
                high = middle
            }
        }
        self.function(low.checked_sub(1)?)
    }

    fn string(&self, at: Option<usize>) -> Option<&[u8]> {
        let tail = self.data.get(at?..)?;
        let tail = &tail[..tail.len().min(MAX_NAME)];
        Some(&tail[..tail.iter().position(|&byte| byte == 0)?])
    }

    fn name_at(&self, offset: u32) -> Cow<'_, str> {
        let bytes = self.string(self.names.checked_add(offset as usize)).unwrap_or_default();
        String::from_utf8_lossy(bytes)
    }

    /// A function's qualified name; empty if the table holds none for it.
    pub fn name(&self, function: &Function) -> Cow<'_, str> {
        self.name_at(function.name)
    }

    /// The first function of each of these names, in one pass over the table.
    pub fn find_by_name<const N: usize>(&self, wanted: [&str; N]) -> [Option<Function>; N] {
        let mut found = [None; N];
        let mut missing = N;
        for index in 0..self.functions {
            let Some(at) = u32_at(&self.data, self.table + index * 8 + 4) else {
                break;
            };
            let name = self
                .table
                .checked_add(at as usize + 4)
                .and_then(|at| u32_at(&self.data, at))
                .and_then(|name| self.data.get(self.names.checked_add(name as usize)?..));
            let Some(name) = name else { continue };
            for (slot, wanted) in found.iter_mut().zip(wanted) {
                if slot.is_none() && name.starts_with(wanted.as_bytes()) && name.get(wanted.len()) == Some(&0) {
                    *slot = self.function(index);
                    missing -= usize::from(slot.is_some());
                }
            }
            if missing == 0 {
                break;
            }
        }
        found
    }

    fn varint(&self, at: &mut usize) -> Option<u32> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let byte = *self.data.get(*at)?;
            *at += 1;
            value |= u32::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// The value that the table at `offset` gives for `pc`; `None` where it has none.
    fn value(&self, offset: u32, function: &Function, pc: u64) -> Option<i32> {
        if offset == 0 {
            return None;
        }
        let mut at = self.values.checked_add(offset as usize)?;
        let mut reached = function.entry;
        let mut value = -1i32;
        for step in 0..MAX_STEPS {
            let delta = self.varint(&mut at)?;
            if delta == 0 && step > 0 {
                return None;
            }
            value = value.wrapping_add((delta >> 1) as i32 ^ -((delta & 1) as i32));
            reached = reached.checked_add(u64::from(self.varint(&mut at)?))?;
            if pc < reached {
                return Some(value);
            }
        }
        None
    }

    /// How far the stack pointer at `pc` lies below the slot of the return address.
    pub fn stack_depth(&self, function: &Function, pc: u64) -> Option<u64> {
        self.value(function.pcsp, function, pc)
            .and_then(|depth| u64::try_from(depth).ok())
    }

    fn line(&self, function: &Function, pc: u64) -> u32 {
        self.value(function.pcln, function, pc)
            .and_then(|line| u32::try_from(line).ok())
            .unwrap_or(0)
    }

    fn file(&self, function: &Function, pc: u64) -> Cow<'_, str> {
        let path = || {
            let number = u32::try_from(self.value(function.pcfile, function, pc)?).ok()?;
            let entry = (function.cu as usize).checked_add(number as usize)?.checked_mul(4)?;
            let offset = u32_at(&self.data, self.cus.checked_add(entry)?)?;
            (offset != u32::MAX).then_some(())?;
            self.string(self.files.checked_add(offset as usize))
        };
        String::from_utf8_lossy(path().unwrap_or_default())
    }

    /// File and line of one address of a function, without regard to inlining.
    pub fn position(&self, function: &Function, pc: u64) -> (Cow<'_, str>, u32) {
        (self.file(function, pc), self.line(function, pc))
    }

    /// All source-level frames at `pc`, innermost first; empty outside of the table. For a return address give the
    /// address of the call (`pc - 1`), or the line is that of the next statement.
    pub fn frames(&self, pc: u64) -> Vec<Frame<'_>> {
        let Some(function) = self.function_at(pc) else {
            return Vec::new();
        };
        let mut frames = Vec::with_capacity(1);
        let mut pc = pc;
        while frames.len() < MAX_INLINED {
            let Some((name, func_id, parent)) = self.inlined(&function, pc) else {
                break;
            };
            let function_name = self.name_at(name);
            let (file, line) = self.position(&function, pc);
            frames.push(Frame {
                function: function_name,
                file,
                line,
                start_line: 0,
                func_id,
                inlined: true,
            });
            let Some(next) = function.entry.checked_add(u64::from(parent)) else {
                break;
            };
            pc = next;
        }
        let (file, line) = self.position(&function, pc);
        let Function {
            start_line, func_id, ..
        } = function;
        frames.push(Frame {
            function: self.name(&function),
            file,
            line,
            start_line,
            func_id,
            inlined: false,
        });
        frames
    }

    /// Name, function id and the caller's position of the innermost function inlined at `pc`.
    fn inlined(&self, function: &Function, pc: u64) -> Option<(u32, u8, u32)> {
        if function.inline_tree == u32::MAX {
            return None;
        }
        let inline = self.inline.as_ref()?;
        let index = u64::try_from(self.value(function.inline_index, function, pc)?).ok()?;
        let size: usize = if self.old { 20 } else { 16 };
        let mut entry = [0; 20];
        let entry = &mut entry[..size];
        if !inline.read(u64::from(function.inline_tree) + index * size as u64, entry) {
            return None;
        }
        let (func_id, name, parent) = if self.old {
            (entry[2], u32_at(entry, 12)?, u32_at(entry, 16)?)
        } else {
            (entry[0], u32_at(entry, 4)?, u32_at(entry, 8)?)
        };
        Some((name, func_id, parent))
    }
}
