//! What this process may do: capabilities, namespaces, ptrace.

use super::{
    machine::Machine,
    report::{Row, Section},
};
use crate::{
    bpf::capability::{self, CHECKPOINT_RESTORE, Capability, RECORDING, SYS_ADMIN},
    proc::yama,
};

impl Machine {
    /// What this process may do.
    pub fn privileges(&self) -> Section {
        let mut rows = vec![Row::new(["user", &self.user.to_string()])];
        let needed = RECORDING.into_iter().chain([SYS_ADMIN, CHECKPOINT_RESTORE]);
        rows.extend(needed.map(|capability| self.capability(capability)));
        if yama::forbids_attaching(self.ptrace_scope) {
            rows.push(
                Row::new(["ptrace", "forbidden", "`record -- COMMAND` and Go's heaps need it"])
                    .note(format!("{} lets nobody attach, root included", yama::SYSCTL))
                    .limited()
                    .remedy(format!(
                        "start the command and record it by its pid (record -p), or boot with a lower {}",
                        yama::SYSCTL
                    )),
            );
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

    fn capability(&self, capability: Capability) -> Row {
        let Capability { name, purpose, .. } = capability;
        if capability.is_in(self.capabilities) {
            return Row::new([name, "present", purpose]);
        }
        if capability.is_covered_by(self.capabilities) {
            return Row::new([name, &format!("covered by {}", SYS_ADMIN.name), purpose]);
        }
        let row = Row::new([name, "missing", purpose]);
        if !capability::missing(self.capabilities, self.circumstances).contains(&capability) {
            row.limited().remedy(format!("run with {name} for these"))
        } else if let (SYS_ADMIN, Some(admin)) = (capability, self.circumstances.admin) {
            let (reason, instead) = admin.words();
            row.note(reason).lacking(
                format!("missing capability {name}"),
                format!("run as root, or with {name}; {instead}"),
            )
        } else {
            row.lacking(
                format!("missing capability {name}"),
                format!("run as root, or with {name}"),
            )
        }
    }
}
