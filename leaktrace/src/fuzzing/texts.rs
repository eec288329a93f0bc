//! Texts: what `/proc` shows of a process, names that a JIT compiler writes, the configuration; and the kernel's types.

use super::input::Input;
use crate::bpf::btf;
use crate::daemon::config::Config;
use crate::proc::{cgroup::Cgroups, footprint, identity, maps, memory::AuxVector, mounts, users};
use crate::symbolize::PerfMap;

/// The first byte says what kind of text the rest is.
pub(super) fn proc_texts(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    match kind % 8 {
        0 => {
            if let Ok(mappings) = maps::parse_maps(text) {
                for mapping in &mappings {
                    let _ = (mapping.len(), mapping.is_file(), mapping.is_uprobes());
                    if let Some(offset) = mapping.file_offset(mapping.start) {
                        assert_eq!(mapping.address(offset), Some(mapping.start));
                    }
                }
            }
        }
        1 => mounts::parse_any(text),
        2 => identity::parse_any_status(text),
        3 => {
            let _ = identity::parse_stat(text);
        }
        4 => {
            let groups = Cgroups::parse(text);
            let _ = (groups.path(), groups.container(), groups.unit());
        }
        5 => footprint::parse_any(text),
        6 => {
            users::parse(text);
        }
        _ => {
            AuxVector::parse(text).get(3);
        }
    }
}

/// Lines that are added in pieces, under a limit that the input names.
pub(super) fn perf_map(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = 64 << (input.byte() % 16);
    let mut map = PerfMap::default();
    for piece in input.rest().split(|byte| *byte == 0) {
        let mut addition = map.addition(limit);
        addition.parse(piece);
        map.add(addition);
    }
    for address in [0, 1, 0x1000, u64::MAX] {
        if let Some(entry) = map.find(address) {
            assert!((entry.start..entry.end).contains(&address));
        }
    }
}

pub(super) fn config(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(config) = Config::parse(text)
    {
        assert!(config.restart_needed(&config).is_empty());
    }
}

pub(super) fn btf(data: &[u8]) {
    let _ = btf::Places::of(data);
}
