//! Programs built here, whose symbols say what is to be found.

use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::object::symbols::for_each_symbol;

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int count, char **words) {
    char *block = malloc(count);
    block = realloc(block, 2 * count);
    void *array = calloc(count, 3), *aligned = aligned_alloc(64, 64 * count);
    __asm__ volatile("" : : "r"(aligned), "r"(array) : "memory");
    puts(strdup(words[0]));
    free(block);
    free(array);
    free(aligned);
    return 0;
}
"#;

/// No block is ever given back, by glibc's or musl's functions: there are none.
const OWN: &str = r#"
#include <stdio.h>
#include <string.h>
static char heap[1 << 20];
static size_t used;
void *malloc(size_t size) { used += (size + 15) & ~15ul; return heap + used - ((size + 15) & ~15ul); }
void free(void *block) { (void)block; }
void *calloc(size_t count, size_t size) { return malloc(count * size); }
void *realloc(void *block, size_t size) { void *other = malloc(size); return block ? memcpy(other, block, size) : other; }
int main(int count, char **words) { (void)count; puts(strdup(words[0])); return 0; }
"#;

/// Names in a program's symbols, by what was found there.
type Names = BTreeMap<&'static str, Vec<String>>;

/// Builds a program.
fn build(compiler: &str, arguments: &[&str], source: &str) -> Option<Vec<u8>> {
    if Command::new(compiler).arg("--version").output().is_err() {
        eprintln!("skipped: no {compiler} here");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("program.c"), folder.path().join("program"));
    std::fs::write(&input, source).unwrap();
    let mut command = Command::new(compiler);
    command.args(arguments).arg(&input).arg("-o").arg(&output);
    let built = command.output().unwrap();
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{command:?}: {errors}");
    Some(std::fs::read(&output).unwrap())
}

/// What a program's symbols call the functions that were found.
fn named(program: Vec<u8>) -> Result<Names, String> {
    let image = ElfImage::new(Box::new(program)).unwrap();
    let shape = find(&image)?;
    let mut names = Names::new();
    for_each_symbol(&image, |_, symbol| {
        for found in shape.functions.iter().filter(|found| found.start == symbol.address.0) {
            let name = String::from_utf8_lossy(symbol.name).into_owned();
            names.entry(found.name).or_default().push(name);
        }
    });
    assert_eq!(names.len(), shape.functions.len(), "{shape:?}: {names:?}");
    Ok(names)
}

fn assert_named(compiler: &str, arguments: &[&str], expected: &[(&str, &str)]) {
    let Some(program) = build(compiler, arguments, PROGRAM) else {
        return;
    };
    let names = named(program).unwrap();
    for (function, symbol) in expected {
        let names = names.get(function).unwrap_or_else(|| panic!("{function}: {names:?}"));
        assert!(
            names.iter().any(|name| name.starts_with(symbol)),
            "{function}: {names:?}"
        );
    }
    assert_eq!(names.len(), expected.len(), "{names:?}");
}

#[test]
fn glibc() {
    let expected = [
        ("malloc", "malloc"),
        ("free", "free"),
        ("realloc", "realloc"),
        ("calloc", "calloc"),
        ("memalign", "_mid_memalign"),
    ];
    for arguments in [["-O2", "-static"], ["-O0", "-static-pie"]] {
        assert_named("gcc", &arguments, &expected);
    }
}

#[test]
fn musl() {
    let expected = [
        ("malloc", "__libc_malloc_impl"),
        ("free", "__libc_free"),
        ("realloc", "__libc_realloc"),
        ("aligned_alloc", "aligned_alloc"),
    ];
    assert_named("musl-gcc", &["-O2", "-static"], &expected);
}

#[test]
fn an_allocator_of_its_own_is_refused() {
    for compiler in ["gcc", "musl-gcc"] {
        if let Some(program) = build(compiler, &["-O2", "-static"], OWN) {
            named(program).unwrap_err();
        }
    }
}

/// What is damaged is found or not; what is found lies in code.
#[test]
fn damaged_programs() {
    let Some(program) = build("musl-gcc", &["-O2", "-static"], PROGRAM) else {
        return;
    };
    let mut state = 1u32;
    let mut random = |limit: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % limit
    };
    for round in 0..40 {
        let mut damaged = program.clone();
        for _ in 0..1 << (round % 12) {
            // The ELF header stays, so that the rest is reached.
            let at = 64 + random(damaged.len() - 64);
            damaged[at] = random(256) as u8;
        }
        let Ok(image) = ElfImage::new(Box::new(damaged)) else {
            continue;
        };
        for found in find(&image).into_iter().flat_map(|shape| shape.functions) {
            assert!(image.is_code(crate::model::ElfAddress(found.start)), "{found:?}");
        }
    }
}
