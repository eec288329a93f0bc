//! AArch64: the entry, without a look at the code.

use super::{Demand, Site, at_entry};
use crate::model::{ElfAddress, FileOffset};

/// The entry is always correct; whether a cheaper site exists is not looked for.
pub(super) fn choose(entry: ElfAddress, offset: FileOffset, demand: Demand) -> Site {
    at_entry(
        entry,
        offset,
        demand,
        "not decoded".into(),
        "at the entry: prologue decoding is x86-64 only".into(),
    )
}
