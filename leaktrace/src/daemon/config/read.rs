//! From text to a configuration: every section filled from the table, then what several keys say together is checked.
//!
//! Invariant: reading goes on after a finding, so that one run tells them all; a configuration is handed out only if
//! there was none.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems, nearest};
use super::rule::Rule;
use super::schema::{SECTIONS, Section, duration_text, section};
use super::value::{self, FromValue, Value};
use super::{Budget, Config, Export, Trace, Watch, network};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// The text alone.
    Text,
    /// What it names on this machine as well.
    Machine,
}

/// Most rules, and most push targets.
const MAX_REPEATED: usize = 1000;

/// Reads a text.
///
/// # Errors
/// All findings, in the order of the text; at least one.
pub(super) fn read(text: &str, depth: Depth) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        problems.add(error.span().unwrap_or(0..0), "", format!("not TOML: {message}"));
    }
    if !errors.is_empty() {
        // What the parser made of the rest may not be what was meant.
        return Err(problems.finish());
    }
    let document = document.get_ref();
    unknown_sections(document, &mut problems);
    let config = Config {
        watch: watch(&mut Filled::once(document, "watch", &mut problems), &mut problems),
        trace: trace(document, &mut problems),
        budget: budget(&mut Filled::once(document, "budget", &mut problems)),
        export: export(&mut Filled::once(document, "export", &mut problems)),
        push: network::pushes(document, depth, &mut problems),
        http: network::http(&mut Filled::once(document, "http", &mut problems), depth, &mut problems),
    };
    let problems = problems.finish();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn unknown_sections(document: &DeTable<'_>, problems: &mut Problems<'_>) {
    let known = || {
        SECTIONS
            .iter()
            .map(|section| section.name)
            .filter(|name| !name.contains('.'))
    };
    for name in document.keys() {
        let text: &str = name.get_ref();
        if known().any(|known| known == text) {
            continue;
        }
        let owner = SECTIONS.iter().find(|section| section.key(text).is_some());
        let remedy = match (nearest(text, known()), owner) {
            (_, Some(owner)) => format!("it belongs under {}", owner.header()),
            (Some(meant), None) => format!("did you mean {}?", section(meant).header()),
            (None, None) => format!("known are {}", known().collect::<Vec<_>>().join(", ")),
        };
        problems.add(name.span(), text, format!("unknown section or key; {remedy}"));
    }
}

/// A section's values, checked one by one.
pub(super) struct Filled {
    values: BTreeMap<&'static str, Value>,
    pub places: BTreeMap<&'static str, Range<usize>>,
    /// Of the section itself.
    place: Range<usize>,
    name: &'static str,
    /// Something is wrong with it.
    pub flawed: bool,
}

impl Filled {
    /// A section that there is one of, or none: defaults.
    fn once(document: &DeTable<'_>, name: &'static str, problems: &mut Problems<'_>) -> Self {
        let section = section(name);
        match document.get(name) {
            None => Self::fill(section, None, 0..0, problems),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Self::fill(section, Some(table), value.span(), problems),
                other => {
                    let message = format!("is of the wrong type ({}); write a section [{name}]", other.type_str());
                    problems.add(value.span(), name, message);
                    Self::fill(section, None, 0..0, problems)
                }
            },
        }
    }

    /// All of a section that may be repeated.
    pub fn each(value: Option<&Spanned<DeValue<'_>>>, name: &'static str, problems: &mut Problems<'_>) -> Vec<Self> {
        let section = section(name);
        let Some(value) = value else { return Vec::new() };
        let wrong = |other: &DeValue<'_>| format!("is of the wrong type ({}); write [[{name}]]", other.type_str());
        let DeValue::Array(entries) = value.get_ref() else {
            problems.add(value.span(), name, wrong(value.get_ref()));
            return Vec::new();
        };
        if entries.len() > MAX_REPEATED {
            let message = format!("there are {}; at most {MAX_REPEATED} are possible", entries.len());
            problems.add(value.span(), name, message);
        }
        let mut filled = Vec::new();
        for entry in entries.iter().take(MAX_REPEATED) {
            match entry.get_ref() {
                DeValue::Table(table) => filled.push(Self::fill(section, Some(table), entry.span(), problems)),
                other => problems.add(entry.span(), name, wrong(other)),
            }
        }
        filled
    }

    fn fill(
        section: &'static Section,
        table: Option<&DeTable<'_>>,
        place: Range<usize>,
        problems: &mut Problems<'_>,
    ) -> Self {
        let mut filled = Self {
            values: BTreeMap::new(),
            places: BTreeMap::new(),
            place: place.clone(),
            name: section.name,
            flawed: false,
        };
        let before = problems.count();
        for (name, value) in table.into_iter().flatten() {
            let text: &str = name.get_ref();
            let Some(key) = section.key(text) else {
                // `[[trace.rule]]` is a key of `[trace]` to TOML.
                if !is_subsection(section, text) {
                    let full = format!("{}.{text}", section.name);
                    problems.add(name.span(), full, format!("unknown key; {}", remedy(section, text)));
                }
                continue;
            };
            filled.places.insert(key.name, value.span());
            match value::check(key.kind, value.get_ref()) {
                Ok(value) => {
                    filled.values.insert(key.name, value);
                }
                Err(fault) => {
                    let place = fault.place.unwrap_or_else(|| value.span());
                    problems.add(place, format!("{}.{text}", section.name), fault.message);
                }
            }
        }
        for key in section.keys.iter().filter(|key| !filled.places.contains_key(key.name)) {
            if key.required {
                let example = key.example.unwrap_or_default();
                let message = format!("is missing; write {} = {example}", key.name);
                problems.add(place.clone(), format!("{}.{}", section.name, key.name), message);
            }
            let default = key.default.and_then(|text| DeValue::parse(text).ok());
            if let Some(value) = default.and_then(|value| value::check(key.kind, value.get_ref()).ok()) {
                filled.values.insert(key.name, value);
            }
        }
        filled.flawed = problems.count() > before;
        filled
    }

    /// A value that may be missing.
    pub fn take<T: FromValue>(&mut self, key: &str) -> Option<T> {
        debug_assert!(
            section(self.name).key(key).is_some(),
            "{}.{key} is not in the table",
            self.name
        );
        self.values.remove(key).and_then(T::from_value)
    }

    /// A value that has a default in the table, or is required. Where it was wrong, the configuration is not used.
    pub fn need<T: FromValue + Default>(&mut self, key: &str) -> T {
        self.take(key).unwrap_or_default()
    }

    /// Where a key's value is, or its section.
    pub fn place(&self, key: &str) -> Range<usize> {
        self.places.get(key).unwrap_or(&self.place).clone()
    }

    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }
}

fn is_subsection(section: &Section, name: &str) -> bool {
    SECTIONS.iter().any(|other| {
        other
            .name
            .strip_prefix(section.name)
            .and_then(|rest| rest.strip_prefix('.'))
            == Some(name)
    })
}

fn remedy(section: &Section, name: &str) -> String {
    let own = || section.keys.iter().map(|key| key.name);
    if let Some(meant) = nearest(name, own()) {
        return format!("did you mean `{meant}`?");
    }
    match SECTIONS.iter().find(|other| other.key(name).is_some()) {
        Some(other) => format!("it belongs under {}", other.header()),
        None => format!("known are {}", own().collect::<Vec<_>>().join(", ")),
    }
}

fn watch(filled: &mut Filled, problems: &mut Problems<'_>) -> Watch {
    let watch = Watch {
        interval: filled.need("interval"),
        history: filled.need("history"),
        growth_slope: filled.need("growth_slope"),
        growth_time: filled.need("growth_time"),
        release_time: filled.need("release_time"),
        suspects: usize::try_from(filled.need::<u64>("suspects")).unwrap_or(usize::MAX),
        suspect_interval: filled.need("suspect_interval"),
    };
    // A zero is a value that was found wrong already.
    let wrong = watch.interval.is_zero() || watch.growth_time.is_zero() || watch.history.is_zero();
    if !wrong && watch.growth_time < 2 * watch.interval {
        problems.add(
            filled.place("growth_time"),
            filled.full("growth_time"),
            format!(
                "is {}, and a slope takes two looks at least; make it {} or more, or `interval` shorter",
                duration_text(watch.growth_time),
                duration_text(2 * watch.interval)
            ),
        );
    }
    if !wrong && watch.history < watch.growth_time {
        problems.add(
            filled.place("history"),
            filled.full("history"),
            format!(
                "is {}, and growth is measured over `growth_time` = {}; make it at least as long",
                duration_text(watch.history),
                duration_text(watch.growth_time)
            ),
        );
    }
    watch
}

fn trace(document: &DeTable<'_>, problems: &mut Problems<'_>) -> Trace {
    let mut filled = Filled::once(document, "trace", problems);
    let table = document.get("trace").and_then(|value| value.get_ref().as_table());
    let mut rules = Vec::new();
    let mut names = Vec::new();
    for mut filled in Filled::each(table.and_then(|table| table.get("rule")), "trace.rule", problems) {
        unique(&filled, &mut names, problems);
        let conditions = filled
            .places
            .keys()
            .any(|key| !matches!(*key, "name" | "sample_interval"));
        if !conditions {
            problems.add(
                filled.place.clone(),
                "trace.rule",
                r#"has no condition; add one, such as comm = "java*" (or comm = "*" to mean every process)"#,
            );
        }
        rules.push(Rule {
            name: filled.need("name"),
            comm: filled.take("comm"),
            executable: filled.take("executable"),
            user: filled.take("user"),
            cgroup: filled.take("cgroup"),
            container: filled.take("container"),
            unit: filled.take("unit"),
            pid: filled
                .take("pid")
                .and_then(|pid: u64| NonZeroU32::new(u32::try_from(pid).ok()?)),
            sample_interval: filled.take("sample_interval"),
        });
    }
    Trace {
        auto: filled.need("auto"),
        max_processes: usize::try_from(filled.need::<u64>("max_processes")).unwrap_or(usize::MAX),
        sample_interval: filled.need("sample_interval"),
        rules,
    }
}

/// Notes a name that another one of the section has already.
pub(super) fn unique(filled: &Filled, names: &mut Vec<String>, problems: &mut Problems<'_>) {
    let Some(Value::Text(name)) = filled.values.get("name") else {
        return;
    };
    if names.contains(name) {
        let message = format!(
            "`{name}` is the name of another [[{}]]; choose one of its own",
            filled.name
        );
        problems.add(filled.place("name"), filled.full("name"), message);
    } else {
        names.push(name.clone());
    }
}

fn budget(filled: &mut Filled) -> Budget {
    Budget {
        target_cpu: filled.need("target_cpu"),
        machine_cpu: filled.need("machine_cpu"),
        own_cpu: filled.need("own_cpu"),
        own_memory: filled.need("own_memory"),
    }
}

fn export(filled: &mut Filled) -> Export {
    Export {
        directory: filled.need("directory"),
        interval: filled.need("interval"),
        go_interval: filled.need("go_interval"),
        keep_count: filled.need("keep_count"),
        keep_age: filled.need("keep_age"),
        keep_bytes: filled.need("keep_bytes"),
    }
}
