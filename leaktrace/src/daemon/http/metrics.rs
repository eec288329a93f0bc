//! `/metrics`: the daemon's own figures and those of some processes, as Prometheus text (version 0.0.4).
//!
//! Invariants: the number of series has a limit however many processes there are, and no name that a process chose can
//! begin a line or end a label.

use std::cmp::Ordering;
use std::fmt::{Display, Write as _};
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hashbrown::HashSet;

use super::App;
use super::answer::{Problem, typed};
use crate::api;
use crate::report::name::printable;

/// Processes by growth.
const TOP: usize = 100;
/// Traced processes; more than that are chosen by growth, too.
const MAX_TRACED: usize = 400;
/// Characters of a label.
const MAX_LABEL: usize = 128;

/// `/metrics`.
pub(super) async fn page(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let backend = Arc::clone(&app.backend);
    let http = Http {
        connections: app.tcp.len() + app.unix.len(),
        refused: app.tcp.refused() + app.unix.refused(),
    };
    let text = app
        .quick
        .run(move || Ok(text(&backend.status(), &backend.processes().processes, &http)))
        .await?;
    Ok(typed(
        "text/plain; version=0.0.4; charset=utf-8",
        app.downloads.body(text.into_bytes())?,
    ))
}

/// What the server knows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Http {
    pub connections: usize,
    pub refused: u64,
}

/// The whole page.
pub(super) fn text(status: &api::Status, processes: &[api::Process], http: &Http) -> String {
    let mut page = Page::default();
    own(&mut page, status, http);
    let chosen = chosen(processes);
    each(&mut page, &chosen);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

impl Page {
    fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let _ = write!(
            self.text,
            "# HELP leaktrace_{name} {help}\n# TYPE leaktrace_{name} {kind}\n"
        );
        Family {
            text: &mut self.text,
            name: name.to_owned(),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help).value("", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Counter, help).value("", value);
    }
}

struct Family<'a> {
    text: &'a mut String,
    name: String,
}

impl Family<'_> {
    /// One series; `labels` as [`labels`] writes them.
    fn value(&mut self, labels: &str, value: impl Display) {
        let _ = writeln!(self.text, "leaktrace_{}{labels} {value}", self.name);
    }
}

/// `{a="…",b="…"}` of the labels that have a value.
fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '{' } else { ',' });
        let _ = write!(text, "{name}=\"");
        for c in printable(value).chars().take(MAX_LABEL) {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn own(page: &mut Page, status: &api::Status, http: &Http) {
    let own = &status.own;
    page.family("build_info", Kind::Gauge, "Version of the daemon.")
        .value(&labels(&[("version", &status.version)]), 1);
    page.gauge(
        "start_time_seconds",
        "When the daemon started.",
        seconds(status.started),
    );
    page.gauge("watched_processes", "Processes that are watched.", status.processes);
    page.gauge("traced_processes", "Processes that are traced.", status.traced);
    page.gauge(
        "suspect_processes",
        "Processes whose growth is followed by stack, without probes.",
        status.suspects,
    );
    page.gauge(
        "cpu_ratio",
        "Share of one CPU that the daemon took over the last minute.",
        own.cpu,
    );
    page.gauge("cpu_budget_ratio", "Budget of that.", own.cpu_budget);
    page.gauge("resident_bytes", "Resident memory of the daemon.", own.rss);
    page.gauge("resident_budget_bytes", "Budget of that.", own.rss_budget);
    page.gauge(
        "probes_cpu_ratio",
        "Share of one CPU that probes take in all traced processes.",
        own.probes,
    );
    page.gauge(
        "growth_cpu_ratio",
        "Share of one CPU that following growth without probes takes in all processes.",
        own.growth,
    );
    page.gauge(
        "probes_cpu_budget_ratio",
        "Budget of these two together.",
        own.probes_budget,
    );
    if let Some(prices) = status.traps {
        let mut traps = page.family(
            "trap_seconds",
            Kind::Gauge,
            "What a hit of a probe costs before any program runs, by where the probe stands.",
        );
        for (at, nanos) in [
            ("emulated", prices.emulated),
            ("stepped", prices.stepped),
            ("return", prices.returned),
        ] {
            traps.value(&labels(&[("at", at)]), nanos as f64 / 1e9);
        }
        page.gauge(
            "trap_measured",
            "1 where these prices were measured on this machine, 0 where what is usual stands in.",
            u8::from(prices.measured),
        );
    }
    let mut losses = page.family("losses_total", Kind::Counter, "What was not recorded, by cause.");
    for loss in &status.losses {
        losses.value(&labels(&[("cause", &loss.name)]), loss.count);
    }
    page.gauge(
        "troubles",
        "Things that do not work; the status names them.",
        status.troubles.len(),
    );
    let store = &status.store;
    page.gauge("store_profiles", "Profiles in the store.", store.profiles);
    page.gauge("store_bytes", "Bytes of the profiles in the store.", store.bytes);
    page.counter(
        "store_dropped_profiles_total",
        "Profiles that were not written.",
        store.dropped,
    );
    page.gauge(
        "store_paused",
        "1 while no profiles are written because the disk is full.",
        u8::from(store.paused),
    );
    type Figure = fn(&api::PushFigures) -> u64;
    let figures: [(&str, Kind, &str, Figure); 5] = [
        (
            "push_sent_profiles_total",
            Kind::Counter,
            "Profiles that arrived at the target.",
            |push| push.sent,
        ),
        (
            "push_failed_attempts_total",
            Kind::Counter,
            "Attempts to send that failed.",
            |push| push.failed,
        ),
        (
            "push_dropped_profiles_total",
            Kind::Counter,
            "Profiles that were given up.",
            |push| push.dropped,
        ),
        (
            "push_queued_profiles",
            Kind::Gauge,
            "Profiles that wait to be sent.",
            |push| push.queued,
        ),
        ("push_up", Kind::Gauge, "1 if the last attempt succeeded.", |push| {
            u64::from(push.error.is_none())
        }),
    ];
    for (name, kind, help, figure) in figures {
        let mut family = page.family(name, kind, help);
        for push in &status.push {
            family.value(&labels(&[("target", &push.name)]), figure(push));
        }
    }
    page.gauge("http_connections", "Open connections to the daemon.", http.connections);
    page.counter(
        "http_refused_connections_total",
        "Connections that were refused or sent away because there were too many.",
        http.refused,
    );
}

/// Those that are traced, and those that grow most; by pid.
fn chosen(processes: &[api::Process]) -> Vec<&api::Process> {
    let growth = |process: &api::Process| process.memory.growth.filter(|growth| !growth.is_nan());
    let mut order: Vec<&api::Process> = processes.iter().collect();
    order.sort_by(|a, b| match (growth(a), growth(b)) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
    let traced = order
        .iter()
        .filter(|process| process.tracing.state == api::TraceState::Traced)
        .take(MAX_TRACED);
    let mut known = HashSet::new();
    let mut chosen: Vec<&api::Process> = order
        .iter()
        .take(TOP)
        .chain(traced)
        .copied()
        .filter(|process| known.insert(process.identity.pid))
        .collect();
    chosen.sort_by_key(|process| process.identity.pid);
    chosen
}

fn each(page: &mut Page, processes: &[&api::Process]) {
    let names: Vec<String> = processes
        .iter()
        .map(|process| {
            let identity = &process.identity;
            let container = identity
                .container
                .as_ref()
                .map_or("", |container| container.id.as_str());
            labels(&[
                ("pid", &identity.pid.to_string()),
                ("comm", &identity.comm),
                ("unit", identity.unit.as_deref().unwrap_or_default()),
                ("container", container),
            ])
        })
        .collect();
    type Figure = fn(&api::Process) -> Option<f64>;
    let figures: [(&str, Kind, &str, Figure); 14] = [
        ("start_time_seconds", Kind::Gauge, "When the process started.", |p| {
            Some(seconds(p.identity.started))
        }),
        ("resident_bytes", Kind::Gauge, "Resident memory.", |p| {
            Some(p.memory.rss as f64)
        }),
        ("anonymous_bytes", Kind::Gauge, "Resident anonymous memory.", |p| {
            Some(p.memory.anonymous as f64)
        }),
        ("swap_bytes", Kind::Gauge, "Swapped memory.", |p| {
            Some(p.memory.swap as f64)
        }),
        ("brk_bytes", Kind::Gauge, "The heap that brk made.", |p| {
            p.memory.brk.map(|b| b as f64)
        }),
        (
            "major_faults_total",
            Kind::Counter,
            "Major page faults since the start.",
            |p| Some(p.memory.major_faults as f64),
        ),
        (
            "tracked_bytes",
            Kind::Gauge,
            "Live native allocations made since tracing began.",
            |p| p.memory.tracked.map(|b| b as f64),
        ),
        ("go_heap_bytes", Kind::Gauge, "Live Go heap.", |p| {
            p.memory.go_heap.map(|b| b as f64)
        }),
        ("goroutines", Kind::Gauge, "Goroutines.", |p| {
            p.memory.goroutines.map(|n| n as f64)
        }),
        (
            "growth_bytes_per_second",
            Kind::Gauge,
            "Growth of anonymous and swapped memory over the window of the policy.",
            |p| p.memory.growth.map(|growth| growth / 3600.0),
        ),
        ("traced", Kind::Gauge, "1 while the process is traced.", |p| {
            Some(f64::from(u8::from(p.tracing.state == api::TraceState::Traced)))
        }),
        (
            "sample_interval_bytes",
            Kind::Gauge,
            "Mean bytes between samples, while traced.",
            |p| p.tracing.sample_interval.map(|b| b as f64),
        ),
        (
            "probes_cpu_ratio",
            Kind::Gauge,
            "Share of one CPU that probes take in the process, while traced.",
            |p| p.tracing.cost,
        ),
        (
            "probe_hits_per_second",
            Kind::Gauge,
            "Probe hits a second, while traced.",
            |p| p.tracing.hits,
        ),
    ];
    for (name, kind, help, figure) in figures {
        let mut family = page.family(&format!("process_{name}"), kind, help);
        for (process, labels) in processes.iter().zip(&names) {
            if let Some(value) = figure(process) {
                family.value(labels, value);
            }
        }
    }
}
