//! Which kernel runs.

use std::fmt;

/// Version of a kernel, as far as features go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl Release {
    /// A version.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// That of the running kernel; `None` if it says nothing that looks like one.
    pub fn running() -> Option<Self> {
        nix::sys::utsname::uname()
            .ok()?
            .release()
            .to_str()
            .and_then(Self::parse)
    }

    /// From what `uname -r` prints: `6.12.118+deb13-cloud-amd64`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self::new(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(Release::parse("6.12.118+deb13-cloud-amd64"), Some(Release::new(6, 12)));
        assert_eq!(Release::parse("7.3-rc7"), Some(Release::new(7, 3)));
        assert_eq!(Release::parse("unknown"), None);
        assert!(Release::new(6, 2) < Release::new(6, 12));
        assert!(Release::running().is_some());
    }
}
