//! Inspection, detection and probe placement on the allocators of this machine. What is not installed is skipped, in words.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leaktrace::allocator::detect::{Detection, detect};
use leaktrace::allocator::inspect::{Inspector, ProcessFiles};
use leaktrace::probe::plan::{Features, Plan, PlannedProbe, Planner, ReturnProbe};
use leaktrace::proc::maps::{FileId, read_maps};

const LIBRARIES: &[&str] = &["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];
const FEATURES: Features = Features {
    uretprobes_kill: false,
    long_nops: true,
};

/// The library of that name, if it is installed.
fn library(name: &str) -> Option<PathBuf> {
    let found = LIBRARIES
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists());
    if found.is_none() || !cfg!(target_arch = "x86_64") {
        println!("skipped: {name} is not installed, or this is not x86-64");
        return None;
    }
    found
}

fn inspect(paths: &[PathBuf]) -> ProcessFiles {
    let mut inspector = Inspector::new();
    let mut files = ProcessFiles::default();
    for (index, path) in paths.iter().enumerate() {
        let id = FileId {
            device: 1,
            inode: index as u64 + 1,
        };
        files.files.push(
            inspector
                .inspect_file(id, path, std::fs::File::open(path).unwrap())
                .unwrap(),
        );
    }
    files
}

fn inspect_live(pid: u32) -> ProcessFiles {
    Inspector::new().inspect(pid, &read_maps(pid).unwrap()).unwrap()
}

fn plan(paths: &[PathBuf], features: Features) -> (Detection, Plan) {
    let files = inspect(paths);
    let detection = detect(&files).unwrap();
    let plan = Planner::new().plan(&detection, &files.files, features);
    (detection, plan)
}

fn probe<'a>(plan: &'a Plan, path: &Path, symbol: &str) -> Option<&'a PlannedProbe> {
    let mut probes = plan
        .probes()
        .filter(|(file, _)| file.path == path)
        .map(|(_, probe)| probe);
    probes.find(|probe| probe.symbol == symbol || probe.aliases.iter().any(|alias| alias == symbol))
}

fn skipped(detection: &Detection, path: &Path, symbol: &str) -> Option<String> {
    let skipped = detection
        .skipped
        .iter()
        .find(|skipped| skipped.file == path && skipped.symbol == symbol)?;
    Some(skipped.reason.clone())
}

/// A target that is ended when the test is.
struct Target(Child);

impl Target {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Waits until a file of that name is mapped.
    fn wait_for(&self, file: &str) -> u32 {
        let pid = self.0.id();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let maps = read_maps(pid).unwrap_or_default();
            if maps
                .iter()
                .any(|map| map.execute && map.path.to_string_lossy().contains(file))
            {
                return pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{file} was not mapped in time");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn glibc() {
    let Some(libc) = library("libc.so.6") else { return };
    let (_, plan) = plan(std::slice::from_ref(&libc), FEATURES);
    for symbol in [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "posix_memalign",
        "memalign",
        "aligned_alloc",
        "pvalloc",
    ] {
        let probe = probe(&plan, &libc, symbol).unwrap_or_else(|| panic!("{symbol} is not hooked"));
        assert!(probe.entry.emulated, "{symbol}: {:?}", probe.entry);
        assert_eq!(probe.entry.stack_offset, 0);
        assert_eq!(probe.ret == ReturnProbe::None, symbol == "free");
    }
    let free = probe(&plan, &libc, "free").unwrap();
    assert!(
        free.entry.instruction.starts_with('j') || free.entry.distance == 0,
        "{:?}",
        free.entry
    );
    // aligned_alloc is memalign under another name: one probe.
    assert!(std::ptr::eq(
        probe(&plan, &libc, "memalign").unwrap(),
        probe(&plan, &libc, "aligned_alloc").unwrap()
    ));
}

#[test]
fn operators_of_libstdcxx_end_in_libc() {
    let (Some(cxx), Some(libc)) = (library("libstdc++.so.6"), library("libc.so.6")) else {
        return;
    };
    let (detection, plan) = plan(&[cxx.clone(), libc], FEATURES);
    // The aligned form rounds the size up before libc sees it, so it alone is hooked, and without a return probe.
    let hooked: Vec<_> = plan
        .probes()
        .filter(|(file, _)| file.path == cxx)
        .map(|(_, probe)| probe)
        .collect();
    assert_eq!(hooked.len(), 1, "{hooked:?}");
    assert_eq!(hooked[0].symbol, "_ZnwmSt11align_val_t");
    assert!(matches!(hooked[0].ret, ReturnProbe::Instructions(_)));
    assert!(skipped(&detection, &cxx, "_Znwm").unwrap().contains("malloc"));
    assert!(skipped(&detection, &cxx, "_ZdlPv").unwrap().contains("free"));
    assert!(
        skipped(&detection, &cxx, "_ZnamSt11align_val_t")
            .unwrap()
            .contains("_Znwm")
    );
    assert!(plan.refused.is_empty());
}

#[test]
fn operators_without_an_allocator_behind_them_are_hooked() {
    // Without libc among the files nothing proves that `malloc` is seen.
    let Some(cxx) = library("libstdc++.so.6") else { return };
    let (_, plan) = plan(std::slice::from_ref(&cxx), FEATURES);
    let new = probe(&plan, &cxx, "_Znwm").unwrap();
    assert!(
        matches!(&new.ret, ReturnProbe::Instructions(returns) if !returns.is_empty()),
        "never a uretprobe"
    );
}

#[test]
fn jemalloc_has_its_fast_path_in_the_operators() {
    let (Some(jemalloc), Some(libc)) = (library("libjemalloc.so.2"), library("libc.so.6")) else {
        return;
    };
    let (detection, plan) = plan(&[jemalloc.clone(), libc], FEATURES);
    for symbol in [
        "malloc", "free", "mallocx", "rallocx", "xallocx", "dallocx", "sdallocx", "calloc", "realloc",
    ] {
        assert!(
            probe(&plan, &jemalloc, symbol).is_some_and(|probe| probe.entry.emulated),
            "{symbol}"
        );
    }
    let new = probe(&plan, &jemalloc, "_Znwm").unwrap();
    assert!(
        matches!(&new.ret, ReturnProbe::Instructions(returns) if returns.len() >= 2),
        "{new:?}"
    );
    assert!(new.reason.contains("can throw"));
    // `operator new[]` only jumps to `operator new`.
    assert!(skipped(&detection, &jemalloc, "_Znam").is_some());
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
}

#[test]
fn tcmalloc_and_mimalloc() {
    let Some(libc) = library("libc.so.6") else { return };
    for (name, symbols) in [
        (
            "libtcmalloc_minimal.so.4",
            &["malloc", "free", "_Znwm", "_ZdlPv", "_ZdlPvm", "tc_memalign"][..],
        ),
        (
            "libmimalloc.so.2",
            &[
                "malloc",
                "free",
                "_Znwm",
                "mi_heap_malloc",
                "mi_zalloc",
                "mi_posix_memalign",
            ],
        ),
    ] {
        let Some(path) = library(name) else { continue };
        let (detection, plan) = plan(&[path.clone(), libc.clone()], FEATURES);
        assert!(plan.refused.is_empty(), "{name}: {:?}", plan.refused);
        for symbol in symbols {
            let hooked = probe(&plan, &path, symbol).is_some();
            assert!(
                hooked || skipped(&detection, &path, symbol).is_some(),
                "{name}: {symbol}"
            );
        }
        for (_, probe) in plan.probes() {
            let names = [&probe.symbol].into_iter().chain(&probe.aliases);
            let throws = names.into_iter().any(|name| name == "_Znwm" || name == "_Znam");
            assert!(
                !throws || matches!(probe.ret, ReturnProbe::Instructions(_)),
                "{}",
                probe.symbol
            );
        }
    }
}

#[test]
fn a_static_program_and_a_stripped_one() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("leaky.c");
    let text = "#include <stdlib.h>\n#include <unistd.h>\n\
        int main(void) { void *volatile p = malloc(9); free(p); return read(0, (void *)&p, 1); }\n";
    std::fs::write(&source, text).unwrap();
    let program = folder.path().join("leaky");
    let built = Command::new("gcc")
        .args(["-O2", "-static", "-o"])
        .arg(&program)
        .arg(&source)
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: gcc cannot link static programs here");
        return;
    }
    let target = Target::start(&mut Command::new(&program));
    let files = inspect_live(target.wait_for("leaky"));
    let found = Planner::new().plan(&detect(&files).unwrap(), &files.files, FEATURES);
    assert!(probe(&found, &program, "malloc").is_some() && probe(&found, &program, "free").is_some());

    let stripped = folder.path().join("stripped");
    assert!(
        Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    // Without symbols they are found by their shape, where the symbols say that they are.
    let known = detect(&files).unwrap();
    let shaped = detect(&inspect(std::slice::from_ref(&stripped))).unwrap();
    let place = |detection: &Detection, name: &str| {
        let hook = detection
            .hooks
            .iter()
            .find(|hook| hook.names.iter().any(|known| known == name));
        hook.map(|hook| hook.address)
    };
    for name in ["malloc", "free", "calloc", "realloc"] {
        let found = place(&shaped, name);
        assert!(found.is_some(), "{name}");
        // What the program does not use may not be linked in, or has no symbol of its own.
        assert!(place(&known, name).is_none_or(|known| Some(known) == found), "{name}");
    }
}

#[test]
fn a_rust_program_uses_libc() {
    // This test program itself: std's default allocator, with symbols.
    let files = inspect_live(std::process::id());
    let own = std::env::current_exe().unwrap();
    assert_eq!(files.files[0].path, own);
    if files.files[0].inspected.candidates.is_empty() {
        println!("skipped: Rust's entry points were inlined");
        return;
    }
    let detection = detect(&files).unwrap();
    for hook in &detection.hooks {
        assert_ne!(
            files.files[hook.file].path, own,
            "{} should be seen in libc: {}",
            hook.names[0], hook.reason
        );
    }
    assert!(detection.hooks.iter().any(|hook| hook.names[0] == "malloc"));
}

#[test]
fn a_mini_symbol_table_is_read() {
    // A mini symbol table is an ELF file with nothing but symbols, compressed into a section of the stripped program.
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -e; cd "$1"
        printf 'void *malloc(unsigned long n) { static char h[64]; return h + n; }\nint main(void) { return !malloc(1); }' > own.c
        gcc -O1 -fno-builtin -static -nostartfiles -Wl,-e,main -o own own.c
        objcopy --only-keep-debug own mini
        xz mini
        strip -s own
        objcopy --add-section .gnu_debugdata=mini.xz own"#;
    let made = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: gcc, binutils or xz is missing");
        return;
    }
    let files = inspect(&[folder.path().join("own")]);
    let inspected = &files.files[0].inspected;
    let names: Vec<_> = inspected
        .candidates
        .iter()
        .flat_map(|candidate| &candidate.names)
        .collect();
    assert_eq!(names, ["malloc"], "{:?}", inspected.complaints);
}

#[test]
fn a_live_redis() {
    if !Path::new("/usr/bin/redis-server").exists() {
        println!("skipped: redis-server is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("/usr/bin/redis-server");
    // Without anywhere to listen redis ends at once.
    let socket = folder.path().join("socket");
    command
        .args(["--port", "0", "--save", "", "--dir"])
        .arg(folder.path())
        .arg("--unixsocket")
        .arg(socket);
    let target = Target::start(&mut command);
    let pid = target.wait_for("libc.so");
    // libc is not the last library that the loader maps: the plan is complete soon after.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let started = Instant::now();
        let files = inspect_live(pid);
        // Of libc perhaps only the first, not executable part is mapped: then there is nothing to detect yet.
        let detection = detect(&files);
        let plan = detection
            .map(|detection| Planner::new().plan(&detection, &files.files, FEATURES))
            .unwrap_or_default();
        let elapsed = started.elapsed();
        // Where jemalloc is (in a library or in the program) is the distribution's choice.
        let files_with = |symbol: &str| {
            plan.files
                .iter()
                .filter(|file| probe(&plan, &file.path, symbol).is_some())
                .count()
        };
        if files_with("malloc") >= 2 && files_with("mallocx") + files_with("je_mallocx") >= 1 {
            println!("{} files in {elapsed:?}", files.files.len());
            return;
        }
        assert!(Instant::now() < deadline, "{:?}", plan.files);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn where_uretprobes_kill_return_instructions_are_used() {
    let Some(libc) = library("libc.so.6") else { return };
    let (_, plan) = plan(
        std::slice::from_ref(&libc),
        Features {
            uretprobes_kill: true,
            ..FEATURES
        },
    );
    for (_, probe) in plan.probes() {
        assert_ne!(probe.ret, ReturnProbe::FunctionReturn, "{}", probe.symbol);
    }
    let malloc = probe(&plan, &libc, "malloc").unwrap();
    assert!(matches!(&malloc.ret, ReturnProbe::Instructions(returns) if !returns.is_empty()));
    assert!(plan.refused.is_empty(), "{:?}", plan.refused);
}
