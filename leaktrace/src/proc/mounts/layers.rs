//! What overlays lie on: a file of one is a file of one of its layers, which may be on a file system that a process serves.
//!
//! The layers are named in the overlay's options, as paths of who mounted it. Anybody can mount one in a user namespace of
//! his own, over a file system that he serves himself and that he has taken out of the list of mounts since, so what the list
//! of the process's own namespace says proves nothing. Invariant: an overlay counts for more than served only if it is in
//! the list of the machine's first process, where nobody but the administrator mounts, and each layer is found there.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{FileSystem, Mount, read, unescaped};

/// Overlays on overlays that are followed: the kernel allows two.
const MAX_DEPTH: u32 = 4;

/// Mounts of the machine's first process; read when they are needed.
pub(super) struct Machine {
    mounts: OnceCell<Vec<u8>>,
    known: RefCell<HashMap<u64, FileSystem>>,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self {
            mounts: OnceCell::new(),
            known: RefCell::default(),
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn of(mounts: Vec<u8>) -> Self {
        Self {
            mounts: OnceCell::from(mounts),
            known: RefCell::default(),
        }
    }

    fn mounts(&self) -> &[u8] {
        // Where that one must not be looked at, this process's own list has to do: it is the administrator's as well.
        self.mounts
            .get_or_init(|| read("1").or_else(|_| read("self")).unwrap_or_default())
    }

    /// How far an overlay can be trusted, by its device.
    pub(super) fn overlay(&self, device: u64) -> FileSystem {
        if let Some(known) = self.known.borrow().get(&device) {
            return *known;
        }
        let kind = self.overlay_at(device, 0);
        self.known.borrow_mut().insert(device, kind);
        kind
    }

    fn overlay_at(&self, device: u64, depth: u32) -> FileSystem {
        let is_overlay = |mount: &Mount<'_>| mount.device == device && mount.name == b"overlay";
        let Some(overlay) = Mount::all(self.mounts()).find(is_overlay).filter(|_| depth < MAX_DEPTH) else {
            return FileSystem::Served;
        };
        let layers = layers(overlay.options);
        let worst = layers.iter().map(|layer| self.layer(layer, depth)).max();
        worst.unwrap_or(FileSystem::Served)
    }

    /// What a layer is on.
    fn layer(&self, path: &[u8], depth: u32) -> FileSystem {
        let path = Path::new(OsStr::from_bytes(path));
        if !path.is_absolute() {
            // Relative to a folder that nobody tells. With nothing but local file systems it is on one.
            let others = Mount::all(self.mounts()).filter(|mount| mount.name != b"overlay");
            return match others.map(|mount| FileSystem::named(mount.name)).max() {
                Some(FileSystem::Local) => FileSystem::Local,
                _ => FileSystem::Served,
            };
        }
        let mut covering: Option<(usize, Mount<'_>)> = None;
        for mount in Mount::all(self.mounts()) {
            let point = unescaped(mount.point);
            // Of two at one place the later one is on top.
            if path.starts_with(OsStr::from_bytes(&point)) && covering.is_none_or(|(length, _)| length <= point.len()) {
                covering = Some((point.len(), mount));
            }
        }
        match covering {
            Some((_, mount)) if mount.name == b"overlay" => self.overlay_at(mount.device, depth + 1),
            Some((_, mount)) => FileSystem::named(mount.name),
            None => FileSystem::Served,
        }
    }
}

/// Paths of the layers in the options of an overlay: `lowerdir=A:B`, or `lowerdir+=A` and `datadir+=B` one by one, and
/// `upperdir=C`.
fn layers(options: &[u8]) -> Vec<Vec<u8>> {
    let mut result = Vec::new();
    // Commas in names are escaped.
    for option in options.split(|byte| *byte == b',') {
        let Some(equals) = option.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let value = unescaped(&option[equals + 1..]);
        match &option[..equals] {
            b"lowerdir" => result.extend(split(&value)),
            b"lowerdir+" | b"datadir+" | b"upperdir" => result.push(value),
            _ => {}
        }
    }
    result
}

/// Names between colons; a colon in a name has a backslash before it. Layers of data alone have two before them.
fn split(names: &[u8]) -> Vec<Vec<u8>> {
    let mut result = vec![Vec::new()];
    let mut is_escaped = false;
    for byte in names {
        match (is_escaped, byte) {
            (false, b'\\') => {
                is_escaped = true;
                continue;
            }
            (false, b':') => result.push(Vec::new()),
            _ => {
                if let Some(last) = result.last_mut() {
                    last.push(*byte);
                }
            }
        }
        is_escaped = false;
    }
    result.retain(|name| !name.is_empty());
    result
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::proc::mounts::Pinned;

    const ROOT: &str = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:52 / /home/a\\040b/mnt rw - fuse.sshfs host: rw,user_id=1000\n\
        31 22 0:53 / /data rw - nfs4 host:/data rw\n";

    fn kind(options: &str) -> FileSystem {
        let mounts = format!("{ROOT}40 22 0:60 / /merged rw - overlay overlay rw,{options}\n");
        Machine::of(mounts.into_bytes()).overlay(libc::makedev(0, 60))
    }

    #[test]
    fn an_overlay_is_as_good_as_its_worst_layer() {
        assert_eq!(
            kind("lowerdir=/var/a:/var/b,upperdir=/var/c,workdir=/var/w"),
            FileSystem::Local
        );
        assert_eq!(
            kind("lowerdir=/var/a:/data/b,upperdir=/var/c,workdir=/var/w"),
            FileSystem::Network
        );
        assert_eq!(
            kind("lowerdir=/var/a:/home/a\\040b/mnt/x,upperdir=/var/c"),
            FileSystem::Served
        );
        assert_eq!(kind("lowerdir=/var/a,upperdir=/home/a\\040b/mnt"), FileSystem::Served);
        assert_eq!(kind("lowerdir+=/var/a,datadir+=/home/a\\040b/mnt"), FileSystem::Served);
        assert_eq!(kind("lowerdir=/var/a::/home/a\\040b/mnt"), FileSystem::Served);
        // A name with a colon in it, which is no second layer.
        assert_eq!(kind("lowerdir=/var/x\\134:/data"), FileSystem::Local);
        assert_eq!(kind("index=off"), FileSystem::Served);
    }

    #[test]
    fn what_is_not_known_is_served() {
        // Not in the list of the machine's first process.
        assert_eq!(
            Machine::of(ROOT.into()).overlay(libc::makedev(0, 60)),
            FileSystem::Served
        );
        assert_eq!(Machine::of(Vec::new()).overlay(0), FileSystem::Served);
        // Relative to somewhere, where there are others than local ones.
        assert_eq!(kind("lowerdir=l/A:l/B,upperdir=u"), FileSystem::Served);
        let local = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:60 / /m rw - overlay overlay rw,lowerdir=l/A:l/B\n";
        assert_eq!(
            Machine::of(local.into()).overlay(libc::makedev(0, 60)),
            FileSystem::Local
        );
    }

    #[test]
    fn overlays_on_overlays_and_on_themselves() {
        let mounts = format!(
            "{ROOT}40 22 0:60 / /one rw - overlay overlay rw,lowerdir=/var/a\n\
             41 22 0:61 / /two rw - overlay overlay rw,lowerdir=/one/a\n\
             42 22 0:62 / /three rw - overlay overlay rw,lowerdir=/three/a\n"
        );
        let machine = Machine::of(mounts.into_bytes());
        assert_eq!(machine.overlay(libc::makedev(0, 61)), FileSystem::Local);
        assert_eq!(machine.overlay(libc::makedev(0, 62)), FileSystem::Served);
    }

    #[test]
    fn a_real_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["base", "m"] {
            fs::create_dir(path(name)).unwrap();
        }
        let none = None::<&str>;
        if let Err(error) = mount(Some("tmpfs"), &path("base"), Some("tmpfs"), MsFlags::empty(), none) {
            eprintln!("skipped: cannot mount a tmpfs: {error}");
            return;
        }
        for name in ["base/l", "base/u", "base/w"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("base/l/file"), "text").unwrap();
        let shown = |name: &str| path(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            shown("base/l"),
            shown("base/u"),
            shown("base/w")
        );
        let mounted = mount(
            Some("o"),
            &path("m"),
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        );
        let found = Pinned::open(&path("m/file")).map(|file| file.file_system(std::process::id()));
        let _ = umount2(&path("m"), MntFlags::MNT_DETACH);
        let _ = umount2(&path("base"), MntFlags::MNT_DETACH);
        if let Err(error) = mounted {
            eprintln!("skipped: cannot mount an overlay: {error}");
            return;
        }
        let ours = fs::read_link("/proc/self/ns/mnt").unwrap();
        if fs::read_link("/proc/1/ns/mnt").is_ok_and(|first| first == ours) {
            assert_eq!(found.unwrap(), FileSystem::Local);
        }
    }
}
