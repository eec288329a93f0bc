//! Stacks of 30 frames and more, complete, without frame pointers, as different code makes them, and deep recursion, of
//! which both ends stay; and more stacks than there is memory for. The plain case: `tests/kernels/stacks.rs`.

use anyhow::{Context, Result};
use leaktrace_tests::machine;
use leaktrace_tests::process::Process;
use leaktrace_tests::profile::{Profile, Sample};
use leaktrace_tests::programs;
use leaktrace_tests::recording::Recording;
use leaktrace_tests::scenario::{amount, assert_exact, assert_exact_in_total, record, record_program, unharmed};

fn recorded(mode: &str) -> Result<Option<Profile>> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(None);
    };
    let (truth, recorded) = record_program("deep", mode)?;
    assert_exact(&truth, &recorded.profile);
    Ok(Some(recorded.profile))
}

/// The one stack that leaks.
fn leaking(profile: &Profile) -> Result<&Sample> {
    let mut leaking = profile.heap().filter(|sample| sample.inuse().objects > 0);
    let sample = leaking.next().context("nothing is outstanding")?;
    assert!(
        leaking.next().is_none(),
        "one place in the program is one stack:\n{}",
        profile.shown()
    );
    assert_eq!(sample.inuse(), amount(50, 2400));
    Ok(sample)
}

/// The stack has the chain of 30 in order, main behind it and libc's start at the end, and before the chain exactly
/// `inner`.
fn assert_chain(sample: &Sample, inner: &[&str]) {
    let names = sample.names();
    let chain: Vec<String> = (1..=30).map(|number| format!("frame_{number:02}")).collect();
    let begin = names.iter().position(|name| *name == chain[0]);
    let Some(begin) = begin else {
        panic!("no frame_01 in {names:?}")
    };
    assert_eq!(names[begin..begin + 30], chain, "{names:?}");
    assert_eq!(names[begin + 30], "main", "{names:?}");
    assert!(
        names[begin + 31..].iter().any(|name| name.contains("libc_start")),
        "{names:?}"
    );
    assert!(
        names.last().is_some_and(|name| *name == "_start"),
        "the walk did not reach the bottom: {names:?}"
    );
    // The allocator's own frame may be shown or not.
    let above: Vec<&str> = names[..begin]
        .iter()
        .copied()
        .filter(|name| !name.contains("malloc"))
        .collect();
    assert_eq!(above, inner, "{names:?}");
}

#[test]
fn through_a_plt() -> Result<()> {
    let Some(profile) = recorded("plt")? else { return Ok(()) };
    assert_chain(
        leaking(&profile)?,
        &["leak_here", "library_inner", "through_library", "bottom"],
    );
    Ok(())
}

#[test]
fn through_a_qsort_callback() -> Result<()> {
    let Some(profile) = recorded("qsort")? else {
        return Ok(());
    };
    let sample = leaking(&profile)?;
    let names = sample.names();
    let position = |wanted: &str| names.iter().position(|name| name.starts_with(wanted));
    // libc's own frames may have no names (its internal symbols are in another package), but they are there.
    let (callback, caller) = (position("compare_and_leak"), position("sort_two"));
    let (Some(callback), Some(caller)) = (callback, caller) else {
        panic!("{names:?}")
    };
    let between = &sample.stack[callback + 1..caller];
    assert!(!between.is_empty(), "{names:?}");
    for frame in between {
        assert!(
            frame.module.as_deref().is_some_and(|module| module.contains("libc")),
            "{frame:?}"
        );
    }
    let chain: Vec<String> = (1..=30).map(|number| format!("frame_{number:02}")).collect();
    assert_eq!(names[caller + 2..caller + 32], chain, "{names:?}");
    assert_eq!(names.last(), Some(&"_start"), "{names:?}");
    Ok(())
}

#[test]
fn from_a_signal_handler() -> Result<()> {
    let Some(profile) = recorded("signal")? else {
        return Ok(());
    };
    let names = leaking(&profile)?.names();
    let position = |wanted: &str| names.iter().position(|name| *name == wanted);
    let (handler, raiser) = (position("on_signal"), position("raise_one"));
    let (Some(handler), Some(raiser)) = (handler, raiser) else {
        panic!("{names:?}")
    };
    assert!(handler < raiser, "{names:?}");
    let chain: Vec<String> = (1..=30).map(|number| format!("frame_{number:02}")).collect();
    assert_eq!(names[raiser + 2..raiser + 32], chain, "{names:?}");
    assert_eq!(names.last(), Some(&"_start"), "{names:?}");
    Ok(())
}

#[test]
fn up_to_the_end_of_a_coroutines_stack() -> Result<()> {
    let Some(profile) = recorded("coroutine")? else {
        return Ok(());
    };
    let names = leaking(&profile)?.names();
    let begin = names.iter().position(|name| *name == "frame_01");
    let Some(begin) = begin else {
        panic!("no frame_01 in {names:?}")
    };
    let mut chain: Vec<String> = (1..=30).map(|number| format!("frame_{number:02}")).collect();
    chain.push("on_coroutine".to_owned());
    assert_eq!(names[begin..begin + 31], chain, "{names:?}");
    // Behind it where libc goes on; it may have no rule there, and what is taken for its caller is no code.
    assert!(names.len() <= begin + 33, "{names:?}");
    Ok(())
}

#[test]
fn inlined_frames() -> Result<()> {
    let Some(profile) = recorded("inlined")? else {
        return Ok(());
    };
    let sample = leaking(&profile)?;
    assert_chain(
        sample,
        &[
            "inlined_inner",
            "inlined_middle",
            "inlined_outer",
            "leak_inlined",
            "bottom",
        ],
    );
    for frame in &sample.stack {
        let name = frame.name();
        if name.starts_with("inlined_") {
            assert!(frame.inlined, "{name} is inlined");
            assert!(
                frame.file.as_deref().is_some_and(|file| file.ends_with("deep.c")),
                "{frame:?}"
            );
            assert!(frame.line.is_some_and(|line| line > 0), "{frame:?}");
        } else if name.starts_with("frame_") {
            assert!(!frame.inlined, "{name} is a function of its own");
        }
    }
    Ok(())
}

fn recursion(mode: &str, depth: &str) -> Result<Profile> {
    let (truth, recorded) = record(programs::command("recursion")?.args([mode, depth]), &[])?;
    assert_exact(&truth, &recorded.profile);
    Ok(recorded.profile)
}

#[test]
fn callers_of_deep_recursion() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    // The inner frames differ by where in the cycle the recursion ends.
    for (mode, depth, stacks) in [("direct", "130", 2), ("cycle", "3900", 6)] {
        let profile = recursion(mode, depth)?;
        let shown = || format!("{mode} {depth}:\n{}", profile.shown());
        assert_eq!(
            profile.outstanding_through("load_config"),
            amount(90, 90 * 64),
            "{}",
            shown()
        );
        assert_eq!(
            profile.outstanding_through("load_plugin"),
            amount(10, 10 * 64),
            "{}",
            shown()
        );
        assert!(profile.losses.is_empty(), "{:?}", profile.losses);
        let leaking: Vec<&Sample> = profile.heap().filter(|sample| sample.inuse().objects > 0).collect();
        assert_eq!(
            leaking.len(),
            stacks,
            "recursion to any depth is one stack; {}",
            shown()
        );
        for sample in leaking {
            let names = sample.names();
            assert_eq!(
                names.iter().filter(|name| **name == "[frames omitted]").count(),
                1,
                "{names:?}"
            );
            assert!(
                sample.passes("leak_here") && names.last() == Some(&"_start"),
                "{names:?}"
            );
        }
    }
    // Deeper than what is walked: nobody is blamed, and that is said.
    let profile = recursion("direct", "5000")?;
    let lost = profile.losses.iter().find(|loss| loss.name == "truncated_too_deep");
    assert_eq!(lost.map(|loss| loss.count), Some(100), "{:?}", profile.losses);
    assert_eq!(profile.outstanding_through("load_config"), amount(0, 0));
    assert_eq!(profile.outstanding_through("walk"), amount(100, 6400));
    Ok(())
}

/// Most memory that a process has had, in KiB.
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = peak.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok());
    number.context("no VmHWM")
}

#[test]
fn more_stacks_than_memory() -> Result<()> {
    const COUNT: u32 = 30_000;
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let mut target = Process::ready(programs::command("many_stacks")?.arg(COUNT.to_string()))?;
    let mut recording = Recording::attach(target.pid(), &["--stack-memory", "4MiB"])?;
    let before = peak(recording.tracer().pid())?;
    let truth = target.work()?;
    machine::pause();
    let after = peak(recording.tracer().pid())?;
    let profile = recording.stop()?.profile;
    unharmed(&mut target)?;
    target.exit()?;
    // The records alone are 25 MiB, which stay in the ring; kept one by one they would take as much again.
    assert!(after - before < 40 << 10, "{before} to {after} KiB");
    assert_exact_in_total(&truth, &profile);
    let others: Vec<&Sample> = profile
        .heap()
        .filter(|sample| sample.passes("[other stacks]"))
        .collect();
    let [others] = others[..] else {
        panic!("{} rows of other stacks", others.len())
    };
    let lost = profile.losses.iter().find(|loss| loss.name == "other_stacks");
    let lost = lost.with_context(|| format!("{:?}", profile.losses))?.count;
    assert_eq!(others.allocated(), amount(lost, lost * 16));
    assert_eq!(others.inuse().objects, others.allocated().objects / 2);
    assert!((10_000..u64::from(COUNT) - 5_000).contains(&lost), "{lost}");
    Ok(())
}
