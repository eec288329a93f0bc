//! apt with sources, lists and status of its own: packages of other Debian releases, unpacked and never installed.
//!
//! The mirrors are those that this machine's apt uses already. Security suites come from the archive whose path ends in
//! `/debian-security`, all others from the main one. Invariant: what [`PrivateApt::unpack`] was asked for is at its place
//! as a whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Removed when it goes.
pub struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    /// Asks for the package lists of `suites` (`bookworm`, `trixie-backports`, `trixie-security`).
    ///
    /// # Errors
    /// Where there is no keyring or no mirror, or a folder cannot be made. A list that is not to be had is none: what is
    /// missing then shows when it is downloaded.
    pub fn new(suites: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "`{KEYRING}` is not there (package debian-archive-keyring)"
        );
        let lines = sources(suites)?;
        let apt = Self {
            folder: std::env::temp_dir().join(format!("leaktrace-apt-{}", std::process::id())),
        };
        for folder in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "state/lists/partial",
            "cache/archives/partial",
            "debs",
        ] {
            fs::create_dir_all(apt.folder.join(folder)).context("failed to create a folder for apt")?;
        }
        fs::write(apt.folder.join("state/status"), "")?;
        fs::write(apt.folder.join("etc/sources.list"), lines)?;
        // One release of Debian may not be to be had (a mirror that has stood still is refused after a while): the others are.
        if let Err(error) = command::run(apt.tool("apt-get").args(["update", "-q"])) {
            eprintln!("setup: going on without some package lists: {error:#}");
        }
        Ok(apt)
    }

    /// Names of all packages that match a regular expression.
    ///
    /// # Errors
    /// When apt does not answer.
    pub fn names(&self, expression: &str) -> Result<Vec<String>> {
        let mut search = self.tool("apt-cache");
        search.args(["search", "--names-only", expression]);
        let answer = command::answer(&mut search).with_context(|| format!("`{}` failed", command::shown(&search)))?;
        let names = answer.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads packages and unpacks them all into one folder, which replaces what is at `place`.
    ///
    /// # Errors
    /// When one cannot be had or unpacked.
    pub fn unpack(&self, packages: &[String], place: &Path) -> Result<()> {
        command::run(self.tool("apt-get").args(["download", "-q"]).args(packages))?;
        let name = place.file_name().context("a place has a name")?.to_string_lossy();
        let partial = place.with_file_name(format!(".{name}.partial"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).with_context(|| format!("failed to create `{}`", partial.display()))?;
        for entry in fs::read_dir(self.folder.join("debs"))? {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if packages.iter().any(|package| name.starts_with(&format!("{package}_"))) {
                command::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&partial))?;
                fs::remove_file(&file)?;
            }
        }
        let _ = fs::remove_dir_all(place);
        fs::rename(&partial, place).with_context(|| format!("failed to move `{}`", partial.display()))
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let folder = self.folder.display();
        for option in [
            format!("Dir::Etc={folder}/etc"),
            format!("Dir::Etc::sourcelist={folder}/etc/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/state/status"),
            format!("Dir::Cache={folder}/cache"),
            "APT::Architectures=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.current_dir(self.folder.join("debs"));
        command
    }
}

impl Drop for PrivateApt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A line of `sources.list` for each suite. Where no mirror has security updates those suites are left out.
fn sources(suites: &[&str]) -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let addresses = command::answer(&mut targets).context("apt-get names no package sources")?;
    let main = mirror(&addresses, "/debian").context("no Debian mirror is among this machine's apt sources")?;
    let security = mirror(&addresses, "/debian-security");
    let lines = suites.iter().filter_map(|suite| {
        let mirror = if suite.ends_with("-security") {
            security
        } else {
            Some(main)
        };
        mirror.map(|mirror| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
    });
    Ok(lines.collect())
}

/// The first address whose path is that of an archive.
fn mirror<'a>(addresses: &'a str, path: &str) -> Option<&'a str> {
    let mut addresses = addresses.lines().map(|line| line.trim().trim_end_matches('/'));
    addresses.find(|address| address.ends_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archives_are_told_from_their_neighbours() {
        let addresses = "http://m.example/debian-security/\nhttps://v.example/apt/\nhttp://m.example/debian/\n";
        assert_eq!(mirror(addresses, "/debian"), Some("http://m.example/debian"));
        assert_eq!(
            mirror(addresses, "/debian-security"),
            Some("http://m.example/debian-security")
        );
        assert_eq!(mirror("http://m.example/ubuntu/\n", "/debian"), None);
    }
}
