//! Reports of machines that are made up.

use std::io;

use super::*;
use crate::{bpf::capability::Admin, cli::doctor::report::Report};

fn passed(mechanism: UprobeMechanism) -> Passed {
    Passed {
        mechanism,
        calls: 32,
        with_tracepoints: true,
        growth_problem: None,
    }
}

fn good() -> Machine {
    Machine {
        release: Release::of("6.18.4"),
        obstacle: None,
        btf: true,
        uprobes: true,
        session: Trial::Works,
        multi: Trial::Works,
        ring_buffer: Trial::Works,
        tracefs: Tracefs::Open,
        missing_tracepoints: Some(Vec::new()),
        self_test: Some(SelfTest::Passed(passed(UprobeMechanism::Session))),
        user: 0,
        capabilities: u64::MAX,
        circumstances: Circumstances::default(),
        ptrace_scope: None,
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
        tracepoints  11 of 11, tracefs is mounted
        programs     accepted by the verifier
        self-test    passed: 32 of 32 calls of this program recorded, to the byte
        memory       100 MiB for BPF maps; no limit

    Privileges
        user                    0
        CAP_BPF                 present  load BPF programs and maps
        CAP_PERFMON             present  attach probes and read memory from BPF programs
        CAP_SYS_PTRACE          present  look at other processes' mappings and files
        CAP_DAC_READ_SEARCH     present  read tracefs and other users' files, where only their owners may
        CAP_SYS_ADMIN           present  perf events where the kernel asks for it; mount tracefs; for the daemon: measure what probes cost
        CAP_CHECKPOINT_RESTORE  present  open mapped files that were deleted

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
        tracefs: Tracefs::Absent,
        missing_tracepoints: None,
        self_test: None,
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
    x   tracepoints  not known: tracefs is not mounted
            remedy: run as root: mount -t tracefs tracefs /sys/kernel/tracing
        programs     not tried, for what is missing here or under Privileges
        self-test    not tried, for what is missing here or under Privileges
    x   memory       100 MiB for BPF maps; 10.0 MiB of 64.0 MiB are in use
            remedy: raise the limit in /sys/fs/cgroup/pod/memory.max

    Privileges
        user                    1000
    x   CAP_BPF                 missing                  load BPF programs and maps
            remedy: run as root, or with CAP_BPF
    x   CAP_PERFMON             missing                  attach probes and read memory from BPF programs
            remedy: run as root, or with CAP_PERFMON
        CAP_SYS_PTRACE          present                  look at other processes' mappings and files
    !   CAP_DAC_READ_SEARCH     missing                  read tracefs and other users' files, where only their owners may
            remedy: run with CAP_DAC_READ_SEARCH for these
    !   CAP_SYS_ADMIN           missing                  perf events where the kernel asks for it; mount tracefs; for the daemon: measure what probes cost
            remedy: run with CAP_SYS_ADMIN for these
    !   CAP_CHECKPOINT_RESTORE  missing                  open mapped files that were deleted
            remedy: run with CAP_CHECKPOINT_RESTORE for these
    x   user namespace          not the machine's first  capabilities count there alone
            remedy: run outside the container, or in a privileged one
    x   PID namespace           not the machine's first  the kernel side knows other pids
            remedy: run outside the container, or with the host's PID namespace (docker run --pid=host)

    recording would not work: tracefs is not mounted; the control group's memory limit is too low; missing capability CAP_BPF; missing capability CAP_PERFMON; this is not the machine's first user namespace; this is not the machine's first PID namespace
    ");
}

#[test]
fn an_old_kernel() {
    let machine = Machine {
        release: Release::of("6.1.0-13-amd64"),
        session: Trial::Absent,
        multi: Trial::Absent,
        self_test: Some(SelfTest::Passed(passed(UprobeMechanism::PerfEvent))),
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
    x   tracepoints  10 of 11
            missing: syscalls:sys_enter_mmap
            remedy: boot a kernel that was built with CONFIG_FTRACE_SYSCALLS
        programs     accepted by the verifier
        self-test    passed: 32 of 32 calls of this program recorded, to the byte
    !   memory       100 MiB for BPF maps; 450 MiB of 512 MiB are in use
            caches count as used, so it may do all the same
            remedy: raise the limit in /sys/fs/cgroup/memory.max

    Privileges
        user                    0
        CAP_BPF                 present  load BPF programs and maps
        CAP_PERFMON             present  attach probes and read memory from BPF programs
        CAP_SYS_PTRACE          present  look at other processes' mappings and files
        CAP_DAC_READ_SEARCH     present  read tracefs and other users' files, where only their owners may
        CAP_SYS_ADMIN           present  perf events where the kernel asks for it; mount tracefs; for the daemon: measure what probes cost
        CAP_CHECKPOINT_RESTORE  present  open mapped files that were deleted

    recording would not work: missing tracepoints: syscalls:sys_enter_mmap
    ");
}

fn last_line(machine: &Machine) -> String {
    rendered(machine).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_refusal_is_told_with_what_the_verifier_said() {
    let machine = Machine {
        self_test: Some(SelfTest::Refused(
            "Linux 6.18.4: failed to load BPF program `x`: Permission denied\n  R1 invalid".to_owned(),
        )),
        ..good()
    };
    assert!(rendered(&machine).contains("R1 invalid"), "{}", rendered(&machine));
    assert_eq!(
        last_line(&machine),
        "recording would not work: the kernel refuses the BPF programs: Linux 6.18.4: failed to load BPF program `x`: \
         Permission denied"
    );
}

fn too_old() -> Option<Obstacle> {
    Some(Obstacle {
        reason: "Linux 5.10.0 lacks bpf_loop (5.17)".to_owned(),
        remedy: "boot Linux 6.1 or later".to_owned(),
    })
}

#[test]
fn a_kernel_that_is_too_old_is_refused_for_its_age_first() {
    let machine = Machine {
        obstacle: too_old(),
        self_test: Some(SelfTest::Refused(
            "failed to create map `THREADS`: Invalid argument".to_owned(),
        )),
        ..good()
    };
    assert_eq!(
        last_line(&machine),
        "recording would not work: Linux 5.10.0 lacks bpf_loop (5.17); the kernel refuses the BPF programs"
    );
    assert!(!rendered(&machine).contains("fault in leaktrace"));
}

#[test]
fn what_works_counts_more_than_a_version() {
    let machine = Machine {
        obstacle: too_old(),
        ..good()
    };
    assert_eq!(last_line(&machine), "recording would work");
    assert!(rendered(&machine).contains("!   version"));
}

#[test]
fn a_recording_that_misses_calls_would_not_work() {
    let machine = Machine {
        self_test: Some(SelfTest::Failed(
            "of 16 calls with a return probe 0 were recorded. Losses: 16 thread_table_full (calls not seen)".to_owned(),
        )),
        ..good()
    };
    assert_eq!(
        last_line(&machine),
        "recording would not work: the self-test failed: of 16 calls with a return probe 0 were recorded. Losses: 16 \
         thread_table_full (calls not seen)"
    );
}

#[test]
fn growth_is_the_daemons_alone() {
    let machine = Machine {
        self_test: Some(SelfTest::Passed(Passed {
            growth_problem: Some("no such tracepoint".to_owned()),
            ..passed(UprobeMechanism::Session)
        })),
        ..good()
    };
    assert!(rendered(&machine).contains("growth without probes: no such tracepoint"));
    assert_eq!(last_line(&machine), "recording would work");
}

/// A user with these capabilities, whom tracefs is closed to.
fn user(capabilities: u64, admin: Option<Admin>) -> Machine {
    Machine {
        user: 1000,
        tracefs: Tracefs::Closed,
        missing_tracepoints: None,
        self_test: None,
        capabilities,
        circumstances: Circumstances {
            tracefs_closed: true,
            admin,
        },
        ..good()
    }
}

#[test]
fn a_user_lacks_what_opens_tracefs() {
    let text = rendered(&user(1 << 39 | 1 << 38 | 1 << 19, None));
    assert!(text.contains("tracefs is closed to this user"), "{text}");
    assert!(
        text.ends_with("recording would not work: missing capability CAP_DAC_READ_SEARCH\n"),
        "{text}"
    );
}

#[test]
fn perf_events_may_need_more() {
    let recording = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2;
    for (admin, instead) in [
        (Admin::Probes, "6.13"),
        (Admin::PerfEvents, "kernel.perf_event_paranoid=2"),
    ] {
        let text = rendered(&user(recording, Some(admin)));
        assert!(text.contains("missing capability CAP_SYS_ADMIN\n"), "{text}");
        assert!(text.contains(instead), "{text}");
    }
}

#[test]
fn ptrace_that_nobody_may_use_is_told() {
    let machine = |scope| Machine {
        ptrace_scope: scope,
        ..good()
    };
    for scope in [None, Some(0), Some(1), Some(2)] {
        assert!(!rendered(&machine(scope)).contains("ptrace_scope"), "{scope:?}");
    }
    let text = rendered(&machine(Some(3)));
    assert!(
        text.contains("kernel.yama.ptrace_scope") && text.contains("record -p"),
        "{text}"
    );
    assert!(text.ends_with("\nrecording would work\n"), "{text}");
}
