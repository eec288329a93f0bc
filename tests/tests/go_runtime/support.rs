//! Building and driving the Go test programs.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use leaktrace_tests::golang;
pub use leaktrace_tests::golang::{MANDATORY, MINORS};

/// Longest wait for an answer of a program.
const PATIENCE: Duration = Duration::from_secs(60);

/// A way of building.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Symbols and DWARF, no C.
    Normal,
    /// `-s -w`.
    Stripped,
    /// Position-independent and stripped.
    Pie,
    /// The same without section headers.
    PieNoSections,
    /// With C, dynamically linked, with symbols.
    Cgo,
    /// With C and stripped.
    CgoStripped,
    /// With C, statically linked and stripped.
    Static,
}

/// All of them.
pub const FORMS: [Form; 7] = [
    Form::Normal,
    Form::Stripped,
    Form::Pie,
    Form::PieNoSections,
    Form::Cgo,
    Form::CgoStripped,
    Form::Static,
];

impl Form {
    fn is_cgo(self) -> bool {
        matches!(self, Self::Cgo | Self::CgoStripped | Self::Static)
    }

    fn is_stripped(self) -> bool {
        !matches!(self, Self::Normal | Self::Cgo)
    }
}

/// The GOROOT of a minor release. `None` (with the reason printed) for an optional one that is missing.
pub fn goroot(minor: u32) -> Option<PathBuf> {
    let found = golang::goroot(minor);
    if found.is_none() {
        assert!(
            !MANDATORY.contains(&minor),
            "Go 1.{minor} is mandatory: run `cargo xtask setup`"
        );
        println!("skipped: no Go 1.{minor} here (`cargo xtask setup` unpacks it where Debian has it)");
    }
    found
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

static BUILDS: LazyLock<Mutex<HashMap<PathBuf, ()>>> = LazyLock::new(Mutex::default);

/// Builds a program of `tests/programs/go`, once per release and form. Go's own cache makes the next run fast.
pub fn build(minor: u32, program: &str, form: Form) -> Option<PathBuf> {
    let root = goroot(minor)?;
    let output = workspace().join(format!("target/go-tests/1.{minor}/{program}-{form:?}"));
    let mut built = BUILDS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.contains_key(&output) {
        return Some(output);
    }
    std::fs::create_dir_all(output.parent().unwrap()).unwrap();
    let mut command = Command::new(root.join("bin/go"));
    command
        .args(["build", "-trimpath", "-o"])
        .arg(&output)
        .current_dir(workspace().join("tests/programs/go"))
        .env("GOROOT", &root)
        .env("GOCACHE", workspace().join("target/go-tests/cache"))
        .envs([
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", "-mod=mod"),
            ("GOPROXY", "off"),
            ("GOTELEMETRY", "off"),
        ])
        .env("CGO_ENABLED", if form.is_cgo() { "1" } else { "0" });
    let mut flags = if form.is_stripped() {
        "-s -w".to_owned()
    } else {
        String::new()
    };
    match form {
        Form::Pie | Form::PieNoSections => {
            command.arg("-buildmode=pie");
        }
        Form::Static => flags += " -extldflags=-static",
        _ => {}
    }
    command.arg(format!("-ldflags={flags}")).arg(format!("./{program}"));
    let result = command.output().unwrap();
    assert!(
        result.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&result.stderr)
    );
    if form == Form::PieNoSections {
        // e_shoff, e_shnum and e_shstrndx.
        let mut bytes = std::fs::read(&output).unwrap();
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        std::fs::write(&output, bytes).unwrap();
    }
    built.insert(output.clone(), ());
    Some(output)
}

/// A running test program; killed when it goes.
pub struct Program {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Program {
    /// Starts a program and waits until it says that it is ready.
    pub fn start(path: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = Command::new(path)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let lines = follow(child.stdout.take().unwrap());
        let errors = follow(child.stderr.take().unwrap());
        let program = Self {
            child,
            input,
            lines,
            errors,
        };
        program.expect("ready");
        program
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of output that begins with `word`.
    pub fn expect(&self, word: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with(word) => return line,
                Ok(_) => {}
                Err(error) => {
                    panic!(
                        "no `{word}` from the program: {error}; {:?}",
                        self.errors.try_iter().collect::<Vec<_>>()
                    )
                }
            }
        }
    }

    /// Sends a command and waits for its end.
    pub fn command(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
        self.expect("done");
    }

    /// Lines of standard error so far.
    pub fn errors(&self) -> Vec<String> {
        // What was written is on its way through the pipe.
        std::thread::sleep(Duration::from_millis(100));
        self.errors.try_iter().collect()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn follow(stream: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// `truth` with what it wrote of itself.
pub struct Truth {
    /// Still running, and quiet.
    pub program: Program,
    folder: tempfile::TempDir,
}

impl Truth {
    /// Builds and starts it, and has it write what it knows. `None`: no such toolchain.
    pub fn of(minor: u32, form: Form, rate: &str) -> Option<Self> {
        let path = build(minor, "truth", form)?;
        let program = Program::start(&path, &[("MEMPROFILERATE", rate), ("GOMAXPROCS", "4")], &[]);
        let mut truth = Self {
            program,
            folder: tempfile::tempdir().unwrap(),
        };
        truth.snap();
        Some(truth)
    }

    /// Has it write what it knows now.
    pub fn snap(&mut self) {
        let folder = self.folder.path().display().to_string();
        self.program.command(&format!("snap {folder}"));
    }

    /// One of its files.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    /// One of its text files.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    /// `runtime.MemStats`.
    pub fn memstats(&self) -> serde_json::Value {
        serde_json::from_str(&self.text("memstats.json")).unwrap()
    }
}

/// Every release that is there with every form.
pub fn everywhere() -> impl Iterator<Item = (u32, Form)> {
    let minors: Vec<u32> = MINORS.into_iter().filter(|&minor| goroot(minor).is_some()).collect();
    minors.into_iter().flat_map(|minor| FORMS.map(|form| (minor, form)))
}

/// Equality of maps that shows the first entries in which they differ.
pub fn assert_same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    found: &std::collections::BTreeMap<K, V>,
    expected: &std::collections::BTreeMap<K, V>,
    name: &str,
) {
    let missing = expected
        .iter()
        .filter(|(key, value)| found.get(key) != Some(value))
        .take(2)
        .collect::<Vec<_>>();
    let extra = found
        .iter()
        .filter(|(key, value)| expected.get(key) != Some(value))
        .take(2)
        .collect::<Vec<_>>();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{name}\nexpected {missing:#?}\nfound {extra:#?}"
    );
}
