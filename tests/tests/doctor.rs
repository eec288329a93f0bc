//! `leaktrace doctor`: what would work, and what would not; and that it leaves everything as it is.

use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use anyhow::{Context, Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Answer, leaktrace, run};
use leaktrace_tests::scenario::unharmed;
use leaktrace_tests::{machine, programs};

/// The last line says that recording would work, and so does the status.
fn would_work(answer: &Answer) -> Result<()> {
    let verdict = answer.stdout.lines().last();
    ensure!(
        answer.status.success() && verdict == Some("recording would work"),
        "{answer:?}"
    );
    Ok(())
}

/// The last line says that recording would not work and why, in each of these words; and so does the status.
fn would_not_work(answer: &Answer, words: &[&str]) -> Result<()> {
    let verdict = answer.stdout.lines().last().unwrap_or_default();
    ensure!(
        answer.status.code() == Some(1) && verdict.starts_with("recording would not work: "),
        "{answer:?}"
    );
    for word in words {
        ensure!(verdict.contains(word), "no `{word}` in: {verdict}");
    }
    ensure!(answer.stdout.contains("remedy: "), "no remedy in:\n{}", answer.stdout);
    Ok(())
}

/// Runs the doctor behind a command that prepares the machine for it, in a mount namespace of its own.
fn prepared(script: &str) -> Result<Answer> {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script])
        .arg(machine::leaktrace())
        .arg("doctor");
    run(&mut command, PATIENCE)
}

#[test]
fn a_target_that_can_be_recorded() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("innocent")?)?;
    let answer = leaktrace(&["doctor", "-p", &target.pid().to_string()], PATIENCE)?;
    would_work(&answer)?;
    for word in [
        "libc.so.6",
        "BTF",
        "innocent",
        &target.pid().to_string(),
        "self-test    passed",
    ] {
        ensure!(answer.stdout.contains(word), "no `{word}` in:\n{}", answer.stdout);
    }
    // Each function with its site, how the kernel gets over the instruction there, and how the return is seen.
    let row = |name: &str, words: &[&str]| {
        let found = answer
            .stdout
            .lines()
            .any(|line| line.split_whitespace().next() == Some(name) && words.iter().all(|word| line.contains(word)));
        ensure!(found, "no row for {name} with {words:?} in:\n{}", answer.stdout);
        Ok(())
    };
    row("malloc", &["+0x", "return probe"])?;
    row("free", &["+0x", "no return"])?;
    // No terminal, no colours.
    ensure!(!answer.stdout.contains('\u{1b}'), "{}", answer.stdout);
    unharmed(&mut target)
}

#[test]
fn a_static_program() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family_static")?.arg("malloc"))?;
    let answer = leaktrace(&["doctor", "-p", &target.pid().to_string()], PATIENCE)?;
    would_work(&answer)?;
    let (_, allocators) = answer.stdout.split_once("Allocators\n").context("no such section")?;
    let first = allocators.lines().next().unwrap_or_default();
    ensure!(first.ends_with("malloc_family_static"), "{first}");
    unharmed(&mut target)
}

#[test]
fn a_target_without_an_allocator() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("no_allocator")?)?;
    let pid = target.pid().to_string();
    let answer = leaktrace(&["doctor", "-p", &pid], PATIENCE)?;
    would_not_work(&answer, &["no known allocator", &pid])?;
    unharmed(&mut target)
}

#[test]
fn a_thread_in_place_of_a_process() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    // A thread of this very program.
    let (tell, told) = channel();
    let (end, ended) = channel::<()>();
    let thread = thread::spawn(move || {
        let _ = tell.send(nix::unistd::gettid());
        // Until the other end is dropped.
        let _ = ended.recv();
    });
    let tid = told.recv_timeout(PATIENCE)?.to_string();
    let answer = leaktrace(&["doctor", "-p", &tid], PATIENCE);
    drop(end);
    thread.join().expect("it does not panic");
    let process = std::process::id().to_string();
    would_not_work(&answer?, &[&tid, "thread", &process])
}

#[test]
fn no_process_to_look_at() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    // As `record` does: one line, and the same status.
    let pid = "4194305";
    let answer = leaktrace(&["doctor", "-p", pid], PATIENCE)?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("profile.json").to_string_lossy().into_owned();
    let record = leaktrace(&["record", "-d", "1s", "-p", pid, "-o", &output], PATIENCE)?;
    ensure!(answer.stdout.is_empty(), "{answer:?}");
    ensure!(
        answer.stderr.lines().count() == 1 && answer.stderr.contains(pid),
        "{answer:?}"
    );
    ensure!(
        !answer.status.success() && answer.status.code() == record.status.code(),
        "{answer:?}\n{record:?}"
    );
    Ok(())
}

#[test]
fn a_machine_without_privileges() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-sys_admin,-bpf,-perfmon"])
        .arg(machine::leaktrace())
        .arg("doctor");
    let answer = run(&mut command, PATIENCE)?;
    would_not_work(&answer, &["CAP_BPF", "CAP_PERFMON"])?;
    ensure!(
        !answer.stdout.contains("missing capability CAP_SYS_PTRACE"),
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn a_kernel_without_type_information() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let answer = prepared("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"")?;
    would_not_work(&answer, &["no type information"])?;
    ensure!(answer.stdout.contains("CONFIG_DEBUG_INFO_BTF"), "{answer:?}");
    Ok(())
}

#[test]
fn tracefs_is_not_mounted_by_looking() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let hidden = "mount -t tmpfs none /sys/kernel/tracing";
    let answer = prepared(&format!(
        "{hidden} && \"$0\" \"$@\"; status=$?; test -e /sys/kernel/tracing/events && exit 99; exit $status"
    ))?;
    would_work(&answer)?;
    ensure!(answer.stdout.contains("recording mounts it"), "{answer:?}");
    Ok(())
}

#[test]
fn the_way_to_attach_is_told() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = Command::new(machine::leaktrace());
    command.arg("doctor").env("LEAKTRACE_UPROBES", "perf");
    let answer = run(&mut command, PATIENCE)?;
    would_work(&answer)?;
    ensure!(answer.stdout.contains("perf events"), "{answer:?}");
    Ok(())
}
