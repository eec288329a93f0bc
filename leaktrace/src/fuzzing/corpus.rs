//! Each target on its seeds (`fuzz/seeds`), and then on seeds with changes for a moment.
//!
//! `LEAKTRACE_FUZZ_SECONDS` says for how long. An input that fails is kept below `LEAKTRACE_FUZZ_FINDS` (the folder for
//! temporary files without it), where the input under test lies as well while a target runs, for those that end the
//! process. To try one again: copy it into the target's folder of seeds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::mutate::{Random, mutated};
use super::{TARGETS, Target, find};

/// What one input may take. Parsers have their own limits, of 3 s of CPU at most; the machine may be busy.
const MAX_TIME: Duration = Duration::from_secs(20);
/// For how long seeds are changed, without being told.
const SECONDS: f64 = 0.3;

/// Where the seeds lie, a folder for each target.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = folder().join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    paths.sort();
    let read = |path: &PathBuf| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    paths.iter().map(read).collect()
}

struct Run {
    target: Target,
    /// Where the input under test is kept, if it is.
    current: Option<PathBuf>,
    count: u64,
    slowest: Duration,
}

impl Run {
    fn one(&mut self, input: &[u8]) {
        if let Some(path) = &self.current {
            std::fs::write(path, input).expect("the input under test can be kept");
        }
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let took = begin.elapsed();
        self.count += 1;
        self.slowest = self.slowest.max(took);
        if result.is_ok() && took <= MAX_TIME {
            return;
        }
        let finds = std::env::var_os("LEAKTRACE_FUZZ_FINDS").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = finds.join(format!("{}-{:x}", self.target.name, hash(input)));
        let kept = std::fs::write(&path, input).map_or_else(|error| error.to_string(), |()| path.display().to_string());
        eprintln!(
            "{}: failed on an input of {} bytes: {kept}",
            self.target.name,
            input.len()
        );
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        panic!("{}: took {took:?}", self.target.name);
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn fuzz(name: &str) {
    let seconds = std::env::var("LEAKTRACE_FUZZ_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |seconds| seconds.parse().expect("a number of seconds"));
    let mut run = Run {
        target: find(name).expect("the target is in the table"),
        current: std::env::var_os("LEAKTRACE_FUZZ_FINDS")
            .map(|finds| Path::new(&finds).join(format!("{name}.current"))),
        count: 0,
        slowest: Duration::ZERO,
    };
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds.iter().for_each(|seed| run.one(seed));
    run.one(&[]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |time| time.as_nanos());
    let mut random = Random::new(now as u64);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        let input = mutated(&mut random, &seeds);
        run.one(&input);
    }
    if let Some(path) = &run.current {
        std::fs::remove_file(path).expect("it is there");
    }
    println!(
        "\n{name}: {} seeds, {} inputs in all, the slowest took {:?}",
        seeds.len(),
        run.count,
        run.slowest
    );
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert_eq!(here.as_slice(), TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
        }
    };
}

targets! {
    btf call_frames code config debug_snapshot elf_dynamic elf_image elf_sections events go_buildinfo go_executable
    go_memory go_pclntab http_request journal perf_map pprof proc_texts records stored_profile
}
