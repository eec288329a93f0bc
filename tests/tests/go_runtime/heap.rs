//! Heap profiles: every counter of every bucket, every stack, and the profile as a file.

use std::collections::BTreeMap;

use leaktrace::export::pprof;
use leaktrace::report::Profile;
use leaktrace::runtime::go::heap::View;
use leaktrace::runtime::go::stacks::Symbolizer;
use leaktrace::runtime::go::{GoProcess, profile};

use super::support::{Truth, assert_same, everywhere};

/// A bucket: in use, allocated (objects and bytes each), return addresses, visible frames.
type Record = ([u64; 4], Vec<u64>, Vec<String>);

/// Reads `pprof.Lookup("heap").WriteTo(_, 1)`.
fn parse(text: &str) -> (u64, Vec<Record>) {
    let mut lines = text.lines();
    let head = lines.next().unwrap();
    let rate: u64 = head.rsplit('/').next().unwrap().parse().unwrap();
    let mut records: Vec<Record> = Vec::new();
    for line in lines.take_while(|line| !line.starts_with("# runtime.MemStats")) {
        if let Some(frame) = line.strip_prefix("#\t") {
            let fields: Vec<&str> = frame.split('\t').filter(|field| !field.is_empty()).collect();
            let function = fields[1].rsplit_once('+').map_or(fields[1], |(name, _)| name);
            records.last_mut().unwrap().2.push(format!("{function} {}", fields[2]));
        } else if let Some((counts, stack)) = line.split_once(" @") {
            let numbers: Vec<u64> = counts
                .split([':', '[', ']', ' '])
                .filter(|part| !part.is_empty())
                .map(|n| n.parse().unwrap())
                .collect();
            let stack = stack
                .split_ascii_whitespace()
                .map(|pc| u64::from_str_radix(&pc[2..], 16).unwrap())
                .collect();
            records.push((numbers.try_into().unwrap(), stack, Vec::new()));
        }
    }
    // The rate is written as twice the distance of samples.
    (rate / 2, records)
}

fn visible_frames(symbolizer: &mut Symbolizer<'_>, stack: &[u64]) -> Vec<String> {
    let mut places = symbolizer.heap_stack(stack);
    profile::hide_runtime(&mut places);
    let frames = places
        .iter()
        .flat_map(|place| &place.frames)
        .filter(|frame| frame.function != "runtime.goexit");
    frames
        .map(|frame| format!("{} {}:{}", frame.display(), frame.file, frame.line))
        .collect()
}

/// Values by stack and numeric labels; several samples may share both.
type Samples = BTreeMap<(Vec<String>, Vec<i64>), Vec<Vec<i64>>>;

/// Stacks as text with values and the size label, of a decoded profile.
fn samples(profile: &Profile) -> Samples {
    let mut samples: BTreeMap<_, Vec<Vec<i64>>> = BTreeMap::new();
    for sample in &profile.samples {
        let lines = profile.stack(sample).flat_map(|location| &location.lines);
        let stack = lines.map(|line| {
            let function = profile.function(line);
            format!("{} {}:{}", function.name, function.file, line.line)
        });
        let sizes = sample
            .numbers
            .iter()
            .filter(|label| label.key == "bytes")
            .map(|label| label.value);
        if sample.values.iter().any(|&value| value != 0) {
            samples
                .entry((stack.collect(), sizes.collect()))
                .or_default()
                .push(sample.values.clone());
        }
    }
    samples.values_mut().for_each(|values| values.sort());
    samples
}

/// Samples of one stack and size are one, as ours are; the program writes one for each bucket.
fn sums(profile: &Profile) -> BTreeMap<(Vec<String>, Vec<i64>), Vec<i64>> {
    samples(profile)
        .into_iter()
        .map(|(key, values)| {
            let sum = values
                .into_iter()
                .reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
            (key, sum.unwrap())
        })
        .collect()
}

fn compare(rate: &str) {
    let mut compared = 0;
    for (minor, form) in everywhere() {
        let name = format!("Go 1.{minor} {form:?} rate {rate:?}");
        let truth = Truth::of(minor, form, rate).unwrap();
        let process = GoProcess::attach(truth.program.pid()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(process.version.minor, minor, "{name}");
        let snapshot = process.heap().unwrap();
        assert!(snapshot.stable && snapshot.cut.is_none(), "{name}: {:?}", snapshot.cut);
        assert_eq!(snapshot.torn, 0, "{name}");
        let (expected_rate, expected) = parse(&truth.text("heap.txt"));
        assert_eq!(snapshot.rate, expected_rate, "{name}");
        let mut symbolizer = Symbolizer::new(process.table(), &process.version);
        let mut found: Vec<Record> = snapshot
            .view(View::Pprof)
            .map(|(bucket, counts)| {
                let numbers = [
                    counts.in_use(),
                    counts.in_use() * bucket.size,
                    counts.allocs,
                    counts.allocs * bucket.size,
                ];
                (
                    numbers,
                    bucket.stack.clone(),
                    visible_frames(&mut symbolizer, &bucket.stack),
                )
            })
            .filter(|(numbers, ..)| numbers[2] != 0)
            .collect();
        let mut expected: Vec<Record> = expected.into_iter().filter(|(numbers, ..)| numbers[2] != 0).collect();
        // Up to Go 1.22 a record of the program's own has room for 32 addresses, as its buckets have.
        found.sort();
        expected.sort();
        assert!(expected.len() >= 3, "{name}: only {} buckets", expected.len());
        assert_eq!(found.len(), expected.len(), "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{name}");
        }
        let ours = profile::heap_profile(&process, &snapshot, View::Pprof, 0);
        let theirs = pprof::read(truth.bytes("heap.pb.gz").as_slice()).unwrap();
        assert_eq!(ours.period, theirs.period, "{name}");
        assert_eq!(ours.sample_types, theirs.sample_types, "{name}");
        assert_eq!(ours.totals(), theirs.totals(), "{name}");
        assert_same(&sums(&ours), &sums(&theirs), &name);
        compared += expected.len();
    }
    println!("{compared} buckets compared");
}

#[test]
fn every_allocation_is_recorded() {
    compare("1");
}

#[test]
fn one_sample_per_4096_bytes() {
    compare("4096");
}

#[test]
fn the_default_rate() {
    compare("");
}
