//! Control groups of a process, and what their paths tell: the container and the systemd unit that it belongs to.
//!
//! The parsers are pure. A path is a convention of whoever made the group, not a proof: a user with a group delegated to
//! them may name groups below it as they like. Invariant: an id that is returned holds hexadecimal digits alone, a unit
//! only the characters that systemd allows.

use crate::proc::{ProcError, read_bounded};

/// Most bytes of `/proc/PID/cgroup` that are read: some 15 hierarchies, each with a path of at most 4 KiB.
const MAX_FILE: u64 = 128 << 10;
/// Shortest id behind a prefix such as `docker-`; engines write 64 digits, tools that wrap them may cut it.
const MIN_ID: usize = 12;
/// Length of a full id.
const FULL_ID: usize = 64;
/// Longest name of a unit (systemd's `UNIT_NAME_MAX`).
const MAX_UNIT: usize = 255;

/// Kinds of units that own a control group.
const UNIT_KINDS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// Names that engines put in front of an id, in the name of a group or scope.
const PREFIXES: [(&str, Engine); 7] = [
    ("cri-containerd-", Engine::Containerd),
    ("containerd-", Engine::Containerd),
    ("nerdctl-", Engine::Containerd),
    ("docker-", Engine::Docker),
    ("crio-", Engine::CriO),
    ("libpod-payload-", Engine::Podman),
    ("libpod-", Engine::Podman),
];

/// Groups whose children are containers that are named by their bare id. Those below `kubepods` are not here: every
/// engine makes such groups there when it uses the `cgroupfs` driver.
const PARENTS: [(&str, Engine); 6] = [
    ("docker", Engine::Docker),
    ("libpod_parent", Engine::Podman),
    ("machine.slice", Engine::Podman),
    ("k8s.io", Engine::Containerd),
    ("default", Engine::Containerd),
    ("containerd", Engine::Containerd),
];

/// Who made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Docker.
    Docker,
    /// containerd by itself or through Kubernetes.
    Containerd,
    /// CRI-O.
    CriO,
    /// Podman, with root or without.
    Podman,
    /// The path does not tell.
    Unknown,
}

impl Engine {
    /// Its name in answers and rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Unknown => "unknown",
        }
    }
}

/// A container, as a path names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Container {
    /// Who made it.
    pub engine: Engine,
    /// Its id, lower-case hexadecimal.
    pub id: String,
}

/// The control groups of a process that are of interest, relative to the root that the reader sees. Lossy UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Of the memory controller (version 1).
    pub memory: Option<String>,
    /// In the unified hierarchy (version 2).
    pub unified: Option<String>,
    /// In systemd's own hierarchy (`name=systemd`, version 1).
    pub systemd: Option<String>,
}

impl Cgroups {
    /// Parses `/proc/PID/cgroup`. Lines that are not of the kernel's form are passed over.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut groups = Self::default();
        for line in bytes.split(|byte| *byte == b'\n').take(256) {
            // A path may hold colons, so only the first two count.
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // A group that was removed while a zombie or a leaving process still counts to it.
            let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
            if !path.starts_with(b"/") {
                continue;
            }
            let slot = if number == b"0" && controllers.is_empty() {
                &mut groups.unified
            } else if controllers == b"name=systemd" {
                &mut groups.systemd
            } else if controllers.split(|byte| *byte == b',').any(|name| name == b"memory") {
                &mut groups.memory
            } else {
                continue;
            };
            slot.get_or_insert_with(|| String::from_utf8_lossy(path).into_owned());
        }
        groups
    }

    /// Reads those of a process.
    ///
    /// # Errors
    /// As every read below `/proc/PID`.
    pub fn read(pid: u32) -> Result<Self, ProcError> {
        Ok(Self::parse(&read_bounded(pid, "cgroup", MAX_FILE)?))
    }

    /// The group that accounts the process's memory: the memory controller's with version 1, else the unified one.
    pub fn path(&self) -> Option<&str> {
        self.memory.as_deref().or(self.unified.as_deref())
    }

    /// The container that the process runs in.
    pub fn container(&self) -> Option<Container> {
        self.paths().find_map(container_of)
    }

    /// The systemd unit that the process belongs to.
    pub fn unit(&self) -> Option<String> {
        [&self.systemd, &self.unified, &self.memory]
            .into_iter()
            .flatten()
            .find_map(|path| unit_of(path))
    }

    /// All of them.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        [&self.memory, &self.unified, &self.systemd]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// The innermost container that a path names.
pub fn container_of(path: &str) -> Option<Container> {
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    while let Some(part) = parts.pop() {
        if let Some(found) = container_in(part, parts.last().copied()) {
            return Some(found);
        }
    }
    None
}

/// The container that one group is of.
fn container_in(part: &str, parent: Option<&str>) -> Option<Container> {
    // `SLICE:PREFIX:ID` is what a runtime with the cgroupfs driver makes of the systemd form.
    if let Some((rest, id)) = part.rsplit_once(':') {
        let prefix = rest.rsplit_once(':').map_or(rest, |(_, prefix)| prefix);
        let known = PREFIXES.iter().find(|(name, _)| name.strip_suffix('-') == Some(prefix));
        let engine = known.map_or(Engine::Unknown, |&(_, engine)| engine);
        return container(engine, id, if known.is_some() { MIN_ID } else { FULL_ID });
    }
    let name = part.strip_suffix(".scope").unwrap_or(part);
    // systemd puts `_` in front of a name that the kernel might take for a file of its own.
    let name = name.strip_prefix('_').unwrap_or(name);
    // Podman with split groups may run a container below a unit: `libpod-payload-ID`; and a container that is a service
    // is `docker-ID.service` nowhere, so that suffix is left alone. Monitors (`libpod-conmon-ID`, `crio-conmon-ID`) stand
    // outside of their container and are not taken for it, as `conmon-ID` is no hexadecimal number.
    for (prefix, engine) in PREFIXES {
        if let Some(found) = name.strip_prefix(prefix).and_then(|id| container(engine, id, MIN_ID)) {
            return Some(found);
        }
    }
    let parent = PARENTS.iter().find(|&&(name, _)| parent == Some(name));
    let engine = parent.map_or(Engine::Unknown, |&(_, engine)| engine);
    container(engine, name, FULL_ID)
}

fn container(engine: Engine, id: &str, shortest: usize) -> Option<Container> {
    let hexadecimal = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (hexadecimal && (shortest..=FULL_ID).contains(&id.len())).then(|| Container {
        engine,
        id: id.to_owned(),
    })
}

/// The systemd unit that a path names, as systemd writes it (`\x2d` and the like are part of the name): the unit of the
/// user's own manager for what that runs, else the machine's; the innermost slice for what is in no unit.
pub fn unit_of(path: &str) -> Option<String> {
    let mut slice = None;
    let mut system = None;
    let mut user = None;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let Some(name) = unit_name(part) else {
            // Groups that are below a unit belong to it, whatever they are called.
            if system.is_some() {
                continue;
            } else {
                return slice;
            };
        };
        let is_slice = name.ends_with(".slice");
        match (&system, is_slice) {
            (None, true) => slice = Some(name.to_owned()),
            (None, false) => system = Some(name.to_owned()),
            // Below `user@UID.service` the manager of that user makes slices and units in turn.
            (Some(manager), false) if user.is_none() && is_user_manager(manager) => user = Some(name.to_owned()),
            _ => {}
        }
    }
    // The manager's own processes are in `init.scope` below its service.
    match user.as_deref() {
        Some("init.scope") => system,
        _ => user.or(system).or(slice),
    }
}

fn is_user_manager(unit: &str) -> bool {
    unit.strip_prefix("user@")
        .and_then(|rest| rest.strip_suffix(".service"))
        .is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The name of a unit, if a group may be one.
fn unit_name(part: &str) -> Option<&str> {
    let name = part.strip_prefix('_').unwrap_or(part);
    let stem = UNIT_KINDS.iter().find_map(|kind| name.strip_suffix(kind))?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    (!stem.is_empty() && name.len() <= MAX_UNIT && stem.bytes().all(allowed)).then_some(name)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeedf00dfeedf00dfeedf00dfeed";

    #[test]
    fn containers_by_engine_and_driver() {
        let pod = "kubepods-burstable-pod0a1b2c3d_0a1b_2c3d_4e5f_0a1b2c3d4e5f.slice";
        let cases = [
            (format!("/docker/{ID}"), Engine::Docker),
            (format!("/system.slice/docker-{ID}.scope"), Engine::Docker),
            (format!("/system.slice/docker-{ID}.scope/init.scope"), Engine::Docker),
            (
                format!("/system.slice/docker-{ID}.scope/system.slice/nginx.service"),
                Engine::Docker,
            ),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/app.slice/docker-{ID}.scope"),
                Engine::Docker,
            ),
            (format!("/docker/{OTHER}/docker/{ID}"), Engine::Docker),
            (
                format!("/docker/{OTHER}/kubelet/kubepods/besteffort/pod1/{ID}"),
                Engine::Unknown,
            ),
            (
                format!("/kubepods.slice/kubepods-burstable.slice/{pod}/docker-{ID}.scope"),
                Engine::Docker,
            ),
            (
                format!("/kubepods.slice/kubepods-burstable.slice/{pod}/cri-containerd-{ID}.scope"),
                Engine::Containerd,
            ),
            (format!("/kubepods.slice/{pod}/crio-{ID}.scope"), Engine::CriO),
            (format!("/kubepods.slice/{pod}/crio-{ID}.scope/container"), Engine::CriO),
            (
                format!("/kubepods/burstable/pod0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f/{ID}"),
                Engine::Unknown,
            ),
            (format!("/kubepods/besteffort/pod1/crio-{ID}"), Engine::CriO),
            (
                format!("/system.slice/containerd.service/{pod}:cri-containerd:{ID}"),
                Engine::Containerd,
            ),
            (format!("/system.slice:docker:{ID}"), Engine::Docker),
            (format!("/default/{ID}"), Engine::Containerd),
            (format!("/k8s.io/{ID}"), Engine::Containerd),
            (format!("/system.slice/nerdctl-{ID}.scope"), Engine::Containerd),
            (format!("/machine.slice/libpod-{ID}.scope"), Engine::Podman),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Engine::Podman),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"),
                Engine::Podman,
            ),
            (format!("/libpod_parent/libpod-{ID}"), Engine::Podman),
            (format!("/system.slice/web.service/libpod-payload-{ID}"), Engine::Podman),
            (format!("/../../{ID}"), Engine::Unknown),
            (format!("/ci-jobs/{ID}"), Engine::Unknown),
        ];
        for (path, engine) in cases {
            let found = container_of(&path);
            assert_eq!(
                found,
                Some(Container {
                    engine,
                    id: ID.to_owned()
                }),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_container() {
        for path in [
            "/",
            "",
            "/system.slice/docker.service",
            "/system.slice/nginx.service",
            "/docker/buildx",
            "/system.slice/docker-.scope",
            "/system.slice/docker-xyz.scope",
            &format!("/machine.slice/libpod-conmon-{ID}.scope"),
            &format!("/system.slice/crio-conmon-{ID}.scope"),
            &format!("/system.slice/docker-{ID}0.scope"),
            &format!("/docker/{}", &ID[..40]),
            &format!("/docker/{}", ID.to_uppercase()),
        ] {
            assert_eq!(container_of(path), None, "{path}");
        }
    }

    #[test]
    fn units_of_the_machine_and_of_users() {
        let scope = format!("docker-{ID}.scope");
        let cases = [
            ("/system.slice/nginx.service", Some("nginx.service")),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                Some("getty@tty1.service"),
            ),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main.service"),
            ),
            (
                r"/system.slice/dev-disk\x2dby\x2dlabel-swap.swap",
                Some(r"dev-disk\x2dby\x2dlabel-swap.swap"),
            ),
            ("/system.slice/nginx.service/workers.service", Some("nginx.service")),
            ("/system.slice/k3s.service/anything here", Some("k3s.service")),
            ("/user.slice/user-1000.slice/session-2.scope", Some("session-2.scope")),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-editor@7.service",
                Some("app-editor@7.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                Some("user@1000.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service",
                Some("user@1000.service"),
            ),
            ("/system.slice/user@web.service/x.service", Some("user@web.service")),
            ("/init.scope", Some("init.scope")),
            ("/user.slice/user-1000.slice", Some("user-1000.slice")),
            ("/system.slice/_cpu.service", Some("cpu.service")),
            (
                &format!("/system.slice/{scope}/system.slice/nginx.service"),
                Some(scope.as_str()),
            ),
            ("/", None),
            ("/docker/x.service", None),
            ("/.service", None),
            ("/system.slice/a b.service", Some("system.slice")),
        ];
        for (path, unit) in cases {
            assert_eq!(unit_of(path).as_deref(), unit, "{path}");
        }
        assert_eq!(unit_of(&format!("/{}.service", "a".repeat(300))), None);
    }

    #[test]
    fn versions_and_mixtures_of_them() {
        let unified = Cgroups::parse(b"0::/system.slice/nginx.service\n");
        assert_eq!(unified.path(), Some("/system.slice/nginx.service"));
        assert_eq!(unified.unit().as_deref(), Some("nginx.service"));

        let text = format!(
            "12:cpu,cpuacct:/docker/{OTHER}\n9:hugetlb,memory:/docker/{ID}\n1:name=systemd:/system.slice/docker.service\n0::/\n"
        );
        let old = Cgroups::parse(text.as_bytes());
        assert_eq!(old.path(), Some(format!("/docker/{ID}").as_str()));
        assert_eq!(old.container().unwrap().id, ID);
        assert_eq!(old.unit().as_deref(), Some("docker.service"));

        let colons = Cgroups::parse(b"0::/a:b:c (deleted)\n");
        assert_eq!(colons.path(), Some("/a:b:c"));
        assert_eq!(Cgroups::parse(b"garbage\n0:\n::\n0::relative\n"), Cgroups::default());
        // The first line of a kind counts; the kernel writes one.
        assert_eq!(Cgroups::parse(b"0::/a\n0::/b\n").path(), Some("/a"));
    }

    #[test]
    fn reads_its_own() {
        let groups = Cgroups::read(std::process::id()).unwrap();
        assert!(groups.path().unwrap().starts_with('/'));
    }

    proptest! {
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let groups = Cgroups::parse(&bytes);
            let _ = (groups.path(), groups.container(), groups.unit());
        }

        #[test]
        fn results_hold_only_what_is_allowed(
            parts in proptest::collection::vec(
                "(docker|docker-|libpod-|crio-|cri-containerd-|:|_|user@[0-9]{1,4})?([0-9a-f]{64}|[0-9a-f]{12}|\\PC{0,12})(\\.scope|\\.service|\\.slice)?",
                0..8,
            )
        ) {
            let path = format!("/{}", parts.join("/"));
            if let Some(found) = container_of(&path) {
                prop_assert!(path.contains(&found.id));
                prop_assert!((MIN_ID..=FULL_ID).contains(&found.id.len()));
                prop_assert!(found.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
            }
            if let Some(unit) = unit_of(&path) {
                prop_assert!(path.contains(&unit) && unit.len() <= MAX_UNIT);
                prop_assert!(unit.is_ascii() && !unit.contains([' ', '/', '\n']));
            }
        }

        #[test]
        fn a_container_is_found_below_any_parents(
            parents in proptest::collection::vec("[a-z]{1,8}(\\.slice)?", 0..5),
            below in proptest::collection::vec("[g-z]{1,8}", 0..3),
        ) {
            let path = format!("/{}/docker-{ID}.scope/{}", parents.join("/"), below.join("/"));
            let found = container_of(&path);
            prop_assert_eq!(found.map(|found| found.id), Some(ID.to_owned()));
        }
    }
}
