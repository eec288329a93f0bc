//! C++ operators new and delete in all forms, and bad_alloc thrown through each of them.

use anyhow::Result;
use leaktrace_tests::scenario::{assert_exact, record, record_program};
use leaktrace_tests::{machine, programs};

fn form(name: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("new_delete", name)?;
    assert_exact(&truth, &recorded.profile);
    assert_eq!(
        recorded.profile.allocated_through("use_and_delete").objects,
        750,
        "{}",
        recorded.profile.shown()
    );
    Ok(())
}

/// The same under jemalloc, whose operators do not all end in its malloc.
fn form_in_jemalloc(name: &str) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(
        programs::command("new_delete")?
            .arg(name)
            .env("LD_PRELOAD", "libjemalloc.so.2"),
        &[],
    )?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

macro_rules! forms {
    ($check:ident: $($test:ident $name:literal),+ $(,)?) => {$(
        #[test]
        fn $test() -> Result<()> {
            $check($name)
        }
    )+};
}

forms! { form:
    plain "plain",
    sized "sized",
    array "array",
    array_sized "array_sized",
    nothrow "nothrow",
    array_nothrow "array_nothrow",
    aligned "aligned",
    aligned_sized "aligned_sized",
    array_aligned "array_aligned",
    array_aligned_sized "array_aligned_sized",
    aligned_nothrow "aligned_nothrow",
    array_aligned_nothrow "array_aligned_nothrow",
}

forms! { form_in_jemalloc:
    jemalloc_plain "plain",
    jemalloc_sized "sized",
    jemalloc_array "array",
    jemalloc_nothrow "nothrow",
    jemalloc_aligned "aligned",
    jemalloc_array_aligned_nothrow "array_aligned_nothrow",
}

#[test]
fn bad_alloc_through_libstdcxx() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("throwing", "")?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}

#[test]
fn bad_alloc_through_jemalloc() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(
        programs::command("throwing")?.env("LD_PRELOAD", "libjemalloc.so.2"),
        &[],
    )?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}
