//! What is wrong with a configuration, where, and what to do: one line for each finding.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was named does not exist.
    #[error("failed to read the configuration `{}`: no such file; name another one, or leave the option out to run with defaults", path.display())]
    Missing {
        /// Its path.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("failed to read the configuration `{}`: {source}", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It was read, and is wrong. Shown as a line for each problem, in the order of the file.
    #[error("{}", lines(path, problems))]
    Invalid {
        /// Its path.
        path: PathBuf,
        /// All that was found; never empty.
        problems: Vec<Problem>,
    },
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The key with its section, such as `watch.interval`; empty where the text is no TOML.
    pub key: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

fn lines(path: &std::path::Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}:{problem}", path.display()))
        .collect();
    lines.join("\n")
}

/// Findings about one text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: Vec<(usize, Problem)>,
}

impl<'t> Problems<'t> {
    pub fn new(text: &'t str) -> Self {
        Self {
            text,
            found: Vec::new(),
        }
    }

    /// Notes what is wrong at a place of the text.
    pub fn add(&mut self, place: Range<usize>, key: impl Into<String>, message: impl Into<String>) {
        let start = self.text.floor_char_boundary(place.start.min(self.text.len()));
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.found.push((
            start,
            Problem {
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                key: shown(&key.into()),
                message: shown(&message.into()),
            },
        ));
    }

    /// How much was found so far.
    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// All, in the order of the text.
    pub fn finish(mut self) -> Vec<Problem> {
        self.found.sort();
        self.found.dedup();
        self.found.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// Text of the file in one line that does no harm to a terminal.
fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escape = c.is_control();
            let escaped = escape.then(|| c.escape_default());
            let plain = (!escape).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// The known name that was probably meant.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let name = name.to_lowercase().replace('-', "_");
    // The distance takes time by the product of the lengths, and no known name is that long.
    if name.chars().count() > 64 {
        return None;
    }
    known
        .map(|known| (distance(&name, known), known))
        .filter(|&(distance, known)| distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

/// Number of characters to insert, remove, replace or swap with their neighbour to make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant() {
        let known = || ["interval", "history", "growth_slope", "growth_time"].into_iter();
        assert_eq!(nearest("intervall", known()), Some("interval"));
        assert_eq!(nearest("histroy", known()), Some("history"));
        assert_eq!(nearest("growth-time", known()), Some("growth_time"));
        assert_eq!(nearest("GrowthSlope", known()), Some("growth_slope"));
        assert_eq!(nearest("colour", known()), None);
        assert_eq!(nearest(&"x".repeat(1 << 20), known()), None);
    }

    #[test]
    fn places_are_counted_in_characters() {
        let mut problems = Problems::new("a = 1\nü = \"é\" # x\n");
        problems.add(11..12, "k", "second\x1b[0m");
        problems.add(0..1, "", "first");
        problems.add(900..901, "k", "behind the end");
        let lines: Vec<String> = problems.finish().iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            ["1:1: first", r"2:5: k: second\u{1b}[0m", "3:1: k: behind the end"]
        );
    }
}
