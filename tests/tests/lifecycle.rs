//! Processes that change while they are recorded: threads, and their end; plug-ins that come and go; programs that cannot be
//! traced. fork, exec and dlopen: `tests/kernels/lifecycle.rs`.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaktrace_tests::process::{PATIENCE, Process, Truth};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{amount, assert_exact, assert_exact_through, record_program, unharmed};
use leaktrace_tests::{machine, programs};
use nix::sys::signal::Signal;

#[test]
fn eight_threads_free_each_others_blocks() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("threads8", "")?;
    assert_exact(&truth, &recorded.profile);
    let exchanged = recorded.profile.allocated_through("allocate_for_neighbour");
    assert_eq!(exchanged.objects, 8 * 5000, "{}", recorded.profile.shown());
    Ok(())
}

/// A profile is written all the same, of what was outstanding at the end.
#[test]
fn target_killed_in_the_middle() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(&mut programs::command("churn")?)?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    thread::sleep(Duration::from_millis(500));
    target.signal(Signal::SIGKILL)?;
    target.wait(PATIENCE)?;
    let recorded = recording.finish()?;
    let seen = recorded.profile.allocated_through("work");
    ensure!(
        seen.objects > 1000,
        "hardly anything was recorded:\n{}",
        recorded.profile.shown()
    );
    Ok(())
}

#[test]
fn recording_ends_with_its_target() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    target.exit()?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

#[test]
fn recording_ends_after_its_duration() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let recording = Recording::attach(target.pid(), &["-d", "3s"])?;
    let truth = target.work()?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    let lasted = Duration::from_nanos(u64::try_from(recorded.profile.duration_nanos)?);
    ensure!(
        (2500..6000).contains(&lasted.as_millis()),
        "the recording lasted {lasted:?}"
    );
    unharmed(&mut target)?;
    target.exit()
}

/// Tracing begins before the command's first instruction: even what its loader and constructors allocate is seen, so
/// the blocks that the program has before it says "ready" are among the allocated ones.
#[test]
fn a_command_is_traced_from_its_first_instruction() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("innocent")?;
    let mut recording = Recording::of_command(&[], &[&program.to_string_lossy()])?;
    let command = recording.tracer();
    command.expect("ready")?;
    let truth: Truth = command.work()?;
    command.send("exit")?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    // innocent allocates 200 blocks in main before it is ready, and frees them later.
    let in_main = recorded.profile.allocated_through("main");
    ensure!(in_main.objects >= 200 + 7 + 600, "{}", recorded.profile.shown());
    let earlier = recorded.profile.heap().filter(|sample| {
        sample.names().into_iter().find(|name| !name.contains("malloc")) == Some("main")
            && sample.allocated().bytes == 200_000
    });
    assert_eq!(
        earlier.count(),
        1,
        "the blocks from before \"ready\" are missing:\n{}",
        recorded.profile.shown()
    );
    Ok(())
}

#[test]
fn two_processes_in_one_recording() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut first = Process::ready(programs::command("malloc_family")?.arg("malloc"))?;
    let mut second = Process::ready(programs::command("malloc_family")?.arg("calloc"))?;
    let recording = Recording::attach(first.pid(), &["-p", &second.pid().to_string()])?;
    let (one, two) = (first.work()?, second.work()?);
    let recorded = recording.stop()?;
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        amount(
            one.leaked_objects + two.leaked_objects,
            one.leaked_bytes + two.leaked_bytes
        ),
        "{}",
        recorded.profile.shown()
    );
    unharmed(&mut first)?;
    unharmed(&mut second)?;
    first.exit()?;
    second.exit()
}

/// A process lives until its last thread ends, whether its main thread has left before it is attached to or meanwhile.
fn main_thread_leaves(when: &str, variables: &[(&str, &str)]) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("main_leaves")?.arg(when))?;
    let recording = Recording::attach_with_variables(target.pid(), &[], variables)?;
    target.send("go")?;
    target.expect("left")?;
    machine::pause();
    target.send("on")?;
    let truth = target.finished()?;
    let recorded = recording.stop()?;
    assert_exact_through("leak_here", &truth, &recorded.profile);
    // All else that the thread allocated it freed again when main had left.
    assert_exact_through("work", &truth, &recorded.profile);
    target.exit()
}

#[test]
fn main_thread_left_before() -> Result<()> {
    main_thread_leaves("before", &[])
}

#[test]
fn main_thread_leaves_meanwhile() -> Result<()> {
    main_thread_leaves("later", &[])
}

/// As perf events, which go with the thread that they are attached through.
#[test]
fn main_thread_leaves_with_perf_events() -> Result<()> {
    main_thread_leaves("later", &[("LEAKTRACE_UPROBES", "perf")])
}

/// Who closes a plug-in leaves its addresses to the next one, but not its memory.
#[test]
fn plugins_at_one_address_keep_their_names() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let plugins = [
        programs::path("libplugin_alpha.so")?,
        programs::path("libplugin_omega.so")?,
    ];
    let mut target = Process::ready(programs::command("reload")?.args(&plugins).arg("slow"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    for _ in 0..3 {
        for step in ["loaded", "used"] {
            target.expect(step)?;
            machine::pause();
            target.send("on")?;
        }
    }
    target.expect("same, then another")?;
    let truth = target.finished()?;
    let recorded = recording.stop()?;
    assert_exact_through("alpha_keep", &truth, &recorded.profile);
    let omega = recorded.profile.outstanding_through("omega_init");
    assert_eq!(
        omega,
        amount(truth.held_objects, truth.held_bytes),
        "{}",
        recorded.profile.shown()
    );
    unharmed(&mut target)?;
    target.exit()
}

/// Where nobody could see which plug-in it was there is no name rather than a wrong one.
#[test]
fn plugins_that_come_and_go_at_once_get_no_wrong_names() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let plugins = [
        programs::path("libplugin_alpha.so")?,
        programs::path("libplugin_omega.so")?,
    ];
    let mut target = Process::ready(programs::command("reload")?.args(&plugins).arg("fast"))?;
    let recording = Recording::attach(target.pid(), &[])?;
    target.send("go")?;
    target.expect("same, then another")?;
    let truth = target.finished()?;
    let recorded = recording.stop()?;
    let shown = recorded.profile.shown();
    let of = |function: &str, size: i64| -> Result<()> {
        let through = recorded.profile.outstanding_through(function);
        ensure!(
            through.bytes == size * through.objects,
            "{function}: {through:?}\n{shown}"
        );
        Ok(())
    };
    of("alpha_keep", 777)?;
    of("omega_init", 111)?;
    // With the loader's own blocks.
    let all = recorded.profile.outstanding().objects;
    ensure!(u64::try_from(all)? >= truth.objects(), "{shown}");
    target.exit()
}

/// A 32-bit program is refused however it comes, before it runs.
#[test]
fn a_32_bit_program_is_refused() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("tiny32")?;
    let program = program.to_string_lossy();
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("profile.json");
    let output = output.to_string_lossy();
    let answer = leaktrace(&["record", "-o", &output, "--", &program], PATIENCE)?;
    ensure!(answer.status.code() == Some(NO_ALLOCATOR), "{answer:?}");
    ensure!(
        answer.stderr.contains("not a 64-bit little-endian ELF file") && !answer.stdout.contains("ready"),
        "{answer:?}"
    );
    let mut running = Process::spawn(&mut std::process::Command::new(&*program))?;
    running.expect("ready")?;
    let pid = running.pid().to_string();
    let attached = leaktrace(&["record", "-o", &output, "-p", &pid], PATIENCE)?;
    ensure!(attached.status.code() == answer.status.code(), "{attached:?}");
    let without_pid = |text: &str| {
        let rest = text.split_once("pid ").map_or("", |(_, rest)| rest);
        rest.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned()
    };
    assert_eq!(without_pid(&attached.stderr), without_pid(&answer.stderr));
    Ok(())
}

/// A shell becomes such a program: what is recorded says that it is not traced.
#[test]
fn a_program_that_becomes_a_32_bit_one_is_told() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path("tiny32")?;
    let line = format!("exec {}", program.display());
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("profile.json");
    let output = output.to_string_lossy();
    let answer = leaktrace(&["record", "-o", &output, "--", "/bin/sh", "-c", &line], PATIENCE)?;
    ensure!(answer.status.code() == Some(NO_ALLOCATOR), "{answer:?}");
    ensure!(
        answer.stdout.contains("1 not_traced") && answer.stderr.contains("not a 64-bit little-endian ELF file"),
        "{answer:?}"
    );
    Ok(())
}

/// Status where the target has no allocator that is known.
const NO_ALLOCATOR: i32 = 8;
