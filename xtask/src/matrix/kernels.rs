//! Debian's kernels: which ones, and where they lie unpacked.
//!
//! Each class is found by looking at the package lists: the newest that is to be had. It is kept in a cache, like Go's
//! toolchains; remove its folder to have a newer one looked for. Invariant: nothing is asked of the network for a class
//! that is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::private_apt::PrivateApt;

/// Where kernels are unpacked, each class in a folder of its own.
const CACHE: &str = "/var/cache/leaktrace-tests/kernels";
const SUITES: [&str; 8] = [
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "sid",
];
/// Of one class so many are tried: of a superseded version parts vanish from the archive before its name does.
const TRIES: usize = 3;
/// From this version on the kernel is in `linux-binary-V` and `linux-modules-V`, and `linux-image-V` is empty.
const SPLIT: [u64; 2] = [6, 19];

/// A kind of kernel that a result is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// 5.10, of Debian 11: too old, and has to be refused in words.
    TooOld,
    /// 6.1, of Debian 12.
    Oldstable,
    /// 6.12, of Debian 13.
    Stable,
    /// The highest version of Debian 13's backports and of sid.
    Newest,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TooOld, Self::Oldstable, Self::Stable, Self::Newest];

    /// As it is written on the command line, and as its folder is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooOld => "5.10",
            Self::Oldstable => "6.1",
            Self::Stable => "6.12",
            Self::Newest => "newest",
        }
    }

    /// Without a result on it there is none at all.
    fn is_mandatory(self) -> bool {
        self != Self::TooOld
    }

    /// `6.12.118+deb13` is Debian 13's own 6.12.
    fn has(self, version: &str) -> bool {
        match self {
            Self::TooOld => abi(version, "5.10.0-"),
            Self::Oldstable => abi(version, "6.1.0-"),
            Self::Stable => version.starts_with("6.12.") && version.contains("+deb13"),
            Self::Newest => version.contains("+deb"),
        }
    }
}

/// `6.1.0-57` is Debian's 57th of 6.1, and `6.1.0-0.deb11.52` is the one rebuilt for the release before.
fn abi(version: &str, prefix: &str) -> bool {
    version
        .strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A kernel on this machine.
pub struct Kernel {
    /// What `uname -r` says in it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its modules, with `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// What was unpacked into a folder, if it is whole.
    fn of(place: &Path) -> Option<Self> {
        let folders = [place.join("usr/lib/modules"), place.join("lib/modules")];
        let modules = folders.iter().find_map(|folder| {
            let entries = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            entries.into_iter().next()
        })?;
        let release = modules.file_name()?.to_str()?.to_owned();
        let images = [place.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.exists())?;
        Some(Self {
            release,
            image,
            modules,
        })
    }

    /// Writes `modules.dep`, which packages do not have: it is made when they are installed.
    fn find_dependencies(&self) -> Result<()> {
        // Below it depmod looks for lib/modules.
        let base = self.modules.ancestors().nth(3).context("modules lie in lib/modules")?;
        let mut depmod = Command::new("depmod");
        // What is built in is listed in a file that newer packages do not have, which it warns of.
        depmod.arg("-b").arg(base).arg(&self.release);
        command::answer(&mut depmod).with_context(|| format!("`{}` failed", command::shown(&depmod)))?;
        Ok(())
    }
}

/// A class's kernel in the cache.
pub fn cached(class: Class) -> Option<Kernel> {
    Kernel::of(&place(class)).filter(|kernel| kernel.modules.join("modules.dep").exists())
}

/// Brings about the kernels of `classes`. One that is not to be had is left out with its reason.
///
/// # Errors
/// Where a mandatory one cannot be had.
pub fn ensure_all(classes: &[Class]) -> Result<()> {
    let missing: Vec<Class> = classes
        .iter()
        .copied()
        .filter(|class| cached(*class).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = PrivateApt::new(&SUITES)?;
    let names = apt.names("^linux-(image|binary|modules)-[0-9].*-cloud-amd64$")?;
    for class in missing {
        match download(&apt, class, &names) {
            Ok(kernel) => eprintln!(
                "setup: unpacked kernel {} to `{}`",
                kernel.release,
                place(class).display()
            ),
            Err(error) if class.is_mandatory() => {
                return Err(error.context(format!(
                    "failed to get a kernel {}, which has to be tried",
                    class.name()
                )));
            }
            Err(error) => eprintln!("skipped: no kernel {}: {error:#}", class.name()),
        }
    }
    Ok(())
}

fn place(class: Class) -> PathBuf {
    Path::new(CACHE).join(class.name())
}

fn download(apt: &PrivateApt, class: Class, names: &[String]) -> Result<Kernel> {
    let place = place(class);
    let mut last = None;
    for version in versions(class, names).into_iter().take(TRIES) {
        match apt.unpack(&packages(&version), &place) {
            Ok(()) => {
                let kernel = Kernel::of(&place).with_context(|| format!("the packages of {version} hold no kernel"))?;
                kernel.find_dependencies()?;
                return Ok(kernel);
            }
            Err(error) => {
                eprintln!("setup: kernel {version} is not to be had: {error:#}");
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("no suite has one"),
    }
}

/// Versions of a class that are to be had, newest first.
fn versions(class: Class, names: &[String]) -> Vec<String> {
    let mut versions: Vec<String> = names
        .iter()
        .filter_map(|name| version(name))
        .filter(|version| class.has(version))
        .filter(|version| packages(version).iter().all(|package| names.contains(package)))
        .map(str::to_owned)
        .collect();
    versions.sort_by_key(|version| std::cmp::Reverse(numbers(version)));
    versions.dedup();
    versions
}

/// `6.1.0-57` of `linux-image-6.1.0-57-cloud-amd64`.
fn version(name: &str) -> Option<&str> {
    let rest = ["linux-image-", "linux-binary-"]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    rest.strip_suffix("-cloud-amd64")
}

/// What a version is in.
fn packages(version: &str) -> Vec<String> {
    let parts: &[&str] = if numbers(version).as_slice() >= SPLIT.as_slice() {
        &["binary", "modules"]
    } else {
        &["image"]
    };
    parts
        .iter()
        .map(|part| format!("linux-{part}-{version}-cloud-amd64"))
        .collect()
}

/// The numbers of a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// The files of the modules `wanted` and of all that they need, in the order to load them. What is not among the modules
/// is built in.
///
/// # Errors
/// When `modules.dep` cannot be read.
pub fn modules(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let path = kernel.modules.join("modules.dep");
    let dependencies = fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let files = load_order(&dependencies, wanted);
    let files: Vec<PathBuf> = files.into_iter().map(|file| kernel.modules.join(file)).collect();
    for file in &files {
        ensure!(file.exists(), "`{}` is not there", file.display());
    }
    Ok(files)
}

/// `modules.dep` has for each module what it needs, what is to be loaded first at the end.
fn load_order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for module in wanted {
        let line = dependencies.lines().find_map(|line| {
            let (file, needed) = line.split_once(':')?;
            let name = file.rsplit('/').next()?.split('.').next()?;
            (name == *module).then_some((file, needed))
        });
        let Some((file, needed)) = line else { continue };
        for file in needed.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(versions: &[&str]) -> Vec<String> {
        versions.iter().flat_map(|version| packages(version)).collect()
    }

    #[test]
    fn the_newest_of_each_class_comes_first() {
        let names = names(&[
            "5.10.0-46",
            "6.1.0-9",
            "6.1.0-57",
            "6.1.0-0.deb11.99",
            "6.12.9+deb13",
            "6.12.118+deb13",
            "6.12.120+deb12",
            "7.3.4+deb13",
            "7.2.13+deb14",
        ]);
        assert_eq!(versions(Class::TooOld, &names), ["5.10.0-46"]);
        assert_eq!(versions(Class::Oldstable, &names), ["6.1.0-57", "6.1.0-9"]);
        assert_eq!(versions(Class::Stable, &names), ["6.12.118+deb13", "6.12.9+deb13"]);
        assert_eq!(versions(Class::Newest, &names)[..2], ["7.3.4+deb13", "7.2.13+deb14"]);
    }

    #[test]
    fn a_version_whose_modules_are_gone_is_none() {
        let names = [
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
        ];
        assert!(versions(Class::Newest, &names.map(str::to_owned)).is_empty());
    }

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let dependencies = "kernel/virtio.ko: kernel/ring.ko\nkernel/ring.ko:\n\
                            kernel/virtio_blk.ko.xz: kernel/virtio.ko kernel/ring.ko\n";
        assert_eq!(
            load_order(dependencies, &["virtio_pci", "virtio_blk"]),
            ["kernel/ring.ko", "kernel/virtio.ko", "kernel/virtio_blk.ko.xz"]
        );
    }
}
