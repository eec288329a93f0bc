//! Prints what would be probed in a live process, and why: `cargo run --example plan -- PID`.

use anyhow::Context;
use leaktrace::allocator::{detect::detect, inspect::Inspector};
use leaktrace::probe::plan::{Features, Planner, ReturnProbe};
use leaktrace::proc::{identity::read_identity, maps::read_maps};

fn main() -> anyhow::Result<()> {
    let pid: u32 = std::env::args().nth(1).context("usage: plan PID")?.parse()?;
    let started = std::time::Instant::now();
    let identity = read_identity(pid)?;
    let process = Inspector::new().inspect(pid, &read_maps(pid)?)?;
    let detection = detect(&process)?;
    let features = Features {
        uretprobes_kill: std::env::args().any(|a| a == "--seccomp"),
        long_nops: true,
    };
    let plan = Planner::new().plan(&detection, &process.files, features);
    println!("{} ({}) in {:?}", identity.comm, pid, started.elapsed());
    for (file, probe) in plan.probes() {
        let ret = match &probe.ret {
            ReturnProbe::None => String::new(),
            ReturnProbe::FunctionReturn => " + return".into(),
            ReturnProbe::Instructions(at) => format!(" + {} returns", at.len()),
        };
        println!(
            "{}: {}+{:#x} `{}`{}{ret} | {} | {}",
            file.path.display(),
            probe.symbol,
            probe.entry.distance,
            probe.entry.instruction,
            if probe.entry.emulated { "" } else { " SLOW" },
            probe.reason,
            probe.entry.reason
        );
    }
    for refused in &plan.refused {
        println!(
            "REFUSED {}: {}: {}",
            refused.path.display(),
            refused.symbol,
            refused.reason
        );
    }
    for skipped in &detection.skipped {
        println!(
            "skipped {}: {}: {}",
            skipped.file.display(),
            skipped.symbol,
            skipped.reason
        );
    }
    for (path, note) in detection.looked_in.iter().filter(|(_, note)| note.is_some()) {
        println!("note {}: {}", path.display(), note.as_deref().unwrap_or_default());
    }
    Ok(())
}
