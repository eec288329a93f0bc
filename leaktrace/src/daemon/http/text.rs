//! Profiles as text, in the forms that Go's profiler gives for `debug=1`.
//!
//! Names are made fit for a terminal. Invariant: `go tool pprof` reads the heap form with the same sums.

use std::cmp::Reverse;
use std::fmt::Write as _;

use crate::report::name::printable;
use crate::report::{Profile, Sample};

/// The heap form: `in use objects: bytes [allocated objects: bytes] @ addresses`, largest first. The head says
/// `heapprofile`, which tells readers that values are not to be scaled again.
pub(super) fn heap(profile: &Profile) -> Result<String, &'static str> {
    let column = |kind: &str| profile.sample_types.iter().position(|value| value.kind == kind);
    let columns = ["inuse_objects", "inuse_space", "alloc_objects", "alloc_space"].map(column);
    let [Some(objects), Some(bytes), Some(all_objects), Some(all_bytes)] = columns else {
        return Err("the profile has other sample types than a heap profile");
    };
    let row = |values: &[i64]| {
        format!(
            "{}: {} [{}: {}] @",
            values[objects], values[bytes], values[all_objects], values[all_bytes]
        )
    };
    let mut text = String::from("heap profile: ");
    let totals: Vec<i64> = profile.totals().values.iter().map(|(_, total)| *total).collect();
    let _ = writeln!(text, "{} heapprofile", row(&totals));
    for sample in sorted(profile, |sample| (sample.values[bytes], sample.values[all_bytes])) {
        text.push_str(&row(&sample.values));
        stack(&mut text, profile, sample);
    }
    for comment in crate::monitor::views::comments(profile) {
        let _ = writeln!(text, "# {}", printable(&comment));
    }
    Ok(text)
}

/// The form of other profiles: `count @ addresses`, largest first.
pub(super) fn counts(profile: &Profile, name: &str) -> String {
    let total = profile.totals().values.first().map_or(0, |(_, total)| *total);
    let mut text = format!("{name} profile: total {total}\n");
    for sample in sorted(profile, |sample| (sample.values[0], 0)) {
        let _ = write!(text, "{} @", sample.values[0]);
        stack(&mut text, profile, sample);
    }
    text
}

/// Largest first; equal ones in the profile's order.
fn sorted(profile: &Profile, key: impl Fn(&Sample) -> (i64, i64)) -> Vec<&Sample> {
    let mut samples: Vec<&Sample> = profile.samples.iter().collect();
    samples.sort_by_key(|sample| Reverse(key(sample)));
    samples
}

/// Addresses to the end of the line, then labels and a line for each function.
fn stack(text: &mut String, profile: &Profile, sample: &Sample) {
    for location in profile.stack(sample) {
        let _ = write!(text, " {:#x}", location.address);
    }
    text.push('\n');
    let labels: Vec<String> = sample
        .labels
        .iter()
        .map(|label| format!("{:?}:{:?}", printable(&label.key), printable(&label.value)))
        .collect();
    if !labels.is_empty() {
        let _ = writeln!(text, "# labels: {{{}}}", labels.join(", "));
    }
    for location in profile.stack(sample) {
        for (depth, name) in profile.names(location).enumerate() {
            let _ = write!(text, "#\t{:#x}\t{}", location.address, printable(&name));
            let line = location.lines.get(depth);
            if let Some((line, function)) = line.map(|line| (line, profile.function(line)))
                && !function.file.is_empty()
            {
                let _ = write!(text, "\t{}:{}", printable(&function.file), line.line);
            }
            text.push('\n');
        }
    }
    text.push('\n');
}
