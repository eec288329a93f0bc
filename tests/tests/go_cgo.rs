//! Go and C in one profile: memory that C code holds for Go callers, with the whole stack, beside Go's own heap.

use anyhow::{Context, Result, ensure};
use leaktrace_tests::golang::{Form, Toolchain, WITH_C};
use leaktrace_tests::machine;
use leaktrace_tests::process::{PATIENCE, Process};
use leaktrace_tests::profile::{Amount, Profile, Sample};
use leaktrace_tests::recording::{Recording, as_json};
use leaktrace_tests::scenario::amount;
use std::process::Command;
use std::time::Duration;

fn ready(command: &mut Command) -> Result<Process> {
    let mut process = Process::spawn(command)?;
    process.wait_for("that it is ready", |line| line.starts_with("ready"), PATIENCE)?;
    Ok(process)
}

fn tell(program: &mut Process, line: &str) -> Result<()> {
    program.send(line)?;
    program.expect("done")
}

/// Outstanding samples of native memory in blocks of this size.
fn native(profile: &Profile, size: i64) -> Vec<&Sample> {
    let is_size = |sample: &Sample| sample.inuse().objects > 0 && sample.inuse().bytes == sample.inuse().objects * size;
    profile
        .samples
        .iter()
        .filter(|sample| sample.heap() == "native" && is_size(sample))
        .collect()
}

fn heap_of<'p>(profile: &'p Profile, heap: &'static str, function: &'static str) -> impl Iterator<Item = &'p Sample> {
    profile
        .samples
        .iter()
        .filter(move |sample| sample.heap() == heap && sample.names().contains(&function))
}

/// The names occur in this order, each once or with others between.
fn assert_order(sample: &Sample, wanted: &[&str], what: &str) {
    let names = sample.names();
    let mut rest = names.iter();
    for name in wanted {
        assert!(
            rest.any(|found| found == name),
            "{what}: no {name} where it should be in {names:#?}"
        );
    }
}

fn objects(samples: &[&Sample]) -> i64 {
    samples.iter().map(|sample| sample.inuse().objects).sum()
}

const FROM_KEEP: [&str; 5] = [
    "strings_entry",
    "strings_keep",
    "runtime.cgocall",
    "main._Cfunc_strings_keep",
    "main.(*store).keep",
];

/// Every form of a release: exact bytes under complete stacks, Go's heap beside them.
fn every_stack(toolchain: &Toolchain, form: Form) -> Result<()> {
    let what = format!("Go 1.{} {form:?}", toolchain.minor);
    let program = toolchain.build("cgocache", form)?;
    let mut program = ready(&mut Command::new(program))?;
    let recording = Recording::attach_to_file(program.pid(), &[], "profile.pb.gz")?;
    tell(&mut program, "keep 50")?;
    tell(&mut program, "goroutine 10")?;
    tell(&mut program, "visit 30")?;
    tell(&mut program, "threads 10")?;
    tell(&mut program, "make 20")?;
    let folder = tempfile::tempdir()?;
    let own = folder.path().join("own.txt");
    tell(&mut program, &format!("heap {}", own.display()))?;
    let (table, file, _folder) = recording.stop_unread()?;
    let profile = as_json(&file)?;
    let shown = || format!("{what}\n{table}\n{}", profile.shown());

    // C called by Go.
    let kept = native(&profile, 1000);
    ensure!(kept.len() == 1, "{}", shown());
    assert_eq!(kept[0].inuse(), amount(50, 50_000), "{}", shown());
    let main = ["main.handleKeep", "main.main", "runtime.main"];
    assert_order(kept[0], &[&FROM_KEEP[..], &main].concat(), &what);
    assert_eq!(kept[0].names().last(), Some(&"runtime.main"), "{}", shown());

    // The same from another goroutine, whose entry is the outermost frame.
    let worker = native(&profile, 4000);
    assert_eq!(objects(&worker), 10, "{}", shown());
    for sample in &worker {
        assert_order(sample, &[&FROM_KEEP[..], &["main.worker"]].concat(), &what);
        assert_eq!(sample.names().last(), Some(&"main.worker"), "{}", shown());
    }

    // C back from a call into Go that moved the goroutine's stack.
    let outer = [
        "strings_each",
        "runtime.cgocall",
        "main._Cfunc_each",
        "main.handleVisit",
        "main.main",
        "runtime.main",
    ];
    let visited = native(&profile, 3000);
    assert_eq!(objects(&visited), 30, "{}", shown());
    for sample in &visited {
        assert_order(
            sample,
            &[&["strings_entry", "strings_keep"], &outer[..]].concat(),
            &what,
        );
        assert_eq!(sample.names().last(), Some(&"runtime.main"), "{}", shown());
    }

    // Go called by C called by Go, and C again. The deepest of them have more than a stack's 127 frames, and keep both ends.
    let below = native(&profile, 2000);
    assert_eq!(objects(&below), 30, "{}", shown());
    for sample in &below {
        let inner = [&FROM_KEEP[..], &["main.descend"]].concat();
        let through = ["main.goVisited", "runtime.cgocallback", "crosscall2"];
        assert_order(sample, &[&inner[..], &through, &outer].concat(), &what);
        assert_eq!(sample.names().last(), Some(&"runtime.main"), "{}", shown());
    }

    // Threads that C made, which call Go, which calls C.
    let threads = native(&profile, 6000);
    assert_eq!(objects(&threads), 30, "{}", shown());
    for sample in &threads {
        let wanted = [
            "main.goOnThread",
            "runtime.cgocallback",
            "crosscall2",
            "strings_each",
            "strings_worker",
        ];
        assert_order(sample, &[&FROM_KEEP[..], &wanted].concat(), &what);
        assert!(!sample.names().contains(&"main.main"), "{}", shown());
    }
    // And C on such a thread, after its call into Go.
    let after = native(&profile, 7000);
    assert_eq!(objects(&after), 30, "{}", shown());
    for sample in &after {
        assert_order(
            sample,
            &["strings_entry", "strings_keep", "strings_each", "strings_worker"],
            &what,
        );
        assert!(
            !sample.names().iter().any(|name| name.starts_with("main.")),
            "{}",
            shown()
        );
    }

    // Go's own heap: allocated since the start, in use as of the end. 5,000 bytes take 5,376.
    let made: Vec<_> = heap_of(&profile, "go", "main.handleMake")
        .filter(|sample| sample.inuse().bytes % 5376 == 0)
        .collect();
    let sum = |of: fn(&Sample) -> i64| made.iter().map(|sample| of(sample)).sum::<i64>();
    assert_eq!(sum(|sample| sample.inuse().objects), 23, "{}", shown());
    assert_eq!(sum(|sample| sample.allocated().objects), 20, "{}", shown());
    let comment = profile
        .comments
        .iter()
        .find(|comment| comment.starts_with("Go heap (go1."));
    ensure!(
        comment.is_some_and(|text| text.contains("collections while recording")),
        "{what}: {:?}",
        profile.comments
    );

    // Which sees nothing of what C holds.
    let own = std::fs::read_to_string(&own)?;
    assert!(own.contains("main.handleMake"), "{what}: {own}");
    assert!(!own.contains("strings_keep"), "{what}: {own}");
    assert_eq!(
        heap_of(&profile, "go", "main._Cfunc_strings_keep").count(),
        0,
        "{}",
        shown()
    );

    // Nothing of the runtime's own memory is counted twice.
    assert_eq!(heap_of(&profile, "mmap", "runtime.mmap").count(), 0, "{}", shown());

    // Go's tool reads it and knows both worlds by the same names.
    let output = toolchain
        .command()
        .args([
            "tool",
            "pprof",
            "-top",
            "-cum",
            "-nodecount=200",
            "-sample_index=inuse_space",
        ])
        .arg(&file)
        .env("PPROF_TMPDIR", folder.path())
        .output()
        .context("failed to start `go tool pprof`")?;
    let top = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for name in ["main.handleKeep", "main.handleMake", "strings_keep", "runtime.main"] {
        ensure!(top.contains(name), "{what}: no {name} in\n{top}");
    }
    tell(&mut program, "nothing")
}

fn every_form(minors: impl Fn(u32) -> bool) -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in Toolchain::all()?.iter().filter(|toolchain| minors(toolchain.minor)) {
        for form in WITH_C {
            every_stack(toolchain, form)?;
        }
    }
    Ok(())
}

#[test]
fn stacks_through_cgo_of_go_1_19() -> Result<()> {
    every_form(|minor| minor == 19)
}

#[test]
fn stacks_through_cgo_of_go_1_23() -> Result<()> {
    every_form(|minor| minor == 23)
}

#[test]
fn stacks_through_cgo_of_other_releases() -> Result<()> {
    every_form(|minor| !matches!(minor, 19 | 23))
}

/// What `main.remember` allocated, and of that what is in use.
fn remembered(profile: &Profile) -> (Amount, Amount) {
    let mut sums = (Amount::default(), Amount::default());
    for sample in profile
        .samples
        .iter()
        .filter(|sample| sample.names().contains(&"main.remember"))
    {
        sums.0 += sample.allocated();
        sums.1 += sample.inuse();
    }
    sums
}

#[test]
fn go_without_any_c_is_recorded() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in Toolchain::all()? {
        let program = toolchain.build("leaks", Form::Pure)?;
        let mut program = ready(Command::new(program).arg("slice"))?;
        let folder = tempfile::tempdir()?;
        let own = |program: &mut Process, name: &str| -> Result<(Amount, Amount)> {
            let file = folder.path().join(name);
            tell(program, &format!("heap {}", file.display()))?;
            Ok(remembered(&as_json(&file)?))
        };
        let (before, _) = own(&mut program, "before.pb.gz")?;
        let recording = Recording::attach(program.pid(), &[])?;
        tell(&mut program, "work")?;
        let profile = recording.stop()?.profile;
        let (after, in_use) = own(&mut program, "after.pb.gz")?;
        let (allocated, held) = remembered(&profile);
        assert_eq!(held, in_use, "{}", profile.shown());
        // Differences are scaled here, and scaled values subtracted there.
        let own = after.objects - before.objects;
        assert!(
            (allocated.objects - own).abs() <= 4,
            "{allocated:?}, {own} in the program's own view"
        );
        assert!(own > 200, "the program recorded itself hardly at all: {own}");
        assert!(
            profile.samples.iter().all(|sample| sample.heap() != "native"),
            "{}",
            profile.shown()
        );
        assert_eq!(
            heap_of(&profile, "mmap", "runtime.mmap").count(),
            0,
            "{}",
            profile.shown()
        );
        assert!(profile.losses.is_empty(), "{}", profile.shown());
    }
    Ok(())
}

#[test]
fn go_that_does_not_profile_itself_says_so() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in Toolchain::all()? {
        let program = ready(&mut Command::new(toolchain.build("off", Form::Pure)?))?;
        let profile = Recording::attach(program.pid(), &[])?.stop()?.profile;
        let said = profile
            .comments
            .iter()
            .any(|comment| comment.contains("MemProfileRate is 0"));
        assert!(said, "Go 1.{}: {:?}", toolchain.minor, profile.comments);
    }
    Ok(())
}

/// Blocks that `main.handleMake` made: allocated, and of that in use. 5,000 bytes take 5,376.
fn made(profile: &Profile) -> (i64, i64) {
    let samples = || heap_of(profile, "go", "main.handleMake").filter(|sample| sample.allocated().bytes % 5376 == 0);
    (
        samples().map(|sample| sample.allocated().objects).sum(),
        samples().map(|sample| sample.inuse().objects).sum(),
    )
}

fn has_comment(profile: &Profile, text: &str) -> bool {
    profile.comments.iter().any(|comment| comment.contains(text))
}

/// Blocks of 1,000 bytes below `handleKeep`, each with its whole stack.
fn kept(profile: &Profile, what: &str) -> i64 {
    let kept = native(profile, 1000);
    for sample in &kept {
        let main = ["main.handleKeep", "main.main", "runtime.main"];
        assert_order(sample, &[&FROM_KEEP[..], &main].concat(), what);
    }
    objects(&kept)
}

fn ready_under(recording: &mut Recording) -> Result<()> {
    let command = recording.tracer();
    command.wait_for("that it is ready", |line| line.starts_with("ready"), PATIENCE)?;
    Ok(())
}

/// The releases that are tested in depth: what differs between the others is where fields lie, which other tests show.
fn in_depth() -> Result<impl Iterator<Item = Toolchain>> {
    Ok(Toolchain::all()?
        .into_iter()
        .filter(|toolchain| matches!(toolchain.minor, 19 | 23)))
}

#[test]
fn a_go_program_from_its_first_instruction() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in in_depth()? {
        let what = format!("Go 1.{}", toolchain.minor);
        let program = toolchain.build("cgocache", Form::Stripped)?;
        let program = program.to_string_lossy();
        let start = || -> Result<Recording> {
            let mut recording = Recording::of_command(&[], &[&program])?;
            ready_under(&mut recording)?;
            tell(recording.tracer(), "keep 40")?;
            tell(recording.tracer(), "make 20")?;
            Ok(recording)
        };
        // Ended by Ctrl-C: three blocks were made before it was ready.
        let profile = start()?.stop()?.profile;
        assert_eq!(kept(&profile, &what), 40, "{what}\n{}", profile.shown());
        assert_eq!(made(&profile), (23, 23), "{what}\n{}", profile.shown());
        // Ended by itself: Go's heap as it was seen last.
        let mut recording = start()?;
        std::thread::sleep(Duration::from_millis(2500));
        recording.tracer().close_input();
        let profile = recording.finish()?.profile;
        assert_eq!(kept(&profile, &what), 40, "{what}\n{}", profile.shown());
        assert_eq!(made(&profile), (23, 23), "{what}\n{}", profile.shown());
        assert!(
            has_comment(&profile, "the program ended by itself: its Go heap is as of "),
            "{what}: {:?}",
            profile.comments
        );
    }
    Ok(())
}

#[test]
fn go_becomes_another_program() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in in_depth()? {
        let what = format!("Go 1.{}", toolchain.minor);
        let (first, next) = (
            toolchain.build("cgocache", Form::Stripped)?,
            toolchain.build("cgocache", Form::Pie)?,
        );
        for next in [&next, &first] {
            let mut program = ready(&mut Command::new(&first))?;
            let recording = Recording::attach(program.pid(), &[])?;
            tell(&mut program, "keep 10")?;
            tell(&mut program, "make 10")?;
            program.send(&format!("exec {}", next.display()))?;
            program.wait_for("that it is ready", |line| line.starts_with("ready"), PATIENCE)?;
            // Until the new program's code is known.
            std::thread::sleep(Duration::from_millis(1500));
            tell(&mut program, "keep 30")?;
            tell(&mut program, "make 20")?;
            let profile = recording.stop()?.profile;
            assert_eq!(kept(&profile, &what), 30, "{what}\n{}", profile.shown());
            assert_eq!(made(&profile), (23, 23), "{what}\n{}", profile.shown());
            assert!(
                has_comment(
                    &profile,
                    "another program than at the start: Go allocations are since its begin"
                ),
                "{what}: {:?}",
                profile.comments
            );
        }
    }
    Ok(())
}

#[test]
fn go_and_other_programs_become_each_other() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    let toolchain = &Toolchain::all()?[0];
    let program = toolchain.build("cgocache", Form::Stripped)?;
    let line = format!("exec {}", program.display());
    let mut recording = Recording::of_command(&[], &["sh", "-c", &line])?;
    ready_under(&mut recording)?;
    std::thread::sleep(Duration::from_millis(1500));
    tell(recording.tracer(), "keep 30")?;
    tell(recording.tracer(), "make 20")?;
    let profile = recording.stop()?.profile;
    assert_eq!(kept(&profile, "sh, then Go"), 30, "{}", profile.shown());
    assert_eq!(made(&profile), (23, 23), "{}", profile.shown());

    let mut program = ready(&mut Command::new(program))?;
    let recording = Recording::attach(program.pid(), &[])?;
    program.send("exec /bin/sleep 60")?;
    std::thread::sleep(Duration::from_millis(1500));
    let profile = recording.stop()?.profile;
    assert_eq!(
        heap_of(&profile, "go", "main.handleMake").count(),
        0,
        "{}",
        profile.shown()
    );
    assert!(
        has_comment(&profile, "Go heap not read at the end, so it is not included: pid ")
            && has_comment(&profile, "is not a Go program"),
        "{:?}",
        profile.comments
    );
    Ok(())
}

#[test]
fn what_may_be_garbage_is_told() -> Result<()> {
    let Some(_machine) = machine::exclusive() else {
        return Ok(());
    };
    for toolchain in in_depth()? {
        let program = toolchain.build("cgocache", Form::Stripped)?;
        let mut program = ready(Command::new(program).env("GOGC", "off"))?;
        let since = |program: &mut Process| -> Result<i64> {
            let recording = Recording::attach(program.pid(), &[])?;
            tell(program, "make 200")?;
            let profile = recording.stop()?.profile;
            let told = profile.comments.iter().find_map(|comment| {
                let rest = comment.split_once("inuse is as of the end and includes ")?.1;
                rest.split_once(" bytes allocated since the last collection")?
                    .0
                    .parse()
                    .ok()
            });
            told.with_context(|| format!("Go 1.{}: {:?}", toolchain.minor, profile.comments))
        };
        // Nothing collects, so all of it is, and of the second round as well.
        let (first, second) = (since(&mut program)?, since(&mut program)?);
        ensure!(
            (200 * 5376..200 * 5376 + 400_000).contains(&first) && (400 * 5376..400 * 5376 + 800_000).contains(&second),
            "Go 1.{}: {first} {second}",
            toolchain.minor
        );
    }
    Ok(())
}
