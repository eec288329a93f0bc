//! Building the programs under `tests/programs` into `target/programs`.
//!
//! Where there is no compiler (in a guest of `cargo xtask test --kernel`), `LEAKTRACE_TEST_PROGRAMS` names a folder that
//! holds them built. Invariant: a program is newer than its sources when [`path`] returns it. Recipes are data; README and benchmarks
//! use the same ones.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::machine;

/// How a program is compiled.
enum Recipe {
    /// `gcc` or `g++` with these words, in the folder of the programs.
    Gcc {
        compiler: &'static str,
        words: &'static [&'static str],
    },
    /// `musl-gcc` with these words: another C library.
    Musl { words: &'static [&'static str] },
    /// Another program without its section headers: what `sstrip` and some packers leave.
    Headless { of: &'static str },
    /// A package of the workspace `rust`.
    Cargo { package: &'static str },
    /// Another program without its symbols.
    Strip { of: &'static str },
    /// Another program whose symbols are only in the compressed table that distributions leave in stripped programs.
    MiniDebug { of: &'static str },
}

const OPTIMISED: &[&str] = &[
    "-O2",
    "-g",
    "-fomit-frame-pointer",
    "-Wall",
    "-Wextra",
    "-fno-builtin-malloc",
];

macro_rules! c {
    ($($word:literal),+) => { Recipe::Gcc { compiler: "gcc", words: &[$($word),+] } };
}
macro_rules! cpp {
    ($($word:literal),+) => { Recipe::Gcc { compiler: "g++", words: &["-std=c++17", $($word),+] } };
}

/// Every program, by name.
const RECIPES: &[(&str, Recipe)] = &[
    ("planted_leak", c!["planted_leak.c"]),
    ("leaky_service", c!["c/leaky_service.c"]),
    ("arena_service", c!["c/arena_service.c"]),
    ("libclock_shift.so", c!["-shared", "-fPIC", "c/clock_shift.c"]),
    ("malloc_family", c!["c/malloc_family.c"]),
    ("malloc_family_static", c!["-static", "c/malloc_family.c"]),
    ("malloc_family_static_pie", c!["-static-pie", "c/malloc_family.c"]),
    (
        "malloc_family_stripped",
        Recipe::Strip {
            of: "malloc_family_static",
        },
    ),
    (
        "malloc_family_stripped_pie",
        Recipe::Strip {
            of: "malloc_family_static_pie",
        },
    ),
    (
        "malloc_family_musl_stripped",
        Recipe::Strip {
            of: "malloc_family_musl_static",
        },
    ),
    ("own_malloc", c!["-static", "c/own_malloc.c"]),
    ("own_malloc_stripped", Recipe::Strip { of: "own_malloc" }),
    ("realloc_moves", c!["c/realloc_moves.c"]),
    ("libdeep.so", c!["-shared", "-fPIC", "c/deep_library.c"]),
    ("deep", c!["c/deep.c", "-L.", "-l:libdeep.so", "-Wl,-rpath,$ORIGIN"]),
    ("recursion", c!["c/recursion.c"]),
    ("many_stacks", c!["c/many_stacks.c"]),
    ("threads8", c!["-pthread", "c/threads8.c"]),
    ("known_truth", c!["-pthread", "c/known_truth.c"]),
    ("crowd", c!["-pthread", "-D_GNU_SOURCE", "c/crowd.c"]),
    ("fork_exec", c!["c/fork_exec.c"]),
    ("exec_hoard", c!["c/exec_hoard.c"]),
    ("storm", c!["c/storm.c"]),
    ("dlopen_late", c!["c/dlopen_late.c", "-ldl"]),
    ("libplugin.so", c!["-shared", "-fPIC", "c/plugin.c"]),
    (
        "libplugin_allocator.so",
        c!["-shared", "-fPIC", "-fno-builtin", "c/plugin_allocator.c"],
    ),
    (
        "libheadless_allocator.so",
        Recipe::Headless {
            of: "libplugin_allocator.so",
        },
    ),
    ("malloc_family_headless", Recipe::Headless { of: "malloc_family" }),
    (
        "malloc_family_musl",
        Recipe::Musl {
            words: &["c/malloc_family.c"],
        },
    ),
    (
        "malloc_family_musl_static",
        Recipe::Musl {
            words: &["-static", "c/malloc_family.c"],
        },
    ),
    (
        "innocent_musl",
        Recipe::Musl {
            words: &["c/innocent.c"],
        },
    ),
    (
        "innocent_musl_static",
        Recipe::Musl {
            words: &["-static", "c/innocent.c"],
        },
    ),
    ("shared_memory", c!["c/shared_memory.c"]),
    ("many_mappings", c!["c/many_mappings.c"]),
    (
        "through_libc_musl",
        Recipe::Musl {
            words: &["c/through_libc.c"],
        },
    ),
    (
        "through_libc_musl_static",
        Recipe::Musl {
            words: &["-static", "c/through_libc.c"],
        },
    ),
    ("main_leaves", c!["-pthread", "c/main_leaves.c"]),
    ("reload", c!["c/reload.c", "-ldl"]),
    ("libplugin_alpha.so", c!["-shared", "-fPIC", "c/plugin_alpha.c"]),
    ("libplugin_omega.so", c!["-shared", "-fPIC", "c/plugin_omega.c"]),
    ("jit", c!["c/jit.c"]),
    (
        "tiny32",
        c![
            "-m32",
            "-static",
            "-nostdlib",
            "-fno-stack-protector",
            "-fno-pie",
            "-no-pie",
            "c/tiny32.c"
        ],
    ),
    ("seccomp", c!["c/seccomp.c"]),
    ("map_files", c!["c/map_files.c"]),
    ("silent_files", c!["c/silent_files.c"]),
    ("innocent", c!["c/innocent.c"]),
    ("rounds", c!["c/rounds.c", "-ldl"]),
    ("mappings", c!["c/mappings.c"]),
    ("patched", c!["c/patched.c", "-ldl"]),
    ("map_code", c!["-static", "c/map_code.c"]),
    ("lost_calls", c!["c/lost_calls.c"]),
    ("overload", c!["-pthread", "c/overload.c"]),
    ("churn", c!["-pthread", "c/churn.c"]),
    ("why_grows", c!["-pthread", "c/why_grows.c"]),
    (
        "no_allocator",
        c!["-static", "-nostdlib", "-fno-stack-protector", "c/no_allocator.c"],
    ),
    ("new_delete", cpp!["cpp/new_delete.cpp"]),
    ("throwing", cpp!["cpp/throwing.cpp"]),
    ("hardest", cpp!["-pthread", "cpp/hardest.cpp", "-ldl"]),
    ("throwing_custom", cpp!["-DCUSTOM_NEW", "cpp/throwing.cpp"]),
    (
        "rust_system",
        Recipe::Cargo {
            package: "leaky-system",
        },
    ),
    ("rust_system_stripped", Recipe::Strip { of: "rust_system" }),
    (
        "rust_jemalloc",
        Recipe::Cargo {
            package: "leaky-jemalloc",
        },
    ),
    ("rust_jemalloc_minidebug", Recipe::MiniDebug { of: "rust_jemalloc" }),
    (
        "rust_mimalloc",
        Recipe::Cargo {
            package: "leaky-mimalloc",
        },
    ),
    (
        "rust_dlmalloc",
        Recipe::Cargo {
            package: "leaky-dlmalloc",
        },
    ),
    (
        "rust_free_list",
        Recipe::Cargo {
            package: "leaky-free-list",
        },
    ),
    ("bench_pairs", c!["bench/pairs.c"]),
    ("bench_live_set", c!["-pthread", "bench/live_set.c"]),
    ("bench_many_libraries", c!["bench/many_libraries.c", "-ldl"]),
    ("bench_many_stacks", c!["bench/many_stacks.c"]),
    ("bench_outstanding", c!["bench/outstanding.c"]),
    ("bench_paced", c!["bench/paced.c"]),
];

/// Where a program needs another one beside it.
const NEEDS: &[(&str, &str)] = &[("deep", "libdeep.so"), ("dlopen_late", "libplugin.so")];

/// The program called `name`, built if it is not there or older than its sources.
///
/// # Errors
/// When there is no such program, or its compiler is missing or fails.
pub fn path(name: &str) -> Result<PathBuf> {
    let Some((_, recipe)) = RECIPES.iter().find(|(known, _)| *known == name) else {
        bail!("no test program `{name}`")
    };
    if let Some(folder) = prebuilt() {
        let program = folder.join(name);
        ensure!(
            program.exists(),
            "`{}` is not there: it was not built before",
            program.display()
        );
        return Ok(program);
    }
    // Other programs first: this one's lock is never waited for while holding another's, since needs form no circle.
    for (_, needed) in NEEDS.iter().filter(|(program, _)| *program == name) {
        path(needed)?;
    }
    let directory = machine::root().join("target/programs");
    fs::create_dir_all(&directory).with_context(|| format!("failed to create `{}`", directory.display()))?;
    // Test programs of one suite may be asked for by several processes at once.
    let lock = File::create(directory.join(format!(".{name}.lock")))?;
    lock.lock().with_context(|| format!("failed to lock `{name}`"))?;
    let product = directory.join(name);
    match recipe {
        Recipe::Gcc { compiler, words } => compile(compiler, words, &directory, name)?,
        Recipe::Musl { words } => compile("musl-gcc", words, &directory, name)?,
        Recipe::Headless { of } => {
            let original = path(of)?;
            if !product.exists() || modified(&original)? > modified(&product)? {
                let part = directory.join(format!(".{name}.part"));
                // Copied, for the permissions, and changed in the copy.
                fs::copy(&original, &part)?;
                remove_section_headers(&part)?;
                fs::rename(&part, &product)?;
            }
        }
        Recipe::Cargo { package } => {
            let built = directory.join("rust");
            let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command
                .current_dir(sources().join("rust"))
                .args(["build", "--quiet", "--release", "--locked"]);
            command.args(["--package", package, "--target-dir"]).arg(&built);
            // What the test run's own cargo was told is not for this one.
            for variable in [
                "RUSTFLAGS",
                "CARGO_ENCODED_RUSTFLAGS",
                "CARGO_TARGET_DIR",
                "CARGO_BUILD_TARGET",
            ] {
                command.env_remove(variable);
            }
            run(&mut command)?;
            return Ok(built.join("release").join(package));
        }
        Recipe::Strip { of } => {
            let original = path(of)?;
            if !product.exists() || modified(&original)? > modified(&product)? {
                run(Command::new("strip")
                    .arg("--strip-all")
                    .arg("-o")
                    .arg(&product)
                    .arg(&original))?;
            }
        }
        Recipe::MiniDebug { of } => {
            let original = path(of)?;
            if !product.exists() || modified(&original)? > modified(&product)? {
                mini_debug(&original, &product)?;
            }
        }
    }
    Ok(product)
}

/// Compiles a program that is missing or older than its sources.
fn compile(compiler: &str, words: &[&str], directory: &Path, name: &str) -> Result<()> {
    let product = directory.join(name);
    if !stale(&product)? {
        return Ok(());
    }
    let part = directory.join(format!(".{name}.part"));
    let mut command = Command::new(compiler);
    command.current_dir(sources()).args(OPTIMISED).arg("-o").arg(&part);
    command.arg(format!("-L{}", directory.display())).args(words);
    run(&mut command)?;
    fs::rename(&part, &product)?;
    Ok(())
}

/// Cuts a 64-bit ELF file off where its section headers begin, and forgets that there were any.
fn remove_section_headers(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let header = bytes.get(40..48).context("an ELF header is longer")?;
    let table = u64::from_le_bytes(header.try_into()?);
    bytes[40..48].fill(0); // e_shoff
    bytes[58..64].fill(0); // e_shentsize, e_shnum, e_shstrndx
    bytes.truncate(usize::try_from(table)?);
    fs::write(path, bytes)?;
    Ok(())
}

/// A stripped copy with the function symbols in `.gnu_debugdata`.
fn mini_debug(original: &Path, product: &Path) -> Result<()> {
    let part = product.with_extension("symbols");
    let packed = product.with_extension("symbols.xz");
    let mut keep = Command::new("objcopy");
    keep.args(["--strip-debug", "--remove-section=.comment", "--only-keep-debug"])
        .arg(original)
        .arg(&part);
    run(&mut keep)?;
    run(Command::new("xz").args(["--force", "--keep"]).arg(&part))?;
    run(Command::new("strip")
        .arg("--strip-all")
        .arg("-o")
        .arg(product)
        .arg(original))?;
    run(Command::new("objcopy")
        .arg(format!("--add-section=.gnu_debugdata={}", packed.display()))
        .arg(product))
}

/// A command that runs the program called `name`.
///
/// # Errors
/// As [`path`].
pub fn command(name: &str) -> Result<Command> {
    path(name).map(Command::new)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name)
}

/// Those that run wherever this machine's own C library is: what a guest gets.
pub fn of_own_libc() -> impl Iterator<Item = &'static str> {
    let native = RECIPES
        .iter()
        .filter(|(_, recipe)| matches!(recipe, Recipe::Gcc { .. }));
    native.map(|(name, _)| *name)
}

/// The folder that holds programs built before, if there is one.
pub(crate) fn prebuilt() -> Option<PathBuf> {
    std::env::var_os("LEAKTRACE_TEST_PROGRAMS").map(PathBuf::from)
}

fn sources() -> PathBuf {
    machine::root().join("tests/programs")
}

/// True when a compiled program is missing or older than any source: there are few, and headers are shared.
fn stale(product: &Path) -> Result<bool> {
    if !product.exists() {
        return Ok(true);
    }
    let built = modified(product)?;
    let this = machine::root().join("tests/src/programs.rs");
    let mut newest = modified(&this)?;
    for folder in ["", "c", "cpp", "bench"] {
        for entry in fs::read_dir(sources().join(folder))? {
            let path = entry?.path();
            if path.is_file() {
                newest = newest.max(modified(&path)?);
            }
        }
    }
    Ok(newest > built)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("failed to look at `{}`", path.display()))
}

/// Runs a compiler to its end.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_exist_is_refused() {
        assert!(path("nonsense").is_err());
    }
}
