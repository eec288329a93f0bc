//! Entry functions for fuzzing: each hands any bytes to one parser of what a target, or a file on disk, controls.
//!
//! Built into unit tests and into the fuzzer (`fuzz/`), never into the program. `files`, `code`, `texts`, `stored`, `served`,
//! `events` and `go` call the parsers; `input` and `elf` turn bytes into structure, so that more than the first check of
//! a format is reached. The unit tests in `corpus` replay `fuzz/seeds` and change it for a moment, `cargo xtask fuzz` for longer.
//! Invariant: an entry function returns for any input, in bounded time and memory, and what it asserts holds for any.

mod code;
mod elf;
mod events;
mod files;
mod go;
mod input;
mod served;
mod stored;
mod texts;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod mutate;
#[cfg(test)]
mod seeds;

/// A parser under a name, which is that of its folder of seeds, too.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Hands it any bytes.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("btf", texts::btf),
    target("call_frames", code::call_frames),
    target("code", code::code),
    target("config", texts::config),
    target("debug_snapshot", files::debug_snapshot),
    target("elf_dynamic", files::elf_dynamic),
    target("elf_image", files::elf_image),
    target("elf_sections", files::elf_sections),
    target("events", events::events),
    target("go_buildinfo", go::buildinfo),
    target("go_executable", go::executable),
    target("go_memory", go::memory),
    target("go_pclntab", go::pclntab),
    target("http_request", served::http_request),
    target("journal", stored::journal),
    target("perf_map", texts::perf_map),
    target("pprof", stored::pprof),
    target("proc_texts", texts::proc_texts),
    target("records", events::records),
    target("stored_profile", stored::stored_profile),
];

/// The target of a name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
