//! Any bytes as a pclntab, and looking every address up in it.
#![no_main]

use leaktrace::symbolize::pclntab::{PclnTable, find_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = find_header(data, 0);
    let Ok(table) = PclnTable::new(data, 0x40_0000) else { return };
    let table = table.with_inline_data(std::sync::Arc::new(data.to_vec()));
    let span = table.text_end().saturating_sub(table.text()).min(1 << 12);
    for pc in table.text()..table.text() + span {
        table.frames(pc);
        if let Some(function) = table.function_at(pc) {
            table.stack_depth(&function, pc);
        }
    }
    table.find_by_name(["runtime.main"]);
});
