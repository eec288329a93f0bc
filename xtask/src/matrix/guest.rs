//! One guest: QEMU with a kernel, its console, and what the tests in it came to.
//!
//! The processor is emulated and there is one: code that is being patched while another processor runs it is more than
//! some versions of QEMU can do. Invariant: QEMU is dead when [`run`] returns.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::kernels::Kernel;
use crate::command;

/// How many times slower a guest is than the suite's limits are made for. It is rather a hundred times where a page is
/// touched for the first time and three where code is hot; limits are made with a wide margin.
const SLOWNESS: u32 = 6;
/// What the kernel says when something is wrong with itself, whatever the tests came to.
const COMPLAINTS: &[&str] = &[
    "BUG: ",
    "Oops: ",
    "Kernel panic",
    "WARNING: CPU",
    "general protection fault",
    "rcu_preempt detected stalls",
    "blocked for more than",
];

/// What to boot.
pub struct Setting<'a> {
    /// For people, and for the file that keeps the console.
    pub name: String,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its initrd.
    pub initrd: PathBuf,
    /// The root file system.
    pub root: &'a Path,
    /// Further words for the kernel, and variables for its first process.
    pub words: Vec<String>,
    /// It takes only what others leave of a processor.
    pub yields: bool,
    /// After this time it is ended.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// `uname -r`.
    pub release: String,
    /// The way to preempt, as the kernel says it.
    pub preemption: String,
    /// How probes are attached, as `doctor` says it.
    pub mechanism: String,
    /// Passed tests.
    pub passed: usize,
    /// Tests that failed, by name.
    pub failed: Vec<String>,
    /// Seconds that each test took.
    pub durations: Vec<(String, f64)>,
    /// What is wrong beside failed tests.
    pub troubles: Vec<String>,
    /// Seconds from the start to the end.
    pub seconds: f64,
}

impl Outcome {
    /// All tests ran and passed, and the kernel is content.
    pub fn is_success(&self) -> bool {
        self.passed > 0 && self.failed.is_empty() && self.troubles.is_empty()
    }
}

/// Boots, and reads along until the end; the console goes to a file in `folder`.
///
/// # Errors
/// When QEMU cannot be started, or the file cannot be written.
pub fn run(setting: &Setting<'_>, folder: &Path) -> Result<Outcome> {
    let begin = Instant::now();
    let mut qemu = qemu(setting);
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(Guest)
        .with_context(|| format!("failed to start `{}`", command::shown(&qemu)))?;
    let lines = follow(child.0.stdout.take(), child.0.stderr.take());
    let path = folder.join(format!("{}.log", setting.name));
    let failed = || format!("failed to write `{}`", path.display());
    let mut console = File::create(&path).with_context(failed)?;
    let mut reading = Reading::default();
    loop {
        let left = setting.limit.saturating_sub(begin.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                let at = begin.elapsed().as_secs_f64();
                writeln!(console, "{at:8.2} {line}").with_context(failed)?;
                reading.line(&line, at);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let limit = setting.limit.as_secs();
                reading
                    .outcome
                    .troubles
                    .push(format!("ended after {limit} s without an end of its own"));
                break;
            }
        }
    }
    drop(child);
    Ok(reading.finish(begin.elapsed().as_secs_f64()))
}

fn qemu(setting: &Setting<'_>) -> Command {
    let mut words = vec![
        "console=ttyS0".to_owned(),
        "panic=-1".to_owned(),
        "loglevel=4".to_owned(),
        "mitigations=off".to_owned(),
        "nokaslr".to_owned(),
        format!("LEAKTRACE_TEST_SLOWNESS={SLOWNESS}"),
    ];
    words.extend(setting.words.iter().cloned());
    let drive = format!("if=none,id=root,file={},format=raw,readonly=on", setting.root.display());
    // Ended with this process, however that ends.
    let niceness = if setting.yields { "19" } else { "0" };
    let mut qemu = Command::new("nice");
    qemu.args(["-n", niceness, "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args([
        "-accel", "tcg", "-cpu", "Nehalem", "-M", "q35", "-smp", "1", "-m", "1536",
    ]);
    qemu.args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-net",
        "none",
    ]);
    qemu.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=root"]);
    qemu.arg("-kernel")
        .arg(&setting.kernel.image)
        .arg("-initrd")
        .arg(&setting.initrd);
    qemu.arg("-append").arg(words.join(" "));
    qemu
}

/// Killed when it goes.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail where it has ended already, and then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of both streams as they come, until both end.
fn follow(console: Option<impl Read + Send + 'static>, errors: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        console.map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        errors.map(|stream| Box::new(stream) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// What the console has said so far.
#[derive(Default)]
struct Reading {
    outcome: Outcome,
    /// When the test before ended.
    last: f64,
    /// The count that the test binary gives at its end: passed and failed.
    told: Option<(usize, usize)>,
    ended: bool,
}

impl Reading {
    fn line(&mut self, line: &str, at: f64) {
        if let Some(rest) = line.strip_prefix("matrix: ") {
            self.word(rest);
        } else if line.starts_with("running ") {
            self.last = at;
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let number = |word: &str| {
                let before = rest.split(word).next()?;
                before.trim_end().rsplit(' ').next()?.parse().ok()
            };
            self.told = number(" passed").zip(number(" failed"));
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            self.outcome.durations.push((name.to_owned(), at - self.last));
            self.last = at;
            if result.ends_with("FAILED") {
                self.outcome.failed.push(name.to_owned());
            }
        } else if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            self.outcome.troubles.push(format!("the kernel says: {}", line.trim()));
        }
    }

    /// A line of the init script.
    fn word(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "release" => self.outcome.release = rest.to_owned(),
            "preemption" => self.outcome.preemption = chosen(rest).to_owned(),
            "doctor" => {
                if let Some(how) = rest.split_once("uprobes").map(|(_, how)| how) {
                    self.outcome.mechanism = mechanism(how).to_owned();
                }
            }
            "end" => self.ended = true,
            _ => self.outcome.troubles.push(line.to_owned()),
        }
    }

    fn finish(mut self, seconds: f64) -> Outcome {
        self.outcome.seconds = seconds;
        match self.told {
            Some((passed, failed)) => {
                self.outcome.passed = passed;
                // A line of the kernel in the middle of the test's: counted all the same.
                let unnamed = failed.saturating_sub(self.outcome.failed.len());
                self.outcome
                    .failed
                    .extend((0..unnamed).map(|_| "a test whose name was not read".to_owned()));
            }
            None => self
                .outcome
                .troubles
                .push("the tests did not come to their end".to_owned()),
        }
        if !self.ended && self.outcome.troubles.is_empty() {
            self.outcome
                .troubles
                .push("the guest ended before its tests".to_owned());
        }
        self.outcome
    }
}

/// `full` of `none voluntary (full)`; empty where the kernel does not tell.
fn chosen(modes: &str) -> &str {
    let inside = modes.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    inside.map_or("", |(mode, _)| mode)
}

/// How probes are attached, from `doctor`'s line of it.
fn mechanism(line: &str) -> &'static str {
    match line {
        line if line.contains("perf events") => "perf events",
        line if line.contains("sessions") => "sessions",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Outcome {
        let mut reading = Reading::default();
        for (second, line) in (0..).zip(lines) {
            reading.line(line, f64::from(second));
        }
        reading.finish(60.0)
    }

    const RESULT: &str =
        "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3s";

    #[test]
    fn a_console_is_read() {
        let outcome = read(&[
            "matrix: release 6.12.118+deb13-cloud-amd64",
            "matrix: preemption none voluntary (full)",
            "matrix: doctor     uprobes      sessions: one probe for a call and its return",
            "running 2 tests",
            "test truth::exact ... ok",
            "test stacks::thirty ... FAILED",
            RESULT,
            "matrix: end 101",
        ]);
        assert_eq!(outcome.preemption, "full");
        assert_eq!(outcome.mechanism, "sessions");
        assert_eq!(
            (outcome.passed, outcome.failed.as_slice()),
            (1, &["stacks::thirty".to_owned()][..])
        );
        assert_eq!(outcome.durations[1], ("stacks::thirty".to_owned(), 1.0));
        assert!(!outcome.is_success());
    }

    #[test]
    fn silence_is_no_success() {
        assert!(!read(&[]).is_success());
        assert!(!read(&["test result: ok. 0 passed; 0 failed; 0 ignored", "matrix: end 0"]).is_success());
        assert!(read(&["test result: ok. 3 passed; 0 failed; 0 ignored", "matrix: end 0"]).is_success());
    }

    #[test]
    fn a_complaint_of_the_kernel_is_a_failure() {
        let outcome = read(&[
            "[   12.3] BUG: unable to handle page fault",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "matrix: end 0",
        ]);
        assert!(!outcome.is_success(), "{outcome:?}");
    }

    #[test]
    fn a_failure_without_a_name_is_counted() {
        let outcome = read(&[RESULT, "matrix: end 101"]);
        assert_eq!(outcome.failed.len(), 1);
    }
}
