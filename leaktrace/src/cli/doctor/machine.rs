//! What the machine allows: the kernel's abilities, whether a recording works on it, its memory limit.
//!
//! Gathering and telling are apart: a [`Machine`] can be made up. What its privileges mean is in [`super::privileges`].

use std::fs;

use super::{
    memory::{MemoryLimit, memory_limit},
    report::{Row, Section},
};
use crate::{
    bpf::{
        capability::{self, Circumstances, DAC_READ_SEARCH, SYS_ADMIN},
        features::{self, TRACEPOINT_COUNT, Trial},
        kernel::UprobeMechanism,
        requirements::Obstacle,
        syscall::AttachType,
        tracefs::{MOUNT_POINT, Tracefs},
    },
    cli::{exit, quantity::bytes},
    proc::{release::Release, yama},
    session::self_test::{self, Passed, SelfTestError},
};

/// Inode numbers of the first namespaces (`PROC_USER_INIT_INO`, `PROC_PID_INIT_INO`), fixed by the kernel.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

const NOT_TRIED: &str = "not tried, for what is missing here or under Privileges";

/// The machine and what it lets this process do.
#[derive(Debug)]
pub struct Machine {
    /// Release of the kernel.
    pub release: Release,
    /// What its age or a lock takes away.
    pub obstacle: Option<Obstacle>,
    /// It has type information.
    pub btf: bool,
    /// It has uprobes.
    pub uprobes: bool,
    /// Sessions: one link for many entries and their returns.
    pub session: Trial,
    /// One link for many places.
    pub multi: Trial,
    /// Ring buffers.
    pub ring_buffer: Trial,
    /// tracefs.
    pub tracefs: Tracefs,
    /// Tracepoints that it lacks; `None` while tracefs cannot be read.
    pub missing_tracepoints: Option<Vec<String>>,
    /// What came of a recording of this program itself; `None` if it was not tried for want of a privilege or of
    /// something else above.
    pub self_test: Option<SelfTest>,
    /// Effective user.
    pub user: u32,
    /// Effective capabilities as a bit set.
    pub capabilities: u64,
    /// What decides which of them are needed.
    pub circumstances: Circumstances,
    /// Yama's limit on ptrace; `None` without Yama.
    pub ptrace_scope: Option<u32>,
    /// In the machine's first user namespace.
    pub first_user_namespace: bool,
    /// In the machine's first PID namespace.
    pub first_pid_namespace: bool,
    /// The memory limit with the least room, if there is any.
    pub memory: Option<MemoryLimit>,
}

/// What came of a recording of this program itself. Messages are whole texts.
#[derive(Debug)]
pub enum SelfTest {
    /// All of it was recorded.
    Passed(Passed),
    /// The kernel refused maps or programs.
    Refused(String),
    /// A later step failed.
    Failed(String),
}

impl SelfTest {
    fn run() -> Self {
        let result = self_test::run();
        let refused = matches!(result, Err(SelfTestError::Load(_)));
        match result.map_err(|error| exit::message(&error.into())) {
            Ok(passed) => Self::Passed(passed),
            Err(message) if refused => Self::Refused(message),
            Err(message) => Self::Failed(message),
        }
    }
}

impl Machine {
    /// Looks at this machine, and tries a recording of this program itself.
    pub fn inspect() -> Self {
        let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        let capabilities = capability::effective();
        let circumstances = features::circumstances();
        let (btf, uprobes) = (features::has_btf(), features::has_uprobes());
        let first_pid_namespace = features::in_first_pid_namespace();
        let missing = capability::missing(capabilities, circumstances);
        let able = btf && uprobes && first_pid_namespace && missing.is_empty() && Obstacle::lock().is_none();
        Self {
            release: Release::running(),
            obstacle: Obstacle::here(),
            btf,
            uprobes,
            session: features::try_uprobes(AttachType::Session),
            multi: features::try_uprobes(AttachType::Multi),
            ring_buffer: features::try_ring_buffer(),
            tracefs: Tracefs::now(),
            missing_tracepoints: features::missing_tracepoints(),
            self_test: able.then(SelfTest::run),
            user: nix::unistd::geteuid().as_raw(),
            capabilities,
            circumstances,
            ptrace_scope: yama::ptrace_scope(),
            first_user_namespace: namespace("user").as_os_str() == INITIAL_USER_NAMESPACE,
            first_pid_namespace,
            memory: memory_limit(),
        }
    }

    /// What the kernel can do. `wanted` is what the maps of a recording take at once, in bytes.
    pub fn kernel(&self, wanted: u64) -> Section {
        let rows = vec![
            self.version(),
            present("BTF", "type information of the kernel", self.btf).or(
                self.btf,
                "no type information in this kernel",
                "boot a kernel that was built with CONFIG_DEBUG_INFO_BTF (every distribution's is)",
            ),
            self.uprobes(),
            self.ring_buffer(),
            self.tracepoints(),
            self.programs(),
            self.self_test(),
            self.memory(wanted),
        ];
        Section::plain("Kernel", rows)
    }

    fn version(&self) -> Row {
        let row = Row::new(["version", &self.release.to_string()]);
        match (&self.obstacle, &self.self_test) {
            (None, _) => row,
            // It works all the same.
            (Some(obstacle), Some(SelfTest::Passed(_))) => {
                row.note(&obstacle.reason).limited().remedy(&obstacle.remedy)
            }
            (Some(Obstacle { reason, remedy }), _) => row.lacking(reason, remedy),
        }
    }

    fn uprobes(&self) -> Row {
        if !self.uprobes {
            return Row::new(["uprobes", "missing"]).lacking(
                "no uprobes in this kernel",
                "boot a kernel that was built with CONFIG_UPROBE_EVENTS",
            );
        }
        let others = match (&self.session, &self.multi) {
            (Trial::Refused(cause), _) => format!("sessions: could not be tried ({cause})"),
            (_, Trial::Works) => "one link for many probes: yes (6.6 and later)".to_owned(),
            _ => "one link for many probes: no (6.6 and later)".to_owned(),
        };
        match (self.mechanism(), &self.session) {
            (Some(UprobeMechanism::PerfEvent), Trial::Works) => {
                Row::new(["uprobes", "perf events, because LEAKTRACE_UPROBES=perf asks for them"]).note(others)
            }
            (_, Trial::Works) => Row::new(["uprobes", "sessions: one probe for a call and its return"]),
            (_, Trial::Absent) => Row::new(["uprobes", "perf events: one for each probe, and one for each return"])
                .note(others)
                .note("kernel 6.13 and later have sessions, with which unsampled calls pay no return probe")
                .limited(),
            (_, Trial::Refused(_)) => Row::new(["uprobes", "present"]).note(others),
        }
    }

    /// How probes were attached, if they were.
    fn mechanism(&self) -> Option<UprobeMechanism> {
        match &self.self_test {
            Some(SelfTest::Passed(passed)) => Some(passed.mechanism),
            _ => None,
        }
    }

    fn ring_buffer(&self) -> Row {
        match &self.ring_buffer {
            Trial::Works => Row::new(["ring buffer", "present"]),
            Trial::Absent => Row::new(["ring buffer", "missing"])
                .lacking("no BPF ring buffer in this kernel", "boot kernel 5.8 or later"),
            // Without the privilege nothing can be said; the privilege is the lack then.
            Trial::Refused(cause) => Row::new(["ring buffer", &format!("could not be tried ({cause})")]),
        }
    }

    fn tracepoints(&self) -> Row {
        match &self.missing_tracepoints {
            None if self.tracefs == Tracefs::Closed => {
                let row = Row::new(["tracepoints", "not known: tracefs is closed to this user"]);
                if DAC_READ_SEARCH.is_in(self.capabilities) {
                    row.lacking(
                        "tracefs is closed",
                        "look what keeps this user out, such as a security module",
                    )
                } else {
                    // The capability that opens it is the lack then.
                    row
                }
            }
            None => {
                let row = Row::new(["tracepoints", "not known: tracefs is not mounted"]);
                if SYS_ADMIN.is_in(self.capabilities) {
                    row.note(format!("recording mounts it at {MOUNT_POINT}"))
                } else {
                    row.lacking(
                        "tracefs is not mounted",
                        format!("run as root: mount -t tracefs tracefs {MOUNT_POINT}"),
                    )
                }
            }
            Some(missing) if missing.is_empty() => Row::new([
                "tracepoints",
                &format!("{TRACEPOINT_COUNT} of {TRACEPOINT_COUNT}, tracefs is mounted"),
            ]),
            Some(missing) => Row::new([
                "tracepoints",
                &format!(
                    "{} of {TRACEPOINT_COUNT}",
                    TRACEPOINT_COUNT.saturating_sub(missing.len())
                ),
            ])
            .note(format!("missing: {}", missing.join(", ")))
            .lacking(
                format!("missing tracepoints: {}", missing.join(", ")),
                "boot a kernel that was built with CONFIG_FTRACE_SYSCALLS",
            ),
        }
    }

    fn programs(&self) -> Row {
        match &self.self_test {
            None => Row::new(["programs", NOT_TRIED]),
            Some(SelfTest::Passed(_) | SelfTest::Failed(_)) => Row::new(["programs", "accepted by the verifier"]),
            Some(SelfTest::Refused(cause)) => {
                let mut row = Row::new(["programs", "refused"]);
                row.notes = cause.lines().map(str::to_owned).collect();
                let reason = "the kernel refuses the BPF programs";
                match &self.obstacle {
                    // The reason stands beside the version.
                    Some(obstacle) => row.lacking(reason, &obstacle.remedy),
                    None if !self.first_user_namespace => {
                        row.lacking(reason, "run in the machine's first user namespace")
                    }
                    None => row.lacking(
                        format!("{reason}: {}", cause.lines().next().unwrap_or_default()),
                        "this kernel has what leaktrace needs, so this is a fault in leaktrace: report the lines above",
                    ),
                }
            }
        }
    }

    fn self_test(&self) -> Row {
        match &self.self_test {
            None => Row::new(["self-test", NOT_TRIED]),
            Some(SelfTest::Refused(_)) => Row::new(["self-test", "not tried: the programs are refused"]),
            Some(SelfTest::Passed(passed)) => {
                let calls = passed.calls;
                let text = format!("passed: {calls} of {calls} calls of this program recorded, to the byte");
                let mut row = Row::new(["self-test", &text]);
                if !passed.with_tracepoints {
                    row = row.note("without tracepoints");
                }
                match &passed.growth_problem {
                    None => row,
                    Some(problem) => row
                        .note(format!("the daemon could not follow growth without probes: {problem}"))
                        .limited(),
                }
            }
            Some(SelfTest::Failed(cause)) => Row::new(["self-test", "failed"]).note(cause).lacking(
                format!("the self-test failed: {cause}"),
                "report the lines above, with the kernel's version",
            ),
        }
    }

    fn memory(&self, wanted: u64) -> Row {
        let needs = format!("{} for BPF maps", bytes(wanted));
        let Some(MemoryLimit { limit, used, file }) = &self.memory else {
            return Row::new(["memory", &format!("{needs}; no limit")]);
        };
        let row = Row::new([
            "memory",
            &format!("{needs}; {} of {} are in use", bytes(*used), bytes(*limit)),
        ]);
        let remedy = format!("raise the limit in {}", file.display());
        if wanted > *limit {
            row.lacking("the control group's memory limit is too low", remedy)
        } else if wanted > limit.saturating_sub(*used) {
            row.note("caches count as used, so it may do all the same")
                .limited()
                .remedy(remedy)
        } else {
            row
        }
    }
}

fn present(name: &str, what: &str, present: bool) -> Row {
    let state = if present { "present" } else { "missing" };
    Row::new([name, &format!("{state}: {what}")])
}

impl Row {
    /// The row as it is if `fine`, else one that lacks something.
    fn or(self, fine: bool, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        if fine { self } else { self.lacking(reason, remedy) }
    }
}

#[cfg(test)]
mod tests;
