//! Each system call of leaktrace fails, once: nobody is harmed, leaktrace says what failed, and shows nothing that is not so.
//!
//! A run without a fault lists the calls by what they are about; then one call after another fails. Of all faults
//! `LEAKTRACE_TEST_FAULTS` says how many are tried, evenly chosen, or `all`.
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use leaktrace_tests::daemon::{Daemon, Home};
use leaktrace_tests::process::{PATIENCE, Process, Truth};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::recording::leaktrace;
use leaktrace_tests::scenario::{amount, unharmed};
use leaktrace_tests::{machine, programs};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// One call that fails.
#[derive(Clone, Debug)]
struct Fault {
    site: String,
    nth: u64,
    errno: Errno,
}

/// What a call may fail with, by its name: what the kernel's sources and manuals say, of ENOMEM, EMFILE, ENOSPC, EINTR and
/// EIO. Reads of memory and of `/proc` answer EIO of hardware, too.
const ERRORS: &[(&[&str], &[Errno])] = &[
    (
        &["openat", "openat2"],
        &[Errno::ENOMEM, Errno::EMFILE, Errno::EINTR, Errno::EIO, Errno::ENOSPC],
    ),
    (
        &["read", "pread64", "readv", "getdents64"],
        &[Errno::EIO, Errno::ENOMEM, Errno::EINTR],
    ),
    (
        &["write", "pwrite64", "writev"],
        &[Errno::ENOSPC, Errno::EIO, Errno::EINTR],
    ),
    (
        &["ftruncate", "mkdir", "linkat", "link"],
        &[Errno::ENOSPC, Errno::EIO, Errno::EINTR],
    ),
    (
        &["fsync", "fdatasync", "rename", "renameat2"],
        &[Errno::EIO, Errno::ENOSPC],
    ),
    (
        &["unlink", "unlinkat", "chmod", "fchmod", "lseek", "capset", "capget"],
        &[Errno::EIO],
    ),
    (
        &["fstat", "newfstatat", "statx", "statfs", "fstatfs"],
        &[Errno::EIO, Errno::ENOMEM],
    ),
    (
        &["readlink", "readlinkat", "process_vm_readv", "ptrace"],
        &[Errno::EIO, Errno::ENOMEM],
    ),
    (
        &["mmap", "mprotect", "epoll_ctl", "clone", "clone3", "vfork"],
        &[Errno::ENOMEM],
    ),
    (&["bpf"], &[Errno::ENOMEM, Errno::EMFILE, Errno::EINTR, Errno::EIO]),
    (&["perf_event_open"], &[Errno::ENOMEM, Errno::EMFILE, Errno::EIO]),
    (&["ioctl"], &[Errno::ENOMEM, Errno::EIO]),
    (
        &[
            "fcntl",
            "dup",
            "memfd_create",
            "epoll_create1",
            "eventfd2",
            "timerfd_create",
            "pipe2",
            "socket",
            "socketpair",
        ],
        &[Errno::EMFILE, Errno::ENOMEM],
    ),
    (&["accept4"], &[Errno::EMFILE, Errno::ENOMEM, Errno::EINTR]),
    (
        &[
            "sendto",
            "sendmsg",
            "epoll_wait",
            "wait4",
            "waitid",
            "flock",
            "getrandom",
        ],
        &[Errno::EINTR],
    ),
];

impl Fault {
    /// Every fault at these sites: the first call, one in the middle and the last.
    fn all(sites: &BTreeMap<String, u64>) -> Vec<Self> {
        let mut faults = Vec::new();
        for (site, count) in sites {
            let (name, object) = site.split_once(' ').unwrap_or((site, ""));
            // The daemon looks at whatever else runs here, which is another the next time.
            if object.starts_with('/') && name.starts_with('p') && !object.contains("rounds") && !object.contains("lib")
            {
                continue;
            }
            let errors = ERRORS.iter().find(|(names, _)| names.contains(&name));
            let mut places = vec![1, count.div_ceil(2), *count];
            places.dedup();
            // The first one is the trial before tokio's own, which panics.
            if name == "socketpair" {
                places.truncate(1);
            }
            for errno in errors.map_or(&[][..], |(_, errors)| errors) {
                // It never waits.
                if *errno == Errno::EINTR && object.contains("eventfd") {
                    continue;
                }
                faults.extend(places.iter().map(|nth| Self {
                    site: site.clone(),
                    nth: *nth,
                    errno: *errno,
                }));
            }
        }
        faults
    }

    /// As many of them as are to be tried; of `share` of those that a recording gets.
    fn chosen(sites: &BTreeMap<String, u64>, share: usize) -> Vec<Self> {
        let all = Self::all(sites);
        let wanted = machine::faults(all.len()).div_ceil(share);
        println!(
            "{} calls in {} kinds; {wanted} of {} faults",
            sites.values().sum::<u64>(),
            sites.len(),
            all.len()
        );
        (0..wanted)
            .map(|index| all[index * all.len() / wanted].clone())
            .collect()
    }
}

/// leaktrace with a call that fails.
struct Injected {
    tracer: Process,
    pid: Pid,
    directory: TempDir,
}

impl Injected {
    /// `{directory}` in an argument is a folder for this run.
    fn start(fault: Option<&Fault>, arguments: &[&str], alone: bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (site, nth, errno) = fault.map_or(("", 0, 0), |fault| (&*fault.site, fault.nth, fault.errno as i32));
        let mut command = Command::new(env!("CARGO_BIN_EXE_inject"));
        command.arg(directory.path().join("report"));
        command.args([site, &nth.to_string(), &errno.to_string()]);
        command.args(alone.then_some("--alone")).arg(machine::leaktrace());
        let place = directory.path().to_string_lossy();
        command.args(arguments.iter().map(|argument| argument.replace("{directory}", &place)));
        let mut tracer = Process::spawn(&mut command)?;
        let line = tracer.wait_for_error("its pid", |line| line.parse::<i32>().is_ok(), PATIENCE)?;
        Ok(Self {
            tracer,
            pid: Pid::from_raw(line.parse()?),
            directory,
        })
    }

    /// Waits for its end.
    fn finish(mut self) -> Result<Ended> {
        let status = self.tracer.wait(Duration::from_secs(40))?;
        let status = status.code().context("the injector was killed")?;
        let report = fs::read_to_string(self.directory.path().join("report"))?;
        let mut sites = BTreeMap::new();
        for line in report.lines() {
            if let Some((count, site)) = line.split_once(' ')
                && let Ok(count) = count.parse()
            {
                sites.insert(site.to_owned(), count);
            }
        }
        Ok(Ended {
            status,
            stdout: self.tracer.output(),
            stderr: self.tracer.errors(),
            failed: report.lines().any(|line| line.starts_with("failed ")),
            sites,
            directory: self.directory,
        })
    }
}

/// What came of it.
struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
    /// The call that was to fail was made.
    failed: bool,
    sites: BTreeMap<String, u64>,
    directory: TempDir,
}

impl Ended {
    /// The messages, without what a recording says in any case.
    fn messages(&self) -> String {
        let of_course = |line: &&str| {
            let is_pid = line.parse::<i32>().is_ok();
            !(line.is_empty() || is_pid || line.starts_with("tracing pid") || line.starts_with("wrote "))
        };
        self.stderr.lines().filter(of_course).collect::<Vec<_>>().join(" | ")
    }

    /// Every run: it ended by itself, and where it failed it says why.
    fn check(&self, fault: Option<&Fault>) -> Result<()> {
        let messages = self.messages();
        // Rust's own end where memory, or a thread's stack for signals, cannot be had: it says so.
        if self.status == 128 + libc::SIGABRT
            && fault.is_some_and(|fault| fault.errno == Errno::ENOMEM)
            && ["memory allocation of", "alternative stack"]
                .iter()
                .any(|text| messages.contains(text))
        {
            return Ok(());
        }
        ensure!(!messages.contains("panicked"), "it panicked: {messages}");
        ensure!(
            self.status < 128,
            "it was killed with {}: {messages}",
            self.status - 128
        );
        if self.status == 0 {
            return Ok(());
        }
        let fault = fault.context("it failed without a fault")?;
        let error = std::io::Error::from(fault.errno);
        let (text, kind) = (error.to_string(), error.kind().to_string());
        let text = text.split(" (os error").next().unwrap_or_default().to_owned();
        let others: &[&str] = match fault.errno {
            // With a remedy.
            Errno::EMFILE => &["as many files open as it may"],
            // What pthread_create makes of it.
            Errno::ENOMEM if fault.site.starts_with("clone") || fault.site == "mprotect" => {
                &["Resource temporarily unavailable"]
            }
            _ => &[],
        };
        // What is asked of the kernel by aya, which takes every error for a no, has no cause.
        let is_said = messages.contains(&text)
            || messages.contains(&kind)
            || messages.contains(fault.errno.desc())
            || others.iter().any(|text| messages.contains(text))
            || messages.contains("for want of memory or descriptors");
        ensure!(is_said, "status {}: `{text}` is not in: {messages}", self.status);
        Ok(())
    }
}

/// What a profile says, against what is so.
fn compare(truth: &Truth, ended: &Ended) -> Result<()> {
    let profile = ended.directory.path().join("profile.json");
    if ended.status != 0 && !profile.exists() {
        return Ok(());
    }
    let profile = Profile::read(&profile)?;
    let (shown, so) = (profile.outstanding(), amount(truth.objects(), truth.bytes()));
    ensure!(
        shown.objects <= so.objects && shown.bytes <= so.bytes,
        "more than is outstanding, {so:?}:\n{}",
        profile.shown()
    );
    let lost = profile.losses.iter().any(|loss| loss.count > 0);
    let told = profile
        .comments
        .iter()
        .any(|comment| comment.contains("was not followed") || comment.contains("has ended"));
    ensure!(
        shown == so || lost || told,
        "less than is outstanding, and nothing lost:\n{}",
        profile.shown()
    );
    let named = profile.outstanding_through(&truth.function);
    let reasons = ["not read wholly", "names are missing"];
    let told = profile
        .comments
        .iter()
        .any(|comment| reasons.iter().any(|reason| comment.contains(reason)));
    ensure!(
        named == shown || told || lost,
        "names are missing, and no reason:\n{}",
        profile.shown()
    );
    Ok(())
}

/// One recording while the target works.
fn record(target: &mut Process, fault: Option<&Fault>) -> Result<Ended> {
    let pid = target.pid().to_string();
    let arguments = ["record", "-p", &pid, "-o", "{directory}/profile.json"];
    let mut injected = Injected::start(fault, &arguments, false)?;
    let begins = |line: &str| line.starts_with("tracing pid") || line.starts_with("leaktrace: ");
    let begun = injected
        .tracer
        .wait_for_error("that it traces", begins, Duration::from_secs(40));
    let truth = target.work()?;
    if begun.is_ok_and(|line| line.starts_with("tracing")) {
        // It may have ended.
        let _ = kill(injected.pid, Signal::SIGINT);
    }
    let ended = injected.finish()?;
    unharmed(target)?;
    ended.check(fault)?;
    compare(&truth, &ended).with_context(|| format!("status {}: {}", ended.status, ended.messages()))?;
    ensure!(
        fault.is_some() || ended.stdout.contains("Losses: none"),
        "{}",
        ended.stdout
    );
    Ok(ended)
}

/// A command that leaktrace starts, from its first instruction on.
fn launch(fault: Option<&Fault>) -> Result<Ended> {
    let program = programs::path("rounds")?.display().to_string();
    let library = programs::path("libplugin.so")?.display().to_string();
    let arguments = ["record", "-o", "{directory}/profile.json", "--", &program, &library];
    // leaktrace itself holds the command by ptrace.
    let mut injected = Injected::start(fault, &arguments, true)?;
    let tracer = &mut injected.tracer;
    let ready = tracer.wait_for("that it is ready", |line| line == "ready", Duration::from_secs(40));
    let truth = match ready {
        Ok(_) => Some(tracer.work().context("the command does not do its work")?),
        Err(_) => None,
    };
    // Which ends the command, and with it the recording.
    tracer.close_input();
    let ended = injected.finish()?;
    ended.check(fault)?;
    if ended.status == 0 {
        ensure!(truth.is_some(), "the command did not run: {}", ended.messages());
    }
    Ok(ended)
}

/// The daemon: it begins to trace the target, which works, and makes a profile at its end.
fn watch(target: &mut Process, fault: Option<&Fault>) -> Result<Ended> {
    let home = Home::new("\n[trace]\nauto = false")?;
    let configuration = home.path("leaktrace.toml").display().to_string();
    let injected = Injected::start(fault, &["daemon", "--config", &configuration], false)?;
    let (daemon, directory) = (injected.pid, injected.directory);
    let mut watching = Daemon {
        home: &home,
        process: injected.tracer,
    };
    let fails = |line: &str| line.starts_with("leaktrace: ") && !line.contains("listening on");
    let begins = |line: &str| line.contains("profiles go to") || fails(line);
    let begun = watching
        .process
        .wait_for_error("that it listens", begins, Duration::from_secs(40));
    let mut refusal = None;
    let is_up = begun.is_ok_and(|line| line.contains("profiles go to"));
    if is_up {
        let pid = target.pid();
        // What failed once works the next time.
        let is_known = |watching: &Daemon<'_>| Ok(matches!(watching.state(pid), Ok(Some(_))));
        // It may have ended, or not have come so far.
        refusal = watching
            .until("the target is known", Duration::from_secs(20), is_known)
            .and_then(|()| watching.trace(pid, 16))
            .err()
            .map(|error| format!("{error:#}"));
    }
    target.work()?;
    if is_up {
        let _ = kill(daemon, Signal::SIGTERM);
    }
    let injected = Injected {
        tracer: watching.process,
        pid: daemon,
        directory,
    };
    let mut ended = injected.finish()?;
    unharmed(target)?;
    ended.check(fault)?;
    // What is in the store is whole.
    let store = home.store().display().to_string();
    let answer = leaktrace(&["list", "--store", &store], PATIENCE)?;
    ensure!(ended.status != 0 || answer.status.success(), "{answer:?}");
    if let Some(refusal) = refusal {
        let is_late = ended.status == 0 && refusal.contains("not within");
        ensure!(fault.is_some() && !is_late, "{refusal}");
        ended.stderr.push_str(&format!("\n{refusal}"));
    }
    Ok(ended)
}

/// Runs it without a fault and then with one after another.
fn try_all(share: usize, mut run: impl FnMut(Option<&Fault>) -> Result<Ended>) -> Result<()> {
    let clean = run(None)?;
    ensure!(clean.status == 0, "{}", clean.stderr);
    let mut wrong = Vec::new();
    for fault in Fault::chosen(&clean.sites, share) {
        match run(Some(&fault)) {
            Ok(ended) => println!("{fault:?}: {} {} {}", ended.failed, ended.status, ended.messages()),
            Err(error) => {
                println!("WRONG {fault:?}: {error:#}");
                wrong.push(format!("{fault:?}: {error:#}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n\n"));
    Ok(())
}

fn rounds() -> Result<Process> {
    Process::ready(programs::command("rounds")?.arg(programs::path("libplugin.so")?))
}

/// The target ends as it should.
fn ends(mut target: Process) -> Result<()> {
    target.close_input();
    let status = target.wait(PATIENCE)?;
    ensure!(status.success(), "the target ended with {status}");
    Ok(())
}

#[test]
fn of_a_recording() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = rounds()?;
    try_all(1, |fault| record(&mut target, fault))?;
    ends(target)
}

#[test]
fn of_a_recording_of_a_command() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    try_all(4, launch)
}

#[test]
fn of_the_daemon() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = rounds()?;
    try_all(4, |fault| watch(&mut target, fault))?;
    ends(target)
}
