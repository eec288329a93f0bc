//! Writes the seeds, which are committed: `cargo test -p leaktrace --lib fuzzing::seeds -- --ignored`.
//!
//! Small, and valid for the most part, since a mutator breaks a form easily and never finds one. Those of `go_pclntab` are cut
//! out of a Go program by hand, and what a fuzzer found lies beside them as `found-*`: neither is written here. Needs gcc and
//! the binutils.

use std::path::Path;
use std::process::Command;

use leaktrace_common::event::{KIND_ALLOC, KIND_FREE, KIND_STACK};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::corpus::folder;
use super::elf::{BASE, Elf};
use super::mutate::Random;
use crate::api::Identity;
use crate::bpf::btf;
use crate::daemon::config;
use crate::daemon::store::{Heap, NewEntry, Settings, Store};
use crate::export::pprof;

/// A bump allocator with a free list, and a program that uses it.
const SOURCE: &str = r#"
typedef unsigned long size;
static char arena[4096]; static size used; static void *first;
void *helper(size n) { if (used + n > sizeof arena) return 0; void *p = arena + used; used += n; return p; }
void *malloc(size n) { n = (n + 15) & ~15ul; if (n == 16 && first) { void *p = first; first = *(void **)p; return p; } return helper(n); }
void free(void *p) { if (!p) return; *(void **)p = first; first = p; }
void *realloc(void *p, size n) { if (!p) return malloc(n); char *q = malloc(n); if (q) for (size i = 0; i < n; i++) q[i] = ((char *)p)[i]; free(p); return q; }
int posix_memalign(void **out, size align, size n) { switch (align) { case 8: case 16: *out = malloc(n); return 0; case 32: return 22; default: return 12; } }
void *_Znwm(size n) { void *p = malloc(n); while (!p) p = malloc(n / 2); return p; }
void *__rust_alloc(size n, size align) { return align > 16 ? 0 : malloc(n); }
void __rust_dealloc(void *p, size n, size align) { free(p); }
"#;
/// Structures of Go's runtime; the underscores become dots.
const RUNTIME: &str = "struct runtime_g { long pad; struct { long lo, hi; } stack; }; struct runtime_m { struct runtime_g *g0; };\
    struct runtime_mspan { long startAddr, npages; }; struct runtime_g a; struct runtime_m b; struct runtime_mspan c;";

fn put(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = folder().join(target);
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    std::fs::write(folder.join(name), bytes).expect("the seed can be written");
}

fn run(command: &mut Command) {
    assert!(command.status().expect("the program starts").success(), "{command:?}");
}

/// A shared object without a C library, and without the folder's name.
fn built(folder: &Path, source: &str, arguments: &[&str]) -> Vec<u8> {
    std::fs::write(folder.join("a.c"), source).expect("the source can be written");
    let usual = [
        "-w",
        "-O2",
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-fno-builtin",
        "-Wl,-z,noseparate-code,--hash-style=both",
        "-o",
        "a.so",
        "a.c",
    ];
    let nameless = format!("-ffile-prefix-map={}=/src", folder.display());
    run(Command::new("gcc")
        .current_dir(folder)
        .args(usual)
        .arg(nameless)
        .args(arguments));
    std::fs::read(folder.join("a.so")).expect("the result can be read")
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..length).map(|_| (random.next() >> 24) as u8).collect()
}

/// A block of an [`Input`](super::input::Input).
fn block(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

#[test]
#[ignore = "writes the seeds"]
fn write_seeds() {
    texts();
    stored();
    http();
    events();
    frames();
    made_files();
    go();
    let folder = tempfile::tempdir().expect("a temporary folder");
    built_files(folder.path());
}

fn texts() {
    put("btf", "array_of_counters", btf::tests::new_kernel());
    put("config", "example", config::example());
    put(
        "config",
        "all_kinds",
        "[watch]\ninterval = \"2s\"\nexclude = [\"a*\", \"b\\\\*\"]\n[trace]\nsample_interval = \"512KiB\"\n[[rule]]\n\
         name = \"x\"\ntrace = \"always\"\n[http]\nlisten = \"127.0.0.1:1\"\n",
    );
    put(
        "perf_map",
        "lines",
        b"\x087f0000001000 40 fib\n7f0000001040 0x20 Lambda [inlined]\n\x007f0000001020 40 again\nnonsense\n",
    );
    let texts: [(&str, u8, &str); 9] = [
        (
            "maps",
            0,
            "55d0c0a00000-55d0c0a02000 r-xp 00001000 fe:01 1234                       /usr/bin/a b\n\
             7f0000000000-7f0000001000 rw-s 00000000 00:01 99   /memfd:x\\012y (deleted)\n7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n",
        ),
        (
            "mountinfo",
            1,
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n30 22 0:52 / /mnt/a\\040b rw - fuse.sshfs host: rw\n",
        ),
        (
            "status",
            2,
            "Name:\ta b\nUmask:\t0022\nTgid:\t71\nPid:\t72\nTracerPid:\t9\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t72\t3\nSeccomp:\t2\n",
        ),
        (
            "stat",
            3,
            "71 (a) b) S 1 71 71 0 -1 4194560 900 0 7 0 3 4 0 0 20 0 2 0 12345 5000000 300 18446744073709551615 1 2 140000 0 0 0 0 0 0 0 0 0 17 1 0 0\n",
        ),
        (
            "cgroup",
            4,
            "0::/system.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n",
        ),
        (
            "cgroup_v1",
            4,
            "9:memory:/kubepods/burstable/podab/0123\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n",
        ),
        ("statm", 5, "1000 200 100 10 0 50 0\n"),
        ("swap", 5, "Name:\ta\nVmSwap:\t     128 kB\n"),
        (
            "passwd",
            6,
            "root:x:0:0:root:/root:/bin/sh\n# comment\nnobody:x:65534:65534::/:/bin/false\n",
        ),
    ];
    for (name, kind, text) in texts {
        put("proc_texts", name, [&[kind], text.as_bytes()].concat());
    }
    put(
        "proc_texts",
        "auxv",
        [&[7u8][..], &[3u64, 0x40, 6, 4096, 0, 0].map(u64::to_le_bytes).concat()].concat(),
    );
}

fn stored() {
    let profile = pprof::tests::heap_profile();
    put("pprof", "plain", pprof::encode(&profile));
    let mut file = Vec::new();
    pprof::write(&profile, &mut file).expect("memory can be written");
    put("pprof", "gzip", &file);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = Settings {
        directory: folder.path().to_owned(),
        free_reserve: 0,
        keep_count_per_process: 1,
        ..Settings::default()
    };
    let mut store = Store::open(settings).expect("the store opens");
    for end in 1..4 {
        let identity = Identity {
            pid: 7,
            start_time: 9,
            comm: "app".to_owned(),
            command_line: vec!["app".to_owned(), "-x".to_owned()],
            ..Identity::default()
        };
        let new = NewEntry {
            identity: &identity,
            begin: 0,
            end,
            heap: Heap::Native,
            in_use: 256,
            bytes: &file,
        };
        store.put(&new).expect("the profile is stored");
    }
    drop(store);
    for entry in std::fs::read_dir(folder.path())
        .expect("the store can be read")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = std::fs::read(entry.path()).expect("the file can be read");
        if name == "journal" {
            put("journal", "puts_and_removals", bytes);
        } else if name.ends_with(".pb.gz") {
            put("stored_profile", "labelled", bytes);
        }
    }
}

fn http() {
    let host = "Host: 127.0.0.1:7373\r\n";
    let requests = [
        (
            "list",
            1,
            "GET /api/v1/processes?sort=growth&limit=5&q=a%20b HTTP/1.1\r\n",
            "",
        ),
        (
            "two",
            1,
            "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\n",
            "",
        ),
        (
            "top",
            1,
            "GET /api/v1/processes/7/top?kind=inuse_space&since=1&until=2 HTTP/1.1\r\n",
            "",
        ),
        (
            "heap",
            1,
            "GET /debug/pprof/heap?pid=7&seconds=1&debug=1 HTTP/1.1\r\nAccept-Encoding: gzip\r\n",
            "",
        ),
        (
            "trace",
            1,
            "POST /api/v1/processes/7/trace HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 18\r\n",
            "{\"interval\": 4096}",
        ),
        (
            "chunked",
            1,
            "POST /api/v1/processes/7/trace HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
            "2\r\n{}\r\n0\r\n\r\n",
        ),
        (
            "login",
            0,
            "POST /login HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n",
            "token=a",
        ),
        (
            "cookies",
            0,
            "GET /api/v1/status HTTP/1.1\r\nCookie: leaktrace-7373=0; a=b\r\nAuthorization: Basic YTpi\r\nOrigin: http://a\r\n",
            "",
        ),
        (
            "stored",
            1,
            "GET /api/v1/profiles/7-9-1 HTTP/1.1\r\nRange: bytes=0-1\r\n",
            "",
        ),
    ];
    for (name, root, head, body) in requests {
        let bytes = [&[root], head.as_bytes(), host.as_bytes(), b"\r\n", body.as_bytes()].concat();
        put("http_request", name, bytes);
    }
}

fn events() {
    for seed in 1..4 {
        put("events", &format!("noise_{seed}"), noise(seed, 400));
    }
    let record = |kind: u8, words: &[u64]| {
        let mut bytes = vec![8 + 8 * words.len() as u8, kind, 0, 0, 0, 7, 0, 0, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    };
    let records = [
        record(KIND_STACK, &[5, 2, 0x1000, 0x2000]),
        record(KIND_ALLOC, &[0x7000, 64, 5, 9 | 4 << 32]),
        record(KIND_FREE, &[0x7000]),
    ];
    put("records", "a_block", records.concat());
    // All kinds, with the same words.
    let all: Vec<Vec<u8>> = (1..=14)
        .map(|kind| record(kind, &[0x10000, 4096, 5, 9, 0x10000, 8192]))
        .collect();
    put("records", "all_kinds", all.concat());
}

fn frames() {
    // DW_CFA: def_cfa rsp+8, rip at cfa-8; then pushes and a frame pointer; remember and restore; an expression.
    let cie = block(&[0x0c, 7, 8, 0x90, 1]);
    let plain = block(&[
        0x41, 0x0e, 0x10, 0x86, 2, 0x43, 0x0d, 6, 0x02, 0x20, 0x0a, 0x0c, 7, 8, 0x41, 0x0b,
    ]);
    let expression = block(&[0x0f, 3, 0x77, 8, 0x06, 0x41, 0x16, 6, 2, 0x77, 0, 0x42, 0x2e, 0x10]);
    for kind in 0..4u8 {
        let fde = |shape: u8, start: u64, length: u64| {
            let mut bytes = vec![shape];
            bytes.extend([start, length].map(u64::to_le_bytes).concat());
            bytes
        };
        let bytes = [
            vec![kind, 4, 0],
            cie.clone(),
            fde(1, 0, 64),
            plain.clone(),
            fde(1, 64, 100),
            expression.clone(),
            fde(1, 80, 4000),
            plain.clone(),
            vec![0],
            expression.clone(),
        ]
        .concat();
        put("call_frames", &format!("four_entries_{kind}"), bytes);
    }
}

fn made_files() {
    // Symbols, then sections: name, kind, traits, bytes, (number,) link.
    let mut sections = vec![3];
    for name in [1u8, 8, 15] {
        sections.extend([name, 0, name, 0, 8]);
    }
    sections.push(5);
    let abbreviations = [
        1, 0x11, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0, 2, 0x2e, 0, 3, 8, 0x11, 1, 0x12, 7, 0, 0, 0,
    ];
    let mut unit = vec![4, 0, 0, 0, 0, 0, 8, 1];
    unit.extend(*b"a.c\0");
    unit.extend([0x40_0200u64, 0x100].map(u64::to_le_bytes).concat());
    unit.push(2);
    unit.extend(*b"f\0");
    unit.extend([0x40_0210u64, 0x40].map(u64::to_le_bytes).concat());
    unit.push(0);
    let unit = [(unit.len() as u32).to_le_bytes().to_vec(), unit].concat();
    let mut compressed = [1u32, 0].map(u32::to_le_bytes).concat();
    compressed.extend([unit.len() as u64, 1].map(u64::to_le_bytes).concat());
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut deflate, &unit).expect("memory can be written");
    compressed.extend(deflate.finish().expect("memory can be written"));
    let mut plain = sections.clone();
    for (name, traits, bytes) in [
        (6u8, 0u8, abbreviations.as_slice()),
        (5, 0, &unit),
        (11, 0, b"a.debug\0\0\0\0\0"),
        (2, 1, &[]),
    ] {
        plain.extend([name, 1, traits]);
        plain.extend(block(bytes));
        plain.push(2);
    }
    put("debug_snapshot", "a_function", &plain);
    put("elf_sections", "a_function", &plain);
    let mut other = sections.clone();
    for (name, traits, bytes) in [(6u8, 0u8, abbreviations.as_slice()), (5, 2, &compressed)] {
        other.extend([name, 1, traits]);
        other.extend(block(bytes));
        other.push(2);
    }
    put("debug_snapshot", "compressed", &other);
    let mut mini =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("settings are right");
    std::io::Write::write_all(&mut mini, &Elf::new().finish(BASE)).expect("memory can be written");
    let mini = mini.finish().expect("memory can be written");
    let mut packed = sections;
    packed.extend([4, 1, 0]);
    packed.extend(block(&mini));
    packed.push(0);
    put("debug_snapshot", "mini", &packed);
    put("elf_sections", "mini", &packed);

    let symbols = [
        vec![0; 24],
        super::elf::symbol(1, 0x12, 1, BASE + 512, 16),
        super::elf::symbol(8, 0x12, 0, 0, 0),
    ]
    .concat();
    let relocation = [BASE + 600, 2 << 32 | 7, 0].map(u64::to_le_bytes).concat();
    let mut dynamic = vec![3];
    dynamic.extend(block(&symbols));
    dynamic.extend(block(b"\0malloc\0free\0"));
    dynamic.extend(block(&[1u32, 3, 2, 0, 0, 0].map(u32::to_le_bytes).concat()));
    dynamic.extend(block(&relocation));
    dynamic.push(7);
    // Tag, part, its address or its size.
    for entry in [[2, 0, 0], [1, 1, 0], [5, 1, 1], [0, 2, 0], [3, 3, 0], [4, 3, 1]] {
        dynamic.extend(entry);
    }
    put("elf_dynamic", "by_hash", &dynamic);
    let hashed = [1u32, 1, 1, 0, 0, 0, 1, 1].map(u32::to_le_bytes).concat();
    let mut gnu = vec![3];
    gnu.extend(block(&symbols));
    gnu.extend(block(b"\0malloc\0free\0"));
    gnu.extend(block(&hashed));
    gnu.extend(block(&relocation));
    gnu.push(7);
    for entry in [[2, 0, 0], [1, 1, 0], [5, 1, 1], [9, 2, 0], [7, 3, 0], [8, 3, 1]] {
        gnu.extend(entry);
    }
    put("elf_dynamic", "by_gnu_hash", &gnu);
}

/// A blob of build information with its strings inside.
fn build_information() -> Vec<u8> {
    let mut bytes = b"\xff Go buildinf:\x08\x02".to_vec();
    bytes.resize(32, 0);
    let module = [
        &[b'x'; 16][..],
        b"path\texample.org/a\nmod\texample.org/a\tv1.2.3\t\n",
        &[b'y'; 16],
    ]
    .concat();
    for text in [b"go1.23.4".as_slice(), &module] {
        bytes.push(text.len() as u8);
        bytes.extend_from_slice(text);
    }
    bytes
}

fn go() {
    put("go_buildinfo", "version_and_module", build_information());
    for text in ["go1.22rc1", "devel go1.24-abc", "go1.20.3 X:boringcrypto"] {
        put("go_buildinfo", &text.replace([' ', ':'], "_"), text);
    }
    put("go_memory", "a_pointer", [0, 3, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    put("go_memory", "numbers", noise(9, 14 * 8));
}

fn built_files(folder: &Path) {
    let library = built(folder, SOURCE, &["-g1", "-gz=zlib", "-Wl,--build-id"]);
    put("debug_snapshot", "library", &library);
    run(Command::new("strip").arg("--strip-debug").arg(folder.join("a.so")));
    let stripped = std::fs::read(folder.join("a.so")).expect("the library is there");
    put("elf_image", "library", &stripped);
    let mut headless = stripped;
    headless[0x28..0x30].fill(0);
    headless[0x3a..0x40].fill(0);
    put("elf_image", "without_sections", &headless);

    for (name, level) in [("optimised", "-O2"), ("plain", "-O0")] {
        let file = built(folder, SOURCE, &[level, "-falign-functions=16"]);
        let file = object::File::parse(&*file).expect("it is an ELF file");
        let text = file.section_by_name(".text").expect("it has code");
        let mut bytes = Vec::new();
        for function in super::code::FUNCTIONS {
            let symbol = file
                .symbols()
                .find(|symbol| symbol.name() == Ok(function))
                .expect("it is there");
            bytes.extend([((symbol.address() - text.address()) / 4) as u8, symbol.size() as u8]);
        }
        bytes.extend_from_slice(text.data().expect("it can be read"));
        put("code", name, &bytes);
    }

    let runtime = built(folder, RUNTIME, &["-g", "-gdwarf-4", "-gno-column-info"]);
    let runtime = object::File::parse(&*runtime).expect("it is an ELF file");
    let mut elf = Elf::new();
    elf.section(".text", 1, 6, &[0xc3; 64], 0);
    elf.section(".go.buildinfo", 1, 3, &build_information(), 0);
    let table = std::fs::read(super::corpus::folder().join("go_pclntab/main_main")).expect("it is there");
    elf.section(".gopclntab", 1, 2, &table, 0);
    for name in [".debug_info", ".debug_abbrev", ".debug_str", ".debug_line"] {
        let Some(section) = runtime.section_by_name(name) else {
            continue;
        };
        let text = section.data().expect("it can be read").to_vec();
        let mut dotted = text.clone();
        let at = (0..text.len()).filter(|at| text[*at..].starts_with(b"runtime_"));
        at.for_each(|at| dotted[at + 7] = b'.');
        elf.section(name, 1, 0, &dotted, 0);
    }
    put("go_executable", "tables_and_structures", elf.finish(BASE + 512));
}
