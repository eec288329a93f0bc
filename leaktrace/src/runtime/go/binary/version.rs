//! The version of a Go toolchain, as binaries state it.

use std::fmt;

/// `1.23.5`; anything behind the numbers (`rc1`, `X:boringcrypto`, a vendor's suffix) is kept aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoVersion {
    /// Always 1 so far.
    pub major: u32,
    /// Language version.
    pub minor: u32,
    /// Patch release; 0 where none is given.
    pub patch: u32,
    text: String,
}

impl GoVersion {
    /// Parses `go1.23.5`, `go1.24rc1`, `go1.26.1 X:nodwarf5`, `devel go1.28-0123abc …` and the like.
    pub fn parse(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_control()).take(128).collect();
        let numbers = text.strip_prefix("devel ").unwrap_or(&text).strip_prefix("go")?;
        let end = numbers
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(numbers.len());
        let mut parts = numbers[..end].split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Some(Self {
            major,
            minor,
            patch,
            text,
        })
    }

    /// Major and minor, to compare by.
    pub fn release(&self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// At least this release of Go 1.
    pub fn at_least(&self, minor: u32) -> bool {
        self.release() >= (1, minor)
    }
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_binaries_state() {
        let numbers = |text| GoVersion::parse(text).map(|v| (v.major, v.minor, v.patch));
        assert_eq!(numbers("go1.19.8"), Some((1, 19, 8)));
        assert_eq!(numbers("go1.24rc1"), Some((1, 24, 0)));
        assert_eq!(numbers("go1.26.1 X:nodwarf5"), Some((1, 26, 1)));
        assert_eq!(numbers("devel go1.28-51bf59d Tue Sep 1"), Some((1, 28, 0)));
        assert_eq!(numbers("go1.23.5-1~bpo12"), Some((1, 23, 5)));
        assert_eq!(numbers("rustc 1.95"), None);
        assert_eq!(numbers("go1"), None);
    }
}
