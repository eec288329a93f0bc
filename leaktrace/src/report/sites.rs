//! The table of sites: for each stack the first frame of the program's own code, with who called it.
//!
//! What stands before that frame is support ([`super::support`]). Where a stack is support alone, its innermost frame is the
//! site. Each sample belongs to one site, so that the rows' sum is the total. Invariant: rows are sorted, and the order is
//! total.

use std::cmp::Reverse;
use std::fmt::Write as _;

use hashbrown::HashMap;

use super::name::{base, fit, printable};
use super::profile::{Location, Profile, Sample};
use super::support::is_support;
use super::table::header;
use super::unit::{Scale, common, label, percentage};

/// Callers that are shown of a site.
const CALLERS: usize = 2;

/// What to show, and how wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteOptions {
    /// Position of the sample type to weigh by.
    pub sample_type: usize,
    /// Show at most so many rows; 0 for all.
    pub top: usize,
    /// Leave out rows below this share of the total.
    pub fraction: f64,
    /// Columns of the terminal; `None` shows names in full.
    pub width: Option<usize>,
}

/// A place in the program's own code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Function, or what stands for one without a name, and its line if that is known.
    pub name: String,
    /// Weight by the sample type that was asked for.
    pub weight: i64,
    /// Objects, if the profile counts them.
    pub objects: Option<i64>,
    /// Nearest first; those of the heaviest way here.
    pub callers: Vec<String>,
    /// There are other ways here.
    pub has_other_callers: bool,
}

/// Sites of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    /// Heaviest first, by absolute value.
    pub rows: Vec<Site>,
    /// Weight of all samples, by absolute value.
    pub total: i64,
}

/// One function of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its name, or what stands for one.
    pub function: String,
    /// Source file; empty when unknown.
    pub file: String,
    /// Line in it; 0 when unknown.
    pub line: i64,
    /// Path of the program or library; empty when unknown.
    pub module: String,
    /// It is none of the program's own.
    pub is_support: bool,
}

#[derive(Default)]
struct Weights {
    weight: i64,
    objects: i64,
    ways: HashMap<Vec<String>, i64>,
}

impl Sites {
    /// Finds them.
    ///
    /// # Panics
    /// Where the profile has no such sample type (see [`Profile::sample_type`]).
    pub fn new(profile: &Profile, sample_type: usize) -> Self {
        let objects = objects(profile, sample_type);
        let places: Vec<Vec<Place>> = profile
            .locations
            .iter()
            .map(|location| places(profile, location))
            .collect();
        let mut sites: HashMap<String, Weights> = HashMap::new();
        let mut total = 0i64;
        for sample in profile.samples.iter().filter(|sample| sample.values[sample_type] != 0) {
            let weight = sample.values[sample_type];
            total = total.saturating_add(weight.saturating_abs());
            let (name, callers) = shown(sample, &places);
            let site = sites.entry(name).or_default();
            site.weight = site.weight.saturating_add(weight);
            if let Some(objects) = objects {
                site.objects = site.objects.saturating_add(sample.values[objects]);
            }
            let way = site.ways.entry(callers).or_default();
            *way = way.saturating_add(weight.saturating_abs());
        }
        let mut rows: Vec<Site> = sites
            .into_iter()
            .map(|(name, weights)| Site {
                name,
                weight: weights.weight,
                objects: objects.map(|_| weights.objects),
                has_other_callers: weights.ways.len() > 1,
                callers: heaviest(weights.ways),
            })
            .collect();
        rows.sort_by(|a, b| {
            let key = |site: &Site| Reverse(site.weight.saturating_abs());
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        Self { rows, total }
    }
}

fn heaviest(ways: HashMap<Vec<String>, i64>) -> Vec<String> {
    let heaviest = ways
        .into_iter()
        .max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)));
    heaviest.map(|(callers, _)| callers).unwrap_or_default()
}

/// `inuse_objects` beside `inuse_space`.
fn objects(profile: &Profile, sample_type: usize) -> Option<usize> {
    let kind = profile.sample_types.get(sample_type)?.kind.as_str();
    let wanted = format!("{}_objects", kind.strip_suffix("_space")?);
    profile
        .sample_types
        .iter()
        .position(|value_type| value_type.kind.as_str() == wanted)
}

/// The functions of a location, innermost first.
pub fn places(profile: &Profile, location: &Location) -> Vec<Place> {
    let module = profile.mapping(location).map_or("", |mapping| mapping.file.as_str());
    let names = profile.names(location).enumerate();
    names
        .map(|(depth, name)| {
            let line = location.lines.get(depth);
            let file = line.map_or("", |line| profile.function(line).file.as_str());
            Place {
                is_support: is_support(&name, file, module),
                function: name.into_owned(),
                file: file.to_owned(),
                line: line.map_or(0, |line| line.line),
                module: module.to_owned(),
            }
        })
        .collect()
}

/// The site of a stack, innermost first, and its callers: support and what calls itself is passed over. `None` for an empty
/// one.
pub fn own<'p>(stack: impl Iterator<Item = &'p Place> + Clone) -> Option<(&'p Place, Vec<String>)> {
    let at = stack.clone().position(|place| !place.is_support).unwrap_or(0);
    let mut rest = stack.skip(at);
    let site = rest.next()?;
    let mut callers: Vec<String> = Vec::new();
    let mut last = site.function.as_str();
    for place in rest.filter(|place| !place.is_support) {
        if callers.len() == CALLERS {
            break;
        }
        if place.function != last {
            callers.push(place.function.clone());
        }
        last = &place.function;
    }
    Some((site, callers))
}

/// The site of a sample as it is shown, and its callers.
fn shown(sample: &Sample, places: &[Vec<Place>]) -> (String, Vec<String>) {
    let stack = sample.locations.iter().flat_map(|location| &places[location.index()]);
    let Some((site, callers)) = own(stack) else {
        return ("[no stack]".to_owned(), Vec::new());
    };
    let name = if site.file.is_empty() || site.line <= 0 {
        site.function.clone()
    } else {
        format!("{} ({}:{})", site.function, base(&site.file), site.line)
    };
    (name, callers)
}

/// The whole table with its header.
pub fn table(profile: &Profile, options: &SiteOptions) -> String {
    let Sites { rows, total } = Sites::new(profile, options.sample_type);
    let unit = profile
        .sample_types
        .get(options.sample_type)
        .map_or("", |value_type| value_type.unit.as_str());
    let all = rows.len();
    let cutoff = ((total as f64 * options.fraction) as i64).saturating_abs();
    let mut rows: Vec<Site> = rows
        .into_iter()
        .filter(|site| site.weight.saturating_abs() >= cutoff.max(1))
        .collect();
    if options.top > 0 {
        rows.truncate(options.top);
    }
    let smallest = rows.iter().map(|site| site.weight.saturating_abs()).min();
    let scale = common(smallest.unwrap_or(total), total, unit);
    let shown = rows.iter().fold(0i64, |sum, site| sum.saturating_add(site.weight));

    let mut text = header(profile, options.sample_type);
    let _ = writeln!(
        text,
        "Showing {} of {all} site{}, {} of {} ({})",
        rows.len(),
        if all == 1 { "" } else { "s" },
        label(shown, unit, &scale),
        label(total, unit, &scale),
        percentage(shown, total).trim()
    );
    let with_objects = objects(profile, options.sample_type).is_some();
    text += "      flat  flat%   sum%";
    text += if with_objects {
        "    objects  site ← callers\n"
    } else {
        "  site ← callers\n"
    };
    let mut sum = 0i64;
    for site in &rows {
        sum = sum.saturating_add(site.weight);
        let mut line = format!(
            "{:>10} {} {}",
            label(site.weight, unit, &scale),
            percentage(site.weight, total),
            percentage(sum, total)
        );
        if let Some(objects) = site.objects {
            let _ = write!(line, " {:>10}", label(objects, "count", &Scale::Auto));
        }
        line += "  ";
        let mut name = site.name.clone();
        for caller in &site.callers {
            name += " ← ";
            name += caller;
        }
        if site.has_other_callers {
            name += " …";
        }
        let name = printable(&name);
        line += &match options.width {
            Some(width) => fit_end(&name, width.saturating_sub(line.chars().count()).max(20)),
            None => name.into_owned(),
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

/// The site itself is never cut for the sake of its callers.
fn fit_end(name: &str, width: usize) -> String {
    if name.chars().count() <= width {
        return name.to_owned();
    }
    let site = name.split(" ← ").next().unwrap_or(name);
    if site.chars().count() + 4 >= width {
        return fit(site, width).into_owned();
    }
    name.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FrameLine, Mapping, ProfileBuilder};

    /// `main → serve → remember → std::vector::push_back → operator new`, the same through `retry`, recursion, and a stack
    /// of the C library alone.
    fn profile() -> Profile {
        let mut builder = ProfileBuilder::heap();
        let app = builder.mapping(Mapping {
            file: "/bin/app".into(),
            ..Mapping::default()
        });
        let libc = builder.mapping(Mapping {
            file: "/lib/libc.so.6".into(),
            start: 1,
            ..Mapping::default()
        });
        let frame = |function, line| FrameLine {
            function,
            file: "/src/app.cc",
            line,
            ..FrameLine::default()
        };
        let new = builder.location(Some(app), 0x10, &[frame("operator new(unsigned long)", 0)]);
        let push = builder.location(
            Some(app),
            0x20,
            &[
                frame("std::vector<int>::push_back(int)", 90),
                frame("remember(int)", 12),
            ],
        );
        let serve = builder.location(Some(app), 0x30, &[frame("serve()", 30)]);
        let retry = builder.location(Some(app), 0x40, &[frame("retry()", 33)]);
        let main = builder.location(Some(app), 0x50, &[frame("main", 50)]);
        let start = builder.location(Some(libc), 0x60, &[]);
        let parse = builder.location(Some(app), 0x70, &[frame("parse(node)", 70)]);
        let values = |bytes: i64| [1, bytes, 1, bytes];
        builder.sample(
            vec![new, push, serve, main, start],
            &values(3 << 20),
            Vec::new(),
            Vec::new(),
        );
        builder.sample(
            vec![new, push, retry, serve, main, start],
            &values(1 << 20),
            Vec::new(),
            Vec::new(),
        );
        builder.sample(
            vec![parse, parse, parse, main, start],
            &values(512 << 10),
            Vec::new(),
            Vec::new(),
        );
        builder.sample(vec![start], &values(100), Vec::new(), Vec::new());
        builder.finish()
    }

    #[test]
    fn the_culprit_comes_first() {
        let options = SiteOptions {
            sample_type: 3,
            top: 0,
            fraction: 0.0,
            width: None,
        };
        insta::assert_snapshot!(table(&profile(), &options), @r"
        File: app
        Type: inuse_space
        Showing 3 of 3 sites, 4608.10kB of 4608.10kB (100%)
              flat  flat%   sum%    objects  site ← callers
            4096kB 88.89% 88.89%          2  remember(int) (app.cc:12) ← serve() ← main …
             512kB 11.11%   100%          1  parse(node) (app.cc:70) ← main
            0.10kB 0.0021%   100%          1  [libc.so.6]
        ");
    }

    #[test]
    fn every_byte_is_in_one_row() {
        let sites = Sites::new(&profile(), 3);
        let sum: i64 = sites.rows.iter().map(|site| site.weight).sum();
        assert_eq!(sum, sites.total);
        assert_eq!(sites.total, (4 << 20) + (512 << 10) + 100);
    }

    #[test]
    fn narrow_and_few() {
        let options = SiteOptions {
            sample_type: 1,
            top: 1,
            fraction: 0.005,
            width: Some(64),
        };
        insta::assert_snapshot!(table(&profile(), &options), @r"
        File: app
        Type: alloc_space
        Showing 1 of 3 sites, 4MB of 4.50MB (88.89%)
              flat  flat%   sum%    objects  site ← callers
               4MB 88.89% 88.89%          2  remember(int) (app.cc:12)
        ");
    }
}
