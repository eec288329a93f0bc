//! leaktrace's JSON profile, version 1, and the questions that tests ask of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Objects and bytes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Blocks.
    pub objects: i64,
    /// Requested bytes.
    pub bytes: i64,
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// A whole profile.
#[derive(Debug, Deserialize)]
pub struct Profile {
    pub version: u32,
    pub time_nanos: i64,
    pub duration_nanos: i64,
    pub comm: String,
    /// `None` for profiles that others wrote.
    pub pid: Option<u32>,
    /// `exact` or `sampled`.
    pub mode: String,
    pub sample_types: Vec<SampleType>,
    pub totals: BTreeMap<String, i64>,
    pub losses: Vec<Loss>,
    pub comments: Vec<String>,
    /// Upper bounds of the classes in [`Sample::ages`], in seconds.
    #[serde(default)]
    pub age_bounds: Vec<u32>,
    /// How far back [`Sample::growth`] reaches.
    #[serde(default)]
    pub growth_nanos: Option<i64>,
    pub samples: Vec<Sample>,
}

/// What a number counts.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct SampleType {
    #[serde(rename = "type")]
    pub kind: String,
    pub unit: String,
}

/// A counter of something that was lost.
#[derive(Debug, Deserialize)]
pub struct Loss {
    pub name: String,
    pub count: u64,
    pub meaning: String,
}

/// One stack with its numbers.
#[derive(Debug, Deserialize)]
pub struct Sample {
    /// Innermost first.
    pub stack: Vec<Frame>,
    pub values: BTreeMap<String, i64>,
    #[serde(default)]
    pub labels: BTreeMap<String, serde_json::Value>,
    /// Outstanding bytes more than before.
    #[serde(default)]
    pub growth: Option<i64>,
    /// Outstanding bytes by age.
    #[serde(default)]
    pub ages: Option<Vec<i64>>,
}

/// One function on a stack.
#[derive(Debug, Deserialize)]
pub struct Frame {
    #[serde(default)]
    pub function: Option<String>,
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: Option<i64>,
    #[serde(default)]
    pub module: Option<String>,
    #[serde(default)]
    pub address: serde_json::Value,
    #[serde(default)]
    pub inlined: bool,
}

impl Frame {
    /// Its function's name, empty where unknown.
    pub fn name(&self) -> &str {
        self.function.as_deref().unwrap_or_default()
    }
}

impl Sample {
    /// Outstanding.
    pub fn inuse(&self) -> Amount {
        self.amount("inuse")
    }

    /// Allocated since the start.
    pub fn allocated(&self) -> Amount {
        self.amount("alloc")
    }

    fn amount(&self, kind: &str) -> Amount {
        let value = |suffix: &str| self.values.get(&format!("{kind}_{suffix}")).copied().unwrap_or(0);
        Amount {
            objects: value("objects"),
            bytes: value("space"),
        }
    }

    /// Names, innermost first.
    pub fn names(&self) -> Vec<&str> {
        self.stack.iter().map(Frame::name).collect()
    }

    /// Some frame has this function, or one with this name and a suffix that a compiler adds (`.isra.0`).
    pub fn passes(&self, function: &str) -> bool {
        self.stack.iter().any(|frame| is_function(frame.name(), function))
    }

    /// The kind of heap.
    pub fn heap(&self) -> &str {
        self.labels
            .get("heap")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
    }
}

/// `name` is `function`, with or without parameters, path and compiler's suffix.
fn is_function(name: &str, function: &str) -> bool {
    let name = name.split(['(', '.']).next().unwrap_or(name);
    name == function || name.strip_suffix(function).is_some_and(|path| path.ends_with("::"))
}

impl Profile {
    /// Reads a JSON profile.
    ///
    /// # Errors
    /// When it is none of version 1.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let profile: Self =
            serde_json::from_slice(&text).with_context(|| format!("failed to understand `{}`", path.display()))?;
        ensure!(
            profile.version == 1,
            "`{}` is of version {}",
            path.display(),
            profile.version
        );
        Ok(profile)
    }

    /// Samples of allocators' heaps, which is all but memory mapped directly.
    pub fn heap(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.heap() != "mmap")
    }

    /// All that is outstanding in allocators' heaps.
    pub fn outstanding(&self) -> Amount {
        sum(self.heap().map(Sample::inuse))
    }

    /// What is outstanding from stacks through `function`, in allocators' heaps.
    pub fn outstanding_through(&self, function: &str) -> Amount {
        sum(self.heap().filter(|sample| sample.passes(function)).map(Sample::inuse))
    }

    /// What was allocated from stacks through `function`, in allocators' heaps.
    pub fn allocated_through(&self, function: &str) -> Amount {
        sum(self
            .heap()
            .filter(|sample| sample.passes(function))
            .map(Sample::allocated))
    }

    /// What is outstanding of memory that was mapped directly, from stacks through `function`.
    pub fn mapped_through(&self, function: &str) -> Amount {
        let mapped = self
            .samples
            .iter()
            .filter(|sample| sample.heap() == "mmap" && sample.passes(function));
        sum(mapped.map(Sample::inuse))
    }

    /// The count of a loss; 0 where it is not listed.
    pub fn loss(&self, name: &str) -> u64 {
        self.losses
            .iter()
            .filter(|loss| loss.name == name)
            .map(|loss| loss.count)
            .sum()
    }

    /// Outstanding stacks, largest first, for messages.
    pub fn shown(&self) -> String {
        let mut samples: Vec<_> = self
            .samples
            .iter()
            .filter(|sample| sample.inuse() != Amount::default())
            .collect();
        samples.sort_by_key(|sample| -sample.inuse().bytes);
        let line = |sample: &&Sample| {
            let amount = sample.inuse();
            format!(
                "{} B in {} ({}): {}\n",
                amount.bytes,
                amount.objects,
                sample.heap(),
                sample.names().join(" < ")
            )
        };
        let losses = self.losses.iter().filter(|loss| loss.count > 0);
        let losses: String = losses
            .map(|loss| format!("lost: {} {}\n", loss.count, loss.name))
            .collect();
        samples.iter().take(20).map(line).collect::<String>() + &losses
    }
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::default(), |mut total, amount| {
        total += amount;
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_recognised_by_their_last_name() {
        assert!(is_function("leak_here", "leak_here"));
        assert!(is_function("leak_here.isra.0", "leak_here"));
        assert!(is_function("workload::leak_here", "leak_here"));
        assert!(is_function("leak_here(unsigned long)", "leak_here"));
        assert!(!is_function("do_not_leak_here", "leak_here"));
    }
}
