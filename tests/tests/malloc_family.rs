//! Each function of the malloc family on its own: exact objects and bytes, dynamically and statically linked, and stripped.

use anyhow::Result;
use leaktrace_tests::scenario::{assert_exact, assert_exact_in_total, record_program};
use leaktrace_tests::{machine, scenario};

/// Leaks 250 blocks of 1,000 through one function.
fn alone(program: &str, function: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program(program, function)?;
    assert_exact(&truth, &recorded.profile);
    // The 750 blocks that were freed were seen as well.
    let freed = recorded.profile.allocated_through("use_and_free");
    assert_eq!(freed.objects, 750, "{}", recorded.profile.shown());
    assert_eq!(
        recorded.profile.outstanding_through("use_and_free"),
        scenario::amount(0, 0)
    );
    Ok(())
}

macro_rules! each {
    ($program:literal: $($name:ident $function:literal),+ $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            alone($program, $function)
        }
    )+};
}

each! { "malloc_family":
    malloc "malloc",
    calloc "calloc",
    realloc "realloc",
    reallocarray "reallocarray",
    aligned_alloc "aligned_alloc",
    posix_memalign "posix_memalign",
    memalign "memalign",
    valloc "valloc",
    pvalloc "pvalloc",
    strdup "strdup",
    strndup "strndup",
}

each! { "malloc_family_static":
    static_malloc "malloc",
    static_calloc "calloc",
    static_realloc "realloc",
    static_aligned_alloc "aligned_alloc",
    static_posix_memalign "posix_memalign",
}

/// As [`alone`], where no function has a name and the allocator's are found by their shape.
fn nameless(program: &str, library: &str, function: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program(program, function)?;
    let profile = &recorded.profile;
    assert_exact_in_total(&truth, profile);
    let mut allocated = 0;
    for sample in profile.heap() {
        allocated += sample.allocated().objects;
    }
    // 500 empty blocks that musl's realloc to nothing hands out.
    let expected = if library == "musl" && function == "realloc" {
        1500
    } else {
        1000
    };
    assert_eq!(allocated, expected, "{}", profile.shown());
    let found = format!("found by shape: {library}'s ");
    assert!(
        profile.comments.iter().any(|comment| comment.contains(&found)),
        "no `{found}` in {:?}",
        profile.comments
    );
    Ok(())
}

macro_rules! each_nameless {
    ($program:literal, $library:literal: $($name:ident $function:literal),+ $(,)?) => {$(
        #[test]
        fn $name() -> Result<()> {
            nameless($program, $library, $function)
        }
    )+};
}

each_nameless! { "malloc_family_stripped", "glibc":
    stripped_malloc "malloc",
    stripped_calloc "calloc",
    stripped_realloc "realloc",
    stripped_posix_memalign "posix_memalign",
}

each_nameless! { "malloc_family_stripped_pie", "glibc":
    stripped_pie_malloc "malloc",
}

each_nameless! { "malloc_family_musl_stripped", "musl":
    stripped_musl_malloc "malloc",
    stripped_musl_realloc "realloc",
    stripped_musl_aligned_alloc "aligned_alloc",
}

#[test]
fn strdup_is_a_frame_above_malloc() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("malloc_family", "strdup")?;
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        scenario::amount(truth.leaked_objects, truth.leaked_bytes)
    );
    let named = recorded.profile.heap().filter(|sample| sample.inuse().objects > 0);
    for sample in named {
        assert!(
            sample.stack.iter().any(|frame| frame.name().contains("strdup")),
            "{:?}",
            sample.names()
        );
    }
    Ok(())
}

#[test]
fn realloc_growing_shrinking_failing() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("realloc_moves", "")?;
    let profile = &recorded.profile;
    scenario::assert_exact_in_total(&truth, profile);
    // A block belongs to whoever sized it last; one that could not be resized stays with its first owner.
    let through = |function: &str| profile.outstanding_through(function);
    assert_eq!(
        through("grow_here"),
        scenario::amount(50, 50 * 5000),
        "{}",
        profile.shown()
    );
    assert_eq!(
        through("shrink_here"),
        scenario::amount(50, 50 * 40),
        "{}",
        profile.shown()
    );
    assert_eq!(
        through("leak_here"),
        scenario::amount(50, 50 * 100),
        "{}",
        profile.shown()
    );
    assert_eq!(through("fail_here"), scenario::amount(0, 0), "{}", profile.shown());
    Ok(())
}
