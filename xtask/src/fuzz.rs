//! `fuzz`: every parser of what a target, or a file on disk, controls, on its seeds and on what becomes of them.
//!
//! The parsers are those of `leaktrace/src/fuzzing`. Usually they run in the unit-test program, which exists anyway, on seeds
//! with random changes: no more than seconds, for every change of the code. With `--coverage` they run under libFuzzer, in a
//! program of its own that is built with counters, for as long as one likes. Invariant: each target is a process with
//! limits of memory and time, and an input that fails is kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, command, packages, test, workspace};

/// Longest input that libFuzzer makes.
const MAX_LENGTH: u32 = 64 << 10;
/// Seconds that one input may take.
const TIMEOUT: u32 = 20;
/// Seconds that a target may take longer than it was told to.
const GRACE: u64 = 60;
/// What makes the compiler count which code is reached. Sanitizers would need a compiler of their own, and there is little
/// for them to see: `unsafe` stands in two places, and no parser is there.
const COUNTERS: [&str; 7] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `fuzz`.
#[derive(Args)]
pub struct Options {
    /// For how long seeds are changed, for each target.
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u32,
    /// Memory of each target, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// Use libFuzzer, which keeps what reaches new code in target/fuzz/corpus.
    #[arg(long)]
    coverage: bool,
    /// Which (default: all); the folders of fuzz/seeds are named like them.
    targets: Vec<String>,
}

/// The command; fails if any target does, after all have run.
pub fn run(options: &Options) -> Result<()> {
    let targets = chosen(&options.targets)?;
    let finds = folder("finds")?;
    setup::ensure(Purpose::Build)?;
    if std::env::var_os("LEAKTRACE_BPF_OBJECT").is_none() && !workspace::bpf_object().exists() {
        build::bpf("x86_64")?;
    }
    let program = if options.coverage {
        packages::ensure(&["g++"], "libFuzzer")?;
        fuzzer()?
    } else {
        test::unit_program("leaktrace")?
    };
    let begin = Instant::now();
    let left = Mutex::new(targets.iter());
    let failed = Mutex::new(Vec::new());
    // libFuzzer runs are long, and somebody may use the machine meanwhile.
    let workers = match options.coverage {
        true => 1,
        false => std::thread::available_parallelism().map_or(1, usize::from),
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = left.lock().map(|mut left| left.next());
                    let Ok(Some(name)) = next else { break };
                    let outcome = match options.coverage {
                        true => covered(&program, name, options, &finds),
                        false => changed(&program, name, options, &finds),
                    };
                    match outcome {
                        Ok(line) => eprintln!("fuzz: {line}"),
                        Err(error) => {
                            eprintln!("fuzz: {name}: {error:#}");
                            failed
                                .lock()
                                .map(|mut failed| failed.push(name.as_str()))
                                .unwrap_or_default();
                        }
                    }
                }
            });
        }
    });
    eprintln!(
        "fuzz: {} targets took {:.0} s",
        targets.len(),
        begin.elapsed().as_secs_f64()
    );
    let failed = failed.into_inner().unwrap_or_default();
    if !failed.is_empty() {
        bail!("failed: {}; the inputs are in `{}`", failed.join(", "), finds.display());
    }
    Ok(())
}

/// Targets by name: each has a folder of seeds.
fn chosen(wanted: &[String]) -> Result<BTreeSet<String>> {
    let seeds = workspace::root().join("fuzz/seeds");
    let entries = fs::read_dir(&seeds).with_context(|| format!("failed to read `{}`", seeds.display()))?;
    let mut all = BTreeSet::new();
    for entry in entries {
        all.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(*name)) {
        let known: Vec<&str> = all.iter().map(String::as_str).collect();
        bail!("no target `{unknown}`; there are {}", known.join(", "));
    }
    Ok(match wanted {
        [] => all,
        some => some.iter().cloned().collect(),
    })
}

fn folder(name: &str) -> Result<PathBuf> {
    let path = workspace::target().join("fuzz").join(name);
    fs::create_dir_all(&path).with_context(|| format!("failed to make `{}`", path.display()))?;
    Ok(path)
}

/// Runs a program within limits. Its output is kept.
fn limited(program: &Path, seconds: u64, memory: Option<u64>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &seconds.to_string(), "prlimit", "--core=0"]);
    if let Some(memory) = memory {
        command.arg(format!("--data={}", memory << 20));
    }
    command.arg(program).current_dir(workspace::root()).stdin(Stdio::null());
    command
}

/// A target in the unit-test program.
fn changed(program: &Path, name: &str, options: &Options, finds: &Path) -> Result<String> {
    let seconds = u64::from(options.seconds) + GRACE;
    let mut command = limited(program, seconds, Some(options.memory));
    command
        .args([
            "--exact",
            &format!("fuzzing::corpus::{name}"),
            "--nocapture",
            "--test-threads=1",
        ])
        .env("LEAKTRACE_FUZZ_SECONDS", options.seconds.to_string())
        .env("LEAKTRACE_FUZZ_FINDS", finds);
    let output = output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with(&format!("{name}: ")));
    let line = line.map(str::to_owned);
    line.ok_or_else(|| anyhow!("`{}` ran no target", command::shown(&command)))
}

/// A target under libFuzzer.
fn covered(program: &Path, name: &str, options: &Options, finds: &Path) -> Result<String> {
    let corpus = folder(&format!("corpus/{name}"))?;
    // libFuzzer ends by itself; it replays all that it has first.
    let seconds = u64::from(options.seconds) * 2 + GRACE * 5;
    let mut command = limited(program, seconds, None);
    command
        .arg(format!("-rss_limit_mb={}", options.memory))
        .arg(format!("-malloc_limit_mb={}", options.memory))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-max_len={MAX_LENGTH}"))
        .arg(format!("-artifact_prefix={}/{name}-", finds.display()))
        .arg("-print_final_stats=1")
        .arg(&corpus)
        .arg(workspace::root().join("fuzz/seeds").join(name))
        .env("LEAKTRACE_FUZZ_TARGET", name);
    let output = output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let stat = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("stat::{key}:")));
        line.map_or("?", str::trim).to_owned()
    };
    // `#4096 DONE cov: 1234 ft: 2345 corp: 89/10Kb …`
    let reached = text.lines().rev().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |key| {
            words
                .iter()
                .position(|word| *word == key)
                .and_then(|at| words.get(at + 1).copied())
        };
        Some((after("cov:")?.to_owned(), after("ft:")?.to_owned()))
    });
    let (edges, features) = reached.unwrap_or_default();
    Ok(format!(
        "{name}: {} inputs, {edges} edges, {features} features, {} new, at most {} MiB",
        stat("number_of_executed_units"),
        stat("new_units_added"),
        stat("peak_rss_mb"),
    ))
}

/// What a command wrote, if it succeeded; else its last lines are the error.
fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("failed to start `{}`", command::shown(command)))?;
    if !output.status.success() {
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("`{}` failed: {}\n{last}", command::shown(command), output.status);
    }
    Ok(output)
}

/// Builds the program with libFuzzer in it.
fn fuzzer() -> Result<PathBuf> {
    let target = folder("build")?;
    let mut cargo = command::cargo();
    cargo
        .args([
            "build",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--profile",
            "fuzz",
            "--target",
            TRIPLE,
        ])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", COUNTERS.join("\x1f"))
        .env_remove("RUSTFLAGS");
    command::run(&mut cargo)?;
    Ok(target.join(TRIPLE).join("fuzz/fuzz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_folders_of_seeds() -> Result<()> {
        assert!(chosen(&[])?.contains("go_pclntab"));
        assert_eq!(chosen(&["events".to_owned()])?.len(), 1);
        assert!(chosen(&["nothing".to_owned()]).is_err());
        Ok(())
    }
}
