//! `drop_frames` and `keep_frames`: leaves out the allocator's own frames, as every pprof reader does on reading.
//!
//! A sample is cut at its outermost frame whose function matches `drop_frames` (and not `keep_frames`), that frame
//! included, so that the caller of the allocator becomes the leaf. Invariant: a stack is never emptied, and its values
//! never change.

use hashbrown::HashMap;
use regex::Regex;

use super::profile::{Function, Location, Profile};

/// One of the two expressions is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{expression}` in the profile is not a regular expression: {source}")]
pub struct PruneError {
    /// The expression.
    pub expression: String,
    /// What is wrong with it.
    #[source]
    pub source: Box<regex::Error>,
}

/// Applies the profile's own `drop_frames` and `keep_frames` to its stacks.
pub fn prune(profile: &mut Profile) -> Result<(), PruneError> {
    if profile.drop_frames.is_empty() {
        return Ok(());
    }
    let drop = anchored(&profile.drop_frames)?;
    let keep = if profile.keep_frames.is_empty() {
        None
    } else {
        Some(anchored(&profile.keep_frames)?)
    };
    // Once for each name, however many functions share it.
    let mut known = HashMap::new();
    let matches: Vec<bool> = profile
        .functions
        .iter()
        .map(|function| {
            *known.entry(function.name.place()).or_insert_with(|| {
                let name = simplified(function);
                !name.is_empty() && drop.is_match(name) && !keep.as_ref().is_some_and(|keep| keep.is_match(name))
            })
        })
        .collect();
    let cuts: Vec<Cut> = profile
        .locations
        .iter_mut()
        .map(|location| cut(location, &matches))
        .collect();

    for sample in &mut profile.samples {
        let mut found_user = false;
        for position in (0..sample.locations.len()).rev() {
            match cuts[sample.locations[position].index()] {
                Cut::Nothing => found_user = true,
                // Frames outside the first frame of the program proper stay: cutting there would leave nothing.
                _ if !found_user => {}
                Cut::Whole => {
                    sample.locations.drain(..=position);
                    break;
                }
                Cut::Inner => {
                    sample.locations.drain(..position);
                    break;
                }
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Nothing,
    /// The outermost function of the location matches: the location goes too.
    Whole,
    /// An inlined function matches: the location stays, with what is outside of it.
    Inner,
}

fn cut(location: &mut Location, matches: &[bool]) -> Cut {
    match location.lines.iter().rposition(|line| matches[line.function.index()]) {
        None => Cut::Nothing,
        Some(position) if position + 1 == location.lines.len() => Cut::Whole,
        Some(position) => {
            location.lines.drain(..=position);
            Cut::Inner
        }
    }
}

fn anchored(expression: &str) -> Result<Regex, PruneError> {
    Regex::new(&format!("^({expression})$")).map_err(|source| PruneError {
        expression: expression.to_owned(),
        source: Box::new(source),
    })
}

/// The name without its argument list: up to the first parenthesis that is not part of the name itself.
fn simplified(function: &Function) -> &str {
    const PART_OF_NAME: [&str; 2] = ["(anonymous namespace)", "operator()"];
    let name = function.name.strip_prefix('.').unwrap_or(&function.name);
    let mut position = 0;
    while let Some(found) = name[position..].find('(').map(|found| found + position) {
        let reserved = PART_OF_NAME.iter().find_map(|part| {
            let start = found.checked_sub(part.find('(').unwrap_or(0))?;
            name.get(start..)?.starts_with(part).then_some(start + part.len())
        });
        match reserved {
            Some(end) => position = end,
            None => return &name[..found],
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, ProfileBuilder};

    fn profile(stack: &[&[&str]]) -> Profile {
        let mut builder = ProfileBuilder::heap();
        let locations = stack
            .iter()
            .enumerate()
            .map(|(index, names)| {
                let frames: Vec<_> = names
                    .iter()
                    .map(|function| FrameLine {
                        function,
                        ..FrameLine::default()
                    })
                    .collect();
                builder.location(None, index as u64 + 1, &frames)
            })
            .collect();
        builder.sample(locations, &[1, 1, 1, 1], Vec::new(), Vec::new());
        builder.finish()
    }

    fn left(profile: &Profile) -> Vec<&str> {
        profile
            .stack(&profile.samples[0])
            .flat_map(|location| &location.lines)
            .map(|line| profile.function(line).name.as_str())
            .collect()
    }

    #[test]
    fn the_callers_of_the_allocator_stay() {
        let mut pruned = profile(&[
            &["__libc_malloc"],
            &["operator new(unsigned long)"],
            &["leak(int)"],
            &["main"],
        ]);
        pruned.drop_frames = "__libc_malloc|operator new".to_owned();
        prune(&mut pruned).expect("valid");
        assert_eq!(left(&pruned), ["leak(int)", "main"]);
    }

    #[test]
    fn keep_frames_are_exceptions_and_inlined_allocators_go() {
        let mut pruned = profile(&[&["malloc"], &["xmalloc", "leak"], &["main"]]);
        pruned.drop_frames = "x?malloc".to_owned();
        let mut kept = pruned.clone();
        prune(&mut pruned).expect("valid");
        assert_eq!(left(&pruned), ["leak", "main"]);
        kept.keep_frames = "xmalloc".to_owned();
        prune(&mut kept).expect("valid");
        assert_eq!(left(&kept), ["xmalloc", "leak", "main"]);
    }

    #[test]
    fn a_stack_of_nothing_else_stays() {
        let mut pruned = profile(&[&["malloc"], &["malloc"]]);
        pruned.drop_frames = "malloc".to_owned();
        prune(&mut pruned).expect("valid");
        assert_eq!(left(&pruned), ["malloc", "malloc"]);
        pruned.drop_frames = "(".to_owned();
        assert!(prune(&mut pruned).is_err());
    }

    #[test]
    fn argument_lists_are_not_part_of_the_name() {
        let simple = |name: &str| {
            simplified(&Function {
                name: name.into(),
                ..Function::default()
            })
            .to_owned()
        };
        assert_eq!(simple("a::b(int, char)"), "a::b");
        assert_eq!(simple("(anonymous namespace)::f(int)"), "(anonymous namespace)::f");
        assert_eq!(simple("F::operator()(int)"), "F::operator()");
        assert_eq!(simple("main.(*T).Put"), "main.");
        assert_eq!(simple(".foo"), "foo");
    }
}
