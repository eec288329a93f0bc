//! Unwind rows: call-frame information compiled for a search in a few steps.
//!
//! The code of a file is cut into blocks of [`BLOCK_SIZE`] bytes. Rows are sorted by address; `blocks[b]..blocks[b + 1]`
//! are the rows that begin inside block `b`, and [`Row::low`] is their address inside it. The row in effect at an address
//! is the last row at or before it, which may be the last row of an earlier block (`blocks[b] - 1`).
//! Invariant: a table begins with a row at its first byte, so such a row always exists.

/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 8;
/// Bytes of code per block.
pub const BLOCK_SIZE: u64 = 1 << BLOCK_SHIFT;

/// One row: the rule to get from a frame to its caller, from this address to the next row's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// Address of the row inside its block.
    pub low: u8,
    /// One of the `RULE_*` constants, with [`BP_VIA_BP`] as a flag.
    pub rule: u8,
    /// Where the caller's frame pointer is saved, in bytes from the CFA; 0: it was not changed.
    pub bp_offset: i16,
    /// Operand of the rule.
    pub cfa: i32,
}

const _: () = assert!(size_of::<Row>() == 8 && align_of::<Row>() == 4);

/// No rule is known here: code without table, or a rule that the kernel side cannot follow. The walk ends, truncated.
pub const RULE_UNKNOWN: u8 = 0;
/// CFA = stack pointer + `cfa`.
pub const RULE_SP: u8 = 1;
/// CFA = frame pointer + `cfa`.
pub const RULE_BP: u8 = 2;
/// CFA = *(frame pointer + offset) + addend, both packed in `cfa` (see [`pack_deref`]).
pub const RULE_BP_DEREF: u8 = 3;
/// CFA = *(stack pointer + offset) + addend, both packed in `cfa` (see [`pack_deref`]).
pub const RULE_SP_DEREF: u8 = 4;
/// Lazy-binding stub: CFA = stack pointer + 8, and 8 more from byte `cfa` of each 16-byte slot on.
pub const RULE_PLT: u8 = 5;
/// The outermost frame: the return address is undefined.
pub const RULE_END: u8 = 6;
/// Signal trampoline: the interrupted registers are in the signal frame at the stack pointer.
pub const RULE_SIGNAL: u8 = 7;
/// Frame-pointer code without a table (Go, JIT): CFA = frame pointer + 16.
pub const RULE_FRAME_POINTER: u8 = 8;
/// Go's `runtime.asmcgocall`, which called C on the thread's stack and came from a goroutine's. At the stack pointer plus
/// two displacements, packed in `cfa` as of a `*_DEREF` rule, are the goroutine `g` (first) and a depth (second): the
/// function's own stack pointer on the goroutine's stack was `g.stack.hi` ([`GO_STACK_HI`]) - depth, or the depth itself
/// where `g` is 0 and no stack was switched. `bp_offset` above it is the return address; if that is not 0, the slot
/// below it holds the caller's frame pointer.
pub const RULE_GO_CGOCALL: u8 = 9;
/// Where a Go `g` holds the upper end of its stack, in every release.
pub const GO_STACK_HI: u64 = 8;
/// Flag in [`Row::rule`]: the frame pointer is saved at `bp_offset` from the *current frame pointer*, not from the CFA.
pub const BP_VIA_BP: u8 = 0x80;

/// Packs the operand of a `*_DEREF` rule.
pub const fn pack_deref(offset: i16, addend: i16) -> i32 {
    ((addend as i32) << 16) | (offset as u16 as i32)
}

/// Offset of a packed `*_DEREF` operand.
pub const fn deref_offset(cfa: i32) -> i16 {
    cfa as i16
}

/// Addend of a packed `*_DEREF` operand.
pub const fn deref_addend(cfa: i32) -> i16 {
    (cfa >> 16) as i16
}
