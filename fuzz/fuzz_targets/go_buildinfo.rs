//! Any bytes as build information and as a version.
#![no_main]

use leaktrace::runtime::go::{GoVersion, buildinfo};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(info) = buildinfo::parse(data) {
        GoVersion::parse(&info.version);
    }
    GoVersion::parse(&String::from_utf8_lossy(data));
});
