//! `leaktrace list`, `show` and `fetch`: what the daemon stored.
//!
//! They read the folder of the store, whether a daemon runs or not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use regex::Regex;

use super::report::{self, ReportError, ViewArgs};
use super::terminal;
use crate::api::{Identity, StoredProfile, StoredProfiles};
use crate::daemon::store::{self, Filter, Listed, Reader};
use crate::export::file;
use crate::model::quantity;
use crate::report::Profile;
use crate::report::name::{fit, printable};
use crate::report::unit::{self, Scale};

/// Columns of a process's name in the list.
const NAME: usize = 24;
/// Columns of a command line.
const COMMAND_LINE: usize = 200;

/// Where the store is.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// Folder of the profile store
    #[arg(long, value_name = "DIR", default_value = store::DEFAULT_DIRECTORY)]
    pub store: PathBuf,
}

/// Arguments of `leaktrace list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only profiles of processes with this pid
    #[arg(short, long)]
    pid: Option<u32>,
    /// Only profiles of processes whose command name matches
    #[arg(long, value_name = "REGEX", value_parser = regex)]
    comm: Option<Regex>,
    /// Only profiles since then: 2h ago, or 2026-01-31, or "2026-01-31 12:00:00" (UTC)
    #[arg(long, value_name = "DURATION|TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Only profiles before then
    #[arg(long, value_name = "DURATION|TIME", value_parser = moment)]
    until: Option<Moment>,
    /// Where they are
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON, as the daemon's HTTP interface does
    #[arg(long)]
    json: bool,
}

/// Arguments of `leaktrace show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Id of the profile: see `leaktrace list`
    id: String,
    /// Where it is
    #[command(flatten)]
    store: StoreArgs,
    /// What to show of it, and how
    #[command(flatten)]
    view: ViewArgs,
}

/// Arguments of `leaktrace fetch`.
#[derive(Args, Clone, Debug)]
pub struct FetchArgs {
    /// Id of the profile: see `leaktrace list`
    id: String,
    /// File to write, in pprof's format [default: ID.pb.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where it is
    #[command(flatten)]
    store: StoreArgs,
}

/// A moment, as people give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Ago(Duration),
    At(u64),
}

impl Moment {
    /// In nanoseconds since 1970.
    fn nanos(self, now: u64) -> u64 {
        match self {
            Self::Ago(duration) => now.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
            Self::At(nanos) => nanos,
        }
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(duration) = quantity::duration(text) {
        return Ok(Moment::Ago(duration));
    }
    let time = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text} 00:00:00")))
        .map_err(|_| "neither a duration such as `2h` nor a time such as `2026-01-31 12:00:00`".to_owned())?;
    Ok(Moment::At(nanos(time)))
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| error.to_string())
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `2026-01-31T12:00:00Z`
fn time(nanos: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(nanos)).to_string()
}

/// Runs `leaktrace list`.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let now = nanos(SystemTime::now());
    let filter = Filter {
        pid: args.pid,
        comm: args.comm.clone(),
        since: args.since.map(|since| since.nanos(now)),
        until: args.until.map(|until| until.nanos(now)),
    };
    let reader = Reader::open(&args.store.store)?;
    if args.json {
        let profiles = reader.list(&filter);
        let mut text = serde_json::to_string_pretty(&StoredProfiles { profiles })?;
        text.push('\n');
        return terminal::print(&text);
    }
    let listed = reader.list_with_growth(&filter);
    if listed.is_empty() {
        eprintln!("no such profile in `{}`", args.store.store.display());
        return Ok(());
    }
    terminal::print(&table(&listed))
}

/// Runs `leaktrace show`.
pub fn show(args: &ShowArgs) -> anyhow::Result<()> {
    if let Some(output) = &args.view.output {
        file::Format::check(output).map_err(ReportError::from)?;
    }
    let stored = Reader::open(&args.store.store)?.open_profile(&args.id)?;
    let heading = heading(&stored.told(), stored.identity());
    let path = Path::new(&args.id);
    let profile = report::decode(path, stored.read()?.as_slice())?;
    report::show(&profile, path, &heading, &args.view)
}

/// Runs `leaktrace fetch`.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<()> {
    let stored = Reader::open(&args.store.store)?.open_profile(&args.id)?;
    // Only an id gets here: it names a file in this folder.
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| format!("{}.pb.gz", args.id).into());
    let bytes = stored.read()?;
    file::replace(&output, |file| file.write_all(&bytes))?;
    eprintln!("wrote {}", output.display());
    Ok(())
}

/// Reads the profile in a file or, if there is no such file and the name is an id, in the store.
pub(super) fn read(path: &Path, store: &StoreArgs) -> anyhow::Result<Profile> {
    match path.to_str() {
        Some(id) if store::is_id(id) && !path.exists() => {
            let bytes = Reader::open(&store.store)?.read(id)?;
            Ok(report::decode(path, bytes.as_slice())?)
        }
        _ => Ok(report::read(path)?),
    }
}

fn bytes(value: i64) -> String {
    unit::label(value, "bytes", &Scale::Auto)
}

fn table(listed: &[Listed]) -> String {
    let header = ["ID", "TIME", "PROCESS", "HEAP", "IN USE", "GROWTH"].map(str::to_owned);
    let rows = listed.iter().map(|Listed { profile, growth }| {
        let growth = match growth {
            Some(growth) if *growth > 0 => format!("+{}", bytes(*growth)),
            Some(growth) => bytes(*growth),
            None => "-".to_owned(),
        };
        let name = printable(&profile.comm);
        [
            profile.id.clone(),
            time(profile.end),
            format!("{} {}", profile.process.pid, fit(&name, NAME)),
            profile.heap.clone(),
            bytes(profile.in_use),
            growth,
        ]
    });
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let [id, time, process, heap, in_use, growth] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        text += &format!(
            "{:id$}  {:time$}  {:process$}  {:heap$}  {:>in_use$}  {:>growth$}\n",
            row[0], row[1], row[2], row[3], row[4], row[5]
        );
    }
    text
}

/// What a table of a stored profile begins with.
fn heading(profile: &StoredProfile, identity: &Identity) -> String {
    let mut text = format!(
        "Profile {} of pid {} ({}), {} heap, {}\n",
        profile.id,
        profile.process.pid,
        printable(&profile.comm),
        profile.heap,
        time(profile.end)
    );
    let command = identity.command_line.join(" ");
    if !command.is_empty() {
        text += &format!("Command: {}\n", fit(&printable(&command), COMMAND_LINE));
    }
    let places = [
        ("Executable", identity.executable.as_deref()),
        ("Unit", identity.unit.as_deref()),
        (
            "Container",
            identity.container.as_ref().map(|container| container.id.as_str()),
        ),
    ];
    for (name, place) in places {
        if let Some(place) = place {
            text += &format!("{name}: {}\n", fit(&printable(place), COMMAND_LINE));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store::{Heap, NewEntry, Settings, Store};
    use crate::export::pprof;
    use crate::report::{FrameLine, ProfileBuilder, diff};

    const SECOND: u64 = 1_000_000_000;

    fn heap(bytes: i64) -> Vec<u8> {
        let mut builder = ProfileBuilder::heap();
        let frame = FrameLine {
            function: "leak",
            ..FrameLine::default()
        };
        let location = builder.location(None, 0x10, &[frame]);
        builder.sample(vec![location], &[1, bytes, 1, bytes], Vec::new(), Vec::new());
        let mut output = Vec::new();
        pprof::write(&builder.finish(), &mut output).expect("writes");
        output
    }

    /// A store with two profiles of one process and one of another.
    fn stored() -> (tempfile::TempDir, StoreArgs) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut store = Store::open(Settings {
            directory: directory.path().to_owned(),
            free_reserve: 0,
            ..Settings::default()
        })
        .expect("opens");
        for (pid, comm, end, in_use) in [
            (7, "worker", 1_769_860_800, 1000),
            (81, "a\n\u{1b}[2J", 1_769_860_830, 50),
            (7, "worker", 1_769_860_860, 5000),
            (7, "worker", 1_769_860_920, 3000),
        ] {
            let identity = Identity {
                pid,
                start_time: 9,
                comm: comm.to_owned(),
                command_line: vec!["/bin/x".to_owned(), "\u{1b}]0;x\u{7}".to_owned()],
                ..Identity::default()
            };
            let new = NewEntry {
                identity: &identity,
                begin: 0,
                end: end * SECOND,
                heap: Heap::Native,
                in_use,
                bytes: &heap(in_use),
            };
            store.put(&new).expect("stores");
        }
        let store = directory.path().to_owned();
        (directory, StoreArgs { store })
    }

    #[test]
    fn the_list_tells_growth_and_shows_names_harmlessly() {
        let (_directory, args) = stored();
        let reader = Reader::open(&args.store).expect("opens");
        insta::assert_snapshot!(table(&reader.list_with_growth(&Filter::default())), @r"
        ID      TIME                  PROCESS             HEAP    IN USE   GROWTH
        7-9-4   2026-01-31T12:02:00Z  7 worker            native  2.93kB  -1.95kB
        7-9-3   2026-01-31T12:01:00Z  7 worker            native  4.88kB  +3.91kB
        81-9-2  2026-01-31T12:00:30Z  81 a\u{a}\u{1b}[2J  native     50B        -
        7-9-1   2026-01-31T12:00:00Z  7 worker            native   1000B        -
        ");
        let opened = reader.open_profile("81-9-2").expect("opens");
        insta::assert_snapshot!(heading(&opened.told(), opened.identity()), @r"
        Profile 81-9-2 of pid 81 (a\u{a}\u{1b}[2J), native heap, 2026-01-31T12:00:30Z
        Command: /bin/x \u{1b}]0;x\u{7}
        ");
    }

    #[test]
    fn growth_between_two_ids() {
        let (directory, args) = stored();
        let profile = |name: &str| read(Path::new(name), &args);
        let (base, new) = (profile("7-9-1").expect("reads"), profile("7-9-3").expect("reads"));
        let difference = diff::diff(&base, &new).expect("compares");
        assert_eq!(difference.samples[0].values, [0, 4000, 0, 4000]);
        let error = profile("7-9-99").expect_err("there is none").to_string();
        assert!(error.starts_with("no profile `7-9-99` in the store"), "{error}");
        // What is no id, and what is a file, is a file.
        let error = profile("no-such-file").expect_err("there is none").to_string();
        assert_eq!(error, "failed to read `no-such-file`: no such file");
        let file = directory.path().join("7-9-1.pb.gz");
        assert_eq!(profile(file.to_str().expect("is UTF-8")).expect("reads"), base);
    }

    #[test]
    fn a_profile_is_fetched_as_it_was_stored() {
        let (directory, store) = stored();
        let output = directory.path().join("out.pb.gz");
        let args = FetchArgs {
            id: "7-9-3".to_owned(),
            output: Some(output.clone()),
            store,
        };
        fetch(&args).expect("fetches");
        assert_eq!(std::fs::read(output).expect("reads"), heap(5000));
        for id in ["7-9-9", "../7-9-3", "version"] {
            let args = FetchArgs {
                id: id.to_owned(),
                output: None,
                ..args.clone()
            };
            fetch(&args).expect_err("there is none");
        }
    }

    #[test]
    fn moments_as_people_write_them() {
        let now = 1_769_860_800 * SECOND;
        let at = |text: &str| moment(text).map(|moment| moment.nanos(now));
        assert_eq!(at("2h"), Ok(now - 7200 * SECOND));
        assert_eq!(at("90"), Ok(now - 90 * SECOND));
        assert_eq!(at("2026-01-31 12:00:00"), Ok(now));
        assert_eq!(at("2026-01-31T12:00:00Z"), Ok(now));
        assert_eq!(at("2026-01-31"), Ok(now - 12 * 3600 * SECOND));
        assert_eq!(at("999999999999y").ok(), None);
        assert!(at("yesterday").is_err());
        assert!(at("1969-12-31 00:00:00").is_ok_and(|nanos| nanos == 0) || at("1969-12-31 00:00:00").is_err());
    }
}
