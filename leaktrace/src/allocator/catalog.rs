//! The allocation functions that leaktrace knows, by symbol name.
//!
//! Data, not decisions: `detect` decides which of them are hooked in a given process. To add an allocator, add its names
//! to a table here. Invariant: a signature names argument registers only (positions 1 to 6).

use std::collections::HashMap;
use std::sync::LazyLock;

use leaktrace_common::signature::{Op, Signature};

/// How a function relates to others of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layer {
    /// An allocator's own interface: hooked wherever it is defined, unless it is a mere jump to another one.
    Base,
    /// Usually built on a base function: hooked only where it does not always reach one.
    Wrapper,
}

/// What is known about one symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Operation and argument positions.
    pub signature: Signature,
    /// May leave by a C++ exception: must never carry a uretprobe.
    pub can_throw: bool,
    /// Base function or wrapper.
    pub layer: Layer,
}

const fn alloc(size: u8) -> Signature {
    Signature::new(Op::Alloc).size(size)
}

const fn alloc_array(count: u8, size: u8) -> Signature {
    Signature::new(Op::Alloc).count(count).size(size)
}

const fn realloc(pointer: u8, size: u8) -> Signature {
    Signature::new(Op::Realloc).pointer(pointer).size(size)
}

const fn realloc_array(pointer: u8, count: u8, size: u8) -> Signature {
    Signature::new(Op::Realloc).pointer(pointer).count(count).size(size)
}

const FREE: Signature = Signature::new(Op::Free).pointer(1);
const ALLOC_OUT: Signature = Signature::new(Op::AllocOut).out(1).size(3);

/// The C interface. jemalloc builds offer it under prefixes, tcmalloc under `tc_`, glibc also under `__libc_`.
const C_BASE: &[(&str, Signature)] = &[
    ("malloc", alloc(1)),
    ("calloc", alloc_array(1, 2)),
    ("realloc", realloc(1, 2)),
    ("free", FREE),
    ("aligned_alloc", alloc(2)),
    ("memalign", alloc(2)),
    ("posix_memalign", ALLOC_OUT),
    ("valloc", alloc(1)),
    ("pvalloc", alloc(1)),
];

/// C functions that are commonly written in terms of the ones above.
const C_WRAPPERS: &[(&str, Signature)] = &[
    ("reallocarray", realloc_array(1, 2, 3)),
    ("reallocf", realloc(1, 2)),
    ("cfree", FREE),
    ("vfree", FREE),
    ("free_sized", FREE),
    ("free_aligned_sized", FREE),
];

/// jemalloc's own interface.
const JEMALLOC: &[(&str, Signature)] = &[
    ("mallocx", alloc(1)),
    ("rallocx", realloc(1, 2)),
    ("xallocx", Signature::new(Op::Resize).pointer(1).size(2)),
    ("dallocx", FREE),
    ("sdallocx", FREE),
];

/// Prefixes of `--with-jemalloc-prefix` builds; the second and third are those of Rust's crates.
const JEMALLOC_PREFIXES: &[&str] = &["", "je_", "_rjem_", "_rjem_je_"];

/// gperftools' tcmalloc, beyond `tc_` + the C interface.
const TCMALLOC: &[(&str, Signature, bool)] = &[
    ("tc_malloc_skip_new_handler", alloc(1), false),
    ("tc_free_sized", FREE, false),
    ("tc_cfree", FREE, false),
    ("tc_new", alloc(1), true),
    ("tc_newarray", alloc(1), true),
    ("tc_new_aligned", alloc(1), true),
    ("tc_newarray_aligned", alloc(1), true),
    ("tc_new_nothrow", alloc(1), false),
    ("tc_newarray_nothrow", alloc(1), false),
    ("tc_new_aligned_nothrow", alloc(1), false),
    ("tc_newarray_aligned_nothrow", alloc(1), false),
    ("tc_delete", FREE, false),
    ("tc_deletearray", FREE, false),
    ("tc_delete_sized", FREE, false),
    ("tc_deletearray_sized", FREE, false),
    ("tc_delete_nothrow", FREE, false),
    ("tc_deletearray_nothrow", FREE, false),
    ("tc_delete_aligned", FREE, false),
    ("tc_deletearray_aligned", FREE, false),
    ("tc_delete_sized_aligned", FREE, false),
    ("tc_deletearray_sized_aligned", FREE, false),
    ("tc_delete_aligned_nothrow", FREE, false),
    ("tc_deletearray_aligned_nothrow", FREE, false),
];

/// mimalloc without a heap argument. Those marked also exist as `mi_heap_…` with every argument one place further.
const MIMALLOC: &[(&str, Signature, bool)] = &[
    ("malloc", alloc(1), true),
    ("malloc_small", alloc(1), true),
    ("malloc_aligned", alloc(1), true),
    ("malloc_aligned_at", alloc(1), true),
    ("zalloc", alloc(1), true),
    ("zalloc_small", alloc(1), true),
    ("zalloc_aligned", alloc(1), true),
    ("zalloc_aligned_at", alloc(1), true),
    ("mallocn", alloc_array(1, 2), true),
    ("calloc", alloc_array(1, 2), true),
    ("calloc_aligned", alloc_array(1, 2), true),
    ("calloc_aligned_at", alloc_array(1, 2), true),
    ("realloc", realloc(1, 2), true),
    ("realloc_aligned", realloc(1, 2), true),
    ("realloc_aligned_at", realloc(1, 2), true),
    ("reallocf", realloc(1, 2), true),
    ("rezalloc", realloc(1, 2), true),
    ("rezalloc_aligned", realloc(1, 2), true),
    ("rezalloc_aligned_at", realloc(1, 2), true),
    ("reallocn", realloc_array(1, 2, 3), true),
    ("recalloc", realloc_array(1, 2, 3), true),
    ("recalloc_aligned", realloc_array(1, 2, 3), true),
    ("recalloc_aligned_at", realloc_array(1, 2, 3), true),
    ("aligned_recalloc", realloc_array(1, 2, 3), false),
    ("aligned_offset_recalloc", realloc_array(1, 2, 3), false),
    ("reallocarray", realloc_array(1, 2, 3), false),
    // Returns the block itself or NULL, and NULL leaves it alone: a realloc that fails.
    ("expand", realloc(1, 2), false),
    ("memalign", alloc(2), false),
    ("aligned_alloc", alloc(2), false),
    ("posix_memalign", ALLOC_OUT, false),
    ("valloc", alloc(1), false),
    ("pvalloc", alloc(1), false),
    ("free", FREE, false),
    ("cfree", FREE, false),
    ("free_size", FREE, false),
    ("free_aligned", FREE, false),
    ("free_size_aligned", FREE, false),
];

/// mimalloc's `operator new` family: name, signature, can throw.
const MIMALLOC_NEW: &[(&str, Signature, bool)] = &[
    ("mi_new", alloc(1), true),
    ("mi_new_aligned", alloc(1), true),
    ("mi_new_n", alloc_array(1, 2), true),
    ("mi_new_realloc", realloc(1, 2), true),
    ("mi_new_reallocn", realloc_array(1, 2, 3), true),
    ("mi_new_nothrow", alloc(1), false),
    ("mi_new_aligned_nothrow", alloc(1), false),
    ("mi_heap_alloc_new", alloc(2), true),
    ("mi_heap_alloc_new_n", alloc_array(2, 3), true),
];

/// Suffixes of `_Znw`/`_Zna` (64-bit `size_t`), and whether that form can throw.
const OPERATOR_NEW: &[(&str, bool)] = &[
    ("m", true),
    ("mSt11align_val_t", true),
    ("mRKSt9nothrow_t", false),
    ("mSt11align_val_tRKSt9nothrow_t", false),
];

/// Suffixes of `_Zdl`/`_Zda`.
const OPERATOR_DELETE: &[&str] = &[
    "Pv",
    "Pvm",
    "PvRKSt9nothrow_t",
    "PvmRKSt9nothrow_t",
    "PvSt11align_val_t",
    "PvmSt11align_val_t",
    "PvSt11align_val_tRKSt9nothrow_t",
    "PvmSt11align_val_tRKSt9nothrow_t",
];

/// Rust's allocator interface: the entry points that compiled code calls, and what stands behind them (`rdl`: the default
/// allocator, `rg`: a `#[global_allocator]`), which is called directly where the entry point was inlined.
const RUST: &[(&str, Signature)] = &[
    ("alloc", alloc(1)),
    ("alloc_zeroed", alloc(1)),
    ("realloc", realloc(1, 4)),
    ("dealloc", FREE),
];
const RUST_PREFIXES: &[&str] = &["__rust_", "__rg_", "__rdl_"];

static NAMES: LazyLock<HashMap<Vec<u8>, Entry>> = LazyLock::new(|| {
    let mut names = HashMap::new();
    let mut add = |name: String, signature: Signature, can_throw: bool, layer: Layer| {
        names.insert(
            name.into_bytes(),
            Entry {
                signature,
                can_throw,
                layer,
            },
        );
    };
    for (name, signature) in C_BASE {
        for prefix in JEMALLOC_PREFIXES.iter().chain(&["__libc_", "tc_"]) {
            add(format!("{prefix}{name}"), *signature, false, Layer::Base);
        }
    }
    add("__posix_memalign".into(), ALLOC_OUT, false, Layer::Base);
    add("__libc_cfree".into(), FREE, false, Layer::Wrapper);
    for (name, signature) in C_WRAPPERS {
        for prefix in JEMALLOC_PREFIXES.iter().chain(&["__libc_"]) {
            add(format!("{prefix}{name}"), *signature, false, Layer::Wrapper);
        }
    }
    for (name, signature) in JEMALLOC {
        for prefix in JEMALLOC_PREFIXES {
            add(format!("{prefix}{name}"), *signature, false, Layer::Base);
        }
    }
    for (name, signature, can_throw) in TCMALLOC {
        add((*name).into(), *signature, *can_throw, Layer::Wrapper);
    }
    for (name, signature, with_heap) in MIMALLOC {
        add(format!("mi_{name}"), *signature, false, Layer::Base);
        if *with_heap {
            add(format!("mi_heap_{name}"), behind_heap(*signature), false, Layer::Base);
        }
    }
    for (name, signature, can_throw) in MIMALLOC_NEW {
        add((*name).into(), *signature, *can_throw, Layer::Wrapper);
    }
    for array in ["_Znw", "_Zna"] {
        for (suffix, can_throw) in OPERATOR_NEW {
            add(format!("{array}{suffix}"), alloc(1), *can_throw, Layer::Wrapper);
        }
    }
    for array in ["_Zdl", "_Zda"] {
        for suffix in OPERATOR_DELETE {
            add(format!("{array}{suffix}"), FREE, false, Layer::Wrapper);
        }
    }
    for prefix in RUST_PREFIXES {
        for (name, signature) in RUST {
            add(format!("{prefix}{name}"), *signature, false, Layer::Wrapper);
        }
    }
    names
});

/// The same call with a heap as its first argument.
fn behind_heap(signature: Signature) -> Signature {
    let shift = |argument: u8| if argument == 0 { 0 } else { argument + 1 };
    let op = if signature.op() == Op::Realloc as u8 {
        Op::Realloc
    } else {
        Op::Alloc
    };
    Signature::new(op)
        .size(shift(signature.size_argument()))
        .count(shift(signature.count_argument()))
        .pointer(shift(signature.pointer_argument()))
}

/// Looks a symbol up, as it stands in a symbol table: versioned (`malloc@@GLIBC_2.2.5`) or mangled by Rust.
pub fn lookup(symbol: &[u8]) -> Option<Entry> {
    let name = symbol.split(|byte| *byte == b'@').next()?;
    if let Some(entry) = NAMES.get(name) {
        return Some(*entry);
    }
    NAMES.get(rust_name(name)?.as_bytes()).copied()
}

/// The plain name of a mangled symbol of Rust's allocator interface (`__rustc::__rust_alloc` → `__rust_alloc`).
fn rust_name(symbol: &[u8]) -> Option<String> {
    // Symbol tables hold millions of names: nearly all are told apart without demangling.
    let plausible = match symbol {
        [b'_', b'R', ..] => symbol.len() < 128 && (symbol.ends_with(b"alloc") || symbol.ends_with(b"alloc_zeroed")),
        // Legacy mangling ends in `17h`, 16 digits and `E`.
        [
            b'_',
            b'Z',
            b'N',
            ..,
            b'1',
            b'7',
            b'h',
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            b'E',
        ] => {
            symbol.len() < 96
                && symbol
                    .windows(4)
                    .any(|part| matches!(part, b"__ru" | b"__rg" | b"__rd"))
        }
        _ => false,
    };
    if !plausible {
        return None;
    }
    let demangled = rustc_demangle::try_demangle(std::str::from_utf8(symbol).ok()?).ok()?;
    // The alternate form leaves hashes out.
    let path = format!("{demangled:#}");
    let (module, name) = path.rsplit_once("::").unwrap_or(("", &path));
    let known = RUST_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    // `__rdl_` and `__rg_` functions live in std's and the program's own crates.
    (known && (module == "__rustc" || !name.starts_with("__rust_"))).then(|| name.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_registers() {
        for (name, entry) in NAMES.iter() {
            let s = entry.signature;
            let name = String::from_utf8_lossy(name);
            let arguments = [
                s.size_argument(),
                s.count_argument(),
                s.pointer_argument(),
                s.out_argument(),
            ];
            assert!(arguments.iter().all(|argument| *argument <= 6), "{name}");
            let is = |op: Op| s.op() == op as u8;
            assert_eq!(
                is(Op::Free) || is(Op::Realloc) || is(Op::Resize),
                s.pointer_argument() != 0,
                "{name}"
            );
            assert_eq!(is(Op::Free), s.size_argument() == 0, "{name}");
            assert_eq!(is(Op::AllocOut), s.out_argument() != 0, "{name}");
        }
    }

    #[test]
    fn names_with_arguments_in_unusual_places() {
        let signature = |name: &str| lookup(name.as_bytes()).unwrap().signature;
        assert_eq!(signature("memalign"), alloc(2));
        assert_eq!(signature("_rjem_sdallocx"), FREE);
        assert_eq!(signature("mi_heap_calloc"), alloc_array(2, 3));
        assert_eq!(signature("mi_heap_reallocn"), realloc_array(2, 3, 4));
        assert_eq!(signature("__rust_realloc"), realloc(1, 4));
        assert_eq!(signature("malloc@@GLIBC_2.2.5"), alloc(1));
        assert!(lookup(b"_Znwm").unwrap().can_throw && !lookup(b"_ZnwmRKSt9nothrow_t").unwrap().can_throw);
        assert_eq!(lookup(b"malloc_usable_size"), None);
        assert_eq!(lookup(b"je_malloc_default"), None);
    }

    #[test]
    fn rust_names_under_each_mangling() {
        for (symbol, name) in [
            ("__rust_alloc", "__rust_alloc"),
            ("_RNvCsdBezzDwma51_7___rustc12___rust_alloc", "__rust_alloc"),
            ("_RNvCsdBezzDwma51_7___rustc14___rust_dealloc", "__rust_dealloc"),
            (
                "_RNvCsdBezzDwma51_7___rustc19___rust_alloc_zeroed",
                "__rust_alloc_zeroed",
            ),
            ("_RNvCsdBezzDwma51_7___rustc11___rdl_alloc", "__rdl_alloc"),
            ("_ZN7__rustc14__rust_realloc17h0123456789abcdefE", "__rust_realloc"),
        ] {
            assert_eq!(lookup(symbol.as_bytes()), lookup(name.as_bytes()), "{symbol}");
            assert!(lookup(symbol.as_bytes()).is_some(), "{symbol}");
        }
        // A function of that name in somebody's module is not the allocator.
        assert_eq!(lookup(b"_ZN5mymod12__rust_alloc17h0123456789abcdefE"), None);
        assert_eq!(lookup(b"_RNvCsdBezzDwma51_5mymod12___rust_alloc"), None);
    }
}
