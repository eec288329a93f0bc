//! Processes by what an engineer calls them: a program's name, a systemd unit, a container, a control group.
//!
//! Names are what processes say of themselves: several users may have a `nginx`, and each of them is found. Whoever chooses
//! among them has to be shown the owner. Invariant: neither this process nor a kernel thread nor one that has ended is found.

use std::{fs, path::Path};

use super::{
    cgroup::Cgroups,
    identity::{self, Identity},
};

/// Longest name that the kernel keeps of a process (`TASK_COMM_LEN` without its end).
const MAX_COMM: usize = 15;
/// Most processes that are looked at.
const MAX_PROCESSES: usize = 1 << 20;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A program's name, or the path of its executable.
    Name(String),
    /// A systemd unit; without an ending a service.
    Unit(String),
    /// A container's id, or at least twelve digits of its beginning.
    Container(String),
    /// A control group, by its path below the hierarchy's root, and those below it.
    Cgroup(String),
}

impl Wanted {
    fn fits(&self, process: &Identity) -> bool {
        let groups = || Cgroups::read(process.key.pid).unwrap_or_default();
        match self {
            Self::Name(name) => is_called(name, process),
            Self::Unit(unit) => groups().unit().is_some_and(|found| is_unit(unit, &found)),
            Self::Container(id) => groups().container().is_some_and(|found| is_container(id, &found.id)),
            Self::Cgroup(path) => groups().paths().any(|found| is_below(path, found)),
        }
    }
}

/// All processes that fit, by pid.
pub fn find(wanted: &Wanted) -> Vec<Identity> {
    let mut found: Vec<Identity> = pids()
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| identity::read_identity(pid).ok())
        .filter(|process| wanted.fits(process))
        .collect();
    found.sort_by_key(|process| process.key.pid);
    found
}

/// Pids that `/proc` lists.
pub fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES)
}

/// By its name, as the kernel cuts it; by its executable; or by what it calls itself, such as `nginx: master process`.
fn is_called(name: &str, process: &Identity) -> bool {
    if name.is_empty() {
        return false;
    }
    let cut = name.char_indices().take_while(|(at, c)| at + c.len_utf8() <= MAX_COMM);
    let comm: String = cut.map(|(_, c)| c).collect();
    if process.comm == name || (name.len() > MAX_COMM && process.comm == comm) {
        return true;
    }
    let executable = process.exe.as_deref();
    if executable.is_some_and(|path| path == Path::new(name) || path.file_name().is_some_and(|base| base == name)) {
        return true;
    }
    let title = process.cmdline.first().map_or("", String::as_str);
    let title = title.split_once(": ").map_or(title, |(title, _)| title);
    title.rsplit('/').next() == Some(name)
}

fn is_unit(wanted: &str, found: &str) -> bool {
    found == wanted || found.strip_suffix(".service") == Some(wanted)
}

fn is_container(wanted: &str, found: &str) -> bool {
    wanted.len() >= 12 && found.starts_with(wanted)
}

/// Whether a group is another or below it; `wanted` may be a path in a mounted hierarchy.
fn is_below(wanted: &str, found: &str) -> bool {
    let wanted = wanted.strip_prefix("/sys/fs/cgroup").unwrap_or(wanted);
    let wanted = wanted.trim_matches('/');
    let found = found.trim_matches('/');
    match found.strip_prefix(wanted) {
        _ if wanted.is_empty() => false,
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{model::ProcessKey, proc::identity::Seccomp};

    fn process(comm: &str, exe: &str, title: &str) -> Identity {
        Identity {
            key: ProcessKey { pid: 7, start_time: 1 },
            comm: comm.to_owned(),
            cmdline: vec![title.to_owned()],
            exe: Some(PathBuf::from(exe)),
            uid: 0,
            seccomp: Seccomp::Off,
        }
    }

    #[test]
    fn names_are_comm_executable_or_title() {
        let nginx = process("nginx", "/usr/sbin/nginx", "nginx: worker process");
        assert!(is_called("nginx", &nginx) && is_called("/usr/sbin/nginx", &nginx));
        assert!(!is_called("ngin", &nginx) && !is_called("", &nginx) && !is_called("worker", &nginx));
        // A script's own name is in comm, its interpreter's in the executable.
        let gunicorn = process("gunicorn", "/usr/bin/python3.11", "/usr/bin/python3");
        assert!(
            is_called("gunicorn", &gunicorn) && is_called("python3", &gunicorn) && is_called("python3.11", &gunicorn)
        );
    }

    #[test]
    fn a_long_name_is_compared_as_the_kernel_cuts_it() {
        let long = process("a_very_long_nam", "/x/other", "");
        assert!(is_called("a_very_long_name_of_a_service", &long));
        assert!(!is_called("a_very_long_na", &long));
        // Fifteen bytes may end within a character.
        assert!(!is_called("äöüäöüäöüäöü", &long));
    }

    #[test]
    fn units_containers_and_groups() {
        assert!(is_unit("postgresql", "postgresql.service") && is_unit("x.scope", "x.scope"));
        assert!(!is_unit("postgres", "postgresql.service"));
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert!(is_container(&id[..12], id) && is_container(id, id));
        assert!(!is_container(&id[..11], id) && !is_container("", id));
        assert!(is_below("/system.slice", "/system.slice/nginx.service"));
        assert!(is_below("/sys/fs/cgroup/system.slice/", "/system.slice"));
        assert!(!is_below("/system", "/system.slice") && !is_below("/", "/system.slice"));
    }

    #[test]
    fn this_process_is_not_found_and_its_child_is() -> std::io::Result<()> {
        let own = identity::read_identity(std::process::id()).expect("this process is there");
        let found = find(&Wanted::Name(own.comm));
        assert!(found.iter().all(|process| process.key.pid != std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("20").spawn()?;
        // Its program is there a moment after the fork.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut seen = false;
        while !seen && std::time::Instant::now() < deadline {
            let found = find(&Wanted::Name("sleep".to_owned()));
            seen = found.iter().any(|process| process.key.pid == child.id());
        }
        child.kill()?;
        child.wait()?;
        assert!(seen);
        Ok(())
    }
}
