//! Code that is not what its file says, and who else has to do with it: another process's file, another tool's jump,
//! another tracer, a debugger. Nobody is harmed, nothing is shown that is not so, and what is not traced is said.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::daemon::Home;
use leaktrace_tests::elf::Library;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::recording::{Recording, leaktrace};
use leaktrace_tests::scenario::{assert_exact, unharmed};
use leaktrace_tests::{breakpoints, machine, programs, user};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// No function could be probed.
const NOT_PROBED: i32 = 8;

fn innocent() -> Result<Process> {
    Process::ready(programs::command("malloc_family")?.arg("malloc"))
}

/// libc as a process maps it, and where its code begins in memory, less its place in the file.
fn libc_of(pid: u32) -> Result<(PathBuf, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, permissions, offset, _, _, path] = fields[..] else {
            continue;
        };
        if permissions.contains('x') && path.contains("libc.so") {
            let start = range.split_once('-').context("a range has two ends")?.0;
            let base = u64::from_str_radix(start, 16)? - u64::from_str_radix(offset, 16)?;
            return Ok((path.into(), base));
        }
    }
    bail!("pid {pid} maps no libc")
}

/// A copy with the same build ID and length, in which `malloc` begins in the middle of the instruction that it begins with.
/// Returns where that is in the file.
fn forge(libc: &Path, copy: &Path) -> Result<u64> {
    let mut library = Library::read(libc)?;
    let malloc = library.address("malloc")?;
    let start = library.offset(malloc)?;
    let code = library.bytes().get(usize::try_from(start)?..).context("code")?;
    // One byte is a whole instruction only where it pushes a register without a prefix.
    let inside = if (0x50..0x58).contains(&code[0]) { 2 } else { 1 };
    for name in ["malloc", "__libc_malloc"] {
        library.set_address(name, malloc + inside)?;
    }
    // An instruction that makes a fine place for a probe, there.
    library.set(start + inside, 0x90)?;
    fs::write(copy, library.bytes())?;
    Ok(start + inside)
}

/// What another user's file says of itself is not applied to the file that it pretends to be.
#[test]
fn a_forged_build_id() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (program, copy) = (folder.path().join("map_code"), folder.path().join("libc.so.6"));
    fs::copy(programs::path("map_code")?, &program)?;
    let (libc, _) = libc_of(innocent()?.pid())?;
    let middle = forge(&libc, &copy)?;
    for path in [folder.path(), &program, &copy] {
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    for _round in 0..3 {
        let attacker = Process::ready(user::without_capabilities().arg(&program).arg(&copy))?;
        let mut victim = innocent()?;
        let recording = Recording::attach(attacker.pid(), &["-p", &victim.pid().to_string()])?;
        // A breakpoint there may do no more than spoil a register, so the code is looked at.
        let (mut live, mut original) = ([0], [0]);
        let base = libc_of(victim.pid())?.1;
        File::open(format!("/proc/{}/mem", victim.pid()))?.read_exact_at(&mut live, base + middle)?;
        File::open(&libc)?.read_exact_at(&mut original, middle)?;
        ensure!(
            live == original,
            "there is a breakpoint in the middle of an instruction"
        );
        let truth = victim.work()?;
        let recorded = recording.stop()?;
        unharmed(&mut victim)?;
        victim.exit()?;
        assert_exact(&truth, &recorded.profile);
    }
    Ok(())
}

/// A function that somebody else's jump was written over gets no probe, and no part of its allocator does.
#[test]
fn a_patched_function() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for function in ["malloc", "free"] {
        let mut target = Process::ready(programs::command("patched")?.arg(function))?;
        let pid = target.pid().to_string();
        let said = format!("`{function}` in `");
        let answer = leaktrace(&["record", "-o", "/dev/null", "-p", &pid], PATIENCE)?;
        assert_eq!(answer.status.code(), Some(NOT_PROBED), "{answer:?}");
        for part in [
            said.as_str(),
            "another tool has patched it",
            "start the program anew without it",
        ] {
            assert!(answer.stderr.contains(part), "{part}: {answer:?}");
        }
        let answer = leaktrace(&["doctor", "-p", &pid], PATIENCE)?;
        for part in [
            "cannot be probed",
            "another tool has patched it",
            "would look leaked or be missed",
        ] {
            assert!(answer.stdout.contains(part), "{part}: {answer:?}");
        }
        target.work()?;
        target.exit()?;
    }
    Ok(())
}

/// Patched while it is traced: when it is looked at again, tracing ends, and what was not seen to be freed is no leak.
#[test]
fn a_function_patched_later() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for function in ["malloc", "free"] {
        let mut command = programs::command("patched")?;
        let mut target = Process::ready(command.arg(function).arg(programs::path("libplugin.so")?))?;
        let recording = Recording::attach(target.pid(), &[])?;
        target.send("go")?;
        target.expect("loaded")?;
        thread::sleep(machine::scaled(Duration::from_millis(500)));
        target.send("on")?;
        target.finished()?;
        let profile = recording.stop()?.profile;
        assert_eq!(profile.outstanding().objects, 0, "{}", profile.shown());
        let comments = profile.comments.join("\n");
        for part in ["tracing of pid", "has ended", "not hooked: free in "] {
            assert!(comments.contains(part), "{part}: {comments}");
        }
        target.exit()?;
    }
    Ok(())
}

/// The same under the daemon: it does not show an empty heap of a traced process, but that it cannot be traced, and why.
#[test]
fn a_function_patched_later_under_the_daemon() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("patched")?;
    let mut target = Process::ready(command.arg("free").arg(programs::path("libplugin.so")?))?;
    let pid = target.pid();
    let home = Home::new("\n[trace]\nauto = false")?;
    let mut daemon = home.start()?;
    daemon.until("it is known", PATIENCE, |daemon| Ok(daemon.state(pid)?.is_some()))?;
    daemon.trace(pid, 16)?;
    target.send("go")?;
    target.expect("loaded")?;
    daemon.until("it is refused", PATIENCE, |daemon| {
        Ok(daemon.state(pid)?.as_deref() == Some("refused"))
    })?;
    let details = daemon.get(&format!("/api/v1/processes/{pid}"))?;
    let reason = details["tracing"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("has ended") && reason.contains("in `/"), "{details}");
    let decisions = daemon.get("/api/v1/decisions")?;
    ensure!(decisions.to_string().contains("has ended"), "{decisions}");
    target.send("on")?;
    target.finished()?;
    unharmed_but_for(&mut target, "free")?;
    daemon.end()?;
    target.exit()
}

/// The process lives, and nothing but the jump over this function is in its code.
fn unharmed_but_for(target: &mut Process, function: &str) -> Result<()> {
    ensure!(target.alive(), "the target ended:\n{}", target.errors());
    let (libc, _) = libc_of(target.pid())?;
    let library = Library::read(&libc)?;
    let patched = library.offset(library.address(function)?)?;
    let changed = breakpoints::changed_code(target.pid())?;
    ensure!(
        changed.iter().all(|(_, offset)| *offset == patched),
        "probes are left in the target: {changed:x?}"
    );
    Ok(())
}

/// Two recordings of one process, of which one may end before the other begins to see anything.
#[test]
fn two_tracers() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for first_ends_early in [false, true] {
        let mut target = innocent()?;
        let mut first = Some(Recording::attach(target.pid(), &[])?);
        let second = Recording::attach(target.pid(), &[])?;
        if first_ends_early && let Some(recording) = first.take() {
            recording.stop()?;
        }
        let truth = target.work()?;
        assert_exact(&truth, &second.stop()?.profile);
        if let Some(recording) = first {
            assert_exact(&truth, &recording.stop()?.profile);
        }
        unharmed(&mut target)?;
        target.exit()?;
    }
    Ok(())
}

/// A probe of the kernel's own tracing, as perf and bpftrace place them. Goes when it is dropped.
struct TracefsProbe {
    folder: &'static str,
}

impl TracefsProbe {
    const FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

    /// `None` where there is no tracefs.
    fn at(library: &Path, offset: u64) -> Result<Option<Self>> {
        let Some(folder) = Self::FOLDERS
            .into_iter()
            .find(|folder| Path::new(folder).join("uprobe_events").exists())
        else {
            println!("skipped: tracefs is not mounted");
            return Ok(None);
        };
        let probe = Self { folder };
        probe.write(
            "uprobe_events",
            &format!("p:leaktrace_tests/one {}:{offset:#x}", library.display()),
        )?;
        probe.write("events/leaktrace_tests/enable", "1")?;
        Ok(Some(probe))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = Path::new(self.folder).join(file);
        let mut file = OpenOptions::new().append(true).open(&path)?;
        let written = file.write_all(text.as_bytes());
        written.with_context(|| format!("failed to write `{text}` to `{}`", path.display()))
    }
}

impl Drop for TracefsProbe {
    fn drop(&mut self) {
        let _ = self.write("events/leaktrace_tests/enable", "0");
        let _ = self.write("uprobe_events", "-:leaktrace_tests/one");
    }
}

/// Another tracer's probe at the entry of `malloc`, in whose place ours may stand, or behind which.
#[test]
fn another_probe() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for goes_early in [false, true] {
        let mut target = innocent()?;
        let (libc, _) = libc_of(target.pid())?;
        let library = Library::read(&libc)?;
        let Some(probe) = TracefsProbe::at(&libc, library.offset(library.address("malloc")?)?)? else {
            return Ok(());
        };
        let recording = Recording::attach(target.pid(), &[])?;
        let probe = (!goes_early).then_some(probe);
        let truth = target.work()?;
        assert_exact(&truth, &recording.stop()?.profile);
        drop(probe);
        unharmed(&mut target)?;
        target.exit()?;
    }
    Ok(())
}

/// The breakpoint of a debugger would never be seen by it again: nothing is probed while it is there.
#[test]
fn a_breakpoint_of_a_debugger() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = innocent()?;
    let pid = Pid::from_raw(i32::try_from(target.pid())?);
    let (libc, base) = libc_of(target.pid())?;
    let library = Library::read(&libc)?;
    let offset = library.offset(library.address("malloc")?)?;
    let original = *library.bytes().get(usize::try_from(offset)?).context("code")?;
    let memory = || -> Result<File> {
        let path = format!("/proc/{pid}/mem");
        Ok(OpenOptions::new().read(true).write(true).open(path)?)
    };
    // As gdb does it: everything is stopped while breakpoints come and go.
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    memory()?.write_all_at(&[0xcc], base + offset)?;
    ptrace::cont(pid, None)?;
    let answer = leaktrace(&["record", "-o", "/dev/null", "-p", &pid.to_string()], PATIENCE)?;
    target.signal(Signal::SIGSTOP)?;
    waitpid(pid, None)?;
    let mut byte = [0];
    memory()?.read_exact_at(&mut byte, base + offset)?;
    memory()?.write_all_at(&[original], base + offset)?;
    ptrace::detach(pid, None)?;
    assert_eq!(answer.status.code(), Some(NOT_PROBED), "{answer:?}");
    let debugs = format!("process {} debugs this one", std::process::id());
    assert!(answer.stderr.contains(&debugs), "{answer:?}");
    ensure!(byte == [0xcc], "the debugger's breakpoint is gone");
    // Without it all is seen.
    let recording = Recording::attach(target.pid(), &[])?;
    let truth = target.work()?;
    assert_exact(&truth, &recording.stop()?.profile);
    unharmed(&mut target)?;
    target.exit()
}
