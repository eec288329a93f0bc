//! What this kernel and these privileges allow, found out without loading anything that stays.

use std::{fs, io, path::Path};

use nix::mount::{MsFlags, mount};

/// Where tracefs is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";
const BTF: &str = "/sys/kernel/btf/vmlinux";
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
    /// Type information of the kernel.
    #[error("this kernel has no type information (`{BTF}`): boot one that was built with CONFIG_DEBUG_INFO_BTF")]
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

const CAP_SYS_ADMIN: u32 = 21;

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

/// Whether the kernel has type information.
pub fn has_btf() -> bool {
    Path::new(BTF).exists()
}

/// Whether the kernel has uprobes.
pub fn has_uprobes() -> bool {
    Path::new(UPROBE_PMU).exists()
}

/// Whether tracefs is mounted where it belongs.
pub fn has_tracefs() -> bool {
    Path::new(TRACEFS).join("events").exists()
}

/// Checks everything that recording needs; mounts tracefs if need be, as the kernel's own tools do.
pub fn require() -> Result<(), FeatureError> {
    let missing = missing_capabilities(effective_capabilities());
    if !missing.is_empty() {
        return Err(FeatureError::Capability {
            names: missing.iter().map(|capability| capability.name).collect(),
        });
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
