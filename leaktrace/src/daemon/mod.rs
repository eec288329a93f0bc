//! The daemon: every process on the machine, all the time.
//!
//! `monitor` looks at every process without a probe; `policy` decides which of them to trace, and why; `growth_sampling`
//! whose growth is followed by stack without probes; `trace` owns the
//! kernel side and the ledgers, and keeps their cost within budgets; `store` keeps profiles on disk; `push` sends them on;
//! `http` serves people and programs, from what `backend` lets it see; `ui` is the page; `config`
//! is what the administrator wrote.
//!
//! `run` begins and ends it all, `service` is what the parts share, `watcher` and `exporter` are its two loops, `answers`
//! is how it answers the HTTP side.

pub mod answers;
pub mod backend;
pub mod config;
pub mod exporter;
pub mod growth_sampling;
pub mod http;
pub mod own;
pub mod policy;
pub mod privileges;
pub mod push;
pub mod run;
pub mod service;
pub mod store;
pub mod trace;
pub mod ui;
pub mod watcher;

/// CPUs that this process may run on.
fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}
