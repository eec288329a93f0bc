//! Why the resident memory of a process grows: what it consists of at two moments, its course between them, and which
//! code made it grow.
//!
//! `kinds` (pure) puts each resident byte into a row, `snapshot` reads what it needs (`stacks` those of threads, `arenas`
//! those of glibc, `go` what Go's runtime tells); `course` (pure) says how the size went, `family` watches the children,
//! and `watch` runs all of that with probes and growth sampling in the meantime. Invariant: nothing here changes the
//! process, and no reading goes on without a limit.

pub mod arenas;
pub mod course;
pub mod family;
pub mod go;
pub mod kinds;
pub mod snapshot;
pub mod stacks;
pub mod watch;
