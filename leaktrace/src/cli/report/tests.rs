//! Side by side with `go tool pprof`, on profiles that Go wrote and on leaktrace's own; and what is said of bad input.

use std::process::Command;

use super::*;
use crate::model::HeapKind;
use crate::report::{FrameLine, Mapping, NumericLabel, ProfileBuilder, TextLabel};

const PROGRAM: &str = r#"
package main

import (
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
)

type node struct{ next *node; data []byte }

var keep []any

func small() { for i := 0; i < 3000; i++ { keep = append(keep, new([48]byte)) } }
func large(n int) { keep = append(keep, make([]byte, n<<20)) }
func recurse(depth int) *node {
	if depth == 0 { return nil }
	return &node{next: recurse(depth - 1), data: make([]byte, 700)}
}
func garbage() { for i := 0; i < 100; i++ { _ = strings.Repeat("x", 20000+i) } }
func generic[T any](n int) { keep = append(keep, make([]T, n)) }

func main() {
	runtime.MemProfileRate = 1
	small(); large(3); large(1); garbage()
	keep = append(keep, recurse(200))
	generic[int32](5000); generic[string](100)
	runtime.GC()
	f, err := os.Create(os.Args[1])
	if err != nil { panic(err) }
	if err := pprof.Lookup("heap").WriteTo(f, 0); err != nil { panic(err) }
	f.Close()
}
"#;

/// The Go tool; `None`, with the reason printed, where there is none.
fn go() -> Option<PathBuf> {
    let candidates = [
        "go",
        "/usr/lib/go/bin/go",
        "/usr/local/go/bin/go",
        "/usr/lib/go-1.19/bin/go",
    ];
    let found = candidates
        .into_iter()
        .find(|go| Command::new(go).arg("version").output().is_ok());
    if found.is_none() {
        eprintln!("skipped: no Go toolchain (apt-get install golang)");
    }
    found.map(PathBuf::from)
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// What `go tool pprof` prints, from the line that names the total on.
fn pprof(go: &Path, arguments: &[&str], file: &Path) -> Vec<String> {
    let home = file.parent().expect("has a directory");
    let mut command = Command::new(go);
    command
        .args(["tool", "pprof", "-symbolize=none"])
        .args(arguments)
        .arg(file);
    command
        .env("PPROF_TMPDIR", home)
        .env("HOME", home)
        .env("GOCACHE", home.join("cache"));
    from_total(&run(&mut command))
}

fn from_total(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.trim_end().to_owned());
    lines.skip_while(|line| !line.starts_with("Showing nodes")).collect()
}

fn ours(file: &Path, arguments: &ViewArgs) -> Vec<String> {
    let profile = read(file).expect("reads");
    let sample_type = sample_type(&profile, file, arguments).expect("is there");
    from_total(&view(&profile, file, sample_type, arguments).expect("shows"))
}

fn same_as_pprof(go: &Path, file: &Path) {
    for kind in ["inuse_space", "inuse_objects", "alloc_space", "alloc_objects"] {
        for (flags, cum, top, tree) in [
            (&["-top"][..], false, None, false),
            (&["-top", "-cum"][..], true, None, false),
            (&["-top", "-nodecount=3"][..], false, Some(3), false),
            (&["-tree"][..], false, Some(80), true),
        ] {
            let index = format!("-sample_index={kind}");
            let arguments: Vec<&str> = flags.iter().copied().chain([index.as_str()]).collect();
            let view = ViewArgs {
                sample_type: Some(kind.to_owned()),
                cum,
                top,
                tree,
                frames: Frames::All,
                ..ViewArgs::default()
            };
            assert_eq!(
                ours(file, &view),
                pprof(go, &arguments, file),
                "{arguments:?} of {}",
                file.display()
            );
        }
    }
}

#[test]
fn the_same_numbers_as_go_tool_pprof_on_a_profile_of_go() {
    let Some(go) = go() else { return };
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("main.go"), PROGRAM).expect("writes");
    let mut build = Command::new(&go);
    build
        .args(["build", "-o"])
        .arg(path("program"))
        .arg(path("main.go"))
        .current_dir(directory.path());
    build
        .env("HOME", directory.path())
        .env("GOCACHE", path("cache"))
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0");
    run(&mut build);
    run(Command::new(path("program")).arg(path("heap.pb.gz")));
    same_as_pprof(&go, &path("heap.pb.gz"));

    // What is read and written again is still the same profile to pprof.
    let profile = read(&path("heap.pb.gz")).expect("reads");
    file::write(&path("again.pb.gz"), &profile, 3).expect("writes");
    let raw = |name: &str| {
        let text = run(Command::new(&go)
            .args(["tool", "pprof", "-raw", "-symbolize=none"])
            .arg(path(name))
            .env("HOME", directory.path())
            .env("PPROF_TMPDIR", directory.path()));
        text.lines()
            .filter(|line| !line.starts_with("Time:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(raw("again.pb.gz").iter().any(|line| line.contains("main.small")));
    same_as_pprof(&go, &path("again.pb.gz"));
    list_names_the_lines(&path("heap.pb.gz"));
}

fn list_names_the_lines(file: &Path) {
    let arguments = ViewArgs {
        list: Some(r"main\.large".to_owned()),
        ..ViewArgs::default()
    };
    let profile = read(file).expect("reads");
    let text = view(&profile, file, profile.sample_type(None).expect("has one"), &arguments).expect("matches");
    let line = text
        .lines()
        .find(|line| line.contains("16:func large(n int)"))
        .expect("the source is shown");
    assert!(line.trim_start().starts_with('4'), "4 MiB and a little: {text}");
}

/// As a recording writes it: drop_frames, inlined functions, unnamed code, labels, losses.
fn own_profile() -> Profile {
    let mut builder = ProfileBuilder::heap();
    let mapping = |start, file: &str, build_id: &str| Mapping {
        start,
        limit: start + 0x10_0000,
        file: file.into(),
        build_id: build_id.into(),
        ..Mapping::default()
    };
    let program = builder.mapping(mapping(0x40_0000, "/opt/app/server", "c0ffee"));
    let libc = builder.mapping(mapping(0x7f00_0000_0000, "/lib/libc.so.6", "beef"));
    let hidden = builder.mapping(mapping(0x7f00_1000_0000, "/lib/libhidden.so", ""));
    let frame = |function, line| FrameLine {
        function,
        file: "/src/server.cc",
        line,
        ..FrameLine::default()
    };
    let malloc = builder.location(
        Some(libc),
        0x7f00_0000_1000,
        &[FrameLine {
            function: "malloc",
            ..FrameLine::default()
        }],
    );
    let put = FrameLine {
        system_name: "_ZN5cache3putEi",
        ..frame("cache::put(int)", 30)
    };
    let put = builder.location(Some(program), 0x40_1000, &[frame("allocate", 11), put]);
    let handle = builder.location(Some(program), 0x40_2000, &[frame("handle", 40)]);
    let main = builder.location(Some(program), 0x40_3000, &[frame("main", 50)]);
    let unnamed = builder.location(Some(hidden), 0x7f00_1000_0123, &[]);
    let heap = |kind| vec![TextLabel::heap(kind)];
    let bytes = |value| {
        vec![NumericLabel {
            key: "bytes".into(),
            value,
            unit: "bytes".into(),
        }]
    };
    builder.sample(
        vec![malloc, put, handle, main],
        &[5000, 320_000, 4000, 256_000],
        heap(HeapKind::Native),
        bytes(64),
    );
    builder.sample(
        vec![malloc, handle, handle, main],
        &[70, 9000, 7, 901],
        heap(HeapKind::Native),
        bytes(128),
    );
    builder.sample(
        vec![malloc, unnamed, main],
        &[3, 5_000_000, 2, 3_333_333],
        heap(HeapKind::Native),
        bytes(1_666_666),
    );
    builder.sample(vec![main], &[1, 4096, 1, 4096], heap(HeapKind::Mmap), bytes(4096));
    let profile = builder.profile_mut();
    profile.period = 1;
    profile.time_nanos = 1_700_000_000_000_000_000;
    profile.drop_frames = "malloc|operator new".to_owned();
    profile.metadata.comm = "server".to_owned();
    profile.metadata.losses.add("ring_full", 12, "allocations missing");
    builder.finish()
}

#[test]
fn the_same_numbers_as_go_tool_pprof_on_own_profiles() {
    let Some(go) = go() else { return };
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("own.pb.gz");
    let mut profile = own_profile();
    profile.metadata.losses = crate::report::Losses::new(); // The loss line under the table is ours alone.
    file::write(&path, &profile, 3).expect("writes");
    same_as_pprof(&go, &path);

    let mut grown = profile.clone();
    grown.samples[1].values = vec![90, 20_000, 27, 11_901];
    grown.samples.remove(3);
    let difference = crate::report::diff::diff(&profile, &grown).expect("compatible");
    let path = directory.path().join("difference.pb.gz");
    file::write(&path, &difference, 3).expect("writes");
    same_as_pprof(&go, &path);
}

#[test]
fn the_loss_line_is_shown() {
    let text = view(&own_profile(), Path::new("x"), 3, &ViewArgs::default()).expect("shows");
    assert!(text.ends_with("Losses: 12 ring_full (allocations missing)\n"), "{text}");
}

#[test]
fn bad_input_is_named() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("x.pb.gz");
    let error = |path: &Path| read(path).expect_err("bad").to_string();
    assert!(error(&path).ends_with("x.pb.gz`: no such file"));
    assert!(matches!(read(directory.path()), Err(ReportError::Unreadable { .. })));
    std::fs::write(&path, "hello, world").expect("writes");
    assert!(
        error(&path).contains("corrupt profile: not a pprof profile"),
        "{}",
        error(&path)
    );
    let mut profile = own_profile();
    profile.drop_frames = "(".to_owned();
    file::write(&path, &profile, 3).expect("writes");
    assert!(matches!(read(&path), Err(ReportError::Corrupt { .. })));

    let profile = own_profile();
    let view_of = |arguments: ViewArgs| {
        let sample_type = sample_type(&profile, &path, &arguments)?;
        view(&profile, &path, sample_type, &arguments)
    };
    let cpu = view_of(ViewArgs {
        sample_type: Some("cpu".to_owned()),
        ..ViewArgs::default()
    })
    .expect_err("none");
    assert!(
        cpu.to_string()
            .ends_with("no sample type `cpu`; it has alloc_objects, alloc_space, inuse_objects, inuse_space")
    );
    let bad = view_of(ViewArgs {
        list: Some("(".to_owned()),
        ..ViewArgs::default()
    })
    .expect_err("bad");
    assert_eq!(bad.to_string(), "`(` is not a regular expression: unclosed group");
    let none = view_of(ViewArgs {
        list: Some("nothing".to_owned()),
        ..ViewArgs::default()
    })
    .expect_err("none");
    assert!(none.to_string().contains("matches `nothing`"));
}
