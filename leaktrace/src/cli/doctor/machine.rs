//! What the machine allows: the kernel's abilities, this process's privileges, its memory limit.
//!
//! Gathering and telling are apart: a [`Machine`] can be made up.

use std::fs;

use super::{
    memory::{MemoryLimit, memory_limit},
    report::{Row, Section},
};
use crate::{
    bpf::{
        features::{self, CAPABILITIES, HELPFUL_CAPABILITIES, TRACEPOINT_COUNT, Trial},
        kernel::UprobeMechanism,
        syscall::AttachType,
    },
    session::survey::kernel_version,
};

/// Inode numbers of the first namespaces (`PROC_USER_INIT_INO`, `PROC_PID_INIT_INO`), fixed by the kernel.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The machine and what it lets this process do.
#[derive(Debug)]
pub struct Machine {
    /// Release of the kernel, as it tells it.
    pub release: String,
    /// Its major and minor version.
    pub version: (u32, u32),
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
    /// Tracepoints that it lacks; `None` while tracefs is not mounted.
    pub missing_tracepoints: Option<Vec<String>>,
    /// How uprobes would be attached, or what the kernel said to the programs; `None` if they were not tried for want
    /// of a privilege or of something else above.
    pub programs: Option<Result<UprobeMechanism, String>>,
    /// BPF programs may not read memory (lockdown in confidentiality mode).
    pub confidential: bool,
    /// Effective user.
    pub user: u32,
    /// Effective capabilities as a bit set.
    pub capabilities: u64,
    /// In the machine's first user namespace.
    pub first_user_namespace: bool,
    /// In the machine's first PID namespace.
    pub first_pid_namespace: bool,
    /// The memory limit with the least room, if there is any.
    pub memory: Option<MemoryLimit>,
}

impl Machine {
    /// Looks at this machine.
    pub fn inspect() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        let capabilities = features::effective_capabilities();
        let (btf, uprobes) = (features::has_btf(), features::has_uprobes());
        let able = btf && uprobes && features::missing_capabilities(capabilities).is_empty();
        Self {
            release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            version: kernel_version(),
            btf,
            uprobes,
            session: features::try_uprobes(AttachType::Session),
            multi: features::try_uprobes(AttachType::Multi),
            ring_buffer: features::try_ring_buffer(),
            missing_tracepoints: features::missing_tracepoints(),
            programs: able.then(|| features::try_programs().map_err(|error| error.to_string())),
            confidential: read("/sys/kernel/security/lockdown").contains("[confidentiality]"),
            user: nix::unistd::geteuid().as_raw(),
            capabilities,
            first_user_namespace: namespace("user").as_os_str() == INITIAL_USER_NAMESPACE,
            first_pid_namespace: namespace("pid").as_os_str() == INITIAL_PID_NAMESPACE,
            memory: memory_limit(),
        }
    }

    /// What the kernel can do. `wanted` is what the maps of a recording take at once, in bytes.
    pub fn kernel(&self, wanted: u64) -> Section {
        let mut rows = vec![
            Row::new(["version", &self.release]),
            present("BTF", "type information of the kernel", self.btf).or(
                self.btf,
                "no type information in this kernel",
                "boot a kernel that was built with CONFIG_DEBUG_INFO_BTF (every distribution's is)",
            ),
            self.uprobes(),
            self.ring_buffer(),
            self.tracepoints(),
            self.programs(),
            self.memory(wanted),
        ];
        if self.confidential {
            rows.push(
                Row::new(["lockdown", "confidentiality: BPF programs may not read memory"]).lacking(
                    "the kernel is locked down for confidentiality",
                    "boot with lockdown=integrity, or without lockdown=",
                ),
            );
        }
        Section::plain("Kernel", rows)
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
        match (&self.programs, &self.session) {
            (Some(Ok(UprobeMechanism::PerfEvent)), Trial::Works) => {
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
            None => {
                let row = Row::new(["tracepoints", "not known: tracefs is not mounted, or closed to this user"]);
                if HELPFUL_CAPABILITIES.iter().all(|helpful| helpful.is_in(self.capabilities)) {
                    row.note("recording mounts it at /sys/kernel/tracing")
                } else {
                    row.lacking(
                        "tracefs is not mounted, or closed to this user",
                        "run as root; mount -t tracefs tracefs /sys/kernel/tracing",
                    )
                }
            }
            Some(missing) if missing.is_empty() => Row::new([
                "tracepoints",
                &format!("{TRACEPOINT_COUNT} of {TRACEPOINT_COUNT}, tracefs is mounted"),
            ]),
            Some(missing) => Row::new([
                "tracepoints",
                &format!("{} of {TRACEPOINT_COUNT}", TRACEPOINT_COUNT.saturating_sub(missing.len())),
            ])
            .note(format!("missing: {}", missing.join(", ")))
            .lacking(
                format!("missing tracepoints: {}", missing.join(", ")),
                "boot a kernel that was built with CONFIG_FTRACE_SYSCALLS; run as root, who alone may look into tracefs",
            ),
        }
    }

    fn programs(&self) -> Row {
        match &self.programs {
            None => Row::new(["programs", "not tried, for what is missing here or under Privileges"]),
            Some(Ok(_)) => Row::new(["programs", "accepted by the verifier"]),
            Some(Err(cause)) => {
                let mut row = Row::new(["programs", "refused"]);
                row.notes = cause.lines().map(str::to_owned).collect();
                let first = cause.lines().next().unwrap_or_default();
                let remedy = if self.first_user_namespace {
                    "kernel 5.17 or later is needed (bpf_loop); on such a kernel this is a fault in leaktrace: report the lines above"
                } else {
                    "run in the machine's first user namespace"
                };
                row.lacking(format!("the kernel refuses the BPF programs: {first}"), remedy)
            }
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

    /// What this process may do.
    pub fn privileges(&self) -> Section {
        let missing = features::missing_capabilities(self.capabilities);
        let mut rows = vec![Row::new(["user", &self.user.to_string()])];
        for capability in CAPABILITIES {
            let state = if capability.is_in(self.capabilities) {
                "present"
            } else if missing.iter().any(|missing| missing.name == capability.name) {
                "missing"
            } else {
                "covered by CAP_SYS_ADMIN"
            };
            let row = Row::new([capability.name, state, capability.purpose]);
            rows.push(row.or(
                state != "missing",
                format!("missing capability {}", capability.name),
                format!("run as root, or with {}", capability.name),
            ));
        }
        for capability in HELPFUL_CAPABILITIES {
            if capability.is_in(self.capabilities) {
                rows.push(Row::new([capability.name, "present", capability.purpose]));
            } else {
                rows.push(
                    Row::new([capability.name, "missing", capability.purpose])
                        .limited()
                        .remedy(format!("run with {} for these", capability.name)),
                );
            }
        }
        if !self.first_user_namespace {
            rows.push(
                Row::new([
                    "user namespace",
                    "not the machine's first",
                    "capabilities count there alone",
                ])
                .lacking(
                    "this is not the machine's first user namespace",
                    "run outside the container, or in a privileged one",
                ),
            );
        }
        if !self.first_pid_namespace {
            rows.push(
                Row::new([
                    "PID namespace",
                    "not the machine's first",
                    "the kernel side knows other pids",
                ])
                .lacking(
                    "this is not the machine's first PID namespace",
                    "run outside the container, or with the host's PID namespace (docker run --pid=host)",
                ),
            );
        }
        Section::plain("Privileges", rows)
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

/// Bytes in the largest unit that leaves a whole part.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len() - 1)
        .take_while(|power| count >> (10 * (power + 1)) > 0)
        .count();
    format!("{} {}", count >> (10 * unit), units[unit])
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::cli::doctor::report::Report;

    fn good() -> Machine {
        Machine {
            release: "6.18.4".to_owned(),
            version: (6, 18),
            btf: true,
            uprobes: true,
            session: Trial::Works,
            multi: Trial::Works,
            ring_buffer: Trial::Works,
            missing_tracepoints: Some(Vec::new()),
            programs: Some(Ok(UprobeMechanism::Session)),
            confidential: false,
            user: 0,
            capabilities: u64::MAX,
            first_user_namespace: true,
            first_pid_namespace: true,
            memory: None,
        }
    }

    fn rendered(machine: &Machine) -> String {
        let sections = vec![machine.kernel(100 << 20), machine.privileges()];
        Report { sections }.render(false)
    }

    #[test]
    fn a_machine_where_all_works() {
        insta::assert_snapshot!(rendered(&good()), @r"
        Kernel
            version      6.18.4
            BTF          present: type information of the kernel
            uprobes      sessions: one probe for a call and its return
            ring buffer  present
            tracepoints  8 of 8, tracefs is mounted
            programs     accepted by the verifier
            memory       100 MiB for BPF maps; no limit

        Privileges
            user            0
            CAP_BPF         present  load BPF programs and maps
            CAP_PERFMON     present  attach probes and read memory from BPF programs
            CAP_SYS_PTRACE  present  look at other processes' mappings and files
            CAP_SYS_ADMIN   present  mount tracefs, open mapped files that were deleted

        recording would work
        ");
    }

    #[test]
    fn a_container_without_privileges() {
        let refused = || Trial::Refused(io::Error::from_raw_os_error(libc::EPERM));
        let machine = Machine {
            session: refused(),
            multi: refused(),
            ring_buffer: refused(),
            missing_tracepoints: None,
            programs: None,
            user: 1000,
            capabilities: 1 << 19,
            first_user_namespace: false,
            first_pid_namespace: false,
            memory: Some(MemoryLimit {
                limit: 64 << 20,
                used: 10 << 20,
                file: "/sys/fs/cgroup/pod/memory.max".into(),
            }),
            ..good()
        };
        insta::assert_snapshot!(rendered(&machine), @r"
        Kernel
            version      6.18.4
            BTF          present: type information of the kernel
            uprobes      present
                sessions: could not be tried (Operation not permitted (os error 1))
            ring buffer  could not be tried (Operation not permitted (os error 1))
        x   tracepoints  not known: tracefs is not mounted, or closed to this user
                remedy: run as root; mount -t tracefs tracefs /sys/kernel/tracing
            programs     not tried, for what is missing here or under Privileges
        x   memory       100 MiB for BPF maps; 10 MiB of 64 MiB are in use
                remedy: raise the limit in /sys/fs/cgroup/pod/memory.max

        Privileges
            user            1000
        x   CAP_BPF         missing                  load BPF programs and maps
                remedy: run as root, or with CAP_BPF
        x   CAP_PERFMON     missing                  attach probes and read memory from BPF programs
                remedy: run as root, or with CAP_PERFMON
            CAP_SYS_PTRACE  present                  look at other processes' mappings and files
        !   CAP_SYS_ADMIN   missing                  mount tracefs, open mapped files that were deleted
                remedy: run with CAP_SYS_ADMIN for these
        x   user namespace  not the machine's first  capabilities count there alone
                remedy: run outside the container, or in a privileged one
        x   PID namespace   not the machine's first  the kernel side knows other pids
                remedy: run outside the container, or with the host's PID namespace (docker run --pid=host)

        recording would not work: tracefs is not mounted, or closed to this user; the control group's memory limit is too low; missing capability CAP_BPF; missing capability CAP_PERFMON; this is not the machine's first user namespace; this is not the machine's first PID namespace
        ");
    }

    #[test]
    fn an_old_kernel() {
        let machine = Machine {
            release: "6.1.0-13-amd64".to_owned(),
            version: (6, 1),
            session: Trial::Absent,
            multi: Trial::Absent,
            programs: Some(Ok(UprobeMechanism::PerfEvent)),
            missing_tracepoints: Some(vec!["syscalls:sys_enter_mmap".to_owned()]),
            memory: Some(MemoryLimit {
                limit: 512 << 20,
                used: 450 << 20,
                file: "/sys/fs/cgroup/memory.max".into(),
            }),
            ..good()
        };
        insta::assert_snapshot!(rendered(&machine), @r"
        Kernel
            version      6.1.0-13-amd64
            BTF          present: type information of the kernel
        !   uprobes      perf events: one for each probe, and one for each return
                one link for many probes: no (6.6 and later)
                kernel 6.13 and later have sessions, with which unsampled calls pay no return probe
            ring buffer  present
        x   tracepoints  7 of 8
                missing: syscalls:sys_enter_mmap
                remedy: boot a kernel that was built with CONFIG_FTRACE_SYSCALLS; run as root, who alone may look into tracefs
            programs     accepted by the verifier
        !   memory       100 MiB for BPF maps; 450 MiB of 512 MiB are in use
                caches count as used, so it may do all the same
                remedy: raise the limit in /sys/fs/cgroup/memory.max

        Privileges
            user            0
            CAP_BPF         present  load BPF programs and maps
            CAP_PERFMON     present  attach probes and read memory from BPF programs
            CAP_SYS_PTRACE  present  look at other processes' mappings and files
            CAP_SYS_ADMIN   present  mount tracefs, open mapped files that were deleted

        recording would not work: missing tracepoints: syscalls:sys_enter_mmap
        ");
    }

    #[test]
    fn a_refusal_is_told_with_what_the_verifier_said() {
        let machine = Machine {
            programs: Some(Err(
                "failed to load BPF program `x`: Permission denied\n  R1 invalid".to_owned()
            )),
            ..good()
        };
        let text = rendered(&machine);
        assert!(text.contains("R1 invalid"), "{text}");
        assert!(text.ends_with(
            "\nrecording would not work: the kernel refuses the BPF programs: failed to load BPF program `x`: \
             Permission denied\n"
        ));
    }

    #[test]
    fn bytes_are_rounded_down_to_a_unit() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(u64::MAX)],
            ["0 B", "1023 B", "1 KiB", "16777215 TiB"]
        );
    }
}
