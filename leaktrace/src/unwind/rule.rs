//! A rule: what a row says, without its place in a table; and why some code has none.
//!
//! It does not know how rules are found or stored.
//! Invariant: an unknown rule keeps its [`UnknownReason`] as operand, so that a walk that ends there can say why.

use leaktrace_common::unwind::{RULE_END, RULE_SIGNAL, RULE_UNKNOWN};

/// Why the rule of some code is unknown. The value is kept in `Row::cfa` of such a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i32)]
pub enum UnknownReason {
    /// No entry covers this code.
    NoTable = 0,
    /// The CFA is relative to a register other than stack and frame pointer.
    CfaRegister = 1,
    /// The CFA is an expression without a rule of its own.
    CfaExpression = 2,
    /// An operand does not fit its field.
    Operand = 3,
    /// The caller's frame pointer is lost or saved in a way without a rule.
    FramePointer = 4,
    /// The return address is not where the machine's calls leave it.
    ReturnAddress = 5,
    /// The caller's stack pointer is not the CFA.
    StackPointer = 6,
    /// The program is malformed from here on.
    BadProgram = 7,
}

impl UnknownReason {
    /// Number of reasons; each is below.
    pub const COUNT: usize = 8;
    /// All reasons, by value.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NoTable,
        Self::CfaRegister,
        Self::CfaExpression,
        Self::Operand,
        Self::FramePointer,
        Self::ReturnAddress,
        Self::StackPointer,
        Self::BadProgram,
    ];

    /// The reason that a row of `RULE_UNKNOWN` keeps in `Row::cfa`.
    pub fn from_row(row: leaktrace_common::unwind::Row) -> Option<Self> {
        if row.rule != RULE_UNKNOWN {
            return None;
        }
        usize::try_from(row.cfa)
            .ok()
            .and_then(|index| Self::ALL.get(index))
            .copied()
    }
}

/// A rule: a row without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub kind: u8,
    pub bp_offset: i16,
    pub cfa: i32,
}

impl Rule {
    pub const END: Self = Self::plain(RULE_END);
    pub const SIGNAL: Self = Self::plain(RULE_SIGNAL);

    pub const fn plain(kind: u8) -> Self {
        Self {
            kind,
            bp_offset: 0,
            cfa: 0,
        }
    }

    pub const fn unknown(reason: UnknownReason) -> Self {
        Self {
            kind: RULE_UNKNOWN,
            bp_offset: 0,
            cfa: reason as i32,
        }
    }
}

impl From<leaktrace_common::unwind::Row> for Rule {
    fn from(row: leaktrace_common::unwind::Row) -> Self {
        Self {
            kind: row.rule,
            bp_offset: row.bp_offset,
            cfa: row.cfa,
        }
    }
}

/// A rule from an address (relative to the image) to the next row's.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawRow {
    pub at: u32,
    pub rule: Rule,
}
