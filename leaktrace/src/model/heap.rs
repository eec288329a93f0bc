//! Kinds of heap memory: what the label `heap` of a profile's samples says.
//!
//! Owns the words. Invariant: whoever writes or compares such a word takes it from here; a word that profiles had earlier
//! is still read.

use std::fmt;

/// Where memory of a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeapKind {
    /// Allocations from a native allocator.
    Native,
    /// Anonymous mappings outside of an allocator.
    Mmap,
    /// Growth that was sampled without probes: memory that became resident. In use only.
    Resident,
    /// The same: address space that was reserved by `brk`, `mmap` and `mremap`. Allocated only.
    Reserved,
    /// The heap of the Go runtime.
    Go,
}

impl HeapKind {
    /// Name of the label.
    pub const LABEL: &str = "heap";

    /// All of them.
    pub const ALL: [Self; 5] = [Self::Native, Self::Mmap, Self::Resident, Self::Reserved, Self::Go];

    /// The label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Mmap => "mmap",
            Self::Resident => "resident",
            Self::Reserved => "reserved",
            Self::Go => "go",
        }
    }

    /// The kind that a label's value stands for, in the words of today and of earlier releases.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            // Until 0.1: address space that was asked for.
            "asked" => Some(Self::Reserved),
            value => Self::ALL.into_iter().find(|kind| kind.name() == value),
        }
    }

    /// Whether a managed runtime allocates from it, and counts by itself what it allocated.
    pub const fn is_managed(self) -> bool {
        matches!(self, Self::Go)
    }
}

impl fmt::Display for HeapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_read_back_and_so_is_the_one_of_before() {
        for kind in HeapKind::ALL {
            assert_eq!(HeapKind::parse(kind.name()), Some(kind));
        }
        assert_eq!(HeapKind::parse("asked"), Some(HeapKind::Reserved));
        assert_eq!(HeapKind::parse("jvm"), None);
    }
}
