//! What this kernel and these privileges allow, found out without loading anything that stays.
//!
//! Invariant: only [`require`] changes anything (it mounts tracefs); all else may run on a machine that is not to be touched.

use std::{fs, io, os::fd::AsFd, path::Path};

use aya::{
    maps::MapType,
    sys::{SyscallError, is_map_supported},
};
use aya_obj::generated::bpf_insn;
use leaktrace_common::{config::CodeMapping, unwind::Row};

use super::{
    btf,
    capability::{self, Admin, Circumstances, SYS_ADMIN},
    kernel::{Sizes, TRACEPOINTS, UprobeMechanism},
    perf_event,
    requirements::Obstacle,
    syscall::{self, AttachType, ProgramImage},
    tracefs::{self, MOUNT_POINT, Tracefs},
};
use crate::proc::release::Release;

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
    /// The one that perf events may ask for.
    #[error(
        "missing capability {name}: on this kernel (Linux {release}) {}; run as root, or with {name}; {}",
        .0.words().0,
        .0.words().1,
        name = SYS_ADMIN.name,
        release = Release::running()
    )]
    Admin(Admin),
    /// A lock.
    #[error("{}; {}", .0.reason, .0.remedy)]
    Locked(Obstacle),
    /// It cannot be found out.
    #[error("failed to look at `{object}`, which shows whether recording can work: {cause}; try again")]
    Unknown {
        /// What was to be looked at.
        object: &'static str,
        /// Why it could not be.
        cause: io::Error,
    },
    /// The view of the kernel side.
    #[error(
        "process ids here differ from the kernel's: run outside the container, or with the host's PID namespace \
         (docker run --pid=host)"
    )]
    PidNamespace,
    /// Type information of the kernel.
    #[error(
        "this kernel (Linux {}) has no type information (`{}`): boot one that was built with CONFIG_DEBUG_INFO_BTF",
        Release::running(),
        btf::KERNEL
    )]
    Btf,
    /// Uprobes.
    #[error(
        "this kernel (Linux {}) has no uprobes (`{UPROBE_PMU}`): boot one that was built with CONFIG_UPROBE_EVENTS",
        Release::running()
    )]
    Uprobes,
    /// Tracepoints: nobody has mounted what tells of them.
    #[error(
        "tracefs is not mounted, and mounting it failed: {cause}; run as root: mount -t tracefs tracefs {MOUNT_POINT}"
    )]
    Mount {
        /// Why.
        cause: io::Error,
    },
    /// Tracepoints: what tells of them is closed in spite of the capability.
    #[error("failed to read tracefs at {MOUNT_POINT}: permission denied, by a security module or a lock on the kernel")]
    Closed,
}

/// Whether process ids are those that the kernel side sees: in the machine's first PID namespace, whose inode number is
/// fixed (`PROC_PID_INIT_INO`).
pub fn in_first_pid_namespace() -> bool {
    fs::read_link(PID_NAMESPACE).is_ok_and(|link| is_first(&link))
}

const PID_NAMESPACE: &str = "/proc/self/ns/pid";

fn is_first(link: &Path) -> bool {
    link.as_os_str() == "pid:[4026531836]"
}

/// Where the tracepoint `sched_process_fork` keeps the child's id.
pub(super) fn fork_child_offset() -> Option<u32> {
    let format = fs::read_to_string(Path::new(MOUNT_POINT).join("events/sched/sched_process_fork/format")).ok()?;
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

/// Whether aya, which asks the kernel once in a process what it can do and takes every error for a no, went wrong at it:
/// every kernel that has what the programs need has this, too.
pub(super) fn were_misjudged() -> bool {
    let found = aya::features();
    Obstacle::here().is_none() && (found.btf().is_none() || !found.bpf_global_data())
}

/// Tries to make a ring buffer.
pub fn try_ring_buffer() -> Trial {
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Trial::Works,
        Ok(false) => Trial::Absent,
        Err(SyscallError { io_error, .. }) => Trial::Refused(io_error),
    }
}

/// The tracepoints that recording needs and the kernel has not, as `group:name`; `None` while tracefs cannot be read.
pub fn missing_tracepoints() -> Option<Vec<String>> {
    let events = Path::new(MOUNT_POINT).join("events");
    (Tracefs::now() == Tracefs::Open).then(|| {
        let missing = TRACEPOINTS
            .iter()
            .filter(|(_, group, name)| !events.join(group).join(name).join("id").exists());
        missing.map(|(_, group, name)| format!("{group}:{name}")).collect()
    })
}

/// How many tracepoints recording needs.
pub const TRACEPOINT_COUNT: usize = TRACEPOINTS.len();

/// Bytes of the maps whose size is given, which the kernel allocates at once. Hash maps grow with use, on top of it.
pub fn map_bytes(sizes: &Sizes) -> u64 {
    let bytes = |count: u32, size: usize| u64::from(count) * size as u64;
    u64::from(sizes.ring_bytes)
        + bytes(sizes.rows, size_of::<Row>())
        + bytes(sizes.blocks, size_of::<u32>())
        + bytes(sizes.mappings, size_of::<CodeMapping>())
}

/// What decides here which capabilities are needed.
pub fn circumstances() -> Circumstances {
    let admin = if UprobeMechanism::of_this_kernel() == UprobeMechanism::PerfEvent {
        Some(Admin::Probes)
    } else {
        perf_event::is_closed().then_some(Admin::PerfEvents)
    };
    Circumstances {
        tracefs_closed: Tracefs::now() == Tracefs::Closed,
        admin,
    }
}

/// Checks everything that recording needs; mounts tracefs if need be.
pub fn require() -> Result<(), FeatureError> {
    let unknown = |object| move |cause| FeatureError::Unknown { object, cause };
    let exists = |object| Path::new(object).try_exists().map_err(unknown(object));
    let circumstances = circumstances();
    let effective = capability::try_effective().map_err(unknown(capability::STATUS))?;
    let missing = capability::missing(effective, circumstances);
    if let Some(admin) = circumstances.admin
        && missing == [SYS_ADMIN]
    {
        return Err(FeatureError::Admin(admin));
    }
    if !missing.is_empty() {
        return Err(FeatureError::Capability {
            names: missing.iter().map(|capability| capability.name).collect(),
        });
    }
    let namespace = fs::read_link(PID_NAMESPACE).map_err(unknown(PID_NAMESPACE))?;
    if !is_first(&namespace) {
        return Err(FeatureError::PidNamespace);
    }
    if let Some(lock) = Obstacle::lock() {
        return Err(FeatureError::Locked(lock));
    }
    if !exists(btf::KERNEL)? {
        return Err(FeatureError::Btf);
    }
    if !exists(UPROBE_PMU)? {
        return Err(FeatureError::Uprobes);
    }
    tracefs::ensure()
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
}
