//! AArch64: the entry, without a look at the code.

use super::{Demand, Site, at_entry};
use crate::model::{ElfAddress, FileOffset};
use crate::object::image::ElfImage;
use crate::probe::decoded::Decoded;

/// The entry is always correct; whether a cheaper site exists is not looked for.
pub(super) fn choose(image: &ElfImage, entry: ElfAddress, offset: FileOffset, demand: Demand) -> Site {
    at_entry(
        entry,
        offset,
        demand,
        "not decoded".into(),
        "at the entry: prologue decoding is x86-64 only".into(),
        Decoded::runs(image, vec![(entry, 4)]),
    )
}
