//! Programs on musl, whose C library is its dynamic linker, too, and has no unwind tables: exact numbers all the same, by
//! stacks that reach main through the library's own functions.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use leaktrace_tests::process::Truth;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{assert_exact, record_program};
use leaktrace_tests::{machine, programs};

fn attached(program: &str, function: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program(program, function)?;
    assert_exact(&truth, &recorded.profile);
    let freed = recorded.profile.allocated_through("use_and_free");
    // musl's realloc to nothing hands out an empty block, 500 times.
    let expected = if function.starts_with("realloc") { 1250 } else { 750 };
    assert_eq!(freed.objects, expected, "{}", recorded.profile.shown());
    Ok(())
}

macro_rules! each {
    ($program:literal: $($name:ident $function:literal),+ $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            attached($program, $function)
        }
    )+};
}

each! { "malloc_family_musl":
    malloc "malloc",
    calloc "calloc",
    realloc "realloc",
    reallocarray "reallocarray",
    aligned_alloc "aligned_alloc",
    posix_memalign "posix_memalign",
    memalign "memalign",
}

each! { "malloc_family_musl_static":
    static_malloc "malloc",
    static_calloc "calloc",
    static_realloc "realloc",
    static_posix_memalign "posix_memalign",
}

/// Through functions of the library that allocate, or call back.
fn reaches_main(program: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program(program, "")?;
    let profile = &recorded.profile;
    for function in [
        "through_strdup",
        "through_asprintf",
        "through_fopen",
        "through_getline",
        "through_tsearch",
        "through_qsort",
        "through_signal",
    ] {
        let objects = profile.outstanding_through(function).objects;
        assert_eq!(objects, 50, "{function}: {}", profile.shown());
    }
    for function in ["main", "work"] {
        let objects = profile.outstanding_through(function).objects;
        assert_eq!(objects, truth.objects() as i64, "{function}: {}", profile.shown());
    }
    for sample in profile.heap().filter(|sample| sample.allocated().objects > 0) {
        assert!(sample.passes("main"), "{:?}", sample.names());
    }
    Ok(())
}

#[test]
fn stacks_through_libc_reach_main() -> Result<()> {
    reaches_main("through_libc_musl")
}

#[test]
fn stacks_through_a_static_libc_reach_main() -> Result<()> {
    reaches_main("through_libc_musl_static")
}

/// Traced from the first instruction, and let go when its libraries are loaded: not held until the limit of 20 seconds.
fn started(program: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let program = programs::path(program)?;
    let began = Instant::now();
    let mut recording = Recording::of_command(&[], &[&program.to_string_lossy()])?;
    let command = recording.tracer();
    command.expect("ready")?;
    ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let truth: Truth = command.work()?;
    command.send("exit")?;
    let recorded = recording.finish()?;
    assert_exact(&truth, &recorded.profile);
    // 200 blocks from before it is ready.
    let in_main = recorded.profile.allocated_through("main");
    ensure!(in_main.objects >= 200 + 7 + 600, "{}", recorded.profile.shown());
    Ok(())
}

#[test]
fn a_command_is_traced_from_its_start() -> Result<()> {
    started("innocent_musl")
}

#[test]
fn a_static_command_is_traced_from_its_start() -> Result<()> {
    started("innocent_musl_static")
}
