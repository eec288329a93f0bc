//! The daemon: every process on the machine, all the time.
//!
//! `monitor` looks at every process without a probe; `control` is the table of what is done with each, and why; `trace` owns the
//! kernel side and the ledgers, and keeps their cost within budgets; `store` keeps profiles on disk; `push` sends them on;
//! `http` serves people and programs, from what `backend` lets it see; `ui` is the page; `config`
//! is what the administrator wrote.
//!
//! `run` begins and ends it all, `service` is what the parts share, `controller` and `exporter` are its two loops, `answers`
//! is how it answers the HTTP side.

pub mod answers;
pub mod backend;
pub mod config;
pub mod control;
pub mod controller;
pub mod exporter;
pub mod http;
pub mod own;
pub mod privileges;
pub mod push;
pub mod reply;
pub mod run;
pub mod service;
pub mod store;
pub mod trace;
pub mod ui;

/// CPUs that this process may run on.
fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}
