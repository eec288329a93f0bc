//! `test --kernel`: the tests of `tests/kernels` on Debian's kernels, each in a guest of its own.
//!
//! [`kernels`] says which and gets them, [`image`] makes what they boot from, [`guest`] runs one, [`table`] shows what
//! came of all. As many run beside each other as there are processors, or one where other tests run meanwhile. Each kernel runs as it is shipped and with
//! `preempt=full`: faults that hang on preemption show there alone. Invariant: `all` has a result for each mandatory class,
//! or fails.

mod guest;
mod image;
mod kernels;
mod table;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use self::guest::Setting;
use self::kernels::Class;
use self::table::Row;
use crate::{command, packages, workspace};

/// What a guest may take, without repetitions, and what each repetition may add.
const LIMIT: Duration = Duration::from_secs(1200);
const LIMIT_OF_REPETITION: Duration = Duration::from_secs(300);
/// The tests that a kernel is for that is too old.
const REFUSAL: &str = "refusal";

/// What runs beside the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Nothing: they take all processors.
    Alone,
    /// End-to-end tests, which mostly wait: one guest at a time, on what they leave of a processor.
    BesideTests,
}

/// How to run them.
pub struct Options<'a> {
    /// What else runs meanwhile.
    pub company: Company,
    /// How often tests against known truth run in each.
    pub repeat: u32,
    /// Whether the table goes to README.
    pub write_table: bool,
    /// Filters and options for the test binary.
    pub arguments: &'a [String],
}

/// What a kernel is told to forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restriction {
    /// BPF programs read no memory.
    Lockdown,
    /// Nobody attaches by ptrace.
    Ptrace,
}

impl Restriction {
    const ALL: [Self; 2] = [Self::Lockdown, Self::Ptrace];

    fn name(self) -> &'static str {
        match self {
            Self::Lockdown => "lockdown",
            Self::Ptrace => "noptrace",
        }
    }

    /// What the kernel's command line says for it.
    fn word(self) -> &'static str {
        match self {
            Self::Lockdown => "lockdown=confidentiality",
            Self::Ptrace => "sysctl.kernel.yama.ptrace_scope=3",
        }
    }
}

/// A kernel and how it is booted: `6.12`, `newest+full+perf`, `6.12+lockdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Boot {
    class: Class,
    /// With `preempt=full` in place of what it is shipped with.
    full: bool,
    /// With perf events where it has sessions.
    perf: bool,
    /// With something forbidden.
    restriction: Option<Restriction>,
}

impl Boot {
    /// What `all` stands for.
    const ALL: [Self; 10] = [
        Self::new(Class::Oldstable, false, false),
        Self::new(Class::Oldstable, true, false),
        Self::new(Class::Stable, false, false),
        Self::new(Class::Stable, true, false),
        Self::new(Class::Newest, false, false),
        Self::new(Class::Newest, true, false),
        Self::new(Class::Newest, true, true),
        Self::restricted(Class::Stable, Restriction::Lockdown),
        Self::restricted(Class::Stable, Restriction::Ptrace),
        Self::new(Class::TooOld, false, false),
    ];

    const fn new(class: Class, full: bool, perf: bool) -> Self {
        Self {
            class,
            full,
            perf,
            restriction: None,
        }
    }

    const fn restricted(class: Class, restriction: Restriction) -> Self {
        Self {
            restriction: Some(restriction),
            ..Self::new(class, false, false)
        }
    }

    fn name(self) -> String {
        let marks = [(self.full, "+full"), (self.perf, "+perf")];
        let marks: String = marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark).collect();
        let restriction = self.restriction.map(|restriction| format!("+{}", restriction.name()));
        format!("{}{marks}{}", self.class.name(), restriction.unwrap_or_default())
    }

    /// What the kernel has to be refused for, and what the message has to have; `None` for one that has to work.
    fn refusal(self) -> Option<&'static str> {
        match self.restriction {
            Some(Restriction::Lockdown) => Some("locked down for confidentiality: refused, with the lock's name"),
            Some(Restriction::Ptrace) => Some("without ptrace: `record -p` right, a command refused with the reason"),
            None if self.class == Class::TooOld => Some("refused, with the version that is needed"),
            None => None,
        }
    }
}

impl FromStr for Boot {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('+');
        let name = parts.next().unwrap_or_default();
        let class = Class::ALL
            .into_iter()
            .find(|class| class.name() == name)
            .with_context(|| {
                let known = Class::ALL.map(Class::name).join(", ");
                format!("`{text}`: no kernel is called `{name}`; these are: {known}")
            })?;
        let mut boot = Self::new(class, false, false);
        for mark in parts {
            match mark {
                "full" => boot.full = true,
                "perf" => boot.perf = true,
                mark => {
                    let known = Restriction::ALL
                        .into_iter()
                        .find(|restriction| restriction.name() == mark);
                    boot.restriction = Some(known.with_context(|| {
                        format!("`{text}`: `+{mark}` is not known; +full, +perf, +lockdown and +noptrace are")
                    })?);
                }
            }
        }
        Ok(boot)
    }
}

fn boots(list: &str) -> Result<Vec<Boot>> {
    match list {
        "all" => Ok(Boot::ALL.to_vec()),
        list => list.split(',').map(str::parse).collect(),
    }
}

/// Everything that guests boot from: after this nothing is built or fetched any more.
pub struct Prepared {
    wanted: Vec<Boot>,
    folder: PathBuf,
    root: PathBuf,
}

/// Gets the kernels and makes the root file system.
///
/// # Errors
/// When something does not build, or none of a mandatory class is to be had.
pub fn prepare(list: &str, program: &Path) -> Result<Prepared> {
    let wanted = boots(list)?;
    packages::ensure(packages::GUESTS, "the guests")?;
    let mut classes: Vec<Class> = wanted.iter().map(|boot| boot.class).collect();
    classes.dedup();
    kernels::ensure_all(&classes)?;
    let folder = workspace::target().join("matrix");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
    let begin = Instant::now();
    let root = image::root(&folder, program, &test_binary()?)?;
    eprintln!(
        "matrix: the root file system took {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    Ok(Prepared { wanted, folder, root })
}

/// Runs the guests; fails if any does.
///
/// # Errors
/// When a guest is not right, or the results cannot be written.
pub fn run(prepared: &Prepared, options: &Options<'_>) -> Result<()> {
    let Prepared { wanted, folder, root } = prepared;
    let begin = Instant::now();
    let rows = boot_all(wanted, folder, root, options)?;
    eprintln!(
        "matrix: {} guests took {:.0} s",
        rows.len(),
        begin.elapsed().as_secs_f64()
    );
    println!("{}", table::markdown(&rows));
    table::write_json(&workspace::target().join("matrix.json"), &rows)?;
    if options.write_table {
        workspace::write_between(
            &workspace::root().join("README.md"),
            table::MARKERS,
            &table::markdown(&rows),
        )?;
    }
    let wrong: Vec<&str> = rows
        .iter()
        .filter(|row| !row.outcome.is_success())
        .map(|row| row.name.as_str())
        .collect();
    ensure!(
        wrong.is_empty(),
        "not right on {}; their consoles are in `{}`",
        wrong.join(", "),
        folder.display()
    );
    Ok(())
}

/// Runs all guests, as many at once as there are processors for them; rows in the order of `wanted`.
fn boot_all(wanted: &[Boot], folder: &Path, root: &Path, options: &Options<'_>) -> Result<Vec<Row>> {
    let queue: Mutex<VecDeque<(usize, Boot)>> = Mutex::new(wanted.iter().copied().enumerate().collect());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let workers = match options.company {
        Company::Alone => thread::available_parallelism().map_or(1, usize::from).min(wanted.len()),
        Company::BesideTests => 1,
    };
    let mut rows = Vec::new();
    thread::scope(|scope| {
        let work = || {
            let mut rows = Vec::new();
            while let Some((index, boot)) = next() {
                if let Some(row) = boot_one(boot, folder, root, options)? {
                    rows.push((index, row));
                }
            }
            Ok(rows)
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let done: Result<Vec<(usize, Row)>> = thread.join().map_err(|_| anyhow!("a guest's thread panicked"))?;
            rows.extend(done?);
        }
        Ok::<(), anyhow::Error>(())
    })?;
    rows.sort_by_key(|(index, _)| *index);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// `None` for a kernel that is not to be had, which was said before.
fn boot_one(boot: Boot, folder: &Path, root: &Path, options: &Options<'_>) -> Result<Option<Row>> {
    let Some(kernel) = kernels::cached(boot.class) else {
        return Ok(None);
    };
    let name = boot.name();
    let mut words = vec![format!("LEAKTRACE_TEST_REPEAT={}", options.repeat)];
    let filters = if boot.refusal().is_some() {
        vec![REFUSAL.to_owned()]
    } else {
        options.arguments.to_vec()
    };
    if !filters.is_empty() {
        words.push(format!("TESTS={}", filters.join(",")));
    }
    if boot.full {
        words.push("preempt=full".to_owned());
    }
    words.extend(boot.restriction.map(|restriction| restriction.word().to_owned()));
    if boot.perf {
        words.push("LEAKTRACE_UPROBES=perf".to_owned());
    }
    let setting = Setting {
        initrd: image::initrd(&folder.join(&name), &kernel)?,
        name: name.clone(),
        kernel: &kernel,
        root,
        words,
        yields: options.company == Company::BesideTests,
        limit: LIMIT + LIMIT_OF_REPETITION * options.repeat.saturating_sub(1),
    };
    eprintln!("matrix: {name} ({}) begins", kernel.release);
    let outcome = guest::run(&setting, folder)?;
    eprintln!(
        "matrix: {name}: {} passed, {} failed, {:.0} s{}",
        outcome.passed,
        outcome.failed.len(),
        outcome.seconds,
        if outcome.is_success() { "" } else { ": NOT RIGHT" }
    );
    Ok(Some(Row {
        name,
        refusal: boot.refusal(),
        outcome,
    }))
}

/// Builds the test binary, with the features that the other tests are built with, so that both share one build.
fn test_binary() -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args([
        "test",
        "--workspace",
        "--no-run",
        "--test",
        "kernels",
        "--message-format=json-render-diagnostics",
    ]);
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{}`", command::shown(&cargo)))?;
    ensure!(output.status.success(), "`{}` failed", command::shown(&cargo));
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo did not name the test binary")
}

/// The executable that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut paths = messages
        .filter(|message| message["target"]["name"] == "kernels")
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some(PathBuf::from(path))
        });
    paths.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_boots_are_the_same() -> Result<()> {
        for boot in Boot::ALL {
            assert_eq!(boot.name().parse::<Boot>()?, boot);
        }
        assert_eq!(boots("6.1,newest+full+perf")?.len(), 2);
        Ok(())
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(boots("6.2").is_err());
        assert!(boots("6.1+lazy").is_err());
        assert!(boots("").is_err());
    }

    #[test]
    fn all_means_each_class_with_and_without_full_preemption() {
        for class in Class::ALL.into_iter().filter(|class| *class != Class::TooOld) {
            let of = |full| Boot::ALL.iter().any(|boot| boot.class == class && boot.full == full);
            assert!(of(true) && of(false), "{}", class.name());
        }
    }

    #[test]
    fn the_test_binary_is_found_in_cargos_messages() {
        let messages = "{\"target\":{\"name\":\"other\"},\"executable\":\"/a\"}\nnoise\n\
                        {\"target\":{\"name\":\"kernels\"},\"executable\":\"/b\"}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/b")));
    }
}
