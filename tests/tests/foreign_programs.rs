//! Programs that nobody here wrote: outstanding bytes follow what they say of themselves within 2 %.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::machine;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::Recording;
use leaktrace_tests::redis::Redis;
use leaktrace_tests::scenario::{assert_within, record, unharmed};

/// Values that fill one of jemalloc's size classes: redis counts usable bytes, a tracer requested ones.
const VALUE: usize = 1018;
const KEYS: usize = 20_000;

#[test]
fn redis_filled_with_keys() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut redis = Redis::start()?;
    let recording = Recording::attach(redis.pid(), &[])?;
    let before = redis.memory("used_memory")?;
    redis.fill(KEYS, VALUE)?;
    let grown = redis.memory("used_memory")? - before;
    let recorded = recording.stop()?;
    ensure!(grown > 20_000_000, "redis grew by {grown} bytes only");
    assert_within(0.02, recorded.profile.outstanding().bytes, grown, "redis, filled");
    ensure!(redis.alive(), "redis ended");
    Ok(())
}

#[test]
fn redis_filled_and_emptied_again() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut redis = Redis::start()?;
    let recording = Recording::attach(redis.pid(), &[])?;
    redis.fill(KEYS, VALUE)?;
    let filled = redis.memory("used_memory")?;
    redis.ask(&["FLUSHALL", "SYNC"])?;
    let emptied = redis.memory("used_memory")?;
    let recorded = recording.stop()?;
    let profile = &recorded.profile;
    ensure!(
        filled - emptied > 20_000_000,
        "redis gave back {} bytes only",
        filled - emptied
    );
    let allocated: i64 = profile.heap().map(|sample| sample.allocated().bytes).sum();
    ensure!(
        allocated > 20_000_000,
        "hardly anything was recorded:\n{}",
        profile.shown()
    );
    let outstanding = profile.outstanding().bytes;
    ensure!(
        outstanding.abs() < filled / 50,
        "{outstanding} bytes are outstanding:\n{}",
        profile.shown()
    );
    ensure!(redis.alive(), "redis ended");
    Ok(())
}

fn python(arguments: &[&str], all_from_malloc: bool) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg(machine::root().join("tests/programs/python/structure.py"))
        .args(arguments);
    if all_from_malloc {
        command.env("PYTHONMALLOC", "malloc");
    }
    let (truth, recorded) = record(&mut command, &[])?;
    #[expect(clippy::cast_possible_truncation, reason = "some megabytes")]
    let built = truth.number("built")? as i64;
    ensure!(built > 5_000_000, "python built {built} bytes only");
    let outstanding = recorded.profile.outstanding().bytes;
    if arguments.contains(&"drop") {
        ensure!(
            outstanding.abs() < built / 50,
            "{outstanding} of {built} bytes:\n{}",
            recorded.profile.shown()
        );
    } else {
        assert_within(0.02, outstanding, built, "python");
    }
    Ok(())
}

#[test]
fn python_with_large_objects() -> Result<()> {
    python(&["large"], false)
}

#[test]
fn python_with_large_objects_dropped() -> Result<()> {
    python(&["large", "drop"], false)
}

#[test]
fn python_with_a_dictionary() -> Result<()> {
    python(&["small"], true)
}

#[test]
fn python_with_a_dictionary_dropped() -> Result<()> {
    python(&["small", "drop"], true)
}

/// `sqlite3` on an in-memory database: its `.stats` tell the bytes that it holds.
struct Sqlite(Process);

impl Sqlite {
    fn start() -> Result<Self> {
        // Standard output is a pipe: without stdbuf nothing would come before the end.
        let mut sqlite = Self(Process::spawn(
            Command::new("stdbuf").args(["-o0", "sqlite3", ":memory:"]),
        )?);
        sqlite.run("SELECT 1;")?;
        Ok(sqlite)
    }

    fn run(&mut self, statements: &str) -> Result<()> {
        self.0.send(statements)?;
        self.0.send(".print finished")?;
        self.0
            .wait_for("`finished`", |line| line == "finished", PATIENCE * 2)
            .map(|_| ())
    }

    fn memory(&mut self) -> Result<i64> {
        self.0.send(".stats")?;
        let line = self.0.wait_for(
            "its memory",
            |line| line.starts_with("Memory Used:"),
            Duration::from_secs(20),
        )?;
        self.run("")?;
        line.split_whitespace()
            .nth(2)
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("`{line}`"))
    }
}

const INSERT: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB); WITH RECURSIVE c(n) AS \
                      (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 60000) INSERT INTO t SELECT n, \
                      zeroblob(200) FROM c;";

#[test]
fn sqlite_in_memory() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut sqlite = Sqlite::start()?;
    let before = sqlite.memory()?;
    let recording = Recording::attach(sqlite.0.pid(), &[])?;
    sqlite.run(INSERT)?;
    let grown = sqlite.memory()? - before;
    let recorded = recording.stop()?;
    ensure!(grown > 10_000_000, "sqlite grew by {grown} bytes only");
    assert_within(0.02, recorded.profile.outstanding().bytes, grown, "sqlite, filled");
    unharmed(&mut sqlite.0)
}

#[test]
fn sqlite_in_memory_closed_again() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut sqlite = Sqlite::start()?;
    let recording = Recording::attach(sqlite.0.pid(), &[])?;
    sqlite.run(INSERT)?;
    let filled = sqlite.memory()?;
    sqlite.run(".open :memory:")?;
    let recorded = recording.stop()?;
    let outstanding = recorded.profile.outstanding().bytes;
    ensure!(
        outstanding.abs() < filled / 50,
        "{outstanding} of {filled} bytes:\n{}",
        recorded.profile.shown()
    );
    unharmed(&mut sqlite.0)
}
