//! Which kernel runs.

use std::fmt;

/// The kernel's release: its own words, and the version in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    text: String,
    version: (u32, u32),
}

impl Release {
    /// The running kernel's.
    pub fn running() -> Self {
        Self::of(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
    }

    /// From what `uname -r` prints.
    pub fn of(text: &str) -> Self {
        Self {
            text: text.trim().to_owned(),
            version: parse(text).unwrap_or_default(),
        }
    }

    /// Major and minor version; (0, 0) if it does not say.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() {
            "of unknown release"
        } else {
            &self.text
        })
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_distributions_are_read() {
        let version = |text| Release::of(text).version();
        assert_eq!(version("6.1.0-13-amd64\n"), (6, 1));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), (5, 15));
        assert_eq!(version("6.18-rc1"), (6, 18));
        assert_eq!(version("linux"), (0, 0));
    }

    #[test]
    fn it_is_shown_in_its_own_words() {
        assert_eq!(Release::of("6.1.0-13-amd64\n").to_string(), "6.1.0-13-amd64");
        assert_eq!(Release::of("").to_string(), "of unknown release");
    }
}
