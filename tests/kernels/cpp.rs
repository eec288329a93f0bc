//! Exceptions that are thrown through functions with probes: one wrong return address, and the program is gone.

use anyhow::Result;
use leaktrace_tests::machine;
use leaktrace_tests::scenario::{assert_exact, record_program};

/// Here operator new itself has to be probed: nothing else is called.
#[test]
fn bad_alloc_through_operators_of_the_program_itself() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("throwing_custom", "")?;
    assert_exact(&truth, &recorded.profile);
    Ok(())
}
