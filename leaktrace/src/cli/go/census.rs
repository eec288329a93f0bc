//! `leaktrace go census`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::{Target, bytes};
use crate::proc::maps::read_maps;
use crate::report::unit::percentage;
use crate::runtime::go::GoProcess;
use crate::runtime::go::census::{Census, ClassCensus, Reconciliation, reconcile};
use crate::runtime::go::gc::CollectorState;
use crate::runtime::go::residency::{PageMap, read_mappings};

/// Arguments of `leaktrace go census`.
#[derive(Args, Debug)]
pub struct CensusArgs {
    #[command(flatten)]
    target: Target,
    /// One JSON object. Sizes in bytes.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ClassJson {
    class: u8,
    object_size: u64,
    spans: u64,
    span_bytes: u64,
    objects: u64,
    object_bytes: u64,
    slots: u64,
    no_scan_bytes: u64,
}

#[derive(Serialize)]
struct CensusJson<'a> {
    pid: u32,
    version: String,
    classes: Vec<ClassJson>,
    objects: u64,
    object_bytes: u64,
    heap_in_use: u64,
    heap_free: u64,
    heap_released: u64,
    stack_bytes: u64,
    goroutine_stack_bytes: u64,
    resident: &'a Reconciliation,
}

/// Runs the subcommand.
pub fn run(args: &CensusArgs) -> anyhow::Result<()> {
    let process = args.target.attach()?;
    let pid = process.pid();
    let spans = process.spans()?;
    let state = process.collector()?;
    let goroutines = process.goroutines()?;
    let goroutine_stacks: u64 = goroutines
        .goroutines
        .iter()
        .map(|goroutine| goroutine.stack_size())
        .sum();
    let pages = PageMap::open(pid)?;
    let mappings = read_mappings(pid)?;
    let resident = reconcile(&spans, &state, &mappings, has_c(&process)?, |start, end| {
        pages.resident(start, end)
    });
    let census = Census::new(&spans);
    if args.json {
        let class = |(&class, row): (&u8, &ClassCensus)| ClassJson {
            class,
            object_size: row.object_size,
            spans: row.spans,
            span_bytes: row.span_bytes,
            objects: row.objects,
            object_bytes: row.object_bytes,
            slots: row.slots,
            no_scan_bytes: row.no_scan_bytes,
        };
        let json = CensusJson {
            pid,
            version: process.version.to_string(),
            classes: census.classes.iter().map(class).collect(),
            objects: census.objects(),
            object_bytes: census.object_bytes(),
            heap_in_use: state.in_use,
            heap_free: state.free,
            heap_released: state.released,
            stack_bytes: census.stack_bytes,
            goroutine_stack_bytes: goroutine_stacks,
            resident: &resident,
        };
        println!("{}", serde_json::to_string_pretty(&json)?);
        return Ok(());
    }
    println!("pid {pid} ({}, {})", process.exe.display(), process.version);
    print!("{}", classes(&census));
    print!(
        "{}",
        totals(&census, &state, goroutines.goroutines.len(), goroutine_stacks)
    );
    print!("{}", reconciliation(&resident));
    Ok(())
}

/// A libc is mapped: anonymous memory may be C's.
fn has_c(process: &GoProcess) -> anyhow::Result<bool> {
    let maps = read_maps(process.pid())?;
    let mapped = maps.iter().filter_map(|map| map.path.file_name()).any(|name| {
        let name = name.to_string_lossy();
        name.starts_with("libc.so") || name.starts_with("libc-") || name.starts_with("ld-musl")
    });
    // A static program with C in it has the functions that Go calls it by.
    let [cgo] = process.table().find_by_name(["runtime.cgocallback"]);
    Ok(mapped
        || (cgo.is_some()
            && process
                .table()
                .find_by_name(["_cgo_topofstack", "runtime/cgo.init.0"])
                .iter()
                .any(Option::is_some)))
}

fn classes(census: &Census) -> String {
    let mut text = String::from("\n    size  spans      bytes    objects      bytes  occupancy  pointer-free\n");
    for class in census.classes.values() {
        let size = if class.object_size == 0 {
            "large".to_owned()
        } else {
            class.object_size.to_string()
        };
        let _ = writeln!(
            text,
            "{size:>8} {:>6} {:>10} {:>10} {:>10} {:>9.1}% {:>13}",
            class.spans,
            bytes(class.span_bytes),
            class.objects,
            bytes(class.object_bytes),
            class.occupancy() * 100.0,
            percentage(class.no_scan_bytes as i64, class.object_bytes as i64).trim_start(),
        );
    }
    let _ = writeln!(
        text,
        "{:>8} {:>6} {:>10} {:>10} {:>10}",
        "all",
        census.classes.values().map(|class| class.spans).sum::<u64>(),
        bytes(census.span_bytes()),
        census.objects(),
        bytes(census.object_bytes()),
    );
    text
}

fn totals(census: &Census, state: &CollectorState, goroutines: usize, goroutine_stacks: u64) -> String {
    format!(
        "\nheap: {} in spans, {} in free spans, {} given back to the system\n\
         stacks: {} in spans, of which {goroutines} goroutines hold {}\n",
        bytes(state.in_use),
        bytes(state.free),
        bytes(state.released),
        bytes(census.stack_bytes),
        bytes(goroutine_stacks),
    )
}

fn reconciliation(split: &Reconciliation) -> String {
    let mut text = format!("\nresident: {}\n", bytes(split.rss));
    let rows = [
        ("Go heap, reachable at the last collection", split.heap_live),
        ("Go heap, allocated since", split.heap_new),
        ("Go heap, garbage not swept yet", split.heap_garbage),
        ("Go heap, room in spans", split.heap_unused),
        ("Go heap, free spans", split.heap_idle),
        ("Go stacks", split.stacks),
        ("Go runtime", split.runtime),
        ("C heap and other anonymous memory", split.c_heap),
        ("mapped files", split.files),
        ("unknown", split.other),
    ];
    for (name, amount) in rows {
        let _ = writeln!(
            text,
            "{:>12} {}  {name}",
            bytes(amount),
            percentage(amount as i64, split.rss as i64)
        );
    }
    text
}
