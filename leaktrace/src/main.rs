use leaktrace::bpf::kernel::{Kernel, Sizes};
fn main() {
    match Kernel::load(Sizes {
        ring_bytes: 1 << 24,
        rows: 1 << 20,
        blocks: 1 << 16,
        mappings: 4096,
    }) {
        Ok(mut p) => {
            println!("{:?}", p.kernel.mechanism());
            p.kernel.attach_tracepoints().unwrap()
        }
        Err(e) => println!("{e}"),
    }
}
