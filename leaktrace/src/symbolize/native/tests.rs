//! Real programs, made by the C, C++ and Rust compilers of this machine in a temporary directory.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use lzma_rust2::{XzOptions, XzWriter};
use object::{Object, ObjectSymbol};

use super::*;

const C: &str = "\
static inline __attribute__((always_inline)) void inner(volatile int *p) {
    *p = 1;
    *p += 2;
}
__attribute__((noinline)) void outer(volatile int *p) {
    inner(p);
    *p = 3;
}
int main(void) { volatile int x; outer(&x); return x; }
";

struct Program {
    directory: tempfile::TempDir,
}

impl Program {
    /// Compiled from C; `None`, with the reason printed, without a compiler.
    fn new(flags: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join("program.c"), C).expect("writes");
        let program = Self { directory };
        program
            .run("cc", &[&["program.c", "-o", "program", "-O2"], flags].concat())
            .then_some(program)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> bool {
        match Command::new(tool)
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
        {
            Ok(output) => {
                assert!(
                    output.status.success(),
                    "{tool}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                true
            }
            Err(error) => {
                eprintln!("skipped: {tool} does not run: {error}");
                false
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Address of a function in the file that still has its symbols.
    fn address(&self, name: &str) -> u64 {
        let bytes = fs::read(self.path("program")).expect("reads");
        let file = object::File::parse(bytes.as_slice()).expect("parses");
        file.symbols()
            .find(|symbol| symbol.name() == Ok(name))
            .expect("is there")
            .address()
    }

    fn frames(&self, symbolizer: &Symbolizer, name: &str, address: u64) -> Vec<Frame> {
        let file = File::open(self.path(name)).expect("opens");
        let source = SymbolSource::File {
            file: &file,
            path: &format!("/opt/app/{name}"),
        };
        symbolizer.symbolize(&source, Addresses::Elf(&[address])).remove(0)
    }
}

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.function.as_ref()).collect()
}

#[test]
fn inlined_functions_lines_and_start_lines() {
    let Some(program) = Program::new(&["-g"]) else { return };
    let outer = program.address("outer");
    let frames = program.frames(&Symbolizer::new(), "program", outer);
    assert_eq!(names(&frames), ["inner", "outer"]);
    assert_eq!((frames[0].line, frames[0].inlined), (2, true));
    assert_eq!((frames[1].line, frames[1].inlined, frames[1].start_line), (6, false, 6));
    assert!(frames[1].file.ends_with("/program.c"), "{}", frames[1].file);
}

#[test]
fn symbols_without_debug_information_and_none_at_all() {
    let Some(program) = Program::new(&[]) else { return };
    let outer = program.address("outer");
    assert!(program.run("strip", &["program", "-o", "stripped"]));
    let symbolizer = Symbolizer::new();
    let frames = program.frames(&symbolizer, "program", outer + 1);
    assert_eq!((names(&frames), frames[0].line), (vec!["outer"], 0));
    let frames = program.frames(&symbolizer, "stripped", outer);
    assert_eq!(names(&frames), [format!("stripped+{outer:#x}")]);
    assert!(frames[0].placeholder);
}

#[test]
fn split_debug_files_by_build_id_and_by_link() {
    let Some(program) = Program::new(&["-g", "-Wl,--build-id"]) else {
        return;
    };
    let outer = program.address("outer");
    assert!(program.run("objcopy", &["--only-keep-debug", "program", "program.debug"]));
    assert!(program.run("objcopy", &["--strip-all", "program", "stripped"]));
    assert!(program.run(
        "objcopy",
        &[
            "--strip-all",
            "--remove-section=.note.gnu.build-id",
            "--add-gnu-debuglink=program.debug",
            "program",
            "linked"
        ]
    ));
    let root = program.path("debug");
    let symbolizer = || Symbolizer::with_debug_directories(vec![root.clone()]);
    assert_eq!(program.frames(&symbolizer(), "stripped", outer).len(), 1);

    let snapshot = Snapshot::of_file(&File::open(program.path("stripped")).expect("opens")).expect("copies");
    let hex: String = snapshot
        .build_id
        .expect("has one")
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = root.join(".build-id").join(&hex[..2]);
    fs::create_dir_all(&place).expect("creates");
    fs::copy(
        program.path("program.debug"),
        place.join(format!("{}.debug", &hex[2..])),
    )
    .expect("copies");
    assert_eq!(
        names(&program.frames(&symbolizer(), "stripped", outer)),
        ["inner", "outer"]
    );

    assert!(
        program.frames(&symbolizer(), "linked", outer)[0].placeholder,
        "no build ID, nothing at the link yet"
    );
    let place = root.join("opt/app");
    fs::create_dir_all(&place).expect("creates");
    fs::copy(program.path("program.debug"), place.join("program.debug")).expect("copies");
    assert_eq!(
        names(&program.frames(&symbolizer(), "linked", outer)),
        ["inner", "outer"]
    );
    fs::write(place.join("program.debug"), "another version").expect("writes");
    assert!(
        program.frames(&symbolizer(), "linked", outer)[0].placeholder,
        "the checksum differs"
    );
}

#[test]
fn mini_symbol_tables_of_stripped_files() {
    let Some(program) = Program::new(&[]) else { return };
    let outer = program.address("outer");
    // As distributions make it: the file's own symbols alone, compressed, in a section of the stripped file.
    assert!(program.run("objcopy", &["--only-keep-debug", "program", "mini"]));
    let mut encoder = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).expect("begins");
    io::Write::write_all(&mut encoder, &fs::read(program.path("mini")).expect("reads")).expect("compresses");
    fs::write(program.path("mini.xz"), encoder.finish().expect("compresses")).expect("writes");
    assert!(program.run(
        "objcopy",
        &[
            "--strip-all",
            "--add-section",
            ".gnu_debugdata=mini.xz",
            "program",
            "stripped"
        ]
    ));
    assert_eq!(names(&program.frames(&Symbolizer::new(), "stripped", outer)), ["outer"]);
}

#[test]
fn compressed_debug_information() {
    for compression in ["zlib", "zstd"] {
        let Some(program) = Program::new(&["-g"]) else { return };
        let flag = format!("--compress-debug-sections={compression}");
        let objcopy = Command::new("objcopy")
            .args([&flag, "program"])
            .current_dir(program.directory.path())
            .output();
        if !objcopy.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this objcopy does not know {compression}");
            continue;
        }
        let outer = program.address("outer");
        let bytes = fs::read(program.path("program")).expect("reads");
        let elf = object::File::parse(bytes.as_slice()).expect("parses");
        let section = object::Object::section_by_name(&elf, ".debug_info").expect("is there");
        let range = object::ObjectSection::compressed_file_range(&section).expect("is compressed");
        assert_ne!(range.format, object::CompressionFormat::None);
        assert_eq!(
            names(&program.frames(&Symbolizer::new(), "program", outer)),
            ["inner", "outer"]
        );

        // The section states 24 bytes: no more of it is ever held, and the names come from the symbol table.
        let mut lying = bytes.clone();
        let header = usize::try_from(range.offset).expect("fits") - 24;
        lying[header + 8..header + 16].copy_from_slice(&24u64.to_le_bytes());
        fs::write(program.path("lying"), lying).expect("writes");
        assert_eq!(names(&program.frames(&Symbolizer::new(), "lying", outer)), ["outer"]);
    }
}

/// A debug link is a path that the target chose: nothing opens it.
#[test]
fn links_out_of_the_debug_directories_are_not_followed() {
    let Some(program) = Program::new(&["-g"]) else { return };
    let outer = program.address("outer");
    assert!(program.run("objcopy", &["--only-keep-debug", "program", "evil.debug"]));
    let hostile = [
        "--strip-all",
        "--remove-section=.note.gnu.build-id",
        "--add-gnu-debuglink=evil.debug",
    ];
    assert!(program.run("objcopy", &[&hostile[..], &["program", "linked"]].concat()));
    // The name in the section becomes an absolute path of the same length as far as it goes.
    let mut bytes = fs::read(program.path("linked")).expect("reads");
    let position = bytes
        .windows(10)
        .position(|window| window == b"evil.debug")
        .expect("is there");
    bytes[position..position + 10].copy_from_slice(b"/dev/zero\0");
    fs::write(program.path("hostile"), bytes).expect("writes");
    assert!(program.frames(&Symbolizer::new(), "hostile", outer)[0].placeholder);
}

#[test]
fn a_deleted_file_and_file_offsets() {
    let Some(program) = Program::new(&["-g"]) else { return };
    let outer = program.address("outer");
    let file = File::open(program.path("program")).expect("opens");
    let bytes = fs::read(program.path("program")).expect("reads");
    let elf = object::File::parse(bytes.as_slice()).expect("parses");
    let text = object::ObjectSegment::file_range;
    let segment = elf
        .segments()
        .find(|s| {
            (object::ObjectSegment::address(s)..object::ObjectSegment::address(s) + object::ObjectSegment::size(s))
                .contains(&outer)
        })
        .expect("is mapped");
    let offset = outer - object::ObjectSegment::address(&segment) + text(&segment).0;
    fs::remove_file(program.path("program")).expect("removes");
    let source = SymbolSource::File {
        file: &file,
        path: "/opt/app/program",
    };
    let frames = Symbolizer::new().symbolize(&source, Addresses::FileOffset(&[offset, offset]));
    assert_eq!(names(&frames[0]), ["inner", "outer"]);
    assert_eq!(frames[0], frames[1]);
}

#[test]
fn damaged_files_cost_names_not_the_process() {
    let Some(program) = Program::new(&["-g"]) else { return };
    let outer = program.address("outer");
    let whole = fs::read(program.path("program")).expect("reads");
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |bound: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % bound
    };
    for round in 0..300 {
        let mut damaged = whole.clone();
        if round % 3 == 0 {
            damaged.truncate(random(whole.len()));
        } else {
            (0..=random(200)).for_each(|_| damaged[random(whole.len())] = random(256) as u8);
        }
        fs::write(program.path("damaged"), &damaged).expect("writes");
        let frames = program.frames(&Symbolizer::new(), "damaged", outer);
        assert!(!frames.is_empty() && frames.iter().all(|frame| !frame.function.is_empty()));
        let image = SymbolSource::Image {
            bytes: &damaged,
            name: "[vdso]",
        };
        assert_eq!(
            Symbolizer::new()
                .symbolize(&image, Addresses::Elf(&[outer, 0, u64::MAX]))
                .len(),
            3
        );
    }
}

#[test]
fn one_symbolizer_keeps_its_sources_apart() {
    let Some(program) = Program::new(&[]) else { return };
    let outer = program.address("outer");
    assert!(program.run("objcopy", &["--redefine-sym", "outer=renamed", "program", "other"]));
    let symbolizer = Symbolizer::new();
    for _ in 0..2 {
        for (file, expected) in [("program", "outer"), ("other", "renamed")] {
            let bytes = fs::read(program.path(file)).expect("reads");
            let image = SymbolSource::Image {
                bytes: &bytes,
                name: "[vdso]",
            };
            assert_eq!(
                names(&symbolizer.symbolize(&image, Addresses::Elf(&[outer]))[0]),
                [expected]
            );
            assert_eq!(names(&program.frames(&symbolizer, file, outer)), [expected]);
        }
    }
}

#[test]
fn directories_and_devices_are_not_read() {
    for path in ["/", "/dev/zero"] {
        let file = File::open(Path::new(path)).expect("opens");
        let source = SymbolSource::File {
            file: &file,
            path: "/opt/app/odd",
        };
        assert_eq!(
            names(&Symbolizer::new().symbolize(&source, Addresses::Elf(&[16]))[0]),
            ["odd+0x10"]
        );
    }
}

/// What is exported has a name in the dynamic table still.
#[test]
fn without_section_headers_exported_functions_have_names() {
    let Some(program) = Program::new(&["-rdynamic"]) else {
        return;
    };
    let address = program.address("outer");
    let mut bytes = fs::read(program.path("program")).expect("reads");
    bytes[40..48].fill(0); // e_shoff
    bytes[60..64].fill(0); // e_shnum, e_shstrndx
    fs::write(program.path("headless"), bytes).expect("writes");
    let frames = program.frames(&Symbolizer::new(), "headless", address + 2);
    assert_eq!(frames.len(), 1);
    assert_eq!((&*frames[0].function, frames[0].placeholder), ("outer", false));
}

#[test]
fn a_file_whose_names_lack_something_is_told_of_once_it_was_asked_for() {
    // The header of a compressed section that states 1 TiB.
    let mut bytes = [1u32, 0].map(u32::to_le_bytes).concat();
    bytes.extend([1u64 << 40, 1].map(u64::to_le_bytes).concat());
    let section = (".debug_info", 1, 0x800, 0, bytes.len() as u64, 0);
    let mut file = tempfile::tempfile().expect("temporary file");
    let image = crate::object::fixture::with_sections(&[section], &bytes);
    std::io::Write::write_all(&mut file, &image).expect("writes");
    let symbolizer = Symbolizer::with_debug_directories(Vec::new());
    assert!(symbolizer.left_out(&file).is_empty());
    let source = SymbolSource::File {
        file: &file,
        path: "/bad",
    };
    symbolizer.symbolize(&source, Addresses::Elf(&[0x1000]));
    let told = symbolizer.left_out(&file);
    assert!(
        told.len() == 1 && told[0].contains("state 1099511627776 bytes") && told[0].contains("lines"),
        "{told:?}"
    );
}
