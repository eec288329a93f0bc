//! The files that a recording writes: Debian's `go tool pprof` reads them and shows the numbers that leaktrace shows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::pprof::{self, Row};
use leaktrace_tests::process::{PATIENCE, Process, Truth};
use leaktrace_tests::recording::{Recording, as_json, leaktrace};
use leaktrace_tests::{machine, programs};

/// Records a program into a file of this name, and hands the file to `check`.
fn with_file(name: &str, check: impl FnOnce(&Truth, &str, &Path) -> Result<()>) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let recording = Recording::attach_to_file(target.pid(), &[], name)?;
    let truth = target.work()?;
    let (stdout, file, _directory) = recording.stop_unread()?;
    target.exit()?;
    check(&truth, &stdout, &file)
}

fn by_name(rows: Vec<Row>) -> BTreeMap<String, (u64, u64)> {
    rows.into_iter().map(|row| (row.name, (row.flat, row.cum))).collect()
}

#[test]
fn go_tool_pprof_shows_the_same_numbers() -> Result<()> {
    with_file("profile.pb.gz", |truth, _, file| {
        let space = by_name(pprof::top(file, "inuse_space")?);
        let objects = by_name(pprof::top(file, "inuse_objects")?);
        ensure!(
            space.get("leak_here") == Some(&(truth.leaked_bytes, truth.leaked_bytes)),
            "{space:?}"
        );
        ensure!(
            objects.get("leak_here") == Some(&(truth.leaked_objects, truth.leaked_objects)),
            "{objects:?}"
        );
        ensure!(
            space.get("main").is_some_and(|(_, cum)| *cum == truth.bytes()),
            "{space:?}"
        );
        for kind in ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"] {
            let theirs = by_name(pprof::top(file, kind)?);
            let path = file.to_string_lossy();
            let answer = leaktrace(
                &[
                    "report",
                    &path,
                    "--frames",
                    "all",
                    "--top",
                    "100000",
                    "--sample-type",
                    kind,
                ],
                PATIENCE,
            )?;
            ensure!(answer.status.success(), "{answer:?}");
            let ours = by_name(pprof::rows(&answer.stdout)?);
            let total = theirs.get("main").with_context(|| format!("no main in {theirs:?}"))?.1;
            for (name, (flat, cum)) in theirs {
                let Some((our_flat, our_cum)) = ours.get(&name) else {
                    // As pprof does unless it is told otherwise, small ones are left out.
                    ensure!(cum * 200 <= total, "{name} with {cum} of {total} is not in {ours:?}");
                    continue;
                };
                // The tables round to two decimals of a unit, as pprof's own do.
                let near = |ours: u64, theirs: u64| ours.abs_diff(theirs) <= 1 + theirs / 100;
                ensure!(
                    near(*our_flat, flat) && near(*our_cum, cum),
                    "{kind} of {name}: pprof says {flat} {cum}, leaktrace {our_flat} {our_cum}"
                );
            }
        }
        Ok(())
    })
}

/// Nothing is lost on the way through the file: JSON of the profile has the truth too.
#[test]
fn a_profile_read_back_is_exact() -> Result<()> {
    with_file("profile.pb.gz", |truth, _, file| {
        let profile = as_json(file)?;
        leaktrace_tests::scenario::assert_exact(truth, &profile);
        let kinds: Vec<_> = profile
            .sample_types
            .iter()
            .map(|kind| (kind.kind.as_str(), kind.unit.as_str()))
            .collect();
        let wanted = [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ];
        ensure!(kinds == wanted, "{kinds:?}");
        Ok(())
    })
}

#[test]
fn a_recording_prints_the_table_and_the_losses() -> Result<()> {
    with_file("profile.pb.gz", |_, stdout, _| {
        // The function that keeps, with its line, and not what it asks.
        let is_site = |line: &str| line.contains("  cache_insert (innocent.c:") && line.contains(" ← ");
        ensure!(stdout.lines().any(is_site) && !stdout.contains("malloc"), "{stdout}");
        ensure!(
            stdout.lines().any(|line| line.starts_with("Losses:")),
            "no line about losses in:\n{stdout}"
        );
        Ok(())
    })
}

#[test]
fn folded_stacks() -> Result<()> {
    with_file("profile.folded", |truth, _, file| {
        let text = fs::read_to_string(file)?;
        let line = text
            .lines()
            .find(|line| line.contains("leak_here"))
            .with_context(|| text.clone())?;
        let (stack, value) = line.rsplit_once(' ').context("a folded line ends with a number")?;
        ensure!(stack.contains("main;leak_here"), "root first: {line}");
        ensure!(value.parse() == Ok(truth.leaked_bytes), "{line}");
        Ok(())
    })
}

#[test]
fn flame_graph() -> Result<()> {
    with_file("profile.svg", |_, _, file| {
        let text = fs::read_to_string(file)?;
        ensure!(
            text.contains("<svg") && text.trim_end().ends_with("</svg>"),
            "no whole SVG"
        );
        ensure!(
            text.contains("leak_here") && text.contains("cache_insert"),
            "functions are missing"
        );
        Ok(())
    })
}

#[test]
fn source_listing() -> Result<()> {
    with_file("profile.pb.gz", |_, _, file| {
        let answer = leaktrace(&["report", &file.to_string_lossy(), "--list", "cache_insert"], PATIENCE)?;
        ensure!(answer.status.success(), "{answer:?}");
        ensure!(
            answer.stdout.contains("malloc(sizeof *entry)"),
            "no source line in:\n{}",
            answer.stdout
        );
        Ok(())
    })
}

#[test]
fn growth_between_two_profiles() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let mut files = Vec::new();
    // The same program leaks 1,000 and 3,000 blocks.
    for blocks in ["1000", "3000"] {
        let mut target = Process::ready(programs::command("bench_outstanding")?.arg(blocks))?;
        let recording = Recording::attach_to_file(target.pid(), &[], "profile.pb.gz")?;
        target.work()?;
        let (_, file, _kept) = recording.stop_unread()?;
        let kept = directory.path().join(format!("{blocks}.pb.gz"));
        fs::copy(file, &kept)?;
        files.push(kept.to_string_lossy().into_owned());
        target.exit()?;
    }
    let answer = leaktrace(
        &[
            "diff",
            &files[0],
            &files[1],
            "--frames",
            "all",
            "--sample-type",
            "inuse_objects",
        ],
        PATIENCE,
    )?;
    ensure!(answer.status.success(), "{answer:?}");
    let rows = pprof::rows(&answer.stdout)?;
    ensure!(
        rows.first()
            .is_some_and(|row| row.name == "leak_here" && row.flat == 2000),
        "{}",
        answer.stdout
    );
    // Go's reader takes the difference as a profile as well.
    let difference = directory.path().join("difference.pb.gz");
    let answer = leaktrace(
        &["diff", &files[0], &files[1], "-o", &difference.to_string_lossy()],
        PATIENCE,
    )?;
    ensure!(answer.status.success(), "{answer:?}");
    let rows = by_name(pprof::top(&difference, "inuse_objects")?);
    ensure!(rows.get("leak_here") == Some(&(2000, 2000)), "{rows:?}");
    Ok(())
}
