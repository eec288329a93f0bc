//! Goroutines: state, creator and every frame, against the program's own dump.

use std::collections::BTreeMap;

use leaktrace::export::pprof;
use leaktrace::report::Profile;
use leaktrace::runtime::go::goroutines::StackState;
use leaktrace::runtime::go::stacks::Symbolizer;
use leaktrace::runtime::go::{GoProcess, clock, dump, profile};

use super::support::{Truth, assert_same, everywhere};

/// A goroutine of a dump: words in brackets, frames (function, position), creator.
#[derive(Debug, PartialEq, Eq)]
struct Dumped {
    state: String,
    frames: Vec<(String, String)>,
    creator: Option<(String, String)>,
}

/// Reads the runtime's text layout; arguments are left out.
fn parse(text: &str) -> BTreeMap<u64, Dumped> {
    let mut goroutines = BTreeMap::new();
    for block in text.split("\n\n").filter(|block| block.starts_with("goroutine ")) {
        let mut lines = block.lines();
        let head = lines.next().unwrap();
        let (number, state) = head["goroutine ".len()..].split_once(" [").unwrap();
        let mut dumped = Dumped {
            state: state.trim_end_matches("]:").to_owned(),
            frames: Vec::new(),
            creator: None,
        };
        let lines: Vec<&str> = lines.collect();
        for pair in lines.chunks(2).filter(|pair| pair.len() == 2) {
            let position = pair[1].trim().to_owned();
            match pair[0].strip_prefix("created by ") {
                Some(creator) => dumped.creator = Some((creator.to_owned(), position)),
                None => {
                    let function = pair[0].rsplit_once('(').map_or(pair[0], |(name, _)| name);
                    dumped.frames.push((function.to_owned(), position));
                }
            }
        }
        goroutines.insert(number.split(' ').next().unwrap().parse().unwrap(), dumped);
    }
    goroutines
}

fn counts(profile: &Profile) -> BTreeMap<Vec<String>, i64> {
    let mut counts = BTreeMap::new();
    for sample in &profile.samples {
        let lines = profile.stack(sample).flat_map(|location| &location.lines);
        // Up to Go 1.22 the program's own profile has 32 frames at most.
        let stack: Vec<String> = lines
            .take(32)
            .map(|line| {
                let function = profile.function(line);
                format!("{} {}:{}", function.name, function.file, line.line)
            })
            .collect();
        // The goroutine that takes the snapshot does something else by now.
        if !stack.iter().any(|frame| frame.starts_with("main.main ")) {
            *counts.entry(stack).or_default() += sample.values[0];
        }
    }
    counts
}

#[test]
fn states_creators_and_stacks_equal_the_programs_own_dump() {
    let mut compared = 0;
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let snapshot = process.goroutines().unwrap();
        assert_eq!(
            (snapshot.unsettled, snapshot.incomplete, snapshot.unreadable),
            (0, 0, 0),
            "{name}"
        );
        let mut symbolizer = Symbolizer::new(process.table(), &process.version);
        let now = clock::monotonic();
        let mut text = String::new();
        for goroutine in &snapshot.goroutines {
            if !dump::is_system(&symbolizer, goroutine) {
                dump::write(&mut text, &process, &mut symbolizer, goroutine, now);
            }
        }
        let mut found = parse(&text);
        let mut expected = parse(&truth.text("goroutines.txt"));
        assert!(expected.len() > 100, "{name}: {}", expected.len());
        // The first goroutine was writing the dump then and waits for a command now.
        assert!(found.remove(&1).is_some() && expected.remove(&1).is_some(), "{name}");
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (id, expected) in &expected {
            assert_eq!(&found[id], expected, "{name}: goroutine {id}");
        }
        let theirs = counts(&pprof::read(truth.bytes("goroutines.pb.gz").as_slice()).unwrap());
        let keep = |goroutine: &_| !dump::is_system(&Symbolizer::new(process.table(), &process.version), goroutine);
        let ours = counts(&profile::goroutine_profile(&process, &snapshot, 0, keep));
        assert_same(&ours, &theirs, &name);
        compared += expected.len();
    }
    println!("{compared} goroutines compared");
}

#[test]
fn parents_waits_and_channels() {
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?}");
        let truth = Truth::of(minor, form, "").unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap();
        let snapshot = process.goroutines().unwrap();
        let senders: Vec<_> = snapshot
            .goroutines
            .iter()
            .filter(|goroutine| process.wait_text(goroutine) == "chan send")
            .collect();
        assert_eq!(senders.len(), 40, "{name}");
        // All on one channel, which nobody made known to the reader.
        assert!(
            senders[0].channel != 0 && senders.iter().all(|goroutine| goroutine.channel == senders[0].channel),
            "{name}"
        );
        // Three collections ran after they began to wait: the second noted it.
        assert!(senders.iter().all(|goroutine| goroutine.wait_since != 0), "{name}");
        if minor >= 21 {
            assert!(senders.iter().all(|goroutine| goroutine.parent == 1), "{name}");
        }
        let locked = snapshot
            .goroutines
            .iter()
            .filter(|goroutine| goroutine.locked && goroutine.state == StackState::Complete);
        assert!(locked.count() >= 1, "{name}");
        assert!(
            snapshot
                .goroutines
                .iter()
                .all(|goroutine| goroutine.stack_size() >= 2048),
            "{name}"
        );
    }
}
