//! Folded stacks: one line per stack, root first, `main;handle;leak 4096`.
//!
//! The input of flame graph tools. Only growth shows: values below 1 (which differences can have) are left out, since
//! the format has no negative numbers. Invariant: lines are sorted and their stacks distinct.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use crate::report::Profile;

/// The lines, each without its end.
///
/// # Panics
/// Where the profile has no sample type at this position.
pub fn lines(profile: &Profile, sample_type: usize) -> Vec<String> {
    let stacks = stacks(profile, sample_type).into_iter();
    stacks
        .map(|(mut stack, value)| {
            let _ = write!(stack, " {value}");
            stack
        })
        .collect()
}

/// Writes all lines.
///
/// # Panics
/// Where the profile has no sample type at this position.
pub fn write(profile: &Profile, sample_type: usize, mut output: impl io::Write) -> io::Result<()> {
    for (stack, value) in stacks(profile, sample_type) {
        writeln!(output, "{stack} {value}")?;
    }
    output.flush()
}

fn stacks(profile: &Profile, sample_type: usize) -> BTreeMap<String, i64> {
    // Root first inside of each location too.
    let folded: Vec<String> = profile
        .locations
        .iter()
        .map(|location| {
            let names: Vec<String> = profile.names(location).rev().map(|name| fold(&name)).collect();
            names.join(";")
        })
        .collect();
    let mut stacks: BTreeMap<String, i64> = BTreeMap::new();
    for sample in profile.samples.iter().filter(|sample| sample.values[sample_type] != 0) {
        let parts: Vec<&str> = sample
            .locations
            .iter()
            .rev()
            .map(|id| folded[id.index()].as_str())
            .collect();
        let stack = if parts.is_empty() {
            "<unknown>".to_owned()
        } else {
            parts.join(";")
        };
        let sum = stacks.entry(stack).or_default();
        *sum = sum.saturating_add(sample.values[sample_type]);
    }
    stacks.retain(|_, value| *value > 0);
    stacks
}

/// The separator and line ends would make another stack of it.
fn fold(name: &str) -> String {
    name.chars()
        .map(|c| if c == ';' || c.is_control() { '_' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, Mapping, ProfileBuilder};

    #[test]
    fn root_first_sorted_and_without_decline() {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            file: "/lib/libx.so".into(),
            ..Mapping::default()
        });
        let frame = |function| FrameLine {
            function,
            ..FrameLine::default()
        };
        let inlined = builder.location(None, 1, &[frame("leak;it"), frame("handle")]);
        let hidden = builder.location(Some(mapping), 2, &[]);
        let main = builder.location(None, 3, &[frame("main")]);
        builder.sample(vec![inlined, main], &[1, 1, 1, 64], Vec::new(), Vec::new());
        builder.sample(vec![hidden, main], &[1, 1, 1, 32], Vec::new(), Vec::new());
        builder.sample(vec![main], &[0, 0, -1, -8], Vec::new(), Vec::new());
        insta::assert_snapshot!(lines(&builder.finish(), 3).join("\n"), @r"
        main;[libx.so] 32
        main;handle;leak_it 64
        ");
    }
}
