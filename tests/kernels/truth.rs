//! Known truth, by all functions of the malloc family and from several threads at once: to the byte, in every mode and by
//! each way to attach. These are repeated: threads that get into each other's way do so seldom.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use leaktrace_tests::process::{Process, Truth};
use leaktrace_tests::profile::Profile;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, assert_within, unharmed};
use leaktrace_tests::{losses, machine, programs};
use serde::Deserialize as _;

/// The first kernel with uprobe sessions: before it perf events are the one way to attach.
const SESSIONS: (u32, u32) = (6, 13);
/// Objects and bytes by function.
type Kept = BTreeMap<String, (u64, u64)>;

fn kept(truth: &Truth) -> Result<Kept> {
    let kept = truth.other.get("kept").context("the truth does not say what is kept")?;
    Ok(Kept::deserialize(kept)?)
}

/// Each function's bytes, what was freed in between, and that nothing was lost.
fn assert_all_exact(truth: &Truth, profile: &Profile) -> Result<()> {
    for (function, (objects, bytes)) in kept(truth)? {
        assert_eq!(
            profile.outstanding_through(&function),
            amount(objects, bytes),
            "outstanding through {function}:\n{}",
            profile.shown()
        );
    }
    let freed = profile.allocated_through("use_and_free").objects;
    assert_eq!(freed, truth.number("freed")? as i64, "{}", profile.shown());
    assert_none_held(profile);
    losses::none(profile)
}

fn assert_none_held(profile: &Profile) {
    let held = profile.outstanding_through("use_and_free");
    assert_eq!(held, amount(0, 0), "{}", profile.shown());
}

/// Six standard deviations of an estimate, as a share: each block of `size` bytes is a sample with a chance of
/// 1 − e^(−size ÷ interval), and counts with the inverse of that.
fn six_deviations(objects: u64, bytes: u64, interval: f64) -> f64 {
    let (objects, bytes) = (objects as f64, bytes as f64);
    let chance = 1.0 - (-bytes / objects / interval).exp();
    6.0 * ((1.0 - chance) / (chance * objects)).sqrt()
}

fn repeated(run: impl Fn() -> Result<()>) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let all = machine::repetitions();
    for repetition in 1..=all {
        eprintln!("run {repetition} of {all}");
        run().with_context(|| format!("run {repetition} of {all}"))?;
    }
    Ok(())
}

/// Attaches to `program` called with `arguments`, by a tracer with `variables`.
fn attached_to(
    program: &str,
    arguments: &[&str],
    tracer: &[&str],
    variables: &[(&str, &str)],
) -> Result<(Truth, Profile)> {
    let mut target = Process::ready(programs::command(program)?.args(arguments))?;
    let recording = Recording::attach_with_variables(target.pid(), tracer, variables)?;
    let truth = target.work()?;
    let recorded = recording.stop()?;
    unharmed(&mut target)?;
    target.exit()?;
    Ok((truth, recorded.profile))
}

fn attached(arguments: &[&str], tracer: &[&str], variables: &[(&str, &str)]) -> Result<(Truth, Profile)> {
    attached_to("known_truth", arguments, tracer, variables)
}

#[test]
fn exact_when_attached() -> Result<()> {
    repeated(|| {
        let (truth, profile) = attached(&[], &[], &[])?;
        assert_all_exact(&truth, &profile)
    })
}

#[test]
fn exact_of_a_command() -> Result<()> {
    repeated(|| {
        let program = programs::path("known_truth")?;
        let mut recording = Recording::of_command(&[], &[&program.to_string_lossy()])?;
        let command = recording.tracer();
        command.expect("ready")?;
        let truth = command.work()?;
        command.send("exit")?;
        let profile = recording.finish()?.profile;
        assert_all_exact(&truth, &profile)
    })
}

#[test]
fn exact_by_perf_events() -> Result<()> {
    if machine::kernel()? < SESSIONS || std::env::var_os("LEAKTRACE_UPROBES").is_some() {
        eprintln!("skipped: perf events are what all tests here attach by");
        return Ok(());
    }
    repeated(|| {
        let (truth, profile) = attached(&[], &[], &[("LEAKTRACE_UPROBES", "perf")])?;
        assert_all_exact(&truth, &profile)
    })
}

/// New threads lose nothing, not even their first calls.
#[test]
fn exact_of_threads_by_the_hundred() -> Result<()> {
    repeated(|| {
        let (truth, profile) = attached(&["300", "20", "20"], &[], &[])?;
        assert_all_exact(&truth, &profile)
    })
}

/// Threads of all scheduling classes on one processor, torn out wherever the kernel lets go of them.
#[test]
fn exact_of_a_crowd_on_one_processor() -> Result<()> {
    repeated(|| {
        let (truth, profile) = attached_to("crowd", &[], &[], &[])?;
        assert_all_exact(&truth, &profile)
    })
}

#[test]
fn sampled_within_its_bounds() -> Result<()> {
    const INTERVAL: f64 = 256.0;
    repeated(|| {
        let (truth, profile) = attached(&[], &["--mode", "sampled", "--sample-interval", "256"], &[])?;
        for (function, (objects, bytes)) in kept(&truth)? {
            let bound = six_deviations(objects, bytes, INTERVAL);
            let seen = profile.outstanding_through(&function);
            let whole = |number: u64| i64::try_from(number).context("a test's numbers are small");
            assert_within(bound, seen.objects, whole(objects)?, &format!("objects of {function}"));
            assert_within(bound, seen.bytes, whole(bytes)?, &format!("bytes of {function}"));
        }
        assert_none_held(&profile);
        losses::none(&profile)
    })
}
