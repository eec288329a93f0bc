//! Capabilities: which leaktrace needs for what, and which of them are missing.
//!
//! The one list of them: doctor and messages are made from it, and a test compares README, unit file and manifest with it.

use std::{fs, io};

/// A capability: its number and name, and what leaktrace needs it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    number: u32,
    /// Name.
    pub name: &'static str,
    /// What for.
    pub purpose: &'static str,
}

const fn capability(number: u32, name: &'static str, purpose: &'static str) -> Capability {
    Capability { number, name, purpose }
}

/// Maps and programs.
pub const BPF: Capability = capability(39, "CAP_BPF", "load BPF programs and maps");
/// Probes.
pub const PERFMON: Capability = capability(38, "CAP_PERFMON", "attach probes and read memory from BPF programs");
/// Other processes.
pub const SYS_PTRACE: Capability = capability(19, "CAP_SYS_PTRACE", "look at other processes' mappings and files");
/// What only root may read.
pub const DAC_READ_SEARCH: Capability = capability(
    2,
    "CAP_DAC_READ_SEARCH",
    "read tracefs and other users' files, where only their owners may",
);
/// Probes as perf events, and what counts the daemon's cost.
pub const SYS_ADMIN: Capability = capability(
    21,
    "CAP_SYS_ADMIN",
    "perf events where the kernel asks for it; mount tracefs; for the daemon: measure what probes cost",
);
/// Files without a name.
pub const CHECKPOINT_RESTORE: Capability =
    capability(40, "CAP_CHECKPOINT_RESTORE", "open mapped files that were deleted");

/// What a recording needs for processes of any user, on a kernel with uprobe sessions that leaves perf events to
/// `CAP_PERFMON`.
pub const RECORDING: [Capability; 4] = [BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH];

/// What the daemon needs to keep its budgets, and what a recording needs on any kernel.
/// `CAP_SYS_ADMIN` covers `CAP_CHECKPOINT_RESTORE`.
pub const DAEMON: [Capability; 5] = [BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH, SYS_ADMIN];

impl Capability {
    /// Whether a set has it, by itself.
    pub fn is_in(self, effective: u64) -> bool {
        effective & 1 << self.number != 0
    }

    /// Whether a set has it, or `CAP_SYS_ADMIN` where the kernel takes that instead.
    pub fn is_covered_by(self, effective: u64) -> bool {
        let stands_in = [BPF, PERFMON, CHECKPOINT_RESTORE].contains(&self);
        self.is_in(effective) || stands_in && SYS_ADMIN.is_in(effective)
    }
}

/// What of the machine decides which capabilities are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// tracefs is mounted, and this user may not read it by the permissions of its files alone.
    pub tracefs_closed: bool,
    /// Why the kernel asks for `CAP_SYS_ADMIN`, if it does.
    pub admin: Option<Admin>,
}

/// Why a kernel asks for `CAP_SYS_ADMIN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// Probes are perf events.
    Probes,
    /// All perf events want it.
    PerfEvents,
}

impl Admin {
    /// The reason in words, and what would do instead.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Probes => (
                "probes are perf events, which ask for it",
                "Linux 6.13 and later do without",
            ),
            Self::PerfEvents => (
                "kernel.perf_event_paranoid is above 2, with which perf events ask for it",
                "or set sysctl kernel.perf_event_paranoid=2",
            ),
        }
    }
}

/// What tells the capabilities of this process.
pub(super) const STATUS: &str = "/proc/self/status";

/// The effective capabilities of this process as a bit set; none if they cannot be read.
pub fn effective() -> u64 {
    try_effective().unwrap_or(0)
}

/// The same.
///
/// # Errors
/// They cannot be read.
pub(super) fn try_effective() -> io::Result<u64> {
    let status = fs::read_to_string(STATUS)?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let digits = line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    Ok(digits.unwrap_or(0))
}

/// The capabilities that recording needs and `effective` lacks. Without those that let a probe be tried out at all, what
/// the trial says of `CAP_SYS_ADMIN` is worth nothing.
pub fn missing(effective: u64, circumstances: Circumstances) -> Vec<Capability> {
    let mut missing: Vec<Capability> = RECORDING
        .into_iter()
        .filter(|capability| *capability != DAC_READ_SEARCH || circumstances.tracefs_closed)
        .filter(|capability| !capability.is_covered_by(effective))
        .collect();
    let tried = [BPF, PERFMON]
        .iter()
        .all(|capability| capability.is_covered_by(effective));
    if tried && circumstances.admin.is_some() && !SYS_ADMIN.is_in(effective) {
        missing.push(SYS_ADMIN);
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(capabilities: &[Capability]) -> u64 {
        capabilities
            .iter()
            .fold(0, |set, capability| set | 1 << capability.number)
    }

    fn names(effective: u64, circumstances: Circumstances) -> Vec<&'static str> {
        let missing = missing(effective, circumstances);
        missing.iter().map(|capability| capability.name).collect()
    }

    const CLOSED: Circumstances = Circumstances {
        tracefs_closed: true,
        admin: None,
    };

    #[test]
    fn each_missing_one_is_named() {
        assert_eq!(names(set(&RECORDING), CLOSED), Vec::<&str>::new());
        for capability in RECORDING {
            let others = set(&RECORDING) & !set(&[capability]);
            assert_eq!(names(others, CLOSED), [capability.name]);
        }
        assert_eq!(
            names(0, Circumstances::default()),
            ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]
        );
    }

    #[test]
    fn sys_admin_stands_in_for_those_that_were_split_from_it() {
        assert_eq!(names(set(&[SYS_ADMIN]), Circumstances::default()), ["CAP_SYS_PTRACE"]);
        assert!(CHECKPOINT_RESTORE.is_covered_by(set(&[SYS_ADMIN])));
        assert!(!DAC_READ_SEARCH.is_covered_by(set(&[SYS_ADMIN])));
    }

    #[test]
    fn perf_events_ask_for_sys_admin() {
        let perf_events = Circumstances {
            admin: Some(Admin::Probes),
            ..CLOSED
        };
        assert_eq!(names(set(&RECORDING), perf_events), ["CAP_SYS_ADMIN"]);
        assert_eq!(names(set(&DAEMON), perf_events), Vec::<&str>::new());
        // What could not be tried is not said to be missing.
        assert!(!names(0, perf_events).contains(&"CAP_SYS_ADMIN"));
    }

    /// A file at the top of the source tree.
    fn file(name: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The words of a text that name capabilities, without the prefix.
    fn named(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        words
            .filter_map(|word| word.strip_prefix("CAP_"))
            .filter(|word| !word.is_empty())
            .collect()
    }

    fn short(capabilities: &[Capability]) -> BTreeSet<&'static str> {
        let names = capabilities.iter().map(|capability| capability.name);
        names.map(|name| name.trim_start_matches("CAP_")).collect()
    }

    #[test]
    fn the_unit_has_those_of_the_daemon() {
        let unit = file("packaging/leaktrace.service");
        let line = unit.lines().find(|line| line.starts_with("CapabilityBoundingSet="));
        assert_eq!(named(line.expect("it bounds them")), short(&DAEMON));
        // Each has its use, in a comment.
        for name in short(&DAEMON) {
            assert!(
                unit.lines().any(|line| line.starts_with('#') && line.contains(name)),
                "{name}"
            );
        }
    }

    #[test]
    fn the_manifest_has_those_of_the_daemon() {
        let manifest = file("packaging/kubernetes/daemonset.yaml");
        let line = manifest.lines().find(|line| line.trim_start().starts_with("add: ["));
        let words = line
            .expect("it adds some")
            .split(|c: char| !c.is_ascii_uppercase() && c != '_');
        let added: BTreeSet<&str> = words.filter(|word| !word.is_empty()).collect();
        assert_eq!(added, short(&DAEMON));
    }

    #[test]
    fn the_readme_has_both_sets() {
        let readme = file("README.md");
        let (_, needs) = readme.split_once("\n## Needs\n").expect("a section on needs");
        let needs = needs.split("\n## ").next().unwrap_or_default();
        let line = |begin: &str| {
            let line = needs.lines().find(|line| line.starts_with(begin));
            named(line.unwrap_or_else(|| panic!("no line `{begin}`")))
        };
        assert_eq!(line("- Recording:"), short(&RECORDING));
        assert_eq!(line("- Recording elsewhere, and the daemon:"), short(&DAEMON));
        let all: BTreeSet<&str> = short(&DAEMON).union(&short(&[CHECKPOINT_RESTORE])).copied().collect();
        assert_eq!(named(needs), all);
    }
}
