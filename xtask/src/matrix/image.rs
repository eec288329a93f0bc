//! What guests boot from: one root file system for all kernels, and an initrd for each.
//!
//! The root is ext4, read-only, because uprobes need a file system of that kind; what is written goes to tmpfs. It holds
//! the program and the test binary without debug information, what they are linked with, the programs that tests trace
//! and busybox for all else. The initrd loads the few modules that the disk needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::{golang, programs};

use super::kernels::{self, Kernel};
use crate::command;

/// Statically linked.
const BUSYBOX: &str = "/bin/busybox";
/// What tests and the init script call by name.
const APPLETS: &[&str] = &["sh", "sleep", "true", "cat", "mount", "ip", "uname"];
/// Of this machine, since busybox has none.
const TOOLS: &[&str] = &["/usr/bin/nice", "/usr/bin/setpriv"];
/// The first process of the root file system.
const INIT: &str = include_str!("init.sh");
/// The first process of the initrd.
const INITRD_INIT: &str = include_str!("initrd.sh");
/// Modules that the disk needs, with what these need, if they are none of the kernel itself.
const DISK: &[&str] = &["virtio_pci", "virtio_blk"];
/// A user without privileges.
const PASSWD: &str = "root:x:0:0:root:/tmp:/bin/sh\ntester:x:1000:1000:tester:/tmp:/bin/sh\n";
const GROUP: &str = "root:x:0:\ntester:x:1000:\n";

/// Makes the root file system in `folder`.
///
/// # Errors
/// When a program does not build, or a tool is missing or fails.
pub fn root(folder: &Path, program: &Path, tests: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    for name in [
        "bin",
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "tmp",
        "var/lib",
        "var/cache",
        "root",
        "t/programs",
    ] {
        create(&root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("failed to copy `{BUSYBOX}`"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD)?;
    fs::write(root.join("etc/group"), GROUP)?;
    script(&root.join("init"), INIT)?;

    let mut linked = vec![root.join("t/leaktrace"), root.join("t/tests")];
    for (from, to) in [program, tests].into_iter().zip(&linked) {
        command::run(Command::new("strip").arg("-o").arg(to).arg(from))?;
    }
    for tool in TOOLS.iter().map(Path::new) {
        let to = root.join("bin").join(tool.file_name().unwrap_or_default());
        copy(tool, &to)?;
        linked.push(to);
    }
    for name in programs::of_own_libc() {
        let to = root.join("t/programs").join(name);
        copy(&programs::path(name)?, &to)?;
        linked.push(to);
    }
    for minor in golang::MANDATORY {
        for (name, form) in golang::FOR_GUESTS {
            let to = root.join("t/programs").join(golang::file_name(minor, name, form));
            copy(&golang::program(minor, name, form)?, &to)?;
        }
    }
    for library in libraries(&linked)? {
        let to = root.join(library.strip_prefix("/").context("a library's path is absolute")?);
        create(to.parent().context("a library lies in a folder")?)?;
        copy(&library, &to)?;
    }
    file_system(&root, &folder.join("root.img"))
}

/// Makes the initrd of a kernel in `folder`.
///
/// # Errors
/// When a module is not there or packed in an unknown way, or a tool is missing or fails.
pub fn initrd(folder: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let staging = folder.join(format!("initrd-{}.d", kernel.release));
    let _ = fs::remove_dir_all(&staging);
    for name in ["bin", "dev", "modules", "new"] {
        create(&staging.join(name))?;
    }
    copy(Path::new(BUSYBOX), &staging.join("bin/busybox"))?;
    script(&staging.join("init"), INITRD_INIT)?;
    for (index, module) in kernels::modules(kernel, DISK)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        // The order of their names is the one in which they are loaded.
        let plain = name.split_inclusive(".ko").next().unwrap_or(&name);
        fs::write(staging.join(format!("modules/{index:02}-{plain}")), unpacked(module)?)?;
    }
    let archive = folder.join(format!("initrd-{}", kernel.release));
    let mut find = Command::new("find");
    let names = command::answer(find.current_dir(&staging).arg(".")).context("`find` failed")?;
    let list = folder.join(format!("initrd-{}.list", kernel.release));
    fs::write(&list, names + "\n")?;
    let mut cpio = Command::new("cpio");
    cpio.current_dir(&staging)
        .args(["--create", "--format=newc", "--quiet"]);
    cpio.stdin(fs::File::open(&list)?).stdout(fs::File::create(&archive)?);
    command::run(&mut cpio)?;
    Ok(archive)
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let how = module.extension().unwrap_or_default().to_string_lossy();
    match &*how {
        "ko" => fs::read(module).with_context(|| format!("failed to read `{}`", module.display())),
        "xz" => {
            let output = Command::new("xz")
                .arg("-dc")
                .arg(module)
                .stderr(Stdio::inherit())
                .output()?;
            ensure!(output.status.success(), "failed to unpack `{}`", module.display());
            Ok(output.stdout)
        }
        other => bail!("`{}`: modules packed as `{other}` are not known", module.display()),
    }
}

/// The libraries of this machine that programs are linked with, and the loader.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        // It fails for what is linked statically.
        let Some(answer) = command::answer(Command::new("ldd").arg(program)) else {
            continue;
        };
        ensure!(!answer.contains("not found"), "`ldd {}`: {answer}", program.display());
        found.extend(system_libraries(&answer));
    }
    Ok(found)
}

/// Paths in what `ldd` says, without those of libraries that lie beside the program.
fn system_libraries(answer: &str) -> impl Iterator<Item = PathBuf> {
    let words = answer.split_whitespace();
    words
        .filter(|word| ["/lib", "/usr/lib"].iter().any(|folder| word.starts_with(folder)))
        .map(PathBuf::from)
}

/// An ext4 image with the contents of a folder, and room for its own tables.
fn file_system(contents: &Path, image: &Path) -> Result<PathBuf> {
    let size = command::answer(Command::new("du").args(["-s", "--block-size=1M"]).arg(contents));
    let size: u64 = size
        .as_deref()
        .and_then(|answer| answer.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("failed to measure `{}`", contents.display()))?;
    let _ = fs::remove_file(image);
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-d"])
        .arg(contents)
        .arg(image)
        .arg(format!("{}M", size * 5 / 4 + 16));
    command::run(&mut make)?;
    Ok(image.to_owned())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("failed to create `{}`", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("failed to copy `{}` to `{}`", from.display(), to.display()))?;
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_beside_a_program_are_left_where_they_are() {
        let answer = "linux-vdso.so.1 (0x1)\nlibdeep.so => /source/target/libdeep.so (0x2)\n\
                      libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x3)\n/lib64/ld-linux-x86-64.so.2 (0x4)\n";
        let found: Vec<PathBuf> = system_libraries(answer).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }
}
