//! Who made a profile, in the words of OpenTelemetry's semantic conventions.
//!
//! Only what is known is told. Command lines are left out: they hold secrets. Invariant: keys are unique and no value
//! is empty.

use std::time::{Duration, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
};

use crate::{api::Identity, report::name::base};

/// What the kernel appends to the path of a file that is gone.
const DELETED: &str = " (deleted)";

/// A process as a resource.
pub(super) fn resource(identity: &Identity, host: &str) -> Resource {
    let mut attributes = Vec::new();
    let mut add = |key: &str, value: Option<Value>| {
        if !value.as_ref().is_none_or(is_empty) {
            attributes.push(KeyValue {
                key: key.to_owned(),
                value: Some(AnyValue { value }),
                key_strindex: 0,
            });
        }
    };
    let text = |text: &str| Some(Value::StringValue(text.to_owned()));
    let path = executable(identity);
    add("service.name", text(&service(identity)));
    add("host.name", text(host));
    add("host.arch", text(arch()));
    add("os.type", text("linux"));
    add("process.pid", Some(Value::IntValue(identity.pid.into())));
    add(
        "process.executable.name",
        text(path.map_or(identity.comm.as_str(), base)),
    );
    add("process.executable.path", path.and_then(text));
    add(
        "process.executable.build_id.gnu",
        identity.build_id.as_deref().and_then(text),
    );
    add("process.owner", identity.user.as_deref().and_then(text));
    add("process.linux.cgroup", identity.cgroup.as_deref().and_then(text));
    if identity.started != 0 {
        let started = UNIX_EPOCH + Duration::from_nanos(identity.started);
        add(
            "process.creation.time",
            text(&humantime::format_rfc3339_millis(started).to_string()),
        );
    }
    if identity.runtime.is_managed() {
        add("process.runtime.name", text(identity.runtime.name()));
        add(
            "process.runtime.version",
            identity.runtime_version.as_deref().and_then(text),
        );
    }
    if let Some(container) = &identity.container {
        add("container.id", text(&container.id));
        if container.engine != "unknown" {
            add("container.runtime.name", text(&container.engine));
        }
    }
    add(
        "k8s.pod.uid",
        identity.cgroup.as_deref().and_then(pod_uid).map(Value::StringValue),
    );
    add("systemd.unit", identity.unit.as_deref().and_then(text));
    Resource {
        attributes,
        ..Resource::default()
    }
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::StringValue(text) if text.is_empty())
}

/// Path of the executable, whether or not it is still there.
fn executable(identity: &Identity) -> Option<&str> {
    let path = identity.executable.as_deref()?;
    Some(path.strip_suffix(DELETED).unwrap_or(path)).filter(|path| !path.is_empty())
}

/// What people call the program: its systemd service, else its file, else its command name.
///
/// A unit names a program only outside containers (inside it names the engine), and not where it stands for a whole
/// login.
pub(super) fn service(identity: &Identity) -> String {
    let unit = identity
        .unit
        .as_deref()
        .and_then(|unit| unit.strip_suffix(".service"))
        .filter(|unit| identity.container.is_none() && !unit.is_empty() && !unit.starts_with("user@"));
    let name = unit
        .or_else(|| executable(identity).map(base))
        .unwrap_or(&identity.comm);
    match name {
        "" => "unknown_service".to_owned(),
        name => name.to_owned(),
    }
}

/// The UID of the Kubernetes pod whose control group this is: `…/kubepods-burstable-pod12ab_34cd.slice/…` with systemd,
/// `…/pod12ab-34cd/…` without.
pub(super) fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup
        .split('/')
        .filter(|_| cgroup.contains("kubepods"))
        .filter_map(|part| {
            let part = part.strip_suffix(".slice").unwrap_or(part);
            let (before, uid) = part.rsplit_once("pod")?;
            let plausible = before.is_empty() || before.starts_with("kubepods");
            let uid = uid.replace('_', "-");
            let hex = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
            (plausible && hex && (32..=36).contains(&uid.len())).then_some(uid)
        })
        .next_back()
}

/// The machine's architecture as the conventions name it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Container, Runtime};

    fn identity() -> Identity {
        Identity {
            pid: 7,
            comm: "leaky-with-a-lo".to_owned(),
            executable: Some("/opt/leaky-with-a-long-name (deleted)".to_owned()),
            ..Identity::default()
        }
    }

    #[test]
    fn the_name_of_a_service() {
        let mut who = identity();
        assert_eq!(service(&who), "leaky-with-a-long-name");
        who.unit = Some("user@1000.service".to_owned());
        assert_eq!(service(&who), "leaky-with-a-long-name");
        who.unit = Some("worker@3.service".to_owned());
        assert_eq!(service(&who), "worker@3");
        who.container = Some(Container {
            engine: "docker".to_owned(),
            id: "ab".to_owned(),
        });
        assert_eq!(service(&who), "leaky-with-a-long-name");
        who.executable = None;
        assert_eq!(service(&who), "leaky-with-a-lo");
        assert_eq!(service(&Identity::default()), "unknown_service");
    }

    #[test]
    fn pods() {
        let uid = "0c8f1f3e-55a1-4b8a-9d5e-3f1f6a7b8c9d";
        let slice = format!(
            "/kubepods.slice/kubepods-pod{}.slice/cri-containerd-ab.scope",
            uid.replace('-', "_")
        );
        assert_eq!(pod_uid(&slice).as_deref(), Some(uid));
        assert_eq!(
            pod_uid(&format!("/kubepods/burstable/pod{uid}/ab")).as_deref(),
            Some(uid)
        );
        assert_eq!(pod_uid("/system.slice/podman.service"), None);
        assert_eq!(pod_uid("/kubepods/podwhatever"), None);
    }

    #[test]
    fn only_what_is_known() {
        let mut who = identity();
        who.started = 1_700_000_000_123_000_000;
        let keys = |who: &Identity| -> Vec<String> {
            resource(who, "h")
                .attributes
                .into_iter()
                .map(|attribute| attribute.key)
                .collect()
        };
        insta::assert_snapshot!(keys(&who).join(" "), @"service.name host.name host.arch os.type process.pid process.executable.name process.executable.path process.creation.time");
        who.runtime = Runtime::Go;
        who.runtime_version = Some("go1.23.4".to_owned());
        who.unit = Some("a.service".to_owned());
        let all = resource(&who, "h");
        let value = |key: &str| {
            all.attributes
                .iter()
                .find(|attribute| attribute.key == key)
                .and_then(|attribute| attribute.value.as_ref()?.value.clone())
        };
        assert_eq!(
            value("process.creation.time"),
            Some(Value::StringValue("2023-11-14T22:13:20.123Z".to_owned()))
        );
        assert_eq!(value("process.pid"), Some(Value::IntValue(7)));
        assert_eq!(
            value("process.executable.path"),
            Some(Value::StringValue("/opt/leaky-with-a-long-name".to_owned()))
        );
        assert_eq!(
            value("process.runtime.version"),
            Some(Value::StringValue("go1.23.4".to_owned()))
        );
    }
}
