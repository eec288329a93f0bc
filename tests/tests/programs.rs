//! The test programs themselves.

use anyhow::Result;
use leaktrace_tests::programs::{names, path};

#[test]
fn every_program_builds() -> Result<()> {
    for name in names().filter(|name| !name.starts_with("rust_")) {
        assert!(path(name)?.exists(), "{name}");
    }
    Ok(())
}
