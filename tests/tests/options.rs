//! Options of `record` that change what is recorded or where it goes.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{amount, record, unharmed};
use leaktrace_tests::{machine, pprof, programs};
use nix::sys::signal::Signal;

#[test]
fn smaller_allocations_are_left_out() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (_, recorded) = record(&mut programs::command("innocent")?, &["--min-size", "300"])?;
    let profile = &recorded.profile;
    // The cache's entries have 264 bytes, the leaks 40, the pool's blocks 512.
    assert_eq!(profile.outstanding(), amount(100, 100 * 512), "{}", profile.shown());
    assert_eq!(
        profile.allocated_through("cache_insert"),
        amount(0, 0),
        "{}",
        profile.shown()
    );
    Ok(())
}

#[test]
fn the_file_is_named_after_the_target() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    // Of an earlier recording, which stays.
    let earlier = directory
        .path()
        .join(format!("leaktrace.innocent.{}.pb.gz", target.pid()));
    fs::write(&earlier, "earlier")?;
    let mut command = Command::new(machine::leaktrace());
    command.current_dir(directory.path()).args([
        "record",
        "--frames",
        "all",
        "--top",
        "2",
        "-p",
        &target.pid().to_string(),
    ]);
    let mut tracer = Process::spawn(&mut command)?;
    tracer.wait_for_error("that it is tracing", |line| line.starts_with("tracing "), PATIENCE)?;
    target.work()?;
    tracer.signal(Signal::SIGINT)?;
    ensure!(tracer.wait(PATIENCE)?.success(), "{}", tracer.errors());
    let names: Vec<_> = fs::read_dir(directory.path())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    let second = format!("leaktrace.innocent.{}-2.pb.gz", target.pid());
    ensure!(
        names.len() == 2 && names.iter().any(|name| *name == second.as_str()),
        "{names:?}"
    );
    ensure!(fs::read(&earlier)? == b"earlier");
    // Two rows, as asked; a progress line is for terminals.
    let output = tracer.output();
    ensure!(pprof::rows(&output)?.len() == 2, "{output}");
    ensure!(
        !tracer.errors().contains('\r') && !tracer.errors().contains('\u{1b}'),
        "{:?}",
        tracer.errors()
    );
    target.exit()
}

/// By its name, as long as one process has it; of several each is listed with its owner, and none is traced.
#[test]
fn a_name_stands_for_one_process() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let name = format!("named-{}", std::process::id());
    let program = directory.path().join(&name);
    fs::copy(programs::path("innocent")?, &program)?;
    let output = directory.path().join("profile.json");
    let output = output.to_str().unwrap_or_default();
    let arguments = ["record", "-d", "1s", "-o", output, &name];
    let answer = leaktrace(&arguments, PATIENCE)?;
    ensure!(
        answer.status.code() == Some(3) && answer.stderr.contains(&name),
        "{answer:?}"
    );
    let mut first = Process::ready(&mut Command::new(&program))?;
    let answer = leaktrace(&arguments, PATIENCE)?;
    ensure!(
        answer.status.success() && answer.stderr.contains(&format!("tracing pid {} ", first.pid())),
        "{answer:?}"
    );
    let second = Process::ready(&mut Command::new(&program))?;
    let answer = leaktrace(&arguments, PATIENCE)?;
    ensure!(
        answer.status.code() == Some(24) && answer.stderr.contains("record -p PID"),
        "{answer:?}"
    );
    for pid in [first.pid(), second.pid()] {
        let listed = answer.stderr.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(&pid.to_string()) && words.next() == Some("root")
        });
        ensure!(listed, "pid {pid} is not listed: {}", answer.stderr);
    }
    unharmed(&mut first)
}

#[test]
fn help_names_every_command() -> Result<()> {
    let answer = leaktrace(&["--help"], PATIENCE)?;
    ensure!(answer.status.success(), "{answer:?}");
    for command in ["record", "report", "diff", "doctor"] {
        ensure!(answer.stdout.contains(command), "no {command} in:\n{}", answer.stdout);
    }
    Ok(())
}

/// Pictures leave allocation functions out, as the table does; what is read again keeps them.
#[test]
fn allocation_functions_are_in_json_and_not_in_pictures() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let of = |file: &str| -> Result<String> {
        let mut target = Process::ready(programs::command("new_delete")?.arg("plain"))?;
        let recording = Recording::attach_to_file(target.pid(), &[], file)?;
        target.work()?;
        let (_, output, _directory) = recording.stop_unread()?;
        target.exit()?;
        Ok(fs::read_to_string(output)?)
    };
    let json = of("profile.json")?;
    ensure!(json.contains("\"operator new"), "{json}");
    for file in ["profile.folded", "profile.svg"] {
        let picture = of(file)?;
        ensure!(picture.contains("leak_here"), "{file}:\n{picture}");
        ensure!(!picture.contains("operator new"), "{file}:\n{picture}");
    }
    Ok(())
}

#[test]
fn ages_and_growth_of_each_stack() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    // Older than the first class, which ends at one second.
    thread::sleep(Duration::from_secs(2));
    let profile = recording.stop()?.profile;
    assert_eq!(profile.age_bounds, [1, 10, 60, 600, 3600, 86_400]);
    ensure!(
        profile.growth_nanos.is_some_and(|nanos| nanos > 1_000_000_000),
        "{:?}",
        profile.growth_nanos
    );
    let leaked = i64::try_from(truth.leaked_bytes)?;
    let (mut ages, mut growth) = (0, 0);
    for sample in profile.heap() {
        let of_sample = sample.ages.as_deref().unwrap_or_default();
        assert_eq!(of_sample.len(), 7, "{}", profile.shown());
        assert_eq!(
            of_sample.iter().sum::<i64>(),
            sample.inuse().bytes,
            "{}",
            profile.shown()
        );
        ages += of_sample[1..].iter().sum::<i64>();
        growth += sample.growth.unwrap_or_default();
    }
    assert_eq!((ages, growth), (leaked, leaked), "{}", profile.shown());
    target.exit()
}
