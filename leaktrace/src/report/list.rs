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
        let lines = profile.stack(sample).enumerate().flat_map(|(caller, location)| {
            location
                .lines
                .iter()
                .enumerate()
                .map(move |(outer, line)| (caller + outer, line))
        });
        for (depth, line) in lines.filter(|(_, line)| matching.contains(&line.function)) {
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
    let source: Vec<&str> = source.lines().collect();
    let length = i64::try_from(source.len()).unwrap_or(i64::MAX);
    let behind = length.saturating_add(1);
    for (position, (first, last)) in excerpts(routine, length).into_iter().enumerate() {
        if position > 0 {
            let _ = writeln!(text, "{:>10} {:>10}        ⋮", "", "");
        }
        for (number, content) in (1..).zip(&source).filter(|(number, _)| (first..=last).contains(number)) {
            line(text, number, routine.lines.get(&number), content, values);
        }
    }
    for (number, weight) in routine.lines.range(..1).chain(routine.lines.range(behind..)) {
        line(text, *number, Some(weight), "(not in this version of the file)", values);
    }
}

/// First and last lines of the parts to show: those that weigh anything with their surroundings, near ones joined.
fn excerpts(routine: &Routine, length: i64) -> Vec<(i64, i64)> {
    let mut excerpts: Vec<(i64, i64)> = Vec::new();
    for &number in routine.lines.keys().filter(|number| (1..=length).contains(*number)) {
        let end = number.saturating_add(CONTEXT).min(length);
        match excerpts.last_mut() {
            Some((_, last)) if number - *last <= GAP => *last = end,
            Some(_) => excerpts.push((number - CONTEXT, end)),
            None => {
                let near = (1..=number).contains(&routine.start_line) && number - routine.start_line <= GAP;
                excerpts.push((
                    if near {
                        routine.start_line
                    } else {
                        (number - CONTEXT).max(1)
                    },
                    end,
                ));
            }
        }
    }
    excerpts
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
                 0  2560.10kB (flat, cum)   100% of Total
                 .          .     35:    line 35
                 .          .     36:    line 36
                 .          .     37:    line 37
                 .          .     38:    line 38
                 .          .     39:    line 39
                 .  2560.10kB     40:    line 40
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
