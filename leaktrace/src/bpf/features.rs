//! What this kernel and these privileges allow, found out without loading anything that stays.
//!
//! Invariant: only [`require`] changes anything (it mounts tracefs); all else may run on a machine that is not to be touched.

use std::{fs, io, os::fd::AsFd, path::Path};

use aya::{
    maps::MapType,
    programs::TracePoint,
    sys::{SyscallError, is_map_supported},
};
use aya_obj::generated::bpf_insn;
use leaktrace_common::{config::CodeMapping, unwind::Row};
use nix::mount::{MsFlags, mount};

use super::{
    btf::{self, Places},
    kernel::{Kernel, LoadError, Sizes, TRACEPOINTS, UprobeMechanism},
    program,
    syscall::{self, AttachType, ProgramImage},
};

/// Where tracefs is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";
const UPROBE_PMU: &str = "/sys/bus/event_source/devices/uprobe/type";

/// Something that recording needs is missing.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// A privilege.
    #[error("missing capability {}: run as root, or with {}", names.join(", "), names.join(" and "))]
    Capability {
        /// Names of the capabilities.
        names: Vec<&'static str>,
    },
    /// The view of the kernel side.
    #[error(
        "process ids here differ from the kernel's: run outside the container, or with the host's PID namespace \
         (docker run --pid=host)"
    )]
    PidNamespace,
    /// Type information of the kernel.
    #[error(
        "this kernel has no type information (`{}`): boot one that was built with CONFIG_DEBUG_INFO_BTF",
        btf::KERNEL
    )]
    Btf,
    /// Uprobes.
    #[error("this kernel has no uprobes (`{UPROBE_PMU}`): boot one that was built with CONFIG_UPROBE_EVENTS")]
    Uprobes,
    /// Tracepoints.
    #[error("failed to mount tracefs: {cause}; run: mount -t tracefs tracefs {TRACEFS}")]
    Tracefs {
        /// Why.
        cause: io::Error,
    },
}

/// A capability: its number and name, and what leaktrace needs it for.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    number: u32,
    /// Name.
    pub name: &'static str,
    /// What for.
    pub purpose: &'static str,
}

/// What recording needs. CAP_SYS_ADMIN stands in for the first two, and before 5.8 is the only way.
pub const CAPABILITIES: [Capability; 3] = [
    Capability {
        number: 39,
        name: "CAP_BPF",
        purpose: "load BPF programs and maps",
    },
    Capability {
        number: 38,
        name: "CAP_PERFMON",
        purpose: "attach probes and read memory from BPF programs",
    },
    Capability {
        number: 19,
        name: "CAP_SYS_PTRACE",
        purpose: "look at other processes' mappings and files",
    },
];

/// What makes recording see more, or saves a step by hand; nothing depends on it.
pub const HELPFUL_CAPABILITIES: [Capability; 1] = [Capability {
    number: CAP_SYS_ADMIN,
    name: "CAP_SYS_ADMIN",
    purpose: "mount tracefs, open mapped files that were deleted",
}];

const CAP_SYS_ADMIN: u32 = 21;

impl Capability {
    /// Whether a set has it, by itself.
    pub fn is_in(&self, effective: u64) -> bool {
        effective & 1 << self.number != 0
    }
}

/// The effective capabilities of this process as a bit set; none if they cannot be read.
pub fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0)
}

/// The capabilities that recording needs and `effective` lacks.
pub fn missing_capabilities(effective: u64) -> Vec<Capability> {
    let has = |number: u32| effective & 1 << number != 0;
    let stands_in = |capability: &Capability| capability.number >= 38 && has(CAP_SYS_ADMIN);
    CAPABILITIES
        .into_iter()
        .filter(|capability| !has(capability.number) && !stands_in(capability))
        .collect()
}

/// Whether process ids are those that the kernel side sees: in the machine's first PID namespace, whose inode number is
/// fixed (`PROC_PID_INIT_INO`).
pub fn in_first_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// Where the tracepoint `sched_process_fork` keeps the child's id.
pub(super) fn fork_child_offset() -> Option<u32> {
    let format = fs::read_to_string(Path::new(TRACEFS).join("events/sched/sched_process_fork/format")).ok()?;
    parse_child_offset(&format)
}

fn parse_child_offset(format: &str) -> Option<u32> {
    let field = format.lines().find(|line| line.contains(" child_pid;"))?;
    let offset = field.split("offset:").nth(1)?.split(';').next()?;
    offset.parse().ok()
}

/// Whether the kernel has type information.
pub fn has_btf() -> bool {
    Path::new(btf::KERNEL).exists()
}

/// Whether the kernel has uprobes.
pub fn has_uprobes() -> bool {
    Path::new(UPROBE_PMU).exists()
}

/// Whether tracefs is mounted where it belongs.
pub fn has_tracefs() -> bool {
    Path::new(TRACEFS).join("events").exists()
}

/// What trying something out showed.
#[derive(Debug)]
pub enum Trial {
    /// The kernel can do it.
    Works,
    /// The kernel does not know it.
    Absent,
    /// The kernel refused, which says nothing about what it can do.
    Refused(io::Error),
}

/// Tries out an attach type on a program that does nothing; attaches nothing.
///
/// Loading alone proves nothing: kernels before 6.13 take any attach type for programs of this kind. So a link to a
/// folder is asked for as well: a kernel that knows the attach type answers that this is no file (`EBADF`), any other
/// that the arguments are invalid.
pub fn try_uprobes(attach_type: AttachType) -> Trial {
    let instructions = [instruction(0xb7), instruction(0x95)]; // r0 = 0; exit
    let image = ProgramImage {
        name: "trial",
        instructions: &instructions,
        license: c"GPL",
        btf: None,
        func_info: (&[], 0),
        line_info: (&[], 0),
    };
    let program = match syscall::load_program(&image, attach_type) {
        Ok(program) => program,
        Err((error, _)) => return Trial::Refused(error),
    };
    match syscall::attach_uprobes(program.as_fd(), attach_type, c"/", &[0], &[0], None) {
        Ok(_) => Trial::Works,
        Err(error) => match error.raw_os_error() {
            Some(libc::EBADF) => Trial::Works,
            Some(libc::EINVAL) => Trial::Absent,
            _ => Trial::Refused(error),
        },
    }
}

fn instruction(code: u8) -> bpf_insn {
    bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    }
}

/// Tries to make a ring buffer.
pub fn try_ring_buffer() -> Trial {
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Trial::Works,
        Ok(false) => Trial::Absent,
        Err(SyscallError { io_error, .. }) => Trial::Refused(io_error),
    }
}

/// The tracepoints that recording needs and the kernel has not, as `group:name`; `None` while tracefs is not mounted.
pub fn missing_tracepoints() -> Option<Vec<String>> {
    let events = Path::new(TRACEFS).join("events");
    has_tracefs().then(|| {
        let missing = TRACEPOINTS
            .iter()
            .filter(|(_, group, name)| !events.join(group).join(name).join("id").exists());
        missing.map(|(_, group, name)| format!("{group}:{name}")).collect()
    })
}

/// How many tracepoints recording needs.
pub const TRACEPOINT_COUNT: usize = TRACEPOINTS.len();

/// Has the verifier look at every program, with maps as small as can be; attaches nothing, and nothing stays.
///
/// # Errors
/// What the kernel refused.
pub fn try_programs() -> Result<UprobeMechanism, LoadError> {
    let smallest = Sizes {
        ring_bytes: 64 << 10,
        rows: 1,
        blocks: 1,
        mappings: 1,
        places: Places::default(),
    };
    // All parts live to the end: programs refer to maps by descriptors that the parts hold.
    let mut parts = Kernel::load(smallest)?;
    parts.kernel.load_uprobe_programs()?;
    for (program, ..) in TRACEPOINTS {
        let tracepoint: &mut TracePoint = parts.kernel.program(program)?;
        program::load(program, || tracepoint.load())?;
    }
    Ok(parts.kernel.mechanism())
}

/// Bytes of the maps whose size is given, which the kernel allocates at once. Hash maps grow with use, on top of it.
pub fn map_bytes(sizes: &Sizes) -> u64 {
    let bytes = |count: u32, size: usize| u64::from(count) * size as u64;
    u64::from(sizes.ring_bytes)
        + bytes(sizes.rows, size_of::<Row>())
        + bytes(sizes.blocks, size_of::<u32>())
        + bytes(sizes.mappings, size_of::<CodeMapping>())
}

/// Checks everything that recording needs; mounts tracefs if need be, as the kernel's own tools do.
pub fn require() -> Result<(), FeatureError> {
    let missing = missing_capabilities(effective_capabilities());
    if !missing.is_empty() {
        return Err(FeatureError::Capability {
            names: missing.iter().map(|capability| capability.name).collect(),
        });
    }
    if !in_first_pid_namespace() {
        return Err(FeatureError::PidNamespace);
    }
    if !has_btf() {
        return Err(FeatureError::Btf);
    }
    if !has_uprobes() {
        return Err(FeatureError::Uprobes);
    }
    if !has_tracefs() {
        mount(
            Some("tracefs"),
            TRACEFS,
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|cause| FeatureError::Tracefs { cause: cause.into() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_of_a_fork_is_found_in_both_layouts() {
        let line = |offset| format!("\tfield:pid_t child_pid;\toffset:{offset};\tsize:4;\tsigned:1;\n");
        assert_eq!(parse_child_offset(&line(20)), Some(20));
        assert_eq!(parse_child_offset(&line(44)), Some(44));
        assert_eq!(parse_child_offset("field:pid_t parent_pid;\toffset:12;"), None);
    }

    #[test]
    fn sys_admin_stands_in_for_the_newer_two() {
        let names = |set: u64| {
            missing_capabilities(set)
                .iter()
                .map(|capability| capability.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        assert_eq!(names(1 << CAP_SYS_ADMIN), ["CAP_SYS_PTRACE"]);
        assert_eq!(names(1 << 39 | 1 << 38 | 1 << 19), Vec::<&str>::new());
    }
}
