//! Whatever goes wrong is told in one clear line, with an exit status of its own, and the target is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Answer, leaktrace, run};
use leaktrace_tests::scenario::{assert_exact, record, unharmed};
use leaktrace_tests::{machine, programs};

/// The answer is a failure, told in one line that has each of these words; its status.
fn one_line(answer: &Answer, words: &[&str]) -> Result<i32> {
    let status = answer.status.code().with_context(|| format!("killed: {answer:?}"))?;
    ensure!(status != 0, "no failure: {answer:?}");
    ensure!(status != 101, "a panic: {answer:?}");
    let lines: Vec<&str> = answer.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(
        lines.len() == 1,
        "{} lines instead of one:\n{}",
        lines.len(),
        answer.stderr
    );
    for word in words {
        ensure!(
            lines[0].to_lowercase().contains(&word.to_lowercase()),
            "no `{word}` in: {}",
            lines[0]
        );
    }
    Ok(status)
}

/// Tries to record; a directory for the output that nothing may be left in afterwards.
fn refused(command: &mut Command, pid: u32, words: &[&str]) -> Result<i32> {
    let directory = tempfile::tempdir()?;
    command
        .args(["record", "-d", "5s", "-p", &pid.to_string(), "-o"])
        .arg(directory.path().join("profile.json"));
    let answer = run(command, PATIENCE)?;
    ensure!(
        fs::read_dir(directory.path())?.next().is_none(),
        "something was written: {answer:?}"
    );
    one_line(&answer, words)
}

fn no_such_process() -> Result<i32> {
    // Behind the largest pid that there can be.
    refused(
        &mut Command::new(machine::leaktrace()),
        4_194_305,
        &["4194305", "no process"],
    )
}

/// A kernel thread, where this process's pid namespace shows any.
fn kernel_thread() -> Result<Option<i32>> {
    let flags = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse().ok()
    };
    let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    const PF_KTHREAD: u64 = 0x0020_0000;
    let Some(pid) = pids
        .into_iter()
        .find(|pid| flags(*pid).is_some_and(|flags| flags & PF_KTHREAD != 0))
    else {
        eprintln!("not tried on a kernel thread: this pid namespace shows none");
        return Ok(None);
    };
    refused(
        &mut Command::new(machine::leaktrace()),
        pid,
        &[&pid.to_string(), "kernel thread"],
    )
    .map(Some)
}

fn missing_capability() -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-sys_admin,-bpf,-perfmon"])
        .arg(machine::leaktrace());
    let status = refused(&mut command, target.pid(), &["CAP_"])?;
    unharmed(&mut target)?;
    Ok(status)
}

fn not_root() -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    // A copy where everyone may run it, whatever the permissions of the source tree.
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("leaktrace");
    fs::copy(machine::leaktrace(), &copy)?;
    run(
        Command::new("chmod").args(["-R", "a+rx"]).arg(directory.path()),
        PATIENCE,
    )?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy);
    command.args([
        "record",
        "-d",
        "5s",
        "-p",
        &target.pid().to_string(),
        "-o",
        "/dev/shm/leaktrace-not-root.json",
    ]);
    let answer = run(&mut command, PATIENCE)?;
    ensure!(
        !Path::new("/dev/shm/leaktrace-not-root.json").exists(),
        "something was written: {answer:?}"
    );
    let status = one_line(&answer, &["root"])?;
    unharmed(&mut target)?;
    Ok(status)
}

/// Runs leaktrace where `folder` of the kernel's files is empty.
fn without(folder: &str, words: &[&str]) -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none \"$0\" && exec \"$@\"",
            folder,
        ])
        .arg(machine::leaktrace());
    let status = refused(&mut command, target.pid(), words)?;
    unharmed(&mut target)?;
    Ok(status)
}

fn no_known_allocator() -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("no_allocator")?)?;
    // It says where it looked.
    let status = refused(
        &mut Command::new(machine::leaktrace()),
        target.pid(),
        &["allocator", "no_allocator"],
    )?;
    unharmed(&mut target)?;
    Ok(status)
}

/// A static program without symbols whose malloc is nobody's that is known by its shape.
fn own_allocator_without_symbols() -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("own_malloc_stripped")?)?;
    let status = refused(
        &mut Command::new(machine::leaktrace()),
        target.pid(),
        &["linked statically and stripped", "run a copy that is not stripped"],
    )?;
    unharmed(&mut target)?;
    Ok(status)
}

/// A static program whose section headers, and with them its symbols, lie outside the file. The kernel runs it all the
/// same: it does not look at them.
fn hostile_program() -> Result<i32> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("hostile");
    fs::copy(programs::path("malloc_family_static")?, &copy)?;
    let file = fs::OpenOptions::new().write(true).open(&copy)?;
    file.write_all_at(&0xffff_ffff_ffff_f000_u64.to_le_bytes(), 0x28)?;
    drop(file);
    let mut target = Process::ready(Command::new(&copy).arg("malloc"))?;
    let status = refused(&mut Command::new(machine::leaktrace()), target.pid(), &["hostile"])?;
    unharmed(&mut target)?;
    target.work()?;
    target.exit()?;
    Ok(status)
}

fn unwritable_output() -> Result<i32> {
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let pid = target.pid().to_string();
    let path = "/nonexistent/folder/profile.json";
    // No limit of time: were it found only at the end, this would not return.
    let answer = leaktrace(&["record", "-p", &pid, "-o", path], PATIENCE)?;
    let status = one_line(&answer, &[path])?;
    let directory = tempfile::tempdir()?;
    let folder = directory.path().to_string_lossy().into_owned();
    let answer = leaktrace(&["record", "-p", &pid, "-o", &folder], PATIENCE)?;
    ensure!(
        one_line(&answer, &[&folder])? == status,
        "another status for a folder in place of a file: {answer:?}"
    );
    unharmed(&mut target)?;
    Ok(status)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// Files that are no profiles, or half of one, given to both commands that read one.
fn corrupt_profile() -> Result<i32> {
    let directory = tempfile::tempdir()?;
    let whole = gzip(&[0x0a, 0x04, 0x08, 0x01, 0x10, 0x02].repeat(500))?;
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("text", b"this is no profile\n".to_vec()),
        ("half a gzip", whole[..whole.len() / 2].to_vec()),
        ("gzip of text", gzip(b"this is no profile either")?),
        ("field without end", gzip(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f])?),
        ("samples without types", gzip(&[0x12, 0x02, 0x0a, 0x00].repeat(3))?),
        (
            "string index out of range",
            gzip(&[0x0a, 0x04, 0x08, 0x7f, 0x10, 0x7e, 0x32, 0x00])?,
        ),
    ];
    let mut statuses = Vec::new();
    for (name, bytes) in files {
        let path = directory.path().join(format!("{}.pb.gz", name.replace(' ', "-")));
        fs::write(&path, bytes)?;
        let path = path.to_string_lossy();
        for arguments in [vec!["report", &path], vec!["diff", &path, &path]] {
            let answer = leaktrace(&arguments, PATIENCE)?;
            statuses.push(one_line(&answer, &[&path]).with_context(|| format!("{name}, {}", arguments[0]))?);
        }
    }
    ensure!(
        statuses.iter().all(|status| *status == statuses[0]),
        "different statuses: {statuses:?}"
    );
    Ok(statuses[0])
}

macro_rules! each {
    ($($name:ident),+ $(,)?) => {
        mod each {
            use super::*;
            $(#[test]
            fn $name() -> Result<()> {
                let Some(_machine) = machine::exclusive() else { return Ok(()) };
                super::$name().map(|_| ())
            })+
        }
    };
}

fn no_btf() -> Result<i32> {
    without("/sys/kernel/btf", &["BTF"])
}

fn no_uprobes() -> Result<i32> {
    without("/sys/bus/event_source/devices", &["uprobe"])
}

each!(
    no_such_process,
    kernel_thread,
    missing_capability,
    not_root,
    no_btf,
    no_uprobes,
    no_known_allocator,
    own_allocator_without_symbols,
    hostile_program,
    unwritable_output,
    corrupt_profile,
);

/// Scripts can tell the failures apart.
#[test]
fn every_failure_has_a_status_of_its_own() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut causes: Vec<(&str, i32)> = vec![
        ("no such process", no_such_process()?),
        ("missing capability", missing_capability()?),
        ("no BTF", no_btf()?),
        ("no known allocator", no_known_allocator()?),
        ("unwritable output", unwritable_output()?),
        ("corrupt profile", corrupt_profile()?),
        (
            "usage",
            one_line_or_usage(&leaktrace(&["record", "--no-such-option"], PATIENCE)?)?,
        ),
    ];
    causes.extend(kernel_thread()?.map(|status| ("kernel thread", status)));
    let mut seen = BTreeMap::new();
    for (cause, status) in causes {
        if let Some(other) = seen.insert(status, cause) {
            anyhow::bail!("{cause} and {other} share the status {status}");
        }
    }
    Ok(())
}

/// A mistake in the command line is told in more than a line.
fn one_line_or_usage(answer: &Answer) -> Result<i32> {
    ensure!(answer.stderr.contains("--no-such-option"), "{answer:?}");
    answer.status.code().context("killed")
}

/// Processes that end at every moment of an attach: either there was still something to record, or one line says that
/// it is gone.
#[test]
fn a_process_that_exits_while_being_attached() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for round in 0..25u64 {
        let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(machine::leaktrace());
        command.args(["record", "-d", "20s", "-p", &target.pid().to_string(), "-o"]);
        let mut tracer = Process::spawn(command.arg(directory.path().join("profile.json")))?;
        thread::sleep(Duration::from_millis(round * 16));
        target.signal(nix::sys::signal::Signal::SIGKILL)?;
        target.wait(PATIENCE)?;
        let status = tracer
            .wait(Duration::from_secs(15))
            .context("leaktrace does not notice the end of its target")?;
        let answer = Answer {
            status,
            stdout: tracer.output(),
            stderr: tracer.errors(),
        };
        if !answer.status.success() {
            one_line(&answer, &[&target.pid().to_string()]).with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

/// Libraries that are cut off or overwritten at random places, mapped as code beside sound ones: the sound ones are
/// traced, to the byte.
#[test]
fn hostile_files_among_the_mappings() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let directory = tempfile::tempdir()?;
    let sound = fs::read(programs::path("libdeep.so")?)?;
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut random = |limit: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits fit") % limit
    };
    let mut command = programs::command("map_files")?;
    for number in 0..60 {
        let mut bytes = sound.clone();
        match number % 3 {
            0 => bytes.truncate(1 + random(bytes.len())),
            // The headers are what is believed first.
            1 => (0..16).for_each(|_| bytes[16 + random(48)] = u8::try_from(random(256)).expect("a byte")),
            _ => (0..400).for_each(|_| {
                let position = 16 + random(bytes.len() - 16);
                bytes[position] = u8::try_from(random(256)).expect("a byte");
            }),
        }
        let path = directory.path().join(format!("hostile-{number}.so"));
        fs::write(&path, bytes)?;
        command.arg(path);
    }
    let (truth, recorded) = record(&mut command, &[])?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}
