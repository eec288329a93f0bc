//! Go in a shared library of a C program.

use std::path::{Path, PathBuf};
use std::process::Command;

use leaktrace::export::pprof;
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::objects::ObjectTracker;
use leaktrace::runtime::go::{GoProcess, profile};
use leaktrace_tests::golang::Toolchain;

use super::support::Program;

/// Builds library and host, the library stripped.
fn host(toolchain: &Toolchain, folder: &Path) -> PathBuf {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let library = folder.join("libshared.so");
    run(toolchain
        .command()
        .args(["build", "-trimpath", "-buildmode=c-shared", "-ldflags=-s -w", "-o"])
        .arg(&library)
        .arg("./shared"));
    let program = folder.join("host");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/go/shared/host/host.c");
    run(Command::new("gcc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .arg(&library)
        .arg(format!("-Wl,-rpath,{}", folder.display())));
    program
}

#[test]
fn a_runtime_in_a_library_is_read_as_one_in_a_program() {
    for toolchain in Toolchain::all().unwrap() {
        let name = format!("Go 1.{}", toolchain.minor);
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own.pb.gz");
        let program = Program::start(&host(&toolchain, folder.path()), &[], &[own.to_str().unwrap()]);
        let process = GoProcess::attach(program.pid()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(process.version.minor, toolchain.minor);
        assert!(
            process.exe.ends_with("libshared.so"),
            "{name}: {}",
            process.exe.display()
        );
        let heap = process.heap().unwrap();
        let ours = profile::heap_profile(&process, &heap, View::Pprof, 0);
        let theirs = pprof::read(std::fs::read(&own).unwrap().as_slice()).unwrap();
        assert_eq!(ours.totals(), theirs.totals(), "{name}");
        let held: u64 = heap
            .view(View::Now)
            .filter(|(bucket, _)| bucket.size == 5376)
            .map(|(_, counts)| counts.in_use())
            .sum();
        // The runtime has a few blocks of that class of its own.
        assert!((50..60).contains(&held), "{name}: {held}");
        let goroutines = process.goroutines().unwrap();
        assert_eq!((goroutines.incomplete, goroutines.unreadable), (0, 0), "{name}");
        let parked = |goroutine: &&_| process.wait_text(goroutine) == "chan receive";
        assert_eq!(goroutines.goroutines.iter().filter(parked).count(), 20, "{name}");
        let state = process.collector().unwrap();
        assert!(state.finished >= 2 && state.live > 250_000, "{name}: {state:?}");
        let spans = process.spans().unwrap();
        let objects = process.objects(&spans, &heap).unwrap();
        assert!(objects.objects.len() >= 50 && objects.torn == 0, "{name}");
        let mut tracker = ObjectTracker::default();
        tracker.look(&objects, 1, state.finished, 0);
        assert_eq!(tracker.objects().count(), objects.objects.len(), "{name}");
    }
}
