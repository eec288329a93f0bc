//! What a recording missed, by cause.
//!
//! Invariant: a loss that did not happen (count 0) is not listed, so an empty list means a complete recording.

use std::fmt;

/// One cause of loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Short name, such as `ring_full`. No blanks.
    pub name: String,
    /// How often it happened.
    pub count: u64,
    /// What it means for the numbers, in a few words.
    pub meaning: String,
}

/// Everything a recording missed. Shown in every output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(Vec<Loss>);

impl Losses {
    /// Nothing missed.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds to a cause; counts of the same name add up, and a count of 0 is not listed.
    pub fn add(&mut self, name: &str, count: u64, meaning: &str) {
        if count == 0 {
            return;
        }
        match self.0.iter_mut().find(|loss| loss.name == name) {
            Some(loss) => loss.count = loss.count.saturating_add(count),
            None => self.0.push(Loss {
                name: name.to_owned(),
                count,
                meaning: meaning.to_owned(),
            }),
        }
    }

    /// Each cause, in the order it was added.
    pub fn iter(&self) -> impl Iterator<Item = &Loss> {
        self.0.iter()
    }

    /// Nothing was missed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The loss line under a table.
impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("Losses: none");
        }
        f.write_str("Losses: ")?;
        for (position, loss) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{} {}", loss.count, loss.name)?;
            if !loss.meaning.is_empty() {
                write!(f, " ({})", loss.meaning)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_line() {
        let mut losses = Losses::new();
        losses.add("ring_full", 0, "allocations missing");
        assert_eq!(losses.to_string(), "Losses: none");
        losses.add("ring_full", 2, "allocations missing");
        losses.add("ring_full", 1, "allocations missing");
        losses.add("stack_truncated", 7, "");
        insta::assert_snapshot!(losses, @"Losses: 3 ring_full (allocations missing); 7 stack_truncated");
    }
}
