//! Folded stacks: one line per stack, root first, `main;handle;leak 4096`.
//!
//! The input of flame graph tools. Only growth shows: values below 1 (which differences can have) are left out, since
//! the format has no negative numbers. Invariant: lines are sorted and their stacks distinct.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::report::{Profile, Sample};

/// The lines, each without its end.
///
/// # Panics
/// Where the profile has no sample type at this position.
pub fn lines(profile: &Profile, sample_type: usize) -> Vec<String> {
    let mut stacks: BTreeMap<String, i64> = BTreeMap::new();
    for sample in &profile.samples {
        let value = sample.values[sample_type];
        if value != 0 {
            let sum = stacks.entry(fold(profile, sample)).or_default();
            *sum = sum.saturating_add(value);
        }
    }
    stacks
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(stack, value)| format!("{stack} {value}"))
        .collect()
}

/// Writes all lines.
pub fn write(profile: &Profile, sample_type: usize, mut output: impl Write) -> io::Result<()> {
    for line in lines(profile, sample_type) {
        writeln!(output, "{line}")?;
    }
    output.flush()
}

fn fold(profile: &Profile, sample: &Sample) -> String {
    let mut folded = String::new();
    for location in profile.stack(sample).rev() {
        for name in profile.names(location).rev() {
            if !folded.is_empty() {
                folded.push(';');
            }
            // The separator and line ends would make another stack of it.
            folded.extend(name.chars().map(|c| if c == ';' || c.is_control() { '_' } else { c }));
        }
    }
    if folded.is_empty() {
        "<unknown>".to_owned()
    } else {
        folded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, Mapping, ProfileBuilder};

    #[test]
    fn root_first_sorted_and_without_decline() {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            file: "/lib/libx.so".to_owned(),
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
