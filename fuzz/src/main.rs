//! libFuzzer over one of `leaktrace::fuzzing::TARGETS`, which `LEAKTRACE_FUZZ_TARGET` names: one program for all, since
//! linking takes longer than compiling. `cargo xtask fuzz --coverage` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use leaktrace::fuzzing::{self, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("LEAKTRACE_FUZZ_TARGET").expect("LEAKTRACE_FUZZ_TARGET names a target");
    fuzzing::find(&name).unwrap_or_else(|| panic!("no target `{name}`; there are {:?}", fuzzing::TARGETS))
});

fuzz_target!(
    // The library's hook ends the process at every panic, at those too that the code under test catches. One that it does not
    // catch ends it all the same.
    init: drop(std::panic::take_hook()),
    |data: &[u8]| (TARGET.run)(data)
);
