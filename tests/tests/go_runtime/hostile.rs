//! Programs that are not what they say, binaries of unknown releases, and memory that says anything at all.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use leaktrace::runtime::go::recording::Recording;
use leaktrace::runtime::go::{Area, GoError, GoProcess, Source};

use super::support::{Form, MINORS, Program, Truth, build, everywhere, goroot};

/// Replaces the version that a binary states.
fn with_version(path: &Path, old: &str, new: &str, folder: &Path) -> std::path::PathBuf {
    assert_eq!(old.len(), new.len());
    let mut bytes = std::fs::read(path).unwrap();
    let mut replaced = 0;
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(old.as_bytes()) {
            bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
            replaced += 1;
        }
    }
    assert!(replaced > 0, "{}", path.display());
    let output = folder.join("program");
    std::fs::write(&output, bytes).unwrap();
    std::fs::set_permissions(&output, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    output
}

fn version_of(minor: u32) -> String {
    let truth = Truth::of(minor, Form::Stripped, "").unwrap();
    GoProcess::attach(truth.program.pid()).unwrap().version.to_string()
}

#[test]
fn an_unknown_release_is_read_from_its_dwarf() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let folder = tempfile::tempdir().unwrap();
        let old = version_of(minor);
        let new = old.replacen(&format!("1.{minor}"), "1.99", 1);
        let path = with_version(&build(minor, "truth", Form::Normal).unwrap(), &old, &new, folder.path());
        let program = Program::start(&path, &[("MEMPROFILERATE", "4096")], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        assert_eq!(process.version.minor, 99);
        for area in Area::ALL {
            let (_, source) = process.layout(area).unwrap();
            assert_eq!(source, &Source::Dwarf, "Go 1.{minor}: {area}");
        }
        assert!(process.heap().unwrap().buckets.len() > 20);
        assert_eq!(process.goroutines().unwrap().incomplete, 0);
    }
}

#[test]
fn an_unknown_stripped_release_is_calibrated_or_refused_with_the_check_that_failed() {
    for minor in MINORS.into_iter().filter(|&minor| goroot(minor).is_some()) {
        let folder = tempfile::tempdir().unwrap();
        let old = version_of(minor);
        let new = old.replacen(&format!("1.{minor}"), "1.99", 1);
        let original = build(minor, "truth", Form::Stripped).unwrap();
        let path = with_version(&original, &old, &new, folder.path());
        let program = Program::start(&path, &[("MEMPROFILERATE", "4096")], &[]);
        let process = GoProcess::attach(program.pid()).unwrap();
        // The form of heap records and the place of goroutine ids are found by search.
        for area in [Area::Heap, Area::Goroutines] {
            let (_, source) = process
                .layout(area)
                .unwrap_or_else(|error| panic!("Go 1.{minor}: {error}"));
            assert!(matches!(source, Source::Calibrated(_)), "Go 1.{minor}: {area} {source}");
        }
        let heap = process.heap().unwrap();
        assert!(
            heap.torn == 0 && heap.cut.is_none() && heap.buckets.len() > 20,
            "Go 1.{minor}"
        );
        let goroutines = process.goroutines().unwrap();
        let senders = goroutines
            .goroutines
            .iter()
            .filter(|g| process.wait_text(g) == "chan send")
            .count();
        assert_eq!(
            senders,
            40,
            "Go 1.{minor}: {:?}",
            process.layout(Area::Goroutines).unwrap().0.g
        );
        match process.layout(Area::Collector) {
            // What is read must be right.
            Ok(_) => assert_eq!(process.collector().unwrap().finished, 3, "Go 1.{minor}"),
            Err(error) => {
                let message = error.to_string();
                assert!(matches!(error, GoError::Unsupported { .. }), "{message}");
                let names_check = ["memstats", "gcController", "work"]
                    .iter()
                    .any(|name| message.contains(name));
                assert!(
                    message.contains(&format!("{new} is not supported: ")) && names_check,
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn a_patch_release_with_moved_fields_is_found_by_its_checks() {
    // Says 1.23.1, whose `work` is 32 bytes shorter.
    let folder = tempfile::tempdir().unwrap();
    let old = version_of(23);
    let path = with_version(
        &build(23, "truth", Form::Stripped).unwrap(),
        &old,
        "go1.23.1",
        folder.path(),
    );
    let program = Program::start(&path, &[], &[]);
    let process = GoProcess::attach(program.pid()).unwrap();
    let (_, source) = process.layout(Area::Collector).unwrap();
    assert_eq!(source.to_string(), "built-in layout of go1.23.5");
    let (_, source) = process.layout(Area::Heap).unwrap();
    assert_eq!(source.to_string(), "built-in layout of go1.23.1");
}

#[test]
fn releases_before_the_table_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = with_version(
        &build(19, "truth", Form::Stripped).unwrap(),
        &version_of(19),
        "go1.17.8",
        folder.path(),
    );
    let program = Program::start(&path, &[], &[]);
    let error = GoProcess::attach(program.pid())
        .unwrap()
        .heap()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&program.pid().to_string()) && error.contains("go1.17.8 is not supported"),
        "{error}"
    );
}

#[test]
fn a_program_that_only_claims_to_be_go() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("claim.c");
    let blob = r#"__attribute__((used, section(".go.buildinfo"), aligned(16)))
        char claim[64] = "\xff Go buildinf:\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08go1.23.5";
        __attribute__((used, section(".gopclntab"), aligned(16)))
        unsigned char table[256] = {0xf1, 0xff, 0xff, 0xff, 0, 0, 1, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
        #include <stdio.h>
        #include <unistd.h>
        int main(void) { puts("ready"); fflush(stdout); for (;;) pause(); }"#;
    std::fs::write(&source, blob).unwrap();
    let path = folder.path().join("claim");
    assert!(
        Command::new("gcc")
            .arg(&source)
            .arg("-o")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let program = Program::start(&path, &[], &[]);
    let error = GoProcess::attach(program.pid()).unwrap_err();
    assert!(matches!(error, GoError::NotGo { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains(&program.pid().to_string()) && message.contains("go1.23.5"),
        "{message}"
    );
}

/// A fixed sequence of numbers.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A recording that reads as the process itself does. The runtime's own goroutines wake at times, so it is tried again.
fn same_as_alive(process: &GoProcess) -> Result<Recording, &'static str> {
    let mut differs = "";
    for _ in 0..10 {
        let recording = Recording::of(process).unwrap();
        let readings = recording.read();
        differs = if readings.heap != Some(process.heap().unwrap()) {
            "the heap"
        } else if readings.goroutines != Some(process.goroutines().unwrap()) {
            "the goroutines"
        } else {
            return Ok(recording);
        };
    }
    Err(differs)
}

#[test]
fn recorded_memory_of_every_release_survives_changes() {
    for (minor, form) in everywhere().filter(|(_, form)| *form == Form::Stripped) {
        let truth = Truth::of(minor, form, "4096").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let recording = same_as_alive(&process).unwrap_or_else(|what| panic!("{what} of Go 1.{minor}"));
        let starts: Vec<u64> = recording.image.segments().map(|(start, _)| start).collect();
        let mut noise = Noise(88172645463325252 + u64::from(minor));
        for round in 0..60 {
            let mut changed = recording.clone();
            for _ in 0..=round {
                let start = starts[noise.next() as usize % starts.len()];
                let bytes = changed.image.segment_mut(start).unwrap();
                if bytes.len() >= 8 {
                    let at = noise.next() as usize % (bytes.len() / 8) * 8;
                    let pointer = starts[noise.next() as usize % starts.len()];
                    let value = if noise.next().is_multiple_of(2) {
                        pointer
                    } else {
                        noise.next()
                    };
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            let begin = Instant::now();
            changed.read();
            assert!(begin.elapsed() < Duration::from_secs(10), "Go 1.{minor}, round {round}");
        }
    }
}

/// Writes `leaktrace/fixtures/go-1.23.recording`.
#[test]
#[ignore = "changes the source tree"]
fn record_the_fixture() {
    let path = build(23, "small", Form::Stripped).unwrap();
    let program = Program::start(&path, &[("GOMAXPROCS", "1")], &[]);
    let process = GoProcess::attach(program.pid()).unwrap();
    let bytes = Recording::of(&process).unwrap().to_bytes().unwrap();
    println!("{} bytes", bytes.len());
    std::fs::write(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../leaktrace/fixtures/go-1.23.recording"),
        bytes,
    )
    .unwrap();
}
