//! dlmalloc, an allocator in Rust: compiled with the program, and inlined into a part of it.

use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Strings are allocated in Rust's library, by calls of `__rust_alloc`, and dropped here, where that is inlined.
#[inline(never)]
fn exchange() {
    let read = || std::fs::read_to_string("/proc/self/status");
    let batch: Vec<String> = (0..4).flat_map(|_| read()).collect();
    drop(black_box(batch));
}

fn main() {
    workload::run_with(exchange);
}
