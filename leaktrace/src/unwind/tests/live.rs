//! Walks of real processes, stopped deep in a chain of calls whose functions are known. No BPF and no root is needed:
//! the target is this process's own child.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use object::elf::PT_LOAD;
use object::read::ReadCache;
use object::read::elf::ProgramHeader;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};

use super::gcc;
use crate::model::{ElfAddress, ProcessAddress};
use crate::unwind::{Code, FirstPc, ForcedRule, Machine, Mapping, Registers, Walk, WalkEnd, compile, replay};

pub(super) const CHAIN: &str = include_str!("chain.c");

/// A child that is stopped, walked and killed.
struct Target {
    child: Child,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Functions by address in the process.
type Symbols = Vec<(u64, u64, String)>;

struct Stopped {
    walk: Walk,
    /// Names of the program's frames, `"?"` for those in other files.
    names: Vec<String>,
    /// Paths of the frames' files.
    files: Vec<PathBuf>,
}

fn walk(path: &Path, arguments: &[&str]) -> Stopped {
    walk_forced(path, arguments, &[])
}

/// Starts the program, waits until it says that it has arrived, stops the thread that did and walks its stack. `forced`
/// rules go for the program's own file.
fn walk_forced(path: &Path, arguments: &[&str], forced: &[ForcedRule]) -> Stopped {
    let mut child = Command::new(path)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = BufReader::new(child.stdout.take().unwrap());
    let target = Target { child };
    let mut line = String::new();
    ready.read_line(&mut line).unwrap();
    let tid = line
        .strip_prefix("ready ")
        .and_then(|tid| tid.trim().parse().ok())
        .map(Pid::from_raw)
        .expect(&line);

    let pid = target.child.id();
    ptrace::attach(tid).unwrap();
    waitpid(tid, Some(nix::sys::wait::WaitPidFlag::__WALL)).unwrap();
    let registers = ptrace::getregs(tid).unwrap();
    let registers = Registers {
        pc: registers.rip,
        sp: registers.rsp,
        bp: registers.rbp,
        lr: None,
    };

    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let read = |address: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let (mappings, files, symbols) = map(pid, path, forced);
    let walk = replay(Machine::X86_64, &mappings, registers, FirstPc::Exact, read);
    let _ = ptrace::detach(tid, None);

    let place = |pc: u64| {
        let index = mappings.partition_point(|mapping| mapping.end.0 <= pc);
        files.get(index).cloned().unwrap_or_default()
    };
    // The instruction before a return address is in the caller; the handler's frame returns to the trampoline's start.
    let name = |pc: u64| {
        let found = symbols
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&pc.wrapping_sub(1)));
        found.map_or("?".to_owned(), |(_, _, name)| name.clone())
    };
    let names = walk.frames.iter().map(|&pc| name(pc)).collect();
    let files = walk.frames.iter().map(|&pc| place(pc)).collect();
    Stopped { walk, names, files }
}

/// The executable mappings of a process with their tables and paths, and the functions of one of its files.
fn map(pid: u32, program: &Path, forced: &[ForcedRule]) -> (Vec<Mapping>, Vec<PathBuf>, Symbols) {
    let (mut mappings, mut files, mut symbols) = (Vec::new(), Vec::new(), Vec::new());
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [range, permissions, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !permissions.contains('x') || !path.starts_with('/') {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end, offset) = (number(start), number(end), number(offset));
        let cache = ReadCache::new(File::open(path).unwrap());
        let file = object::File::parse(&cache).unwrap();
        let object::File::Elf64(elf) = &file else {
            panic!("{path}")
        };
        let endian = Endianness::Little;
        let headers = elf
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == PT_LOAD);
        let address = headers
            .filter(|header| (header.p_offset(endian) & !0xfff) <= offset)
            .filter(|header| offset < header.p_offset(endian) + header.p_filesz(endian))
            .map(|header| {
                header
                    .p_vaddr(endian)
                    .wrapping_sub(header.p_offset(endian))
                    .wrapping_add(offset)
            })
            .next()
            .unwrap();
        let delta = start.wrapping_sub(address);
        let forced = if Path::new(path) == program { forced } else { &[] };
        let table = Arc::new(compile(&file, forced).unwrap());
        if Path::new(path) == program {
            for symbol in file
                .symbols()
                .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
            {
                let at = symbol.address().wrapping_add(delta);
                symbols.push((at, at + symbol.size(), symbol.name().unwrap().to_owned()));
            }
        }
        mappings.push(Mapping {
            start: ProcessAddress(start),
            end: ProcessAddress(end),
            delta,
            code: Code::Table(table),
        });
        files.push(PathBuf::from(path));
    }
    (mappings, files, symbols)
}

/// The program's functions from `pause` outwards.
fn chain(outermost: &[&str]) -> Vec<String> {
    let numbered = |numbers: std::ops::Range<i32>| numbers.map(|number| format!("f{number}"));
    numbered(0..10)
        .chain(["handler".into(), "interrupt".into()])
        .chain(numbered(10..20))
        .chain(["compare".into(), "sort".into()])
        .chain(numbered(20..30))
        .chain(outermost.iter().map(|&name| name.to_owned()))
        .collect()
}

fn check(stopped: &Stopped, outermost: &[&str]) {
    assert_eq!(
        stopped.walk.end,
        WalkEnd::Bottom,
        "{:#x?} {:?}",
        stopped.walk,
        stopped.names
    );
    let own: Vec<_> = stopped.names.iter().filter(|name| *name != "?").cloned().collect();
    assert_eq!(own, chain(outermost));
}

/// Where the frames of libc are: between which of the program's functions.
fn between(stopped: &Stopped, inner: &str, outer: &str) -> usize {
    let position = |wanted: &str| stopped.names.iter().position(|name| name == wanted).unwrap();
    let frames = position(inner) + 1..position(outer);
    assert!(
        stopped.files[frames.clone()]
            .iter()
            .all(|file| file.to_string_lossy().contains("libc.so"))
    );
    frames.len()
}

fn check_dynamic(options: &[&str]) {
    let (_directory, path) = gcc("chain.c", CHAIN, options);
    let stopped = walk(&path, &[]);
    check(&stopped, &["main", "_start"]);
    assert!(
        between(&stopped, "handler", "interrupt") >= 2,
        "the trampoline and raise: {:?}",
        stopped.names
    );
    assert!(
        between(&stopped, "compare", "sort") >= 2,
        "qsort and its parts: {:?}",
        stopped.names
    );
    assert_eq!(between(&stopped, "main", "_start"), 2, "{:?}", stopped.names);
    assert!(
        stopped.files[0].to_string_lossy().contains("libc.so"),
        "stopped in pause"
    );

    check(&walk(&path, &["signal", "stack"]), &["main", "_start"]);
    check(&walk(&path, &["thread"]), &["thread"]);
}

#[test]
fn walks_optimised_code_to_the_bottom() {
    check_dynamic(&["-O2", "-fomit-frame-pointer", "-pthread"]);
}

#[test]
fn walks_code_at_other_levels_and_with_frame_pointers() {
    check_dynamic(&["-O1", "-fomit-frame-pointer", "-no-pie", "-pthread"]);
    check_dynamic(&[
        "-O3",
        "-fno-omit-frame-pointer",
        "-fcf-protection",
        "-Wl,-z,lazy",
        "-pthread",
    ]);
}

#[test]
fn walks_by_debug_frame_alone() {
    // -fno-asynchronous-unwind-tables with -g leaves .debug_frame for the program's own functions.
    let options = [
        "-O2",
        "-g",
        "-fomit-frame-pointer",
        "-fno-asynchronous-unwind-tables",
        "-fno-unwind-tables",
    ];
    for compression in ["-gz=none", "-gz=zlib"] {
        let (_directory, path) = gcc("chain.c", CHAIN, &[&options[..], &[compression]].concat());
        check(&walk(&path, &[]), &["main", "_start"]);
    }
}

#[test]
fn walks_static_programs() {
    for linking in ["-static", "-static-pie"] {
        let (_directory, path) = gcc("chain.c", CHAIN, &["-O2", "-fomit-frame-pointer", linking]);
        let stopped = walk(&path, &[]);
        assert_eq!(
            stopped.walk.end,
            WalkEnd::Bottom,
            "{linking} {:#x?} {:?}",
            stopped.walk,
            stopped.names
        );
        // libc's functions have names here as well; they may not displace the order of the program's.
        let wanted = chain(&["main", "_start"]);
        let own: Vec<_> = stopped
            .names
            .iter()
            .filter(|name| wanted.contains(name))
            .cloned()
            .collect();
        assert_eq!(own, wanted, "{linking}");
    }
}

/// Single-steps through calls into libc and walks from each instruction. Returns how often `main` was reached through
/// to the bottom, with `steps` walks in all, how many of those began in a lazy-binding stub behind its jump, and how the
/// other walks ended, with the file that they ended in.
fn walk_every_step(bind_now: bool, steps: usize) -> (usize, usize, HashMap<String, usize>) {
    let source = r#"
        #include <stdlib.h>
        #include <string.h>
        #include <stdio.h>
        #include <unistd.h>
        static int compare(const void *a, const void *b) { return strcmp(a, b); }
        int main(void) {
            char byte;
            write(1, "ready\n", 6);
            read(0, &byte, 1);
            for (volatile int wait = 1; wait;) {
                char words[4][8] = {"delta", "alpha", "gamma", "beta"};
                qsort(words, 4, 8, compare);
                free(malloc(100));
                char text[64];
                snprintf(text, sizeof text, "%s %d", words[0], wait);
            }
        }"#;
    let options = ["-O2", "-fomit-frame-pointer", "-fno-builtin", "-Wl,-z,lazy"];
    let (_directory, path) = gcc("loop.c", source, &options);
    let mut command = Command::new(&path);
    if bind_now {
        command.env("LD_BIND_NOW", "1");
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut go = child.stdin.take().unwrap();
    let mut ready = BufReader::new(child.stdout.take().unwrap());
    let target = Target { child };
    let mut line = String::new();
    ready.read_line(&mut line).unwrap();
    let pid = target.child.id();
    let tid = Pid::from_raw(pid as i32);
    ptrace::attach(tid).unwrap();
    waitpid(tid, None).unwrap();
    // Nothing but write and read is bound so far.
    go.write_all(b"x").unwrap();
    let (mappings, files, symbols) = map(pid, &path, &[]);
    let place = |pc: u64| mappings.partition_point(|mapping| mapping.end.0 <= pc);
    let main = symbols.iter().find(|(_, _, name)| name == "main").unwrap().clone();
    let bytes = std::fs::read(&path).unwrap();
    let plt = object::File::parse(&*bytes)
        .unwrap()
        .section_by_name(".plt")
        .map(|plt| plt.address()..plt.address() + plt.size());
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut reached, mut in_stub, mut others) = (0, 0, HashMap::<String, usize>::new());
    for _ in 0..steps {
        let now = ptrace::getregs(tid).unwrap();
        let registers = Registers {
            pc: now.rip,
            sp: now.rsp,
            bp: now.rbp,
            lr: None,
        };
        let walk = replay(Machine::X86_64, &mappings, registers, FirstPc::Exact, |address| {
            let mut bytes = [0; 8];
            memory.read_exact_at(&mut bytes, address).ok()?;
            Some(u64::from_le_bytes(bytes))
        });
        if walk.end == WalkEnd::Bottom && walk.frames.iter().any(|pc| (main.0..main.1).contains(pc)) {
            reached += 1;
            let address = now.rip.wrapping_sub(mappings[place(now.rip)].delta);
            in_stub += usize::from(plt.as_ref().is_some_and(|plt| plt.contains(&address)) && address & 15 > 6);
        } else {
            let file = files.get(place(walk.frames[walk.frames.len() - 1]));
            *others.entry(format!("{:?} in {file:?}", walk.end)).or_default() += 1;
        }
        ptrace::step(tid, None).unwrap();
        waitpid(tid, None).unwrap();
    }
    let _ = ptrace::detach(tid, None);
    (reached, in_stub, others)
}

#[test]
fn every_instruction_can_be_walked_from() {
    let (reached, _, others) = walk_every_step(true, 3000);
    assert_eq!((reached, others.len()), (3000, 0), "{others:#?}");
}

#[test]
fn lazy_binding_stops_only_in_the_loader() {
    let (reached, in_stub, others) = walk_every_step(false, 6000);
    assert!(reached > 1000 && in_stub > 0, "{reached} {in_stub} {others:#?}");
    // _dl_runtime_resolve keeps its frame in rbx, which rows do not follow.
    let expected = |end: &String| end.starts_with("Truncated(NoRule(CfaRegister))") && end.contains("ld-linux");
    assert!(others.keys().all(expected), "{others:#?}");
}

#[test]
fn walks_from_c_into_go() {
    let source = r#"package main

// #define _GNU_SOURCE
// #include <stdio.h>
// #include <unistd.h>
// static int inner(int a) { dprintf(1, "ready %d\n", gettid()); for (;;) pause(); return a; }
// int outer(int a) { return inner(a + 1) + 1; }
import "C"

//go:noinline
func middle(a int) int { return int(C.outer(C.int(a))) + 1 }

func main() { println(middle(3) + 1) }
"#;
    let directory = tempfile::tempdir().unwrap();
    let (input, path) = (directory.path().join("main.go"), directory.path().join("out"));
    std::fs::write(&input, source).unwrap();
    let mut build = Command::new("go");
    build
        .env("CGO_ENABLED", "1")
        .env("CGO_CFLAGS", "-O2 -fomit-frame-pointer")
        .env("GOFLAGS", "-mod=mod");
    build
        .env("GOTOOLCHAIN", "local")
        .args(["build", "-p", "1", "-o"])
        .arg(&path)
        .arg(&input);
    match build.output() {
        Ok(output) if output.status.success() => {}
        other => {
            eprintln!("skipped: no Go compiler with cgo: {other:?}");
            return;
        }
    }
    let bytes = std::fs::read(&path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let address = |name| {
        ElfAddress(
            file.symbols()
                .find(|symbol| symbol.name() == Ok(name))
                .unwrap()
                .address(),
        )
    };
    let go = ForcedRule::FramePointer(address("runtime.text")..address("runtime.etext"));
    let stopped = walk_forced(&path, &[], &[go]);
    assert_eq!(
        stopped.walk.end,
        WalkEnd::Bottom,
        "{:#x?} {:?}",
        stopped.walk,
        stopped.names
    );
    let position = |wanted: &str| stopped.names.iter().position(|name| name.starts_with(wanted));
    let order = [
        "outer",
        "runtime.asmcgocall",
        "main.middle",
        "main.main",
        "runtime.main",
        "runtime.goexit",
    ];
    let positions: Vec<_> = order.iter().map(|name| position(name)).collect();
    assert!(
        positions.iter().all(Option::is_some) && positions.is_sorted(),
        "{:?}",
        stopped.names
    );
}
