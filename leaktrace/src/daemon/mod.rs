//! The daemon: every process on the machine, all the time.
//!
//! `watch` looks at every process without a probe; `policy` decides which of them to trace, and why; `trace` owns the
//! kernel side and the ledgers; `governor` keeps its cost within budgets; `store` keeps profiles on disk; `push` sends
//! them on; `http` serves people and programs, from what `backend` lets it see in the words of `api`; `ui` is the page;
//! `config` is what the administrator wrote.

pub mod api;
pub mod backend;
pub mod config;
pub mod http;
pub mod push;
pub mod store;
pub mod trace;
pub mod ui;
pub mod watch;
