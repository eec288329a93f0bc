//! Which processes an administrator wants traced.

use std::num::NonZeroU32;

use super::pattern::Pattern;
use crate::api::{Container, Identity};

/// Digits from which on a plain text is taken for the begin of a container's id.
const SHORT_ID: usize = 8;

/// A rule: all conditions that it has must hold. It has one at least.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, in reasons and messages.
    pub name: String,
    /// Command name.
    pub comm: Option<Pattern>,
    /// Path of the executable, without ` (deleted)`.
    pub executable: Option<Pattern>,
    /// User name or number.
    pub user: Option<Pattern>,
    /// Path of the control group.
    pub cgroup: Option<Pattern>,
    /// Container id, its begin, or `ENGINE:ID`.
    pub container: Option<Pattern>,
    /// systemd unit.
    pub unit: Option<Pattern>,
    /// Process id.
    pub pid: Option<NonZeroU32>,
    /// Mean bytes between samples, in place of that of `[trace]`.
    pub sample_interval: Option<u64>,
}

impl Rule {
    /// Whether a process is meant.
    pub fn matches(&self, identity: &Identity) -> bool {
        let holds = |pattern: &Option<Pattern>, name: Option<&str>| {
            pattern
                .as_ref()
                .is_none_or(|pattern| name.is_some_and(|name| pattern.matches(name)))
        };
        let executable = identity.executable.as_deref();
        let executable = executable.map(|path| path.strip_suffix(" (deleted)").unwrap_or(path));
        self.pid.is_none_or(|pid| pid.get() == identity.pid)
            && holds(&self.comm, Some(&identity.comm))
            && holds(&self.executable, executable)
            && holds(&self.cgroup, identity.cgroup.as_deref())
            && holds(&self.unit, identity.unit.as_deref())
            && self.user.as_ref().is_none_or(|pattern| {
                pattern.matches(&identity.uid.to_string())
                    || identity.user.as_deref().is_some_and(|user| pattern.matches(user))
            })
            && self.container.as_ref().is_none_or(|pattern| {
                let container = identity.container.as_ref();
                container.is_some_and(|container| is_container(pattern, container))
            })
    }
}

fn is_container(pattern: &Pattern, container: &Container) -> bool {
    let text = pattern.as_str();
    let short = text.len() >= SHORT_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (short && container.id.starts_with(text))
        || pattern.matches(&container.id)
        || pattern.matches(&format!("{}:{}", container.engine, container.id))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule {
            name: "r".to_owned(),
            comm: None,
            executable: None,
            user: None,
            cgroup: None,
            container: None,
            unit: None,
            pid: None,
            sample_interval: None,
        };
        change(&mut rule);
        rule
    }

    fn pattern(text: &str) -> Option<Pattern> {
        Some(Pattern::new(text).unwrap())
    }

    fn process() -> Identity {
        Identity {
            pid: 42,
            comm: "java".to_owned(),
            executable: Some("/usr/lib/jvm/bin/java (deleted)".to_owned()),
            uid: 1000,
            user: Some("web".to_owned()),
            cgroup: Some("/system.slice/shop.service".to_owned()),
            container: Some(Container {
                engine: "podman".to_owned(),
                id: "0123456789abcdef".repeat(4),
            }),
            unit: Some("shop.service".to_owned()),
            ..Identity::default()
        }
    }

    #[test]
    fn each_condition_decides() {
        let cases: Vec<(Rule, bool)> = vec![
            (rule(|r| r.comm = pattern("ja*")), true),
            (rule(|r| r.comm = pattern("ruby")), false),
            (rule(|r| r.executable = pattern("*/bin/java")), true),
            (rule(|r| r.executable = pattern("*/bin/ruby")), false),
            (rule(|r| r.user = pattern("web")), true),
            (rule(|r| r.user = pattern("1000")), true),
            (rule(|r| r.user = pattern("root")), false),
            (rule(|r| r.cgroup = pattern("/system.slice/*")), true),
            (rule(|r| r.cgroup = pattern("/user.slice/*")), false),
            (rule(|r| r.container = pattern("0123456789ab")), true),
            (rule(|r| r.container = pattern("123456789abc")), false),
            (rule(|r| r.container = pattern("0123")), false),
            (rule(|r| r.container = pattern("podman:*")), true),
            (rule(|r| r.container = pattern("docker:*")), false),
            (rule(|r| r.unit = pattern("shop.*")), true),
            (rule(|r| r.unit = pattern("mail.*")), false),
            (rule(|r| r.pid = NonZeroU32::new(42)), true),
            (rule(|r| r.pid = NonZeroU32::new(43)), false),
        ];
        for (rule, expected) in cases {
            assert_eq!(rule.matches(&process()), expected, "{rule:?}");
        }
    }

    #[test]
    fn all_conditions_must_hold() {
        let both = rule(|r| {
            r.comm = pattern("java");
            r.user = pattern("root");
        });
        assert!(!both.matches(&process()));
    }

    #[test]
    fn what_is_not_known_matches_no_condition() {
        for rule in [
            rule(|r| r.executable = pattern("*")),
            rule(|r| r.cgroup = pattern("*")),
            rule(|r| r.container = pattern("*")),
            rule(|r| r.unit = pattern("*")),
        ] {
            assert!(!rule.matches(&Identity::default()), "{rule:?}");
        }
        assert!(rule(|r| r.user = pattern("0")).matches(&Identity::default()));
    }
}
