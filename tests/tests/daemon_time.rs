//! The daemon over time: what it pushes adds up, and a clock that jumps harms nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::receiver::{Pushed, Receiver};
use leaktrace_tests::recording::as_json;
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};
use serde_json::Value;

const DAY: i64 = 24 * 3600;

/// A rule that names the process; a profile each second, which takes more of a processor than a daemon usually may.
/// Profiles are kept for less than the clock jumps.
fn configuration(home: &Home, pid: u32, more: &str) -> Result<()> {
    let store = home.store().display().to_string();
    home.configure(&format!(
        "growth_time = \"10s\"\n\n[trace]\nauto = false\nsample_interval = \"4KiB\"\n\n[[trace.rule]]\nname = \"leaky\"\n\
         pid = {pid}\n\n[export]\ndirectory = \"{store}\"\ninterval = \"1s\"\nkeep_age = \"3h\"\n{more}\n\n\
         [budget]\nown_cpu = \"50%\"\n"
    ))
}

fn leaky() -> Result<Process> {
    let mut process = Process::spawn(programs::command("leaky_service")?.arg("2000"))?;
    process.expect("ready")?;
    Ok(process)
}

/// A profile in the store, as the API tells it.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    id: String,
    begin: u64,
    end: u64,
}

impl Stored {
    /// Its number in the store.
    fn number(&self) -> Result<u64> {
        let number = self.id.rsplit('-').next().context("an id has three parts")?;
        Ok(number.parse()?)
    }
}

/// Profiles of a process, newest first.
fn stored(daemon: &Daemon<'_>, pid: u32) -> Result<Vec<Stored>> {
    let answer = daemon.get(&format!("/api/v1/processes/{pid}/profiles"))?;
    let profiles = answer["profiles"].as_array().context("no profiles")?;
    let one = |profile: &Value| {
        Some(Stored {
            id: profile["id"].as_str()?.to_owned(),
            begin: profile["begin"].as_u64()?,
            end: profile["end"].as_u64()?,
        })
    };
    profiles.iter().map(one).collect::<Option<_>>().context("no profile")
}

/// The wall's clock as it truly is, in nanoseconds.
fn now() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// A leaking process, a receiver, and where a daemon starts that traces the one and pushes to the other.
fn pushing() -> Result<(Process, Receiver, Home)> {
    let target = leaky()?;
    let receiver = Receiver::start()?;
    let home = Home::new("")?;
    configuration(&home, target.pid(), &receiver.section())?;
    Ok((target, receiver, home))
}

#[test]
fn what_is_pushed_adds_up_to_what_is_stored() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut target, receiver, home) = pushing()?;
    let pid = target.pid();
    let mut daemon = home.start()?;
    daemon.until("five profiles have arrived", PATIENCE, |_| {
        Ok(receiver.pushed().len() >= 5)
    })?;
    daemon.end()?;
    let pushed = receiver.pushed();
    let ids = home.stored(pid)?;
    ensure!(
        ids.len() == pushed.len(),
        "{} are stored, {} have arrived",
        ids.len(),
        pushed.len()
    );
    let last = as_json(&home.profile(ids.first().context("no id")?))?;
    let (mut objects, mut bytes) = (0, 0);
    let mut end = 0;
    for one in &pushed {
        let told = one.profile()?;
        objects += told.totals["alloc_objects"];
        bytes += told.totals["alloc_space"];
        let values = told.samples.iter().flat_map(|sample| sample.values.values());
        ensure!(values.into_iter().all(|value| *value >= 0), "a value is negative");
        // Each begins where the one before ended, to the second.
        let (from, until) = one.window()?;
        ensure!(
            end == 0 || from.abs_diff(end) <= 1,
            "from {from}, behind one until {end}"
        );
        ensure!(until >= from && until - from < 60, "from {from} until {until}");
        ensure!(
            told.time_nanos / 1_000_000_000 == i64::try_from(from)?,
            "{} against {from}",
            told.time_nanos
        );
        end = until;
    }
    // To the object, since both are of the same samples.
    ensure!(
        objects == last.totals["alloc_objects"],
        "{objects} of {:?}",
        last.totals
    );
    ensure!(bytes == last.totals["alloc_space"], "{bytes} of {:?}", last.totals);
    let newest = pushed.last().context("nothing has arrived")?.profile()?;
    ensure!(
        newest.totals["inuse_space"] == last.totals["inuse_space"],
        "in use: {:?}",
        newest.totals
    );
    ensure!(newest.totals["alloc_space"] < bytes, "the last one tells all");
    unharmed(&mut target)
}

/// A daemon whose wall clock a test sets.
struct Shifted<'h> {
    daemon: Daemon<'h>,
    file: File,
    shift: i64,
}

impl<'h> Shifted<'h> {
    fn start(home: &'h Home) -> Result<Self> {
        let path = home.path("shift");
        fs::write(&path, 0i64.to_ne_bytes())?;
        let mut command: Command = home.command();
        command
            .env("LD_PRELOAD", programs::path("libclock_shift.so")?)
            .env("CLOCK_SHIFT", &path);
        Ok(Self {
            daemon: home.start_with(&mut command)?,
            file: File::options().write(true).open(&path)?,
            shift: 0,
        })
    }

    /// Sets the clock so many seconds forward or back.
    fn jump(&mut self, seconds: i64) -> Result<()> {
        self.shift += seconds;
        Ok(self.file.write_all_at(&self.shift.to_ne_bytes(), 0)?)
    }

    /// The wall's clock as the daemon sees it, in nanoseconds.
    fn now(&self) -> Result<u64> {
        Ok(now()?.saturating_add_signed(self.shift * 1_000_000_000))
    }

    /// Waits for so many more profiles, looks at all of them and returns them. None of `before` is gone; the new ones
    /// are of the new time and of a few seconds each.
    fn more(&mut self, pid: u32, before: &[Stored], more: usize) -> Result<Vec<Stored>> {
        self.daemon.until("profiles are made on", PATIENCE, |daemon| {
            Ok(stored(daemon, pid)?.len() >= before.len() + more)
        })?;
        let all = stored(&self.daemon, pid)?;
        ensure!(all.ends_with(before), "{before:?} are not the oldest of {all:?}");
        let new = &all[..all.len() - before.len()];
        // Two may have been made, or on their way, when the clock jumped.
        for profile in &new[..new.len() - 2] {
            let age = self.now()?.abs_diff(profile.end);
            ensure!(age < 600_000_000_000, "{profile:?} ended {age} ns from now");
        }
        let mut numbers = Vec::new();
        for profile in &all {
            ensure!(
                profile.begin <= profile.end && profile.end - profile.begin < 60_000_000_000,
                "{profile:?} tells of another time than its own"
            );
            numbers.push(profile.number()?);
        }
        ensure!(numbers.is_sorted_by(|newer, older| newer > older), "{numbers:?}");
        Ok(all)
    }

    /// What the process's memory grows by in an hour, once that is known.
    fn growth(&mut self, pid: u32) -> Result<f64> {
        let mut growth = 0.0;
        self.daemon.until("growth is known", PATIENCE, |daemon| {
            let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
            growth = details["memory"]["growth"].as_f64().unwrap_or_default();
            Ok(growth > 0.0)
        })?;
        Ok(growth)
    }

    /// The course of its memory lies in the minutes before now, in order.
    fn check_timeline(&self, pid: u32) -> Result<()> {
        let now = self.now()?;
        let timeline = self.daemon.get(&format!(
            "/api/v1/processes/{pid}/timeline?since={}&until={now}",
            now - 3_600_000_000_000
        ))?;
        let times: Vec<u64> = timeline["time"]
            .as_array()
            .context("no times")?
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        ensure!(times.len() > 5 && times.is_sorted(), "{times:?}");
        let (first, last) = (times[0], times[times.len() - 1]);
        ensure!(
            last <= now + 2_000_000_000 && now - first.min(now) < 600_000_000_000,
            "from {first} to {last}, and now is {now}"
        );
        Ok(())
    }
}

/// Windows of what was pushed: seconds, and none behind its end.
fn check_windows(pushed: &[Pushed]) -> Result<()> {
    for one in pushed {
        let (from, until) = one.window()?;
        ensure!(from <= until && until - from < 60, "from {from} until {until}");
    }
    Ok(())
}

#[test]
fn a_clock_that_jumps_harms_nothing() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (mut target, receiver, home) = pushing()?;
    let pid = target.pid();
    let mut shifted = Shifted::start(&home)?;
    shifted.more(pid, &[], 3)?;
    let growth = shifted.growth(pid)?;
    let mut profiles = stored(&shifted.daemon, pid)?;
    for seconds in [31 * DAY, -365 * DAY] {
        profiles = shifted.more(pid, &profiles, 2)?;
        shifted.jump(seconds)?;
        shifted.more(pid, &profiles, 5)?;
        ensure!(
            shifted.daemon.state(pid)?.as_deref() == Some("traced"),
            "it is not traced any more"
        );
        // Over a wrong time it would be thousands of times less, or more, or none.
        let again = shifted.growth(pid)?;
        ensure!(
            (growth / 20.0..growth * 20.0).contains(&again),
            "{again} bytes an hour after {growth}"
        );
        shifted.check_timeline(pid)?;
        let status = shifted.daemon.get("/api/v1/status")?;
        ensure!(status["troubles"].as_array().is_some_and(Vec::is_empty), "{status}");
    }
    // Longer than between two looks at what is too old.
    thread::sleep(Duration::from_secs(62));
    profiles = shifted.more(pid, &profiles, 2)?;
    let took = shifted.daemon.end()?;
    ensure!(took < Duration::from_secs(5), "it took {took:?} to end");
    check_windows(&receiver.pushed())?;
    // And on from there, by the true clock.
    let mut daemon = home.start()?;
    daemon.until("profiles are made again", PATIENCE, |daemon| {
        Ok(stored(daemon, pid)?.len() > profiles.len() + 1)
    })?;
    let all = stored(&daemon, pid)?;
    ensure!(all.ends_with(&profiles), "some of {profiles:?} are gone: {all:?}");
    daemon.end()?;
    unharmed(&mut target)
}
