//! The process that was asked about: who it is, and what its surroundings mean for a recording.

use std::fs;

use super::report::{Row, Section};
use crate::{
    proc::{
        ProcError,
        identity::{self, Identity, Seccomp},
        living,
    },
    session::survey::{Survey, Surveyor, uretprobes_kill},
};

/// Namespaces that matter: name of the link, and what another one means.
const NAMESPACES: [(&str, &str); 3] = [
    (
        "mnt",
        "its files are read through /proc/PID/root and /proc/PID/map_files",
    ),
    (
        "pid",
        "it knows itself by another pid; profiles have the one given here",
    ),
    ("user", "its user ids are not this machine's"),
];

/// A process, looked at but not touched.
pub struct Target {
    /// The pid that was asked for.
    pub asked: u32,
    /// The process that the pid belongs to; another number if the pid is a thread's.
    pub process: u32,
    /// Threads; 0 if they cannot be counted.
    pub threads: usize,
    /// Namespaces other than ours, as the links are named.
    pub foreign_namespaces: Vec<&'static str>,
    /// All else, or why it cannot be had.
    pub survey: Result<Survey, ProcError>,
}

impl Target {
    /// Looks at the process that a pid belongs to.
    ///
    /// # Errors
    /// There is no such process, it is a kernel thread, or it ended meanwhile. That it cannot be looked at for want of a
    /// privilege is part of the report.
    pub fn inspect(pid: u32) -> Result<Self, ProcError> {
        let process = identity::thread_group(pid)?;
        let survey = match Surveyor::new().survey(process) {
            Err(
                error @ (ProcError::NoSuchProcess { .. } | ProcError::Exited { .. } | ProcError::KernelThread { .. }),
            ) => return Err(error),
            survey => survey,
        };
        Ok(Self {
            asked: pid,
            process,
            threads: identity::read_threads(process).map_or(0, |threads| threads.len()),
            foreign_namespaces: NAMESPACES
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| is_foreign(process, name))
                .collect(),
            survey,
        })
    }

    /// Who the target is. `kernel` is its major and minor version.
    pub fn section(&self, kernel: (u32, u32)) -> Section {
        let identity = self.survey.as_ref().map(|survey| &survey.identity);
        section(self, identity, kernel)
    }
}

fn section(target: &Target, identity: Result<&Identity, &ProcError>, kernel: (u32, u32)) -> Section {
    let pid = Row::new(["pid", &target.process.to_string()]);
    let mut rows = vec![if target.asked == target.process {
        pid
    } else {
        pid.note(format!("{} is one of its threads", target.asked)).lacking(
            format!("{} is a thread of process {}", target.asked, target.process),
            format!("name the process: -p {}", target.process),
        )
    }];
    match identity {
        Ok(identity) => rows.extend(of_identity(target, identity, kernel)),
        Err(error) => {
            let remedy = match error {
                ProcError::Permission { capability, .. } => format!("run as root, or with {capability}"),
                _ => "try again; if it stays so, report the line above".to_owned(),
            };
            rows.push(
                Row::new(["survey", "cannot be made"])
                    .note(error.to_string())
                    .lacking(format!("pid {} cannot be looked at", target.process), remedy),
            );
        }
    }
    for (name, meaning) in NAMESPACES {
        if target.foreign_namespaces.contains(&name) {
            rows.push(Row::new(["namespace", &format!("{name} differs from ours: {meaning}")]));
        }
    }
    Section::plain("Target", rows)
}

fn of_identity(target: &Target, identity: &Identity, kernel: (u32, u32)) -> Vec<Row> {
    let executable = match &identity.exe {
        Some(path) => path.to_string_lossy().into_owned(),
        None => "cannot be read".to_owned(),
    };
    let threads = match target.threads {
        0 => "cannot be counted".to_owned(),
        count => count.to_string(),
    };
    vec![
        Row::new(["name", &identity.comm]),
        Row::new(["executable", &executable]),
        Row::new(["user", &identity.uid.to_string()]),
        Row::new(["threads", &threads]),
        Row::new(["seccomp", &seccomp(identity.seccomp, kernel)]),
    ]
}

/// What seccomp means for return probes, by the kernel's version.
fn seccomp(mode: Seccomp, kernel: (u32, u32)) -> String {
    let name = match mode {
        Seccomp::Off => return "off".to_owned(),
        Seccomp::Strict => "strict",
        Seccomp::Filter => "filter",
    };
    if uretprobes_kill(mode, kernel) {
        format!("{name}: on kernels 6.11 to 6.13 a return probe gets it killed, so return instructions are probed")
    } else {
        format!("{name}: this kernel lets return probes pass")
    }
}

/// Whether a namespace differs from this process's; not if either cannot be read.
fn is_foreign(pid: u32, name: &str) -> bool {
    let link = |owner: &str| fs::read_link(format!("/proc/{owner}/ns/{name}"));
    let thread = living::thread(pid).to_string();
    matches!((link("self"), link(&thread)), (Ok(ours), Ok(theirs)) if ours != theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cli::doctor::report::Report, model::ProcessKey};

    fn unseen(asked: u32, namespaces: &[&'static str]) -> Target {
        Target {
            asked,
            process: 70,
            threads: 3,
            foreign_namespaces: namespaces.to_vec(),
            survey: Err(ProcError::Permission {
                pid: 70,
                object: "/proc/70/maps".into(),
                capability: "CAP_SYS_PTRACE",
            }),
        }
    }

    fn rendered(section: Section) -> String {
        let sections = vec![section];
        Report { sections }.render(false)
    }

    #[test]
    fn a_confined_process_with_a_hostile_name() {
        let identity = Identity {
            key: ProcessKey { pid: 70, start_time: 1 },
            comm: "a\u{1b}[31m\nb".to_owned(),
            cmdline: Vec::new(),
            exe: Some("/srv/\u{202e}exe".into()),
            uid: 33,
            seccomp: Seccomp::Filter,
        };
        let target = unseen(70, &["mnt", "pid"]);
        insta::assert_snapshot!(rendered(section(&target, Ok(&identity), (6, 12))), @r#"
        Target
            pid         70
            name        a\u{1b}[31m\u{a}b
            executable  /srv/\u{202e}exe
            user        33
            threads     3
            seccomp     filter: on kernels 6.11 to 6.13 a return probe gets it killed, so return instructions are probed
            namespace   mnt differs from ours: its files are read through /proc/PID/root and /proc/PID/map_files
            namespace   pid differs from ours: it knows itself by another pid; profiles have the one given here

        recording would work
        "#);
    }

    #[test]
    fn a_thread_of_a_process_that_may_not_be_looked_at() {
        insta::assert_snapshot!(rendered(unseen(72, &[]).section((6, 18))), @r"
        Target
        x   pid     70
                72 is one of its threads
                remedy: name the process: -p 70
        x   survey  cannot be made
                failed to read `/proc/70/maps` for pid 70: permission denied; run as root or with CAP_SYS_PTRACE
                remedy: run as root, or with CAP_SYS_PTRACE

        recording would not work: 72 is a thread of process 70; pid 70 cannot be looked at
        ");
    }

    #[test]
    fn seccomp_matters_on_some_kernels_only() {
        assert_eq!(seccomp(Seccomp::Off, (6, 12)), "off");
        assert!(seccomp(Seccomp::Strict, (6, 13)).contains("killed"));
        assert!(seccomp(Seccomp::Filter, (6, 10)).contains("pass"));
        assert!(seccomp(Seccomp::Filter, (6, 14)).contains("pass"));
    }

    #[test]
    fn a_process_is_its_own() {
        let own = Target::inspect(std::process::id()).expect("this process is there");
        assert_eq!((own.asked, own.process), (std::process::id(), std::process::id()));
        assert!(own.threads > 0 && own.foreign_namespaces.is_empty());
    }

    #[test]
    fn no_process_is_an_error() {
        assert!(matches!(
            Target::inspect(4_194_305),
            Err(ProcError::NoSuchProcess { pid: 4_194_305 })
        ));
    }
}
