//! The functions that switch stacks, in binaries of each toolchain that is here and each way of linking.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

const PROGRAM: &str = "package main\n\n// static int twice(int n) { return 2 * n; }\nimport \"C\"\n\n\
                       //export Back\nfunc Back() {}\n\nfunc main() { println(C.twice(4)) }\n";
const EXPORTING: &str =
    "package main\n\n// extern void Back(void);\nimport \"C\"\n\nfunc unused() { C.Back() }\n\nvar Unused = unused\n";
const PURE: &str = "package main\n\nfunc main() { println(4) }\n";

fn toolchains() -> Vec<(u32, PathBuf)> {
    let places = |minor: u32| {
        [
            format!("/var/cache/leaktrace-tests/go/1.{minor}/usr/lib/go-1.{minor}"),
            format!("/usr/lib/go-1.{minor}"),
        ]
    };
    let root = |minor| {
        let found = places(minor)
            .into_iter()
            .map(PathBuf::from)
            .find(|root| root.join("bin/go").exists());
        if found.is_none() {
            println!("skipped: no Go 1.{minor} here");
        }
        Some((minor, found?))
    };
    [19, 21, 22, 23, 24, 26, 27].into_iter().filter_map(root).collect()
}

fn build(root: &Path, folder: &Path, cgo: bool, flags: &[&str]) -> GoCode {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("go.mod"), "module sample\n\ngo 1.19\n").unwrap();
    std::fs::write(folder.join("main.go"), if cgo { PROGRAM } else { PURE }).unwrap();
    if cgo {
        std::fs::write(folder.join("back.go"), EXPORTING).unwrap();
    }
    let output = folder.join("program");
    let result = Command::new(root.join("bin/go"))
        .args(["build", "-trimpath", "-o"])
        .arg(&output)
        .args(flags)
        .current_dir(folder)
        .env("GOROOT", root)
        .env(
            "GOCACHE",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../target/go-tests/cache"),
        )
        .envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off"), ("GOTELEMETRY", "off")])
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .output()
        .unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    GoCode::read(&Executable::new(File::open(output).unwrap()).unwrap()).unwrap()
}

#[test]
fn the_ways_between_stacks_are_found_in_every_release_and_form() {
    for (minor, root) in toolchains() {
        for flags in [
            &[][..],
            &["-ldflags=-s -w"],
            &["-buildmode=pie", "-ldflags=-s -w"],
            &["-buildmode=c-shared"],
        ] {
            let folder = tempfile::tempdir().unwrap();
            let code = build(&root, folder.path(), true, flags);
            let what = format!("Go 1.{minor} {flags:?}");
            let call = code.cgocall.as_ref().expect(&what);
            // What the sources say: 64 bytes with the goroutine at 48 and the depth at 40, from 1.22 on 16 with 8 and 0; and
            // from 1.21 on the assembler has functions without locals save the frame pointer too.
            let expected = if minor < 22 { (48, 40) } else { (8, 0) };
            assert_eq!((call.goroutine, call.depth), expected, "{what}");
            assert_eq!(call.frame, if minor < 21 { 0 } else { 8 }, "{what}");
            let frame = |name: &str| {
                let is_it = |frame: &&FixedFrame| {
                    let function = code.table.function_at(frame.range.start).unwrap();
                    code.table.name(&function) == name
                };
                code.fixed.iter().find(is_it).expect(&what)
            };
            let crosscall = frame("crosscall2");
            assert!(crosscall.saves_frame_pointer, "{what}");
            // 1.21 states that it has no frame.
            assert_eq!(crosscall.size, if minor < 22 { 80 } else { 88 }, "{what}");
            assert!(frame("runtime.cgocall").saves_frame_pointer, "{what}");
            let leaf = frame("runtime.sysMmap");
            assert_eq!((leaf.size, leaf.saves_frame_pointer), (8, false), "{what}");
            check_text(&code, &what);
        }
    }
}

#[test]
fn programs_without_c_have_text_and_outermost_functions() {
    for (minor, root) in toolchains() {
        for flags in [&["-ldflags=-s -w"][..], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let folder = tempfile::tempdir().unwrap();
            let code = build(&root, folder.path(), false, flags);
            check_text(&code, &format!("Go 1.{minor} without C, {flags:?}"));
        }
    }
}

fn check_text(code: &GoCode, what: &str) {
    let [main, exit] = code.table.find_by_name(["main.main", "runtime.goexit"]);
    let (main, exit) = (main.expect(what), exit.expect(what));
    assert!(code.covers(main.entry) && code.covers(main.end - 1), "{what}");
    assert!(!code.covers(code.table.text().wrapping_sub(1)), "{what}");
    assert!(code.outermost.contains(&(exit.entry..exit.end)), "{what}");
    assert!(code.frames(exit.entry).is_empty(), "{what}");
    let frames = code.frames(main.entry);
    let main = frames.last().expect(what);
    assert_eq!(main.function, "main.main", "{what}");
    assert!(main.file.ends_with("main.go"), "{what}: {}", main.file);
}

#[test]
fn other_files_are_no_go() {
    for path in ["/bin/ls", "/proc/self/exe"] {
        if let Ok(file) = File::open(path) {
            assert!(GoCode::read(&Executable::new(file).unwrap()).is_none(), "{path}");
        }
    }
}
