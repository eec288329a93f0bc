//! Any bytes as a pclntab, and looking addresses up in it. Begin with `seeds/go_pclntab`, tables of a few functions:
//! `cargo +nightly fuzz run go_pclntab fuzz/seeds/go_pclntab -- -max_len=16384`.
#![no_main]

use leaktrace::runtime::go::pclntab::{PclnTable, find_header};
use libfuzzer_sys::fuzz_target;

/// Addresses that are looked up.
const ADDRESSES: u64 = 64;

fuzz_target!(|data: &[u8]| {
    let _ = find_header(data, 0);
    let Ok(table) = PclnTable::new(data, 0x40_0000) else { return };
    let table = table.with_inline_data(std::sync::Arc::new(data.to_vec()));
    // A few addresses all over the text: each costs a walk over the tables of its function.
    let span = table.text_end().saturating_sub(table.text());
    for step in 0..ADDRESSES {
        let pc = table.text() + (span / ADDRESSES).saturating_mul(step) + step;
        table.frames(pc);
        if let Some(function) = table.function_at(pc) {
            table.stack_depth(&function, pc);
        }
    }
    table.find_by_name(["runtime.main"]);
});
