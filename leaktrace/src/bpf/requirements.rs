//! What the BPF programs ask of a kernel: what it is without, by the feature and the version that brought it, or by a lock.
//!
//! Distributions bring features to older kernels, so a version alone refuses nothing: the kernel is asked, and what it says
//! explains a refusal that has happened.

use std::{error::Error, fs};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use crate::proc::release::Release;

/// The oldest kernel that the tests boot.
pub const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Something that the programs cannot do without.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// The version that brought it.
    pub since: (u32, u32),
    ability: Ability,
}

#[derive(Clone, Copy, Debug)]
enum Ability {
    Map(MapType),
    /// Of uprobe programs.
    Helper(BpfHelper),
}

/// All of them, by age.
const FEATURES: [Feature; 4] = [
    Feature {
        name: "ring buffers",
        since: (5, 8),
        ability: Ability::Map(MapType::RingBuf),
    },
    Feature {
        name: "task-local storage",
        since: (5, 11),
        ability: Ability::Helper(BpfHelper::BPF_FUNC_task_storage_get),
    },
    Feature {
        name: "cookies of probes",
        since: (5, 15),
        ability: Ability::Helper(BpfHelper::BPF_FUNC_get_attach_cookie),
    },
    Feature {
        name: "bpf_loop",
        since: (5, 17),
        ability: Ability::Helper(BpfHelper::BPF_FUNC_loop),
    },
];

impl Feature {
    /// Whether the running kernel says that it does not have it. One that refuses to say has it.
    fn is_absent(&self) -> bool {
        match self.ability {
            Ability::Map(map) => matches!(is_map_supported(map), Ok(false)),
            Ability::Helper(helper) => matches!(is_helper_supported(ProgramType::KProbe, helper), Ok(false)),
        }
    }
}

/// Whether the kernel is locked down such that BPF programs may not read memory.
fn is_confidential() -> bool {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    locked_down(&read("/sys/kernel/security/lockdown"), &read("/proc/cmdline"))
}

/// By what securityfs says, or the kernel's command line where that is not mounted.
fn locked_down(state: &str, command_line: &str) -> bool {
    if state.is_empty() {
        let words = command_line.split_ascii_whitespace();
        words.filter_map(|word| word.strip_prefix("lockdown=")).next_back() == Some("confidentiality")
    } else {
        state.contains("[confidentiality]")
    }
}

/// Why a kernel refuses what leaktrace asks for, as far as it is the kernel's age or a lock, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What is in the way; it names the kernel.
    pub reason: String,
    /// What can be done.
    pub remedy: String,
}

impl Obstacle {
    /// Of the running kernel, which is asked; `None` if it has all that is needed.
    pub fn here() -> Option<Self> {
        let lacking: Vec<&Feature> = FEATURES.iter().filter(|feature| feature.is_absent()).collect();
        Self::of(&Release::running(), &lacking, is_confidential())
    }

    /// A lock on the running kernel that keeps BPF programs from reading memory.
    pub fn lock() -> Option<Self> {
        is_confidential().then(|| Self::locked(&Release::running()))
    }

    fn locked(release: &Release) -> Self {
        Self {
            reason: format!(
                "Linux {release} is locked down for confidentiality, in which BPF programs may not read memory"
            ),
            remedy: "boot with lockdown=integrity, or without lockdown=".to_owned(),
        }
    }

    fn of(release: &Release, lacking: &[&Feature], confidential: bool) -> Option<Self> {
        let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
        let later = format!("boot Linux {} or later", version(OLDEST_KERNEL));
        if confidential {
            // First: it takes helpers away, which then seem to be lacking.
            return Some(Self::locked(release));
        }
        if !lacking.is_empty() {
            let names: Vec<String> = lacking
                .iter()
                .map(|feature| format!("{} ({})", feature.name, version(feature.since)))
                .collect();
            return Some(Self {
                reason: format!("Linux {release} lacks {}", names.join(", ")),
                remedy: later,
            });
        }
        (release.version() < OLDEST_KERNEL).then(|| Self {
            reason: format!(
                "Linux {release} is older than {}, the oldest that leaktrace is tested on",
                version(OLDEST_KERNEL)
            ),
            remedy: later,
        })
    }
}

/// What goes before the message of a refusal: which kernel it was, and why if that is known.
pub(super) fn preface() -> String {
    match Obstacle::here() {
        Some(Obstacle { reason, remedy }) => format!("{reason}; {remedy}: "),
        None => format!("Linux {}: ", Release::running()),
    }
}

/// An error with its causes, which aya's errors leave out of their messages.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// The end of a verifier's log, on lines of its own: the reason is in its last lines, and all of it may be megabytes.
pub(super) fn last_lines(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter().fold(String::new(), |text, line| text + "\n  " + line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(release: &str, lacking: &[&Feature], confidential: bool) -> Option<String> {
        let obstacle = Obstacle::of(&Release::of(release), lacking, confidential)?;
        Some(format!("{}; {}", obstacle.reason, obstacle.remedy))
    }

    #[test]
    fn what_is_lacking_is_named_with_the_version_that_brought_it() {
        let lacking: Vec<&Feature> = FEATURES.iter().filter(|feature| feature.since > (5, 10)).collect();
        insta::assert_snapshot!(
            text("5.10.0-32-amd64", &lacking, false).unwrap_or_default(),
            @"Linux 5.10.0-32-amd64 lacks task-local storage (5.11), cookies of probes (5.15), bpf_loop (5.17); boot Linux 6.1 or later"
        );
    }

    #[test]
    fn a_kernel_that_has_everything_and_is_too_old_is_told_so() {
        insta::assert_snapshot!(
            text("5.19.0-50-generic", &[], false).unwrap_or_default(),
            @"Linux 5.19.0-50-generic is older than 6.1, the oldest that leaktrace is tested on; boot Linux 6.1 or later"
        );
        assert_eq!(text("6.1.0-13-amd64", &[], false), None);
        assert_eq!(text("7.3.4", &[], false), None);
    }

    #[test]
    fn a_lock_comes_before_what_it_takes_away() {
        let text = text("6.12.0", &[&FEATURES[3]], true).unwrap_or_default();
        assert!(
            text.contains("locked down") && text.contains("lockdown=integrity"),
            "{text}"
        );
        assert!(!text.contains("bpf_loop"), "{text}");
    }

    #[test]
    fn the_lock_is_read_where_it_can_be() {
        assert!(locked_down("none integrity [confidentiality]\n", ""));
        assert!(!locked_down(
            "none [integrity] confidentiality\n",
            "lockdown=confidentiality"
        ));
        // Without securityfs the command line tells; its last word counts.
        assert!(locked_down("", "quiet lockdown=integrity lockdown=confidentiality"));
        assert!(!locked_down("", "quiet lockdown=integrity"));
    }

    #[test]
    fn this_kernel_has_what_it_should() {
        let release = Release::running();
        for feature in &FEATURES {
            // A kernel without privileges to ask it says nothing, and so nothing is absent.
            assert!(release.version() < feature.since || !feature.is_absent(), "{feature:?}");
        }
    }

    #[test]
    fn of_a_log_the_end_is_shown() {
        let log: String = (1..=40).map(|line| format!("line {line}\n")).collect();
        let shown = last_lines(&log);
        assert_eq!(shown.lines().count(), 13);
        assert!(
            shown.starts_with("\n  line 29\n") && shown.ends_with("\n  line 40"),
            "{shown}"
        );
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn the_readme_names_the_oldest_kernel() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
        let readme = fs::read_to_string(path).unwrap_or_default();
        let (major, minor) = OLDEST_KERNEL;
        assert!(readme.contains(&format!("Linux {major}.{minor} or later")));
    }
}
