//! Hands the eBPF object to the crate as `OUT_DIR/leaktrace.bpf.o`.
//!
//! It does not build that object: the kernel side has another compiler (see xtask/src/build.rs).
//! `LEAKTRACE_BPF_OBJECT` names another file than `target/bpf/leaktrace.bpf.o`.

use std::path::PathBuf;
use std::{env, fs, process};

fn main() {
    println!("cargo::rerun-if-env-changed=LEAKTRACE_BPF_OBJECT");
    let variable = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets this for build scripts"));
    let object = match env::var_os("LEAKTRACE_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => variable("CARGO_MANIFEST_DIR").join("../target/bpf/leaktrace.bpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, variable("OUT_DIR").join("leaktrace.bpf.o")) {
        println!(
            "cargo::error=failed to copy the eBPF object `{}`: {error}; run: cargo xtask build",
            object.display()
        );
        process::exit(1);
    }
}
