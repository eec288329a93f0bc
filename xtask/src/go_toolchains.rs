//! Go toolchains for the tests: Debian's packages of several releases, unpacked beside each other.
//!
//! They run from their folders (GOROOT set) and touch nothing of this machine. Invariant: nothing is asked of the network while all toolchains are there.

use std::path::Path;

use anyhow::{Result, bail};

use leaktrace_tests::golang::{CACHE, MANDATORY, MINORS, goroot};

use crate::private_apt::PrivateApt;

/// Minor releases that no release of Debian has any more: not asked for, so that a machine with all others asks for
/// nothing.
const NOWHERE: [u32; 1] = [20];
/// Debian releases that hold them: 1.19; 1.21 to 1.23; 1.24; 1.25; 1.26 and 1.27.
const SUITES: [&str; 5] = ["bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];

/// Brings about all toolchains. One that is optional and not to be had is left out with its reason.
///
/// # Errors
/// Where a mandatory one cannot be had.
pub fn ensure_all() -> Result<()> {
    let missing: Vec<u32> = MINORS
        .into_iter()
        .filter(|&minor| goroot(minor).is_none() && !NOWHERE.contains(&minor))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = match PrivateApt::new(&SUITES) {
        Ok(apt) => apt,
        Err(error) if !missing.iter().any(|minor| MANDATORY.contains(minor)) => {
            eprintln!("setup: no more Go toolchains: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for minor in missing {
        eprintln!("setup: unpacking Go 1.{minor} from Debian's packages to `{CACHE}/1.{minor}`");
        match unpack(&apt, minor) {
            Ok(()) => {}
            Err(error) if !MANDATORY.contains(&minor) => eprintln!("setup: Go 1.{minor} is not to be had: {error:#}"),
            Err(error) => return Err(error.context(format!("failed to get Go 1.{minor}, which the tests need"))),
        }
    }
    Ok(())
}

fn unpack(apt: &PrivateApt, minor: u32) -> Result<()> {
    let packages = [format!("golang-1.{minor}-go"), format!("golang-1.{minor}-src")];
    apt.unpack(&packages, &Path::new(CACHE).join(format!("1.{minor}")))?;
    if goroot(minor).is_none() {
        bail!("the packages hold no complete toolchain");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root and a Debian mirror"]
    fn what_is_missing_is_unpacked() {
        ensure_all().expect("mandatory toolchains");
        assert!(MANDATORY.into_iter().all(|minor| goroot(minor).is_some()));
    }
}
