//! A user other than root, with capabilities: leaktrace and its folder as that user has them.
//!
//! Invariant: the sets that are tried are those of the README.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::machine;

/// `nobody`, on every distribution.
const ID: u32 = 65534;

/// A folder of that user's, with a copy of leaktrace in it: the source tree may be closed to others.
pub struct User {
    folder: TempDir,
}

impl User {
    /// With an empty folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("leaktrace");
        fs::copy(machine::leaktrace(), &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
        chown(folder.path(), Some(ID), Some(ID))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// leaktrace, run by this user with these capabilities and no other.
    pub fn leaktrace(&self, capabilities: &[String]) -> Command {
        let mut command = with_capabilities(capabilities);
        command.arg(self.path("leaktrace"));
        command
    }
}

/// What runs a command as this user, without any capability.
pub fn without_capabilities() -> Command {
    with_capabilities(&[])
}

fn with_capabilities(capabilities: &[String]) -> Command {
    let added: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let id = ID.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{set}=-all{added}"));
    }
    command
}

/// The capabilities that a line of the README's needs lists, such as `Recording`.
///
/// # Errors
/// When there is no such line.
pub fn readme_capabilities(what: &str) -> Result<Vec<String>> {
    let readme = fs::read_to_string(machine::root().join("README.md"))?;
    let list = readme
        .lines()
        .find_map(|line| line.strip_prefix(&format!("- {what}: ")));
    let list = list.with_context(|| format!("the README has no line `- {what}:`"))?;
    Ok(list.split(", ").map(str::to_owned).collect())
}
