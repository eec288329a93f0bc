//! Memory that is no leak is not shown as one, however hard the tracer is pressed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use leaktrace_tests::profile::{Amount, Sample};
use leaktrace_tests::scenario::{amount, assert_exact, record, record_program};
use leaktrace_tests::{machine, programs};

#[test]
fn cache_pool_and_arena() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("innocent", "")?;
    let profile = &recorded.profile;
    assert_exact(&truth, profile);
    assert_eq!(
        profile.outstanding_through("arena_allocate"),
        Amount::default(),
        "{}",
        profile.shown()
    );
    assert_eq!(
        profile.outstanding_through("pool_take"),
        amount(100, 100 * 512),
        "{}",
        profile.shown()
    );
    assert_eq!(
        profile.allocated_through("cache_insert").objects,
        20_000,
        "{}",
        profile.shown()
    );
    Ok(())
}

#[test]
fn memory_mapped_directly_is_a_heap_of_its_own() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record_program("mappings", "")?;
    let profile = &recorded.profile;
    let mapped = profile.mapped_through(&truth.function).bytes;
    // What mremap grew is the work of whoever called it: main.
    let in_main = profile.mapped_through("main").bytes;
    assert_eq!(
        amount(0, truth.leaked_bytes).bytes,
        in_main,
        "through map_here: {mapped}\n{}",
        profile.shown()
    );
    assert_eq!(profile.outstanding(), Amount::default(), "{}", profile.shown());
    Ok(())
}

/// Two threads over a live set of 50,000 blocks, which is freed in the end. In a ring buffer that is far too small
/// allocations are lost, and counted; frees are not: nothing but the planted leak is outstanding.
#[test]
fn none_from_a_ring_buffer_that_is_too_small() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut command = programs::command("bench_live_set")?;
    let (truth, recorded) = record(command.args(["150000", "free"]), &["--ring-size", "16KiB"])?;
    let profile = &recorded.profile;
    let lost = profile.loss("alloc_lost");
    ensure!(
        lost > 0,
        "the ring was not too small: nothing was lost, and nothing is proven\n{}",
        profile.shown()
    );
    let leaked = profile.outstanding_through("leak_here");
    ensure!(
        leaked.objects > 0,
        "nothing of the planted leak was recorded:\n{}",
        profile.shown()
    );
    let outstanding = profile.outstanding();
    ensure!(
        outstanding.objects <= amount(truth.leaked_objects, 0).objects,
        "more than was leaked:\n{}",
        profile.shown()
    );
    // Where it was not noticed whether code had changed, code has no names: a stack of the leak is none of another's then.
    let unnamed = |sample: &&Sample| sample.names().iter().all(|name| name.starts_with("[unknown]"));
    let unnamed: i64 = profile
        .heap()
        .filter(unnamed)
        .map(|sample| sample.inuse().objects)
        .sum();
    ensure!(unnamed == 0 || profile.loss("notice_lost") > 0, "{}", profile.shown());
    assert_eq!(
        outstanding.objects,
        leaked.objects + unnamed,
        "something that was freed is shown as outstanding:\n{}",
        profile.shown()
    );
    Ok(())
}

/// How often [`none_of_any_kind_by_address`] is tried.
const RUNS: &str = "LEAKTRACE_OVERLOAD_RUNS";

/// First address and bytes of what is outstanding: blocks, and mappings.
#[derive(Default)]
struct Addresses {
    blocks: BTreeMap<u64, u64>,
    mappings: BTreeMap<u64, u64>,
}

impl Addresses {
    /// As the program `overload` tells them.
    fn of_truth(text: &str) -> Result<Self> {
        let mut addresses = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [kind, address, bytes] = words[..] else {
                bail!("no address: {line}")
            };
            let kind = if kind == "block" {
                &mut addresses.blocks
            } else {
                &mut addresses.mappings
            };
            kind.insert(address.parse()?, bytes.parse()?);
        }
        Ok(addresses)
    }

    /// As `record --blocks` tells them.
    fn of_recording(text: &str) -> Result<Self> {
        let mut addresses = Self::default();
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line)?;
            let address = value["address"].as_str().and_then(|address| address.strip_prefix("0x"));
            let address = u64::from_str_radix(address.context("no address")?, 16)?;
            let kind = if value["heap"] == "native" {
                &mut addresses.blocks
            } else {
                &mut addresses.mappings
            };
            kind.insert(address, value["bytes"].as_u64().context("no bytes")?);
        }
        Ok(addresses)
    }

    /// Whether each address from `start` on is mapped.
    fn maps(&self, mut start: u64, bytes: u64) -> bool {
        let end = start + bytes;
        while start < end {
            let Some((first, bytes)) = self.mappings.range(..=start).next_back() else {
                return false;
            };
            if first + bytes <= start {
                return false;
            }
            start = first + bytes;
        }
        true
    }

    /// What is shown here and is not there.
    fn invented(&self, truth: &Self) -> Vec<String> {
        let blocks = self
            .blocks
            .iter()
            .filter(|(at, bytes)| truth.blocks.get(*at) != Some(*bytes));
        let mappings = self.mappings.iter().filter(|(at, bytes)| !truth.maps(**at, **bytes));
        let blocks = blocks.map(|(at, bytes)| format!("block {at:#x}, {bytes} bytes"));
        blocks
            .chain(mappings.map(|(at, bytes)| format!("mapping {at:#x}, {bytes} bytes")))
            .collect()
    }
}

/// Eight threads that allocate, reallocate, map, unmap, move and map over, in rings of the smallest size and the one
/// before: whatever is lost, each block and each mapping that is shown is really there, by its address.
#[test]
fn none_of_any_kind_by_address() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let runs = std::env::var(RUNS).ok().and_then(|runs| runs.parse().ok()).unwrap_or(4);
    let directory = tempfile::TempDir::new()?;
    let (truth_file, blocks_file) = (directory.path().join("truth"), directory.path().join("blocks"));
    let (mut shown_blocks, mut shown_mappings, mut lost_mappings) = (0, 0, 0);
    for run in 0..runs {
        let ring = if run % 2 == 0 { "16KiB" } else { "4KiB" };
        let mut command = programs::command("overload")?;
        let blocks_path = blocks_file.to_string_lossy();
        let (_, recorded) = record(
            command.arg(&truth_file).arg("10000"),
            &["--ring-size", ring, "--blocks", &blocks_path],
        )?;
        let truth = Addresses::of_truth(&std::fs::read_to_string(&truth_file)?)?;
        let shown = Addresses::of_recording(&std::fs::read_to_string(&blocks_file)?)?;
        let profile = &recorded.profile;
        let invented = shown.invented(&truth);
        ensure!(
            invented.is_empty(),
            "run {run} shows what is not there: {invented:#?}\n{}",
            profile.shown()
        );
        ensure!(
            profile.loss("alloc_lost") > 0,
            "run {run} lost nothing: {}",
            profile.shown()
        );
        ensure!(
            profile.loss("missed_free") == 0,
            "run {run} missed frees: {}",
            profile.shown()
        );
        shown_blocks += shown.blocks.len();
        shown_mappings += shown.mappings.len();
        lost_mappings += profile.loss("mapping_lost");
    }
    ensure!(
        shown_blocks > 0 && shown_mappings > 0 && lost_mappings > 0,
        "nothing is proven: {shown_blocks} blocks and {shown_mappings} mappings shown, {lost_mappings} lost"
    );
    Ok(())
}

/// Two threads with the ring as it is by default: all is seen, so all is exact.
#[test]
fn two_threads_over_a_live_set() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let (truth, recorded) = record(programs::command("bench_live_set")?.args(["50000", "free"]), &[])?;
    let leaked = amount(truth.leaked_objects, truth.leaked_bytes);
    assert_eq!(
        recorded.profile.outstanding_through("leak_here"),
        leaked,
        "{}",
        recorded.profile.shown()
    );
    assert_eq!(recorded.profile.outstanding(), leaked, "{}", recorded.profile.shown());
    Ok(())
}
