//! What a trap costs: the way into the kernel at a probe and back, measured on functions of this program that do nothing.
//!
//! Invariant: no probe is left, whatever the outcome; probes are in this process alone.

use std::{hint::black_box, io, os::fd::OwnedFd, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::{
    kernel::{Kernel, LoadError, UprobeMechanism},
    links::path_of,
    own_code::{OwnCode, OwnCodeError},
    program::UprobeProgram,
    syscall::AttachType,
    usage::Counting,
};
use crate::proc::ProcError;

/// Calls that are timed at once: short enough to be rarely interrupted, long enough for the clock.
const BATCH: u32 = 64;
/// Batches of each kind, in turn, so that what the machine does meanwhile hits all kinds.
const ROUNDS: usize = 16;
/// After so much CPU time a slow machine has said enough, if it had this many rounds.
const PATIENCE: Duration = Duration::from_millis(30);
const MIN_ROUNDS: usize = 3;

/// What traps cost, without the programs behind them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traps {
    /// At an instruction that the kernel emulates.
    pub emulated: Duration,
    /// At one that it executes step by step.
    pub stepped: Duration,
    /// At a function's return, with what its entry does for it.
    pub returned: Duration,
}

/// Why traps could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum TrapError {
    /// It would end this program.
    #[error("a return probe would end this program: it is filtered by seccomp, and this kernel is one of 6.11 to 6.13")]
    Deadly,
    /// What this program is cannot be told.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// There are no functions for it, or they are not to be found.
    #[error(transparent)]
    Code(#[from] OwnCodeError),
    /// The programs were refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The probes, or a clock.
    #[error("failed to probe this program itself: {0}")]
    Refused(#[from] io::Error),
}

type Function = extern "C" fn();

/// What is called: nothing is probed in the first.
#[derive(Clone, Copy)]
struct Functions {
    plain: Function,
    emulated: Function,
    stepped: Function,
    returned: Function,
}

/// Functions that do nothing and are all different, so that no linker makes one of them.
#[cfg(target_arch = "x86_64")]
fn functions() -> Option<Functions> {
    use std::arch::naked_asm;

    #[unsafe(naked)]
    extern "C" fn plain() {
        naked_asm!("push rbp", "mov eax, 1", "pop rbp", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn emulated() {
        naked_asm!("push rbp", "mov eax, 2", "pop rbp", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn stepped() {
        naked_asm!("mov eax, 3", "push rbp", "pop rbp", "ret")
    }
    #[unsafe(naked)]
    extern "C" fn returned() {
        naked_asm!("push rbp", "mov eax, 4", "pop rbp", "ret")
    }
    Some(Functions {
        plain,
        emulated,
        stepped,
        returned,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn functions() -> Option<Functions> {
    None
}

impl Kernel {
    /// Measures what traps cost here: some thousand calls, some ten milliseconds of CPU time. The caller makes sure that a
    /// return probe does not end this program.
    ///
    /// # Errors
    /// When this program cannot be probed.
    pub fn measure_traps(&self) -> Result<Traps, TrapError> {
        let functions = functions().ok_or(OwnCodeError::Architecture)?;
        let probes = Probes::attach(self, functions)?;
        let mut times = Times::default();
        let begin = cpu_time()?;
        for round in 0..ROUNDS {
            times.round(functions)?;
            if round + 1 >= MIN_ROUNDS && cpu_time()?.saturating_sub(begin) > PATIENCE {
                break;
            }
        }
        Ok(times.traps(probes.program_time(functions.emulated)))
    }
}

/// Probes in this program.
struct Probes {
    entry: UprobeProgram,
    _links: Vec<OwnedFd>,
}

impl Probes {
    fn attach(kernel: &Kernel, functions: Functions) -> Result<Self, TrapError> {
        let pid = std::process::id();
        let code = OwnCode::open()?;
        let path = path_of(code.file());
        let place = |function: Function| code.offset(function as usize).map(|offset| (offset, 0));
        let load = |name, attach_type| UprobeProgram::load(&kernel.source, name, attach_type);
        let (entry, at_return) = match kernel.mechanism() {
            UprobeMechanism::Session => (
                load("bare_entry", AttachType::Multi)?,
                vec![load("bare", AttachType::Session)?],
            ),
            UprobeMechanism::PerfEvent => (
                load("bare_entry", AttachType::PerfEvent)?,
                vec![
                    UprobeProgram::load_for_returns(&kernel.source, "bare")?,
                    load("bare_entry", AttachType::PerfEvent)?,
                ],
            ),
        };
        let mut links = entry.attach(&path, &[place(functions.emulated)?], Some(pid))?;
        links.extend(entry.attach(&path, &[place(functions.stepped)?], Some(pid))?);
        for program in &at_return {
            links.extend(program.attach(&path, &[place(functions.returned)?], Some(pid))?);
        }
        Ok(Self { entry, _links: links })
    }

    /// What the kernel counts for a run of the program that does nothing, which it counts for every program; 0 where it
    /// does not count.
    fn program_time(&self, function: Function) -> f64 {
        let counting = Counting::begin();
        let before = self.entry.usage();
        call(function);
        let after = self.entry.usage();
        drop(counting);
        let runs = after.0.saturating_sub(before.0);
        if runs == 0 {
            return 0.0;
        }
        after.1.saturating_sub(before.1).as_nanos() as f64 / runs as f64
    }
}

fn call(function: Function) {
    for _ in 0..BATCH {
        black_box(function)();
    }
}

/// CPU time of this thread: what others do on its CPU is not in it.
fn cpu_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Nanoseconds of each batch, for a call.
#[derive(Debug, Default)]
struct Times {
    plain: Vec<f64>,
    emulated: Vec<f64>,
    stepped: Vec<f64>,
    returned: Vec<f64>,
}

impl Times {
    fn round(&mut self, functions: Functions) -> io::Result<()> {
        for (function, times) in [
            (functions.plain, &mut self.plain),
            (functions.emulated, &mut self.emulated),
            (functions.stepped, &mut self.stepped),
            (functions.returned, &mut self.returned),
        ] {
            let begin = cpu_time()?;
            call(function);
            let time = cpu_time()?.saturating_sub(begin);
            times.push(time.as_nanos() as f64 / f64::from(BATCH));
        }
        Ok(())
    }

    /// Medians on top of each other. `program` is what a run of the program takes, which is in every hit.
    fn traps(mut self, program: f64) -> Traps {
        let plain = median(&mut self.plain);
        let emulated = median(&mut self.emulated);
        let on_top = |probed: f64, without: f64| Duration::from_nanos((probed - without - program).max(0.0) as u64);
        Traps {
            emulated: on_top(emulated, plain),
            stepped: on_top(median(&mut self.stepped), plain),
            returned: on_top(median(&mut self.returned), emulated),
        }
    }
}

/// The one in the middle: up to half of them may be spoiled. 0 of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(plain: &[f64], emulated: &[f64], stepped: &[f64], returned: &[f64]) -> Times {
        Times {
            plain: plain.to_vec(),
            emulated: emulated.to_vec(),
            stepped: stepped.to_vec(),
            returned: returned.to_vec(),
        }
    }

    #[test]
    fn a_price_is_what_is_on_top_of_a_call_without_a_probe() {
        let times = times(&[2.0; 3], &[632.0; 3], &[9332.0; 3], &[1062.0; 3]);
        let traps = times.traps(30.0);
        assert_eq!(traps.emulated, Duration::from_nanos(600));
        assert_eq!(traps.stepped, Duration::from_nanos(9300));
        // On top of an entry with its program: the return, and the program once more.
        assert_eq!(traps.returned, Duration::from_nanos(400));
    }

    #[test]
    fn batches_that_were_disturbed_do_not_count() {
        let quiet = times(&[2.0; 5], &[602.0; 5], &[9002.0; 5], &[902.0; 5]).traps(0.0);
        let disturbed = times(
            &[2.0, 500.0, 2.0, 2.0, 900.0],
            &[602.0, 602.0, 90_000.0, 602.0, 10.0],
            &[1e9, 9002.0, 9002.0, 9002.0, 1e9],
            &[902.0, 0.0, 902.0, 1e9, 902.0],
        );
        assert_eq!(disturbed.traps(0.0), quiet);
    }

    #[test]
    fn no_price_is_below_nothing() {
        let traps = times(&[50.0], &[10.0], &[60.0], &[5.0]).traps(20.0);
        assert_eq!(traps.emulated, Duration::ZERO);
        assert_eq!(traps.returned, Duration::ZERO);
        assert_eq!(Times::default().traps(0.0).stepped, Duration::ZERO);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_functions_begin_as_they_should_and_are_four() {
        let functions = functions().expect("there are some");
        let first = |function: Function| {
            // SAFETY: the function is code of this program, which is mapped as long as it runs.
            unsafe { (function as *const u8).read() }
        };
        let (push, mov) = (0x55, 0xb8);
        assert_eq!(first(functions.plain), push);
        assert_eq!(first(functions.emulated), push);
        assert_eq!(first(functions.returned), push);
        assert_eq!(first(functions.stepped), mov);
        let places = [
            functions.plain,
            functions.emulated,
            functions.stepped,
            functions.returned,
        ];
        let places: std::collections::HashSet<usize> = places.iter().map(|function| *function as usize).collect();
        assert_eq!(places.len(), 4);
    }
}
