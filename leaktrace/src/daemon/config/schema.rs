//! Every key there is: name, kind, limits, default, meaning. The reader, the reference and the example all follow this
//! table, so that none of them can know a key that the others do not.
//!
//! Invariant: a default is of its key's kind and within its limits (a test reads all of them).

use std::time::Duration;

use super::Config;
use crate::daemon::push;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A whole number.
    Count { least: u64, most: u64 },
    /// Bytes.
    Size { least: u64, most: u64 },
    /// A duration.
    Duration { least: Duration, most: Duration },
    /// Bytes per hour, more than 0.
    Rate,
    /// A percentage, more than 0.
    Share { most: f64 },
    /// A name: letters, digits, `-`, `_`, `.`.
    Name,
    /// An absolute path; empty to switch off what it is for, where allowed.
    Path { empty: bool },
    /// A glob or `re:` and a regular expression.
    Pattern,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// `http://` or `https://`.
    Url,
    /// A table of HTTP headers.
    Headers,
    /// Address and port; empty to switch off.
    Address,
    /// An array of DNS names.
    HostNames,
}

/// Whether two configurations differ in a key.
type Differs = fn(&Config, &Config) -> bool;

/// A key.
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML.
    pub default: Option<&'static str>,
    /// A value to show, as TOML, for keys without default.
    pub example: Option<&'static str>,
    /// Must be there.
    pub required: bool,
    /// For keys that are read at the start alone: the full name, and whether two configurations differ in it.
    pub restart: Option<(&'static str, Differs)>,
    /// Sentences, in Markdown.
    pub doc: &'static str,
}

/// A section.
pub(super) struct Section {
    /// With its parents: `trace.rule`.
    pub name: &'static str,
    /// There may be any number of it: `[[name]]`.
    pub many: bool,
    pub doc: &'static str,
    pub keys: &'static [Key],
}

impl Section {
    /// As it is written in the file.
    pub fn header(&self) -> String {
        if self.many {
            format!("[[{}]]", self.name)
        } else {
            format!("[{}]", self.name)
        }
    }

    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        kind,
        default: Some(default),
        example: None,
        required: false,
        restart: None,
        doc,
    }
}

const fn optional(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        kind,
        default: None,
        example: Some(example),
        required: false,
        restart: None,
        doc,
    }
}

const fn required(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key {
        required: true,
        ..optional(name, kind, example, doc)
    }
}

const fn at_start(full: &'static str, differs: Differs, key: Key) -> Key {
    Key {
        restart: Some((full, differs)),
        ..key
    }
}

const fn between(least: u64, most: u64) -> Kind {
    Kind::Duration {
        least: Duration::from_millis(least),
        most: Duration::from_millis(most),
    }
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const SAMPLE_INTERVAL: Kind = Kind::Size {
    least: 16,
    most: 1 << 30,
};

/// All sections, in the order of the reference.
pub(super) static SECTIONS: &[Section] = &[
    Section {
        name: "watch",
        many: false,
        doc: "Looking at every process on the machine, without probes in any of them.",
        keys: &[
            key(
                "interval",
                between(100, 10 * MINUTE),
                r#""5s""#,
                "Time between two looks at all processes. Costs CPU in inverse proportion.",
            ),
            key(
                "history",
                between(MINUTE, 7 * DAY),
                r#""1h""#,
                "How far back the course of each process's memory is kept.",
            ),
            key(
                "growth_slope",
                Kind::Rate,
                r#""10MiB/h""#,
                "A process whose anonymous and swapped memory grows at least this fast is growing.",
            ),
            key(
                "growth_time",
                between(10 * SECOND, DAY),
                r#""10m""#,
                "It is traced once it has been growing for this long. Growth is measured over the same time.",
            ),
            key(
                "release_time",
                between(SECOND, 7 * DAY),
                r#""30m""#,
                "Its probes are taken away once it has not been growing for this long.",
            ),
            key(
                "suspects",
                Kind::Count { least: 0, most: 1024 },
                "16",
                "Most processes whose growth is followed by stack without probes: those that have been growing for a \
                 quarter of `growth_time` and are neither traced nor Go. While there is one, a short BPF program runs at \
                 each change of any process's resident memory; 0 switches this off.",
            ),
            key(
                "suspect_interval",
                SAMPLE_INTERVAL,
                r#""256KiB""#,
                "Mean bytes of growth between two samples of it.",
            ),
        ],
    },
    Section {
        name: "trace",
        many: false,
        doc: "Probes in processes that grow, or that a rule names.",
        keys: &[
            key(
                "auto",
                Kind::Boolean,
                "true",
                "Trace processes that grow as `[watch]` says. Rules hold either way.",
            ),
            key(
                "max_processes",
                Kind::Count { least: 1, most: 1024 },
                "32",
                "Most processes that are traced at once. Rules come before growth, fast growth before slow.",
            ),
            key(
                "sample_interval",
                SAMPLE_INTERVAL,
                r#""64KiB""#,
                "Mean bytes of allocations between two samples at the start; the budget may raise it.",
            ),
        ],
    },
    Section {
        name: "trace.rule",
        many: true,
        doc: "Processes that are always traced, within the budget. All conditions of a rule must hold, and it needs one \
              at least; the first rule that matches counts. Patterns are globs for the whole name (`*`, which takes `/`, \
              too; `?`; `[a-z]`; `\\` before a sign that is meant as such), or regular expressions behind `re:`, which \
              match anywhere in the name.",
        keys: &[
            required(
                "name",
                Kind::Name,
                r#""shop""#,
                "Name of the rule, shown as the reason; no two rules share one.",
            ),
            optional(
                "comm",
                Kind::Pattern,
                r#""java*""#,
                "Command name; the kernel cuts it at 15 bytes.",
            ),
            optional(
                "executable",
                Kind::Pattern,
                r#""/opt/shop/bin/*""#,
                "Path of the executable as the process's own mount namespace has it.",
            ),
            optional(
                "user",
                Kind::Pattern,
                r#""www-data""#,
                "Name or number of the real user.",
            ),
            optional(
                "cgroup",
                Kind::Pattern,
                r#""/kubepods.slice/*""#,
                "Path of the control group (of the memory controller with version 1).",
            ),
            optional(
                "container",
                Kind::Pattern,
                r#""containerd:*""#,
                "Id of the container, eight or more of its first digits, or engine and id as `docker:ID`, `containerd:ID`, \
                 `cri-o:ID`, `podman:ID`.",
            ),
            optional(
                "unit",
                Kind::Pattern,
                r#""shop@*.service""#,
                "systemd unit, of the machine or of a user.",
            ),
            optional(
                "pid",
                Kind::Count {
                    least: 1,
                    most: 1 << 22,
                },
                "4711",
                "Process id, in the machine's own namespace.",
            ),
            optional(
                "sample_interval",
                SAMPLE_INTERVAL,
                r#""16KiB""#,
                "In place of that of `[trace]`.",
            ),
        ],
    },
    Section {
        name: "budget",
        many: false,
        doc: "What tracing may cost. Beyond it sampling gets coarser, then probes are taken away; each such step is \
              noted in the profiles.",
        keys: &[
            key(
                "target_cpu",
                Kind::Share { most: 1.0 },
                r#""5%""#,
                "Time that probes take in one process, of one CPU.",
            ),
            key(
                "machine_cpu",
                Kind::Share { most: 1.0 },
                r#""2%""#,
                "Time that all probes take in all processes, of all CPUs of the machine; following growth without probes \
                 counts as well, and is the first to end.",
            ),
            key(
                "own_cpu",
                Kind::Share { most: 1.0 },
                r#""10%""#,
                "Time that the daemon takes itself, of one CPU.",
            ),
            key(
                "own_memory",
                Kind::Size {
                    least: 32 * MIB,
                    most: TIB,
                },
                r#""150MiB""#,
                "Resident memory of the daemon.",
            ),
        ],
    },
    Section {
        name: "export",
        many: false,
        doc: "Profiles that are written to disk. The oldest go first when one of the limits is reached.",
        keys: &[
            at_start(
                "export.directory",
                |old, new| old.export.directory != new.export.directory,
                key(
                    "directory",
                    Kind::Path { empty: false },
                    r#""/var/lib/leaktrace/profiles""#,
                    "Where they are kept. One daemon owns a directory.",
                ),
            ),
            key(
                "interval",
                between(SECOND, DAY),
                r#""60s""#,
                "Time between two profiles of a traced process.",
            ),
            key(
                "go_interval",
                between(SECOND, DAY),
                r#""10m""#,
                "Time between two profiles of a Go process that is watched and not traced.",
            ),
            key(
                "keep_count",
                Kind::Count {
                    least: 1,
                    most: 10_000_000,
                },
                "120",
                "Most profiles that are kept of each process.",
            ),
            key(
                "keep_age",
                between(MINUTE, 3650 * DAY),
                r#""7d""#,
                "Older ones are removed.",
            ),
            key(
                "keep_bytes",
                Kind::Size {
                    least: MIB,
                    most: 1024 * TIB,
                },
                r#""1GiB""#,
                "Most bytes that all of them take.",
            ),
        ],
    },
    Section {
        name: "push",
        many: true,
        doc: "Systems that each profile is sent to as well. One that cannot be reached delays nothing else; what does \
              not fit its queue is dropped and counted.",
        keys: &[
            required(
                "name",
                Kind::Name,
                r#""collector""#,
                "Name of the target, in figures and messages; no two share one.",
            ),
            required(
                "kind",
                Kind::Choice(&push::Kind::NAMES),
                r#""otlp-grpc""#,
                "What it speaks. `otlp-grpc` and `otlp-http`: OpenTelemetry profiles. `pyroscope`: pprof to `/ingest`.",
            ),
            required(
                "url",
                Kind::Url,
                r#""http://127.0.0.1:4317""#,
                "Where it is. OTLP over HTTP without a path: `/v1development/profiles` is appended; Pyroscope: `/ingest`, \
                 unless the path ends so. OTLP over gRPC takes no path.",
            ),
            optional(
                "headers",
                Kind::Headers,
                r#"{ "X-Scope-OrgID" = "ops" }"#,
                "Headers to send along. Secrets belong in `token_file`.",
            ),
            optional(
                "token_file",
                Kind::Path { empty: false },
                r#""/etc/leaktrace/collector.token""#,
                "File with a bearer token, which is sent as `Authorization`. It is read again when it changes.",
            ),
            key(
                "timeout",
                between(100, 10 * MINUTE),
                r#""10s""#,
                "How long one attempt may take.",
            ),
            key(
                "queue",
                Kind::Count {
                    least: 1,
                    most: 100_000,
                },
                "256",
                "Most profiles that wait to be sent.",
            ),
        ],
    },
    Section {
        name: "http",
        many: false,
        doc: "The API, the page and metrics. Everything but `/healthz` asks for the token.",
        keys: &[
            at_start(
                "http.listen",
                |old, new| old.http.listen != new.http.listen,
                key(
                    "listen",
                    Kind::Address,
                    r#""127.0.0.1:7373""#,
                    "Address and port. One that is not on loopback needs `tls_certificate` and `tls_key`. Empty: none.",
                ),
            ),
            at_start(
                "http.socket",
                |old, new| old.http.socket != new.http.socket,
                key(
                    "socket",
                    Kind::Path { empty: true },
                    r#""/run/leaktrace.sock""#,
                    "Unix socket, for root alone. Empty: none.",
                ),
            ),
            at_start(
                "http.token_file",
                |old, new| old.http.token_file != new.http.token_file,
                key(
                    "token_file",
                    Kind::Path { empty: false },
                    r#""/var/lib/leaktrace/token""#,
                    "File with the token; made with a random one, readable by root alone, if it is not there.",
                ),
            ),
            at_start(
                "http.tls_certificate",
                |old, new| old.http.tls_certificate != new.http.tls_certificate,
                optional(
                    "tls_certificate",
                    Kind::Path { empty: false },
                    r#""/etc/leaktrace/tls.crt""#,
                    "Certificate chain, PEM. With it, `listen` speaks TLS alone.",
                ),
            ),
            at_start(
                "http.tls_key",
                |old, new| old.http.tls_key != new.http.tls_key,
                optional(
                    "tls_key",
                    Kind::Path { empty: false },
                    r#""/etc/leaktrace/tls.key""#,
                    "Its private key, PEM.",
                ),
            ),
            at_start(
                "http.names",
                |old, new| old.http.names != new.http.names,
                optional(
                    "names",
                    Kind::HostNames,
                    r#"["host-a.example"]"#,
                    "DNS names by which the daemon is asked for over TLS, which the certificate has to be for as well. \
                     Requests for any other name are refused; its addresses are known, and so is `localhost`.",
                ),
            ),
            at_start(
                "http.max_clients",
                |old, new| old.http.max_clients != new.http.max_clients,
                key(
                    "max_clients",
                    Kind::Count { least: 1, most: 10_000 },
                    "64",
                    "Most connections at once.",
                ),
            ),
        ],
    },
];

/// A section by its full name.
pub(super) fn section(name: &str) -> &'static Section {
    SECTIONS
        .iter()
        .find(|section| section.name == name)
        .expect("only names of the table are asked for")
}

/// Sizes for people: `64KiB`.
pub(super) fn size_text(bytes: u64) -> String {
    [("TiB", TIB), ("GiB", 1 << 30), ("MiB", MIB), ("KiB", KIB)]
        .iter()
        .find(|&&(_, factor)| bytes >= factor && bytes.is_multiple_of(factor))
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, factor)| format!("{}{unit}", bytes / factor),
        )
}

/// Durations for people: `5s`, `1h`; without the blanks between the units.
pub(super) fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.subsec_nanos() == 0 && seconds > 0 {
        for (unit, factor) in [("d", 86_400), ("h", 3600), ("m", 60)] {
            if seconds.is_multiple_of(factor) {
                return format!("{}{unit}", seconds / factor);
            }
        }
    }
    humantime::format_duration(duration).to_string().replace(' ', "")
}
