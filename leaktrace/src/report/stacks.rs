//! Stacks with their growth, largest first: the main view of a difference.

use std::cmp::Reverse;
use std::fmt::Write as _;

use super::name::{base, fit, printable};
use super::profile::{Profile, Sample};
use super::unit::{Scale, label, percentage};

/// What to show, and how wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackOptions {
    /// Position of the sample type to sort by.
    pub sample_type: usize,
    /// Show at most so many stacks; 0 for all.
    pub top: usize,
    /// Columns of the terminal; `None` shows names in full.
    pub width: Option<usize>,
}

/// The stacks that changed, the largest growth first and the largest decline last.
pub fn stacks(profile: &Profile, options: &StackOptions) -> String {
    let value = |sample: &Sample| sample.values[options.sample_type];
    let unit = profile.sample_types[options.sample_type].unit.as_str();
    let mut order: Vec<&Sample> = profile.samples.iter().filter(|sample| value(sample) != 0).collect();
    order.sort_by_key(|sample| Reverse(value(sample)));
    let sum = |positive: bool| {
        let part = order.iter().filter(|sample| (value(sample) > 0) == positive);
        part.fold((0usize, 0i64), |(count, sum), sample| {
            (count + 1, sum.saturating_add(value(sample)))
        })
    };
    let ((grown, growth), (shrunk, decline)) = (sum(true), sum(false));
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Type: {}",
        printable(&profile.sample_types[options.sample_type].kind)
    );
    let _ = writeln!(
        text,
        "Change: {} ({} in {}, {} in {})",
        signed(growth.saturating_add(decline), unit),
        signed(growth, unit),
        counted(grown),
        signed(decline, unit),
        counted(shrunk)
    );
    let shown = if options.top == 0 {
        order.len()
    } else {
        options.top.min(order.len())
    };
    if shown < order.len() {
        let _ = writeln!(text, "Showing the first {shown} of {} stacks", order.len());
    }
    for sample in &order[..shown] {
        let weight = value(sample);
        let share = if weight > 0 {
            percentage(weight, growth)
        } else {
            percentage(weight, decline)
        };
        let _ = write!(text, "{:>11} {share}", signed(weight, unit));
        for (value_type, other) in profile.sample_types.iter().zip(&sample.values) {
            if value_type.kind != profile.sample_types[options.sample_type].kind && *other != 0 {
                let _ = write!(
                    text,
                    "  {} {}",
                    printable(&value_type.kind),
                    signed(*other, &value_type.unit)
                );
            }
        }
        for label in &sample.labels {
            let _ = write!(text, "  {}={}", printable(&label.key), printable(&label.value));
        }
        text.push('\n');
        frames(&mut text, profile, sample, options.width);
    }
    text
}

fn frames(text: &mut String, profile: &Profile, sample: &Sample, width: Option<usize>) {
    const INDENT: &str = "                      ";
    for location in profile.stack(sample) {
        for (depth, name) in profile.names(location).enumerate() {
            let line = location.lines.get(depth);
            let place = line
                .map(|line| (profile.function(line).file.as_str(), line.line))
                .filter(|(file, _)| !file.is_empty());
            let place = match (place, width) {
                (None, _) => String::new(),
                // On a terminal the name of the file does; a pipe gets the whole path.
                (Some((file, number)), Some(_)) => format!("  {}:{number}", base(file)),
                (Some((file, number)), None) => format!("  {file}:{number}"),
            };
            let inline = if depth + 1 < location.lines.len() {
                " (inline)"
            } else {
                ""
            };
            let used = INDENT.len() + place.chars().count() + inline.len();
            let name = printable(&name);
            let name = match width {
                Some(width) => fit(&name, width.saturating_sub(used).max(20)),
                None => name,
            };
            let _ = writeln!(text, "{INDENT}{name}{inline}{}", printable(&place));
        }
    }
}

fn counted(stacks: usize) -> String {
    format!("{stacks} stack{}", if stacks == 1 { "" } else { "s" })
}

fn signed(value: i64, unit: &str) -> String {
    let text = label(value, unit, &Scale::Auto);
    if value > 0 { format!("+{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::sample_profile;
    use super::*;

    #[test]
    fn growth_first_decline_last() {
        let mut profile = sample_profile();
        profile.samples[1].values = vec![0, 0, -1, -(1 << 19)];
        let options = StackOptions {
            sample_type: 3,
            top: 0,
            width: None,
        };
        insta::assert_snapshot!(stacks(&profile, &options), @r"
        Type: inuse_space
        Change: +1.50MB (+2MB in 2 stacks, -512kB in 1 stack)
               +2MB   100%  alloc_objects +3  alloc_space +3MB  inuse_objects +2
                              leak (inline)  /src/app.c:10
                              recurse  /src/app.c:21
                              recurse  /src/app.c:20
                              main  /src/app.c:40
              +100B 0.0048%  alloc_objects +1  alloc_space +100B  inuse_objects +1
                              [libx.so]
                              main  /src/app.c:40
             -512kB   100%  inuse_objects -1
                              keep  /src/app.c:30
                              main  /src/app.c:40
        ");
        let narrow = StackOptions {
            top: 1,
            width: Some(44),
            ..options
        };
        insta::assert_snapshot!(stacks(&profile, &narrow), @r"
        Type: inuse_space
        Change: +1.50MB (+2MB in 2 stacks, -512kB in 1 stack)
        Showing the first 1 of 3 stacks
               +2MB   100%  alloc_objects +3  alloc_space +3MB  inuse_objects +2
                              leak (inline)  app.c:10
                              recurse  app.c:21
                              recurse  app.c:20
                              main  app.c:40
        ");
    }
}
