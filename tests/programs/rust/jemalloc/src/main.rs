//! jemalloc, linked statically under its `_rjem_` prefix.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    workload::run();
}
