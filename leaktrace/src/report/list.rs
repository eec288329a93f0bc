//! The source view: lines of the functions whose names match, with the bytes that each line holds.
//!
//! Sources are read through a function that the caller gives, so this does no I/O. Where a source cannot be read the
//! lines that weigh anything are shown without their text. Invariant: within a stack a line and a function count once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hashbrown::HashSet;
use regex::Regex;

use super::graph::{Graph, GraphOptions};
use super::name::printable;
use super::profile::{FunctionId, Profile};
use super::table::Values;
use super::unit::percentage;

/// Lines shown before and after those that weigh anything.
const CONTEXT: i64 = 5;
/// Gap between two lines that is worth leaving out.
const GAP: i64 = 3 * CONTEXT;

#[derive(Clone, Copy, Default)]
struct Weight {
    flat: i64,
    cumulative: i64,
}

impl Weight {
    fn add(&mut self, value: i64, flat: bool) {
        self.cumulative = self.cumulative.saturating_add(value);
        if flat {
            self.flat = self.flat.saturating_add(value);
        }
    }
}

#[derive(Default)]
struct Routine {
    weight: Weight,
    start_line: i64,
    lines: BTreeMap<i64, Weight>,
}

/// The listing, or `None` if no function matches. `source` gives the text of a file, or says why it cannot.
pub fn list(
    profile: &Profile,
    sample_type: usize,
    pattern: &Regex,
    mut source: impl FnMut(&str) -> Result<String, String>,
) -> Option<String> {
    let routines = routines(profile, sample_type, pattern);
    if routines.is_empty() {
        return None;
    }
    let graph = Graph::new(profile, &GraphOptions::all(sample_type));
    let values = Values::new(profile, sample_type, &graph);
    let mut text = format!("Total: {}\n", values.show(graph.total));
    for ((name, file), routine) in &routines {
        let place = if file.is_empty() { "unknown file" } else { file };
        let _ = writeln!(
            text,
            "ROUTINE ======================== {} in {}",
            printable(name),
            printable(place)
        );
        let _ = writeln!(
            text,
            "{:>10} {:>10} (flat, cum) {} of Total",
            values.show(routine.weight.flat),
            values.show(routine.weight.cumulative),
            percentage(routine.weight.cumulative, graph.total)
        );
        let has_lines = routine.lines.keys().any(|line| *line > 0);
        if file.is_empty() || !has_lines {
            let _ = writeln!(
                text,
                "           (no line numbers: the program has no debug information here)"
            );
            continue;
        }
        match source(file) {
            Ok(source) => annotate(&mut text, routine, &source, &values),
            Err(reason) => {
                let _ = writeln!(text, "           (source not readable: {})", printable(&reason));
                for (number, weight) in &routine.lines {
                    line(&mut text, *number, Some(weight), "", &values);
                }
            }
        }
    }
    Some(text)
}

/// Weights of the matching functions, by name and file.
fn routines<'p>(profile: &'p Profile, sample_type: usize, pattern: &Regex) -> BTreeMap<(&'p str, &'p str), Routine> {
    let matching: HashSet<FunctionId> = (0u32..)
        .zip(&profile.functions)
        .filter(|(_, function)| pattern.is_match(&function.name))
        .map(|(id, _)| FunctionId(id))
        .collect();
    let mut routines: BTreeMap<(&str, &str), Routine> = BTreeMap::new();
    let mut seen = HashSet::new();
    for sample in &profile.samples {
        let value = sample.values[sample_type];
        if value == 0 {
            continue;
        }
        seen.clear();
        let lines = profile.stack(sample).flat_map(|location| &location.lines);
        for (depth, line) in lines.enumerate().filter(|(_, line)| matching.contains(&line.function)) {
            let function = profile.function(line);
            let key = (function.name.as_str(), function.file.as_str());
            let routine = routines.entry(key).or_default();
            routine.start_line = function.start_line;
            // Innermost first: the first time is the one that may be the leaf.
            if seen.insert((key, None)) {
                routine.weight.add(value, depth == 0);
            }
            if seen.insert((key, Some(line.line))) {
                routine.lines.entry(line.line).or_default().add(value, depth == 0);
            }
        }
    }
    routines
}

fn annotate(text: &mut String, routine: &Routine, source: &str, values: &Values<'_>) {
    let mut rest = source.lines();
    let mut next = 1;
    let mut weighed = routine.lines.range(1..).peekable();
    let start = |first: i64| match routine.start_line {
        start if start > 0 && start <= first && first - start <= GAP => start,
        _ => (first - CONTEXT).max(1),
    };
    let Some((first, _)) = weighed.peek() else { return };
    let mut number = start(**first);
    while let Some((&last, _)) = weighed.next_if(|_| true) {
        let gap_follows = weighed.peek().is_none_or(|(next, _)| **next - last > GAP);
        let end = if gap_follows {
            last.saturating_add(CONTEXT)
        } else {
            last
        };
        while number <= end {
            let skip = usize::try_from(number - next).unwrap_or(0);
            next = number + 1;
            match rest.nth(skip) {
                Some(content) => line(text, number, routine.lines.get(&number), content, values),
                None if routine.lines.contains_key(&number) => {
                    line(
                        text,
                        number,
                        routine.lines.get(&number),
                        "(behind the end of the file)",
                        values,
                    );
                }
                None => {}
            }
            number += 1;
        }
        if gap_follows && let Some((following, _)) = weighed.peek() {
            number = number.max(**following - CONTEXT);
            let _ = writeln!(text, "{:>10} {:>10}        ⋮", "", "");
        }
    }
}

fn line(text: &mut String, number: i64, weight: Option<&Weight>, content: &str, values: &Values<'_>) {
    let show = |value: Option<i64>| match value {
        None | Some(0) => ".".to_owned(),
        Some(value) => values.show(value),
    };
    let (flat, cumulative) = (weight.map(|weight| weight.flat), weight.map(|weight| weight.cumulative));
    let content = content.replace('\t', "    ");
    let _ = writeln!(
        text,
        "{:>10} {:>10} {number:>6}:{}",
        show(flat),
        show(cumulative),
        printable(&content)
    );
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::sample_profile;
    use super::*;

    fn numbered(_: &str) -> Result<String, String> {
        Ok((1..=41).map(|number| format!("\tline {number}\n")).collect())
    }

    #[test]
    fn lines_with_their_bytes() {
        let pattern = Regex::new("recurse|main").expect("valid");
        insta::assert_snapshot!(list(&sample_profile(), 3, &pattern, numbered).expect("matches"), @r"
        Total: 2560.10kB
        ROUTINE ======================== main in /src/app.c
            0.10kB  2560.10kB (flat, cum)   100% of Total
                 .          .     35:    line 35
                 .          .     36:    line 36
                 .          .     37:    line 37
                 .          .     38:    line 38
                 .          .     39:    line 39
            0.10kB  2560.10kB     40:    line 40
                 .          .     41:    line 41
        ROUTINE ======================== recurse in /src/app.c
                 0     2048kB (flat, cum) 80.00% of Total
                 .          .     15:    line 15
                 .          .     16:    line 16
                 .          .     17:    line 17
                 .          .     18:    line 18
                 .          .     19:    line 19
                 .     2048kB     20:    line 20
                 .     2048kB     21:    line 21
                 .          .     22:    line 22
                 .          .     23:    line 23
                 .          .     24:    line 24
                 .          .     25:    line 25
                 .          .     26:    line 26
        ");
    }

    #[test]
    fn without_source_or_match() {
        let unreadable = |_: &str| Err("No such file".to_owned());
        let pattern = Regex::new("^leak$").expect("valid");
        insta::assert_snapshot!(list(&sample_profile(), 2, &pattern, unreadable).expect("matches"), @r"
        Total: 4
        ROUTINE ======================== leak in /src/app.c
                 2          2 (flat, cum) 50.00% of Total
                   (source not readable: No such file)
                 2          2     10:
        ");
        assert_eq!(
            list(&sample_profile(), 2, &Regex::new("nothing").expect("valid"), unreadable),
            None
        );
    }

    #[test]
    fn absurd_line_numbers_end() {
        let mut profile = sample_profile();
        for (location, line) in profile.locations.iter_mut().zip([i64::MAX, i64::MIN, 1, 30, 2]) {
            location.lines.iter_mut().for_each(|old| old.line = line);
        }
        assert!(list(&profile, 3, &Regex::new(".").expect("valid"), numbered).is_some());
    }
}
