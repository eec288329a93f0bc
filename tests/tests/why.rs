//! `leaktrace why`: growth of each kind is found where it is, with its line, and what does not grow is not said to.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::{machine, programs};
use serde_json::Value;

const MIB: i64 = 1 << 20;
/// Exit status for memory that grows.
const GROWS: i32 = 23;

/// What was answered about a program that did its work meanwhile, and the exit status.
struct Answer {
    json: Value,
    status: Option<i32>,
}

impl Answer {
    /// Watches a program while it works, for `seconds`.
    fn about(program: &mut Process, seconds: &str) -> Result<Self> {
        let mut command = Command::new(machine::leaktrace());
        command
            .args(["why", "--json", "-d", seconds, "-p"])
            .arg(program.pid().to_string());
        let mut why = Process::spawn(&mut command)?;
        why.wait_for_error("that it watches", |line| line.starts_with("watching pid"), PATIENCE)?;
        program.send("go")?;
        Self::of(why)
    }

    fn of(mut why: Process) -> Result<Self> {
        let status = why.wait(PATIENCE)?;
        let (output, errors) = (why.output(), why.errors());
        let json = serde_json::from_str(&output).with_context(|| format!("no answer, but {output}\n{errors}"))?;
        Ok(Self {
            json,
            status: status.code(),
        })
    }

    fn growth(&self, kind: &str) -> i64 {
        let rows = self.json["kinds"].as_array().map_or(&[][..], Vec::as_slice);
        let row = rows.iter().find(|row| row["kind"] == kind);
        row.and_then(|row| row["growth"].as_i64()).unwrap_or(0)
    }

    fn resident(&self) -> i64 {
        self.json["resident"]["growth"].as_i64().unwrap_or(0)
    }

    fn sites(&self, heap: &str) -> Vec<&Value> {
        let sites = self.json["sites"].as_array().map_or(&[][..], Vec::as_slice);
        sites.iter().filter(|site| site["heap"] == heap).collect()
    }

    fn says(&self, verdict: &str) -> bool {
        self.json["verdict"] == verdict
    }
}

fn start(mode: &str) -> Result<Process> {
    Process::ready(programs::command("why_grows")?.arg(mode))
}

/// Every kind's row grows by what the program made of it.
#[test]
fn growth_of_each_kind_is_in_its_row() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut program = start("kinds")?;
    let answer = Answer::about(&mut program, "5s")?;
    for (kind, mebibytes) in [
        // What was reserved and made accessible.
        ("anonymous", 16),
        ("memfd", 16),
        ("sysv", 16),
        ("heap_brk", 16),
        ("file_private", 16),
        ("shared_anonymous", 16),
        ("heap_arenas", 16),
        ("thread_stacks", 4),
    ] {
        let growth = answer.growth(kind);
        ensure!(
            (mebibytes * MIB - MIB / 2..=mebibytes * MIB + 2 * MIB).contains(&growth),
            "{kind} grew by {growth}, not by {mebibytes} MiB: {:#}",
            answer.json
        );
    }
    ensure!(answer.growth("unknown") == 0, "{:#}", answer.json);
    // Whoever touched it is known, too.
    let resident = answer.sites("resident");
    let by = |function: &str| {
        let calls = |site: &Value| {
            site["callers"]
                .as_array()
                .is_some_and(|callers| callers.iter().any(|caller| caller == function))
        };
        resident.iter().any(|site| site["function"] == function || calls(site))
    };
    ensure!(
        ["grow_reserved", "grow_break", "grow_file"]
            .iter()
            .all(|function| by(function)),
        "{:#}",
        answer.json
    );
    Ok(())
}

/// A leak is said to be growth, with its line, in the text, too.
#[test]
fn a_leak_has_its_line() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut program = start("leak")?;
    let answer = Answer::about(&mut program, "3s")?;
    ensure!(
        answer.says("grows_steadily") && answer.status == Some(GROWS),
        "{:#}",
        answer.json
    );
    let site = answer.sites("native").first().copied().context("no site")?;
    let bytes = site["bytes"].as_i64().unwrap_or(0);
    ensure!(
        site["function"] == "keep_one"
            && site["file"].as_str().is_some_and(|file| file.ends_with("why_grows.c"))
            && site["line"].as_i64().is_some_and(|line| line > 0)
            && (answer.resident() * 7 / 10..answer.resident() * 12 / 10).contains(&bytes),
        "{:#}",
        answer.json
    );
    let explained = answer.json["explained_by_stack"].as_f64().unwrap_or(0.0);
    ensure!(explained > 0.8, "{:#}", answer.json);
    ensure!(
        answer.json["native"]["held_at_least"].is_null(),
        "nothing is held: {:#}",
        answer.json
    );
    Ok(())
}

/// Memory that is freed, but not given back, is the allocator's.
#[test]
fn fragmentation_is_no_leak() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut program = start("fragment")?;
    let answer = Answer::about(&mut program, "4s")?;
    let held = answer.json["native"]["held_at_least"].as_i64().unwrap_or(0);
    ensure!((40 * MIB..56 * MIB).contains(&held), "{:#}", answer.json);
    let outstanding = answer.json["native"]["outstanding"].as_i64().unwrap_or(i64::MAX);
    ensure!(outstanding < MIB, "{:#}", answer.json);
    Ok(())
}

/// A program that allocates and frees does not grow.
#[test]
fn churn_is_steady() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut program = start("churn")?;
    let answer = Answer::about(&mut program, "3s")?;
    ensure!(answer.says("steady") && answer.status == Some(0), "{:#}", answer.json);
    ensure!(answer.resident().abs() < MIB, "{:#}", answer.json);
    Ok(())
}

/// A child that grows is named, with the command to look at it.
#[test]
fn a_worker_that_grows_is_named() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut program = start("worker")?;
    let answer = Answer::about(&mut program, "3s")?;
    let child = &answer.json["children"][0];
    ensure!(
        child["growth"].as_i64().is_some_and(|growth| growth > 4 * MIB)
            && answer.json["next"] == format!("leaktrace why -p {}", child["pid"])
            && answer.status == Some(GROWS),
        "{:#}",
        answer.json
    );
    Ok(())
}

/// Growth of a Python program is explained, though its objects are in mappings of Python's own.
#[test]
fn growth_of_python_is_explained() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let source = "import sys, time\nprint('ready', flush=True)\nsys.stdin.readline()\nkept = []\n\
                  for i in range(100):\n kept.extend({'n': j} for j in range(1000))\n time.sleep(0.02)\nsys.stdin.read()";
    let mut program = Process::ready(Command::new("python3").args(["-c", source]))?;
    let answer = Answer::about(&mut program, "3s")?;
    ensure!(
        answer.resident() > 15 * MIB && answer.json["runtime"] == "Python",
        "{:#}",
        answer.json
    );
    for share in ["explained_by_kind", "explained_by_stack"] {
        let explained = answer.json[share].as_f64().unwrap_or(0.0);
        ensure!(
            explained >= if share == "explained_by_kind" { 0.95 } else { 0.8 },
            "{share}: {:#}",
            answer.json
        );
    }
    Ok(())
}

/// A command is followed from its first instruction on, and what it was at its end is told.
#[test]
fn a_command_that_ends_is_answered_for() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new(machine::leaktrace());
    command
        .args(["why", "-d", "30s", "--"])
        .arg(programs::path("why_grows")?)
        .args(["leak", "200"]);
    let mut why = Process::spawn(&mut command)?;
    why.expect("ready")?;
    why.send("go")?;
    why.expect("done")?;
    // The program waits for the end of its input.
    std::thread::sleep(Duration::from_millis(1500));
    why.close_input();
    let status = why.wait(PATIENCE)?;
    let text = why.output();
    ensure!(status.code().is_some(), "{text}");
    ensure!(
        text.contains("which has ended") && text.contains("keep_one why_grows.c:"),
        "{text}"
    );
    ensure!(text.contains("next: leaktrace record -- "), "{text}");
    Ok(())
}
