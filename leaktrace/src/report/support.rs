//! Code that stands between a program and its memory: allocators, language runtimes, standard and C libraries, interpreters.
//!
//! Who looks for a leak looks for the program's own code; that memory came through `std::vector` or `runtime.growslice`
//! helps nobody. What is support is told by module, namespace and path, as data. Invariant: only how a profile is shown
//! depends on this, never what it holds.

use super::name::base;

/// Libraries, by how the names of their files begin; what follows is a version or an ending.
const LIBRARIES: &[&str] = &[
    "libc",
    "libm",
    "libdl",
    "librt",
    "libpthread",
    "ld-linux",
    "ld-musl",
    "libstdc++",
    "libc++",
    "libc++abi",
    "libgcc_s",
    "libjemalloc",
    "libtcmalloc",
    "libtcmalloc_minimal",
    "libmimalloc",
    "libsnmalloc",
    "libpython3",
    "libjvm",
    "libjli",
    "libnode",
    "libruby",
    "libperl",
    "libphp",
    "libluajit",
    "libmonosgen",
    "libcoreclr",
    "libclrjit",
    "libglib",
    "libasan",
    "[vdso]",
];
/// Programs that interpret others, by how the names of their files begin.
const INTERPRETERS: &[&str] = &[
    "python3", "node", "nodejs", "java", "ruby", "perl", "php", "luajit", "lua5", "pypy3",
];
/// First parts of names in C++ and Rust.
const NAMESPACES: &[&str] = &["std", "core", "alloc", "hashbrown", "__gnu_cxx", "__cxxabiv1"];
/// Whole names, or their beginnings where they end in `*`.
const FUNCTIONS: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "sysmalloc",
    "mmap",
    "mmap64",
    "sbrk",
    "brk",
    "memset",
    "memcpy",
    "memmove",
    "__memset*",
    "__memcpy*",
    "__memmove*",
    "__libc_*",
    "__GI_*",
    "_int_*",
    "operator new*",
    "operator delete*",
    "__rust_*",
    "__rdl_*",
    "__rg_*",
    "__rustc*",
    "_start",
    "start_thread",
    "clone",
    "clone3",
    "__clone3",
    "_cgo_*",
    "crosscall*",
    "x_cgo_*",
    "Builtins_*",
    "Builtin:*",
    "BytecodeHandler:*",
    "Stub:*",
    "StubRoutines*",
    "Interpreter",
    "call_stub",
];
/// Where the sources of standard libraries lie, anywhere in a path.
const SOURCES: &[&str] = &[
    "/rustc/",
    "/include/c++/",
    "/usr/local/go/src/",
    "/usr/lib/go/src/",
    "/lib/rustlib/src/rust/",
];
/// The first parts of import paths in Go's standard library; a path of any other package has a dot in it, or is `main`.
const STANDARD_PACKAGES: &[&str] = &[
    "archive",
    "bufio",
    "bytes",
    "cmp",
    "compress",
    "container",
    "context",
    "crypto",
    "database",
    "debug",
    "embed",
    "encoding",
    "errors",
    "expvar",
    "flag",
    "fmt",
    "go",
    "hash",
    "html",
    "image",
    "index",
    "internal",
    "io",
    "iter",
    "log",
    "maps",
    "math",
    "mime",
    "net",
    "os",
    "path",
    "plugin",
    "reflect",
    "regexp",
    "runtime",
    "slices",
    "sort",
    "strconv",
    "strings",
    "sync",
    "syscall",
    "testing",
    "text",
    "time",
    "unicode",
    "unique",
    "unsafe",
    "vendor",
    "weak",
];

/// Whether a frame is support.
pub fn is_support(name: &str, file: &str, module: &str) -> bool {
    is_support_module(base(module))
        || FUNCTIONS.iter().any(|known| fits(known, name))
        || namespace(name).is_some_and(|space| NAMESPACES.contains(&space))
        || SOURCES.iter().any(|folder| file.contains(folder))
        || is_standard_package(name, file)
}

fn fits(known: &str, name: &str) -> bool {
    match known.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == known,
    }
}

/// `libc.so.6`, `libstdc++.so.6.0.30`, `libpython3.11.so.1.0`, `ld-linux-x86-64.so.2`, `python3.11`.
fn is_support_module(module: &str) -> bool {
    let after = |known: &&str| module.strip_prefix(*known);
    let is_library = |rest: &str| {
        rest.is_empty() || (rest.starts_with(['.', '-', '_']) && (rest.contains(".so") || rest.starts_with(".musl")))
    };
    let is_version = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    LIBRARIES.iter().filter_map(after).any(is_library) || INTERPRETERS.iter().filter_map(after).any(is_version)
}

/// The first part of a name in C++ or Rust: `std` of `void std::vector<int>::push_back(int&&)` and of
/// `<std::io::Error as Debug>::fmt`. The type that a trait is implemented for counts, not the trait.
fn namespace(name: &str) -> Option<&str> {
    let name = name.trim_start_matches(['<', '&', '*', '(', '[']);
    let name = ["dyn ", "mut ", "const "]
        .iter()
        .fold(name, |name, word| name.strip_prefix(word).unwrap_or(name));
    // A template's instance has its result in front: the last word before the arguments, outside of angle brackets.
    let mut depth = 0usize;
    let mut begin = 0;
    let mut space = None;
    for (at, c) in name.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => break,
            ' ' if depth == 0 => {
                // `<A as B>::f` was cut at its bracket: `A` is what counts.
                if name[at..].starts_with(" as ") {
                    break;
                }
                begin = at + 1;
                space = None;
            }
            ':' if depth == 0 && space.is_none() && name[at..].starts_with("::") => space = Some(&name[begin..at]),
            _ => {}
        }
    }
    space
}

/// A function of Go's standard library: `runtime.mallocgc`, `encoding/json.(*Decoder).Decode`. Only with a source file that
/// looks like Go's, since `time.c` has no packages.
fn is_standard_package(name: &str, file: &str) -> bool {
    let is_package_file = file.is_empty() || file.ends_with(".go") || file.ends_with(".s");
    if !is_package_file || name.contains("::") {
        return false;
    }
    let (folder, last) = match name.rfind('/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => ("", name),
    };
    let Some((package, _)) = last.split_once('.') else {
        return false;
    };
    let first = if folder.is_empty() {
        package
    } else {
        folder.split('/').next().unwrap_or(folder)
    };
    STANDARD_PACKAGES.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support(name: &str) -> bool {
        is_support(name, "", "/srv/app")
    }

    #[test]
    fn modules() {
        for module in [
            "/usr/lib/x86_64-linux-gnu/libc.so.6",
            "/lib/libc.musl-x86_64.so.1",
            "/lib64/ld-linux-x86-64.so.2",
            "libstdc++.so.6.0.30",
            "libpython3.11.so.1.0",
            "/usr/bin/python3.11",
            "/usr/bin/node",
            "libtcmalloc_minimal.so.4",
            "[vdso]",
        ] {
            assert!(is_support("f", "", module), "{module}");
        }
        for module in [
            "/srv/libcache.so",
            "/usr/bin/nodesource-app",
            "/srv/libmine.so.1",
            "python3-config",
            "/srv/javac",
            "",
        ] {
            assert!(!is_support("f", "", module), "{module}");
        }
    }

    #[test]
    fn namespaces_of_cpp_and_rust() {
        for name in [
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "void std::vector<app::Row>::_M_realloc_insert<app::Row>(app::Row&&)",
            "std::_Rb_tree_node<app::Row>* std::_Rb_tree<int, app::Row>::_M_create_node(int)",
            "<alloc::string::String as core::fmt::Write>::write_str",
            "<&mut std::io::Cursor<app::Buffer> as std::io::Read>::read",
            "alloc::raw_vec::RawVec<T,A>::reserve",
            "hashbrown::raw::RawTable<T>::reserve_rehash",
            "operator new(unsigned long)",
            "__rust_alloc",
        ] {
            assert!(support(name), "{name}");
        }
        for name in [
            "app::cache::insert(std::string const&)",
            "std_cache_insert",
            "<app::Row as core::clone::Clone>::clone",
            "app::Store<std::string>::put(int)",
            "int app::grow<std::string>(std::string)",
            "main",
            "stdx::f()",
        ] {
            assert!(!support(name), "{name}");
        }
    }

    #[test]
    fn packages_of_go() {
        for name in [
            "runtime.mallocgc",
            "encoding/json.(*Decoder).Decode",
            "bytes.(*Buffer).grow",
            "strings.Builder.Grow",
        ] {
            assert!(support(name), "{name}");
        }
        for name in [
            "main.remember",
            "example.com/x/bytes.Grow",
            "github.com/a/b.(*Store).Put",
            "myapp/cache.Put",
            "runtime_init",
            "time.c",
        ] {
            assert_eq!(support(name), name == "time.c", "{name}");
        }
        // C with a dot in its name, as compilers make for copies.
        assert!(!is_support("hash.constprop.0", "/src/hash.c", "/srv/app"));
        assert!(is_support("f", "/usr/local/go/src/net/http/server.go", ""));
        assert!(is_support("x", "/rustc/abc/library/core/src/ops.rs", ""));
    }
}
