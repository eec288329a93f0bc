//! Programs on musl, whose C library is its dynamic linker, too, and has no unwind tables: exact numbers all the same, by
//! stacks that end at main.

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
