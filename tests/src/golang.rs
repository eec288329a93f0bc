//! Go toolchains and the programs that they build from `tests/programs/go`.
//!
//! In the folder of programs that were built before (see [`programs`](crate::programs)) they lie as [`file_name`] says.
//! Invariant: a build needs no network; a toolchain that tests cannot do without fails them with the way to get it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::machine;
use crate::programs::{prebuilt, run};

/// Where `cargo xtask setup` unpacks toolchains; `1.NN/usr/lib/go-1.NN` below it is a GOROOT.
pub const CACHE: &str = "/var/cache/leaktrace-tests/go";
/// Minor releases without which tests fail.
pub const MANDATORY: [u32; 2] = [19, 23];
/// All minor releases that leaktrace reads, tested where they are there. No release of Debian has 1.20 any more.
pub const MINORS: [u32; 9] = [19, 20, 21, 22, 23, 24, 25, 26, 27];

/// The GOROOT of a minor release, if it is there: unpacked by `cargo xtask setup`, or installed.
pub fn goroot(minor: u32) -> Option<PathBuf> {
    let name = format!("1.{minor}");
    let places = [
        format!("{CACHE}/{name}/usr/lib/go-{name}"),
        format!("/usr/lib/go-{name}"),
    ];
    places
        .into_iter()
        .map(PathBuf::from)
        .find(|root| root.join("bin/go").exists() && root.join("src/runtime").exists())
}

static BUILDING: Mutex<()> = Mutex::new(());

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// With C, dynamically linked, with symbols.
    Cgo,
    /// The same, stripped.
    Stripped,
    /// The same, stripped and position-independent.
    Pie,
    /// Without C, statically linked and stripped.
    Pure,
}

/// The forms with C.
pub const WITH_C: [Form; 3] = [Form::Cgo, Form::Stripped, Form::Pie];

/// A toolchain.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Minor release: 19 for Go 1.19.
    pub minor: u32,
    root: PathBuf,
}

impl Toolchain {
    /// All that are there. A line says which are not.
    ///
    /// # Errors
    /// When a mandatory one is missing.
    pub fn all() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for minor in MINORS {
            match goroot(minor) {
                Some(root) => found.push(Self { minor, root }),
                None => {
                    ensure!(
                        !MANDATORY.contains(&minor),
                        "Go 1.{minor} is mandatory: run `cargo xtask setup`"
                    );
                    eprintln!("skipped: no Go 1.{minor} here (`cargo xtask setup` unpacks it where Debian has it)");
                }
            }
        }
        Ok(found)
    }

    /// The newest of those that every machine has.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub fn newest() -> Result<Self> {
        let mut all = Self::all()?;
        all.retain(|toolchain| MANDATORY.contains(&toolchain.minor));
        all.pop().context("no Go")
    }

    /// `go`, with a clean environment of its own.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.root.join("bin/go"));
        command
            .current_dir(machine::root().join("tests/programs/go"))
            .env("GOROOT", &self.root)
            .env("GOCACHE", machine::root().join("target/go-tests/cache"))
            .envs([
                ("GOTOOLCHAIN", "local"),
                ("GOFLAGS", "-mod=mod"),
                ("GOPROXY", "off"),
                ("GOTELEMETRY", "off"),
            ]);
        command
    }

    /// Builds a program. Go's own cache makes the next time fast.
    ///
    /// # Errors
    /// When it does not build.
    pub fn build(&self, program: &str, form: Form) -> Result<PathBuf> {
        let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
        let output = machine::root().join(format!("target/go-tests/1.{}/{program}-e2e-{form:?}", self.minor));
        fs::create_dir_all(output.parent().context("it has a folder")?)?;
        let libraries = strings_library()?;
        let libraries = libraries.parent().context("it has a folder")?.display().to_string();
        let mut command = self.command();
        command
            .args(["build", "-trimpath", "-o"])
            .arg(&output)
            .env("CGO_ENABLED", if form == Form::Pure { "0" } else { "1" })
            .env("CGO_LDFLAGS", format!("-L{libraries} -Wl,-rpath,{libraries}"));
        if form != Form::Cgo {
            command.arg("-ldflags=-s -w");
        }
        if form == Form::Pie {
            command.arg("-buildmode=pie");
        }
        run(command.arg(format!("./{program}")))?;
        Ok(output)
    }
}

/// The programs in Go that a guest gets, of each mandatory release.
pub const FOR_GUESTS: [(&str, Form); 1] = [("truth", Form::Pure)];

/// How a program is called in a folder of programs that were built before.
pub fn file_name(minor: u32, program: &str, form: Form) -> String {
    format!("go-1.{minor}-{program}-{form:?}")
}

/// A program by a mandatory release: built, or the one that was built before.
///
/// # Errors
/// When it is not there, or does not build.
pub fn program(minor: u32, program: &str, form: Form) -> Result<PathBuf> {
    if let Some(folder) = prebuilt() {
        let path = folder.join(file_name(minor, program, form));
        ensure!(
            path.exists(),
            "`{}` is not there: it was not built before",
            path.display()
        );
        return Ok(path);
    }
    let root = goroot(minor).with_context(|| format!("no Go 1.{minor} here: run `cargo xtask setup`"))?;
    Toolchain { minor, root }.build(program, form)
}

/// The C library of `cgocache`: optimized, without frame pointers.
fn strings_library() -> Result<PathBuf> {
    let source = machine::root().join("tests/programs/go/cgocache/library/strings.c");
    let output = machine::root().join("target/go-tests/lib/libstrings_cache.so");
    fs::create_dir_all(output.parent().context("it has a folder")?)?;
    let built = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if built(&output) < built(&source) {
        let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        command
            .args(["-O2", "-fomit-frame-pointer", "-fPIC", "-shared", "-o"])
            .arg(&output)
            .arg(&source);
        run(&mut command)?;
    }
    Ok(output)
}
