//! What the administrator wrote: `/etc/leaktrace.toml`, read, checked and documented.
//!
//! `schema` is the table of all keys; everything else follows it. Does not act on anything; only [`Config::check`] looks
//! at other files than the configuration itself. Invariant: a [`Config`] that
//! came from a file is possible as a whole: each value within its limits, and none against another.

mod network;
mod pattern;
mod problem;
mod read;
mod reference;
mod rule;
mod schema;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod value;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::pattern::Pattern;
pub use self::problem::{ConfigError, Problem};
use self::read::Depth;
pub use self::reference::{example, reference};
pub use self::rule::Rule;
use super::push::TargetSettings;
use crate::monitor;
use crate::proc::files::open_regular;

/// Where the configuration is unless another file is named.
pub const DEFAULT_PATH: &str = "/etc/leaktrace.toml";
/// Largest file.
const MAX_FILE: u64 = 1 << 20;

/// The configuration of a daemon. What each key means is told in `docs/configuration.md`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Looking at every process.
    pub watch: Watch,
    /// Probes.
    pub trace: Trace,
    /// What they may cost.
    pub budget: Budget,
    /// Profiles on disk.
    pub export: Export,
    /// Systems that profiles are sent to.
    pub push: Vec<TargetSettings>,
    /// API and page.
    pub http: Http,
}

/// `[watch]`
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    /// Between two looks.
    pub interval: Duration,
    /// How far back timelines go.
    pub history: Duration,
    /// Bytes per hour from which on a process is growing.
    pub growth_slope: f64,
    /// How long it must, until it is traced.
    pub growth_time: Duration,
    /// How long it must not, until it is released.
    pub release_time: Duration,
    /// Most processes whose growth is followed by stack without probes.
    pub suspects: usize,
    /// Mean bytes of growth between two samples of it.
    pub suspect_interval: u64,
}

impl Watch {
    /// What of it the monitor goes by.
    pub fn monitor(&self) -> monitor::Settings {
        monitor::Settings::new(self.history, self.growth_time)
    }
}

/// `[trace]`
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Trace what grows.
    pub auto: bool,
    /// Most processes at once.
    pub max_processes: usize,
    /// Mean bytes between two samples at the start.
    pub sample_interval: u64,
    /// What is traced in any case, in the order of the file.
    pub rules: Vec<Rule>,
}

/// `[budget]`
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Share of one CPU for the probes in one process, 0.01 being one percent.
    pub target_cpu: f64,
    /// Share of all CPUs for all probes.
    pub machine_cpu: f64,
    /// Share of one CPU for the daemon.
    pub own_cpu: f64,
    /// Resident bytes of the daemon.
    pub own_memory: u64,
}

/// `[export]`
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// Where profiles go.
    pub directory: PathBuf,
    /// Between two of a traced process.
    pub interval: Duration,
    /// Between two of a watched Go process.
    pub go_interval: Duration,
    /// Most profiles of one process.
    pub keep_count: u64,
    /// Oldest profile.
    pub keep_age: Duration,
    /// Most bytes of all.
    pub keep_bytes: u64,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// Address and port; `None`: no TCP.
    pub listen: Option<SocketAddr>,
    /// Unix socket; `None`: no socket.
    pub socket: Option<PathBuf>,
    /// File with the token.
    pub token_file: PathBuf,
    /// Certificate chain, PEM; there if and only if `tls_key` is.
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// DNS names that callers may use, in lower case and without the dot at the end; there only with TLS.
    pub names: Vec<String>,
    /// Most connections.
    pub max_clients: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("the defaults of the table are possible")
    }
}

impl Config {
    /// Reads a file that was named.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::Unreadable`], or [`ConfigError::Invalid`] with all findings.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_to(path, Depth::Text)
    }

    /// Reads a file that was named, and tries out what it names on this machine: certificates and tokens. Some of that
    /// may be put right while the daemon runs.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn check(path: &Path) -> Result<Self, ConfigError> {
        Self::load_to(path, Depth::Machine)
    }

    /// As [`check`](Self::check) with [`DEFAULT_PATH`]; defaults if there is no such file.
    ///
    /// # Errors
    /// As [`load_default`](Self::load_default).
    pub fn check_default() -> Result<Self, ConfigError> {
        Self::or_default(Self::check(Path::new(DEFAULT_PATH)))
    }

    fn load_to(path: &Path, depth: Depth) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        read::read(&text, depth).map_err(|problems| ConfigError::Invalid {
            path: path.to_owned(),
            problems,
        })
    }

    /// Reads [`DEFAULT_PATH`]; defaults if there is no such file.
    ///
    /// # Errors
    /// As [`load`](Self::load), without [`ConfigError::Missing`].
    pub fn load_default() -> Result<Self, ConfigError> {
        Self::load_or_default(Path::new(DEFAULT_PATH))
    }

    fn load_or_default(path: &Path) -> Result<Self, ConfigError> {
        Self::or_default(Self::load(path))
    }

    fn or_default(read: Result<Self, ConfigError>) -> Result<Self, ConfigError> {
        match read {
            Err(ConfigError::Missing { .. }) => Ok(Self::default()),
            other => other,
        }
    }

    /// Reads a text.
    ///
    /// # Errors
    /// All findings, in the order of the text.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        read::read(text, Depth::Text)
    }

    /// Keys that `new` has otherwise and that are read at the start alone, such as `http.listen`. Everything else can
    /// be taken over while the daemon runs.
    pub fn restart_needed(&self, new: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        for key in schema::SECTIONS.iter().flat_map(|section| section.keys) {
            if let Some((name, differs)) = key.restart
                && differs(self, new)
            {
                keys.push(name);
            }
        }
        keys
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let (file, _) = open_regular(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
        _ => unreadable(source),
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {} bytes", MAX_FILE),
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let bytes = error.into_bytes();
        let before = String::from_utf8_lossy(&bytes[..valid]);
        let mut problems = problem::Problems::new(&before);
        problems.add(valid..valid, "", "not UTF-8; save the file in that encoding");
        ConfigError::Invalid {
            path: path.to_owned(),
            problems: problems.finish(),
        }
    })
}
