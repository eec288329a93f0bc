//! Go toolchains for the tests: Debian's packages of several releases, unpacked beside each other.
//!
//! They run from their folders (GOROOT set) and touch nothing of this machine. The mirror is the one that this machine's
//! apt uses already; the other releases of Debian that hold newer packages are asked with lists of their own, in a
//! private folder. Invariant: nothing is asked of the network while all toolchains are there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use leaktrace_tests::golang::{CACHE, MANDATORY, MINORS, goroot};

use crate::command;

/// Minor releases that no release of Debian has any more: not asked for, so that a machine with all others asks for
/// nothing.
const NOWHERE: [u32; 1] = [20];
/// Debian releases that hold them: 1.19; 1.21 to 1.23; 1.24; 1.25; 1.26 and 1.27.
const SUITES: [&str; 5] = ["bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
    let apt = match PrivateApt::new() {
        Ok(apt) => apt,
        Err(error) if !missing.iter().any(|minor| MANDATORY.contains(minor)) => {
            eprintln!("setup: no more Go toolchains: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for minor in missing {
        eprintln!("setup: unpacking Go 1.{minor} from Debian's packages to `{CACHE}/1.{minor}`");
        match apt.unpack(minor) {
            Ok(()) => {}
            Err(error) if !MANDATORY.contains(&minor) => eprintln!("setup: Go 1.{minor} is not to be had: {error:#}"),
            Err(error) => return Err(error.context(format!("failed to get Go 1.{minor}, which the tests need"))),
        }
    }
    Ok(())
}

/// apt with sources, lists and status of its own. Removed when it goes.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    fn new() -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "`{KEYRING}` is not there (package debian-archive-keyring)"
        );
        let mirror = mirror()?;
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
        let lines: String = SUITES
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .concat();
        fs::write(apt.folder.join("etc/sources.list"), lines)?;
        // One release of Debian may not be to be had (a mirror that has stood still is refused after a while): the others are,
        // and what is missing then shows when it is downloaded.
        if let Err(error) = command::run(apt.apt_get().args(["update", "-q"])) {
            eprintln!("setup: going on without some package lists: {error:#}");
        }
        Ok(apt)
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
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

    fn unpack(&self, minor: u32) -> Result<()> {
        let packages = [format!("golang-1.{minor}-go"), format!("golang-1.{minor}-src")];
        command::run(self.apt_get().args(["download", "-q"]).args(&packages))?;
        // Unpacked beside its place and renamed, so that a toolchain is there as a whole or not at all.
        let place = Path::new(CACHE).join(format!("1.{minor}"));
        let partial = Path::new(CACHE).join(format!(".1.{minor}.partial"));
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
        let _ = fs::remove_dir_all(&place);
        fs::rename(&partial, &place).with_context(|| format!("failed to move `{}`", partial.display()))?;
        if goroot(minor).is_none() {
            bail!("the packages hold no complete toolchain");
        }
        Ok(())
    }
}

impl Drop for PrivateApt {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The Debian mirror that this machine's apt uses.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let answer = command::answer(&mut targets).context("apt-get names no package sources")?;
    choose_mirror(&answer).context("no Debian mirror is among this machine's apt sources")
}

/// The first address whose path is that of the main archive.
fn choose_mirror(addresses: &str) -> Option<String> {
    let mut addresses = addresses.lines().map(|line| line.trim().trim_end_matches('/'));
    addresses
        .find(|address| address.ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_told_from_its_neighbours() {
        let addresses = "http://m.example/debian-security/\nhttps://v.example/apt/\nhttp://m.example/debian/\n";
        assert_eq!(choose_mirror(addresses).as_deref(), Some("http://m.example/debian"));
        assert_eq!(choose_mirror("http://m.example/ubuntu/\n"), None);
    }

    #[test]
    #[ignore = "needs root and a Debian mirror"]
    fn what_is_missing_is_unpacked() {
        ensure_all().expect("mandatory toolchains");
        assert!(MANDATORY.into_iter().all(|minor| goroot(minor).is_some()));
    }
}
