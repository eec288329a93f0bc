//! Rust's system allocator: libc's malloc.

fn main() {
    workload::run();
}
