//! Bringing peers onto the machine that its own release does not have.
//!
//! libbpf-tools' `memleak` is not in Debian 12: Debian 13's package and the libraries that it needs are unpacked into
//! `target/peers`, from the machine's own mirror, without touching the machine's package lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, workspace};

const SUITE: &str = "trixie";
const PACKAGES: &[&str] = &["libbpf-tools", "libc6", "libelf1t64", "zlib1g", "libzstd1", "libgcc-s1"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// `memleak` with its loader and libraries.
pub struct Memleak {
    root: PathBuf,
}

impl Memleak {
    /// Unpacks it if it is not there.
    ///
    /// # Errors
    /// When the machine's sources have no Debian mirror, or the packages cannot be had.
    pub fn ensure() -> Result<Self> {
        let directory = workspace::target().join("peers/libbpf-tools");
        let memleak = Self {
            root: directory.join("root"),
        };
        if memleak.runs() {
            return Ok(memleak);
        }
        eprintln!("setup: unpacking {SUITE}'s libbpf-tools into {}", directory.display());
        download(&directory)?;
        for entry in fs::read_dir(directory.join("packages"))? {
            command::run(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&memleak.root))?;
        }
        if !memleak.runs() {
            bail!(
                "`{}` does not run",
                memleak.root.join("usr/sbin/memleak-libbpf").display()
            );
        }
        Ok(memleak)
    }

    /// A command that runs it.
    pub fn command(&self) -> Command {
        let libraries = self.root.join(LIBRARIES);
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(libraries)
            .arg(self.root.join("usr/sbin/memleak-libbpf"));
        command
    }

    fn runs(&self) -> bool {
        command::answer(self.command().arg("--version")).is_some()
    }
}

/// Downloads the packages with an apt that has a state of its own.
fn download(directory: &Path) -> Result<()> {
    let mirror = mirror().context("no Debian mirror in /etc/apt")?;
    for folder in [
        "apt/state",
        "apt/lists/partial",
        "apt/cache/archives/partial",
        "packages",
    ] {
        let folder = directory.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("failed to create `{}`", folder.display()))?;
    }
    let apt = directory.join("apt");
    fs::write(apt.join("status"), "")?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(
        apt.join("sources.list"),
        format!("deb [signed-by={keyring}] {mirror} {SUITE} main\n"),
    )?;
    let at = apt.display();
    let configuration = format!(
        "Dir::State \"{at}/state\";\nDir::State::lists \"{at}/lists\";\nDir::State::status \"{at}/status\";\n\
         Dir::Cache \"{at}/cache\";\nDir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n"
    );
    let configuration_path = apt.join("apt.conf");
    fs::write(&configuration_path, configuration)?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command
            .env("APT_CONFIG", &configuration_path)
            .current_dir(directory.join("packages"));
        // As root apt would download as another user, who may not write here.
        command.args(["-q", "-o", "APT::Sandbox::User=root"]);
        command
    };
    command::run(apt_get().arg("update"))?;
    command::run(apt_get().arg("download").args(PACKAGES))
}

/// The mirror that this machine takes Debian from.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path())),
    );
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
}

/// The first address of a Debian archive (not the security one) in a sources file of either format.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text
        .lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let mut words = lines.flat_map(str::split_whitespace);
    words
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_found_in_both_formats() {
        let list = "# deb http://old/debian x main\ndeb [arch=amd64] http://mirror.example/debian bookworm main\n";
        assert_eq!(mirror_in(list).as_deref(), Some("http://mirror.example/debian"));
        let deb822 = "Types: deb\nURIs: https://other.example/debian/\nSuites: bookworm\n";
        assert_eq!(mirror_in(deb822).as_deref(), Some("https://other.example/debian/"));
        assert_eq!(mirror_in("URIs: http://deb.debian.org/debian-security\n"), None);
    }
}
