//! A recording of this program itself, from loading to the ledger: what a recording needs is tried, not asked for.
//!
//! Real programs serve real probes on functions that [`crate::bpf::self_test`] has for it, from a thread that is there
//! already and from a new one, so that each thread's record has to be made; records come through the ring, and the ledger
//! has to hold what the calls left, to the byte. Invariant: nothing stays, whatever the outcome, and no other process is
//! probed.

use std::{fmt, io};

use leaktrace_common::{
    config::{PROCESS_ACTIVE, PROCESS_TRACK_MMAP, Process},
    reason::Counter,
};

use super::{
    profile,
    pump::{self, Captured, Notice, NoticeReceiver, Pump},
    source::KernelSource,
    stack_memory::StackMemory,
    survey::uretprobes_kill,
};
use crate::{
    bpf::{
        btf::Places,
        kernel::{Kernel, LoadError, Sizes, UprobeMechanism},
        links::AttachError,
        own_code::OwnCodeError,
        processes::{ProcessTable, ProcessTableError},
        self_test::{Mapped, Return, Subject, WaitingChild},
        tracefs::Tracefs,
    },
    ledger,
    model::HeapKind,
    proc::{ProcError, identity, release::Release},
    report::loss::Losses,
};

/// Nobody else is traced beside this program.
const OWN_USER: u32 = 0;

/// Calls of each kind that a thread makes; every second block is given back.
const CALLS: u64 = 8;
/// Bytes of a block, by how its call's return is probed: sums of both can be told apart.
const BY_PROBE: u64 = 1 << 20;
const BY_SITE: u64 = 1;
/// Blocks are this far apart. Nothing is ever stored in them.
const BLOCK_DISTANCE: u64 = 16;
const FIRST_BLOCK: u64 = 0x10_0000;
/// Bytes that are mapped: more than the C library maps for itself in a moment.
const MAPPED: usize = 8 << 20;
/// Mean bytes between samples of growth: a page in two.
const GROWTH_INTERVAL: u64 = 8192;

/// What a test that passed showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// How probes are attached.
    pub mechanism: UprobeMechanism,
    /// Calls made and recorded.
    pub calls: u64,
    /// Whether tracepoints were tried as well; not where tracefs is not to be read.
    pub with_tracepoints: bool,
    /// Why growth without probes cannot be followed, which only the daemon does.
    pub growth_problem: Option<String>,
}

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// The kernel refused maps, programs or tracepoints.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// This program's functions cannot be probed.
    #[error(transparent)]
    Code(#[from] OwnCodeError),
    /// What this program is cannot be told.
    #[error(transparent)]
    Process(#[from] ProcError),
    /// The kernel refused probes.
    #[error("failed to attach probes to this program itself: {0}")]
    Attach(#[from] AttachError),
    /// The process could not be entered.
    #[error("failed to enter this program as a traced process: {0}")]
    Table(#[from] ProcessTableError),
    /// A thread could not be started, or no memory mapped.
    #[error("failed to make the calls that are to be recorded: {0}")]
    Calls(#[from] io::Error),
    /// Calls were made, and the ledger does not have them.
    #[error("{shortfall}. {losses}")]
    Missing {
        /// What of them.
        shortfall: Shortfall,
        /// What was counted as lost.
        losses: Losses,
    },
}

/// What the ledger does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortfall {
    /// Calls whose return is probed by a return probe.
    ByProbe {
        /// In the ledger.
        found: u64,
        /// Made.
        made: u64,
    },
    /// Calls whose return instruction is probed.
    BySite {
        /// In the ledger.
        found: u64,
        /// Made.
        made: u64,
    },
    /// Outstanding bytes differ: frees were not seen.
    Outstanding {
        /// By the ledger.
        found: u64,
        /// In truth.
        made: u64,
    },
    /// A mapping.
    Mapping,
    /// A new thread.
    Thread,
    /// A program that replaced another.
    Exec,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByProbe { found, made } => {
                write!(f, "of {made} calls with a return probe {found} were recorded")
            }
            Self::BySite { found, made } => {
                write!(
                    f,
                    "of {made} calls with probes on return instructions {found} were recorded"
                )
            }
            Self::Outstanding { found, made } => {
                write!(f, "{found} bytes were recorded as outstanding in place of {made}")
            }
            Self::Mapping => f.write_str("a call of mmap was not recorded"),
            Self::Thread => f.write_str("a new thread was not noticed"),
            Self::Exec => f.write_str("a call of execve was not recorded"),
        }
    }
}

/// What is made, or found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    by_probe: u64,
    by_site: u64,
    /// Outstanding bytes.
    outstanding: u64,
    mapping: bool,
    thread: bool,
    exec: bool,
}

impl Tally {
    fn found(captured: &Captured, notices: &NoticeReceiver) -> Self {
        let rows = |kind| captured.snapshot.rows.iter().filter(move |row| row.kind == kind);
        let allocated: f64 = rows(HeapKind::Native).map(|row| row.allocated.bytes).sum();
        let outstanding: f64 = rows(HeapKind::Native).map(|row| row.live.bytes).sum();
        let mapped: f64 = rows(HeapKind::Mmap).map(|row| row.allocated.bytes).sum();
        let notices = notices.take();
        Self {
            by_probe: allocated as u64 / BY_PROBE,
            by_site: allocated as u64 % BY_PROBE,
            outstanding: outstanding as u64,
            mapping: mapped >= MAPPED as f64,
            thread: notices.iter().any(|notice| matches!(notice, Notice::Fork { .. })),
            exec: notices.iter().any(|notice| matches!(notice, Notice::Exec(_))),
        }
    }

    /// The first thing that was made and not found.
    fn shortfall(&self, found: &Self) -> Option<Shortfall> {
        if found.by_probe != self.by_probe {
            return Some(Shortfall::ByProbe {
                found: found.by_probe,
                made: self.by_probe,
            });
        }
        if found.by_site != self.by_site {
            return Some(Shortfall::BySite {
                found: found.by_site,
                made: self.by_site,
            });
        }
        if found.outstanding != self.outstanding {
            return Some(Shortfall::Outstanding {
                found: found.outstanding,
                made: self.outstanding,
            });
        }
        if self.mapping && !found.mapping {
            return Some(Shortfall::Mapping);
        }
        if self.thread && !found.thread {
            return Some(Shortfall::Thread);
        }
        (self.exec && !found.exec).then_some(Shortfall::Exec)
    }
}

/// Records this program.
///
/// # Errors
/// The step that failed.
pub fn run() -> Result<Passed, SelfTestError> {
    let mut parts = Kernel::load(Sizes {
        ring_bytes: 256 << 10,
        rows: 1,
        blocks: 1,
        mappings: 1,
        places: Places::of_kernel().unwrap_or_default(),
    })?;
    parts.kernel.load_programs()?;
    let with_tracepoints = Tracefs::now() == Tracefs::Open;
    if with_tracepoints {
        parts.kernel.attach_tracepoints()?;
    }
    let (sender, notices) = pump::notice_channel();
    let source = KernelSource::new(parts.ring, parts.deferred, parts.lost, parts.counters);
    let pump = Pump::start(source, sender, StackMemory::Each(ledger::DEFAULT_LIMIT))?;
    let subject = Subject::find()?;
    let own = identity::read_identity(std::process::id())?;
    let with_return_probe = !uretprobes_kill(own.seccomp, Release::running().version());

    let made = calls(&parts.kernel, &mut parts.processes, &subject, with_return_probe)?;
    if with_tracepoints {
        run_a_program(&mut parts.processes)?;
    }
    // Before growth adds its own.
    let (counters, undecodable) = pump.counters().unwrap_or(([0; Counter::COUNT], 0));
    let growth = with_tracepoints.then(|| grow(&mut parts.kernel, &mut parts.processes));
    let outcome = pump.stop();
    let captured = outcome.capture(own.key.pid);
    let made = Tally {
        mapping: with_tracepoints,
        thread: with_tracepoints,
        exec: with_tracepoints,
        ..made
    };
    if let Some(shortfall) = made.shortfall(&Tally::found(&captured, &notices)) {
        return Err(SelfTestError::Missing {
            shortfall,
            losses: profile::kernel_losses(&counters, undecodable),
        });
    }
    let grew = captured.snapshot.rows.iter().any(|row| row.kind == HeapKind::Resident);
    Ok(Passed {
        mechanism: parts.kernel.mechanism(),
        calls: made.by_probe + made.by_site,
        with_tracepoints,
        growth_problem: match growth {
            None => None,
            Some(Err(error)) => Some(error.to_string()),
            Some(Ok(_)) if grew => None,
            Some(Ok(_)) => Some("memory that became resident was not noticed".to_owned()),
        },
    })
}

fn process(pid: u32, flags: u32, growth_interval: u64) -> Process {
    Process {
        pid,
        flags,
        growth_interval,
        stack_seed: 1 << 3,
        generation: 1,
        ..Process::default()
    }
}

/// Makes calls with probes on them, here and in a new thread, and maps memory. Returns what was made.
fn calls(
    kernel: &Kernel,
    table: &mut ProcessTable,
    subject: &Subject,
    with_return_probe: bool,
) -> Result<Tally, SelfTestError> {
    let own = process(std::process::id(), PROCESS_ACTIVE | PROCESS_TRACK_MMAP, 0);
    let slot = table.add(own, OWN_USER)?;
    let attached = subject
        .probes(slot.number(), with_return_probe)
        .map_err(SelfTestError::from)
        .and_then(|probes| Ok(kernel.attach(&probes, Some(std::process::id()), None)?));
    let made = attached.and_then(|links| {
        let mut made = Tally::default();
        let returns: &[Return] = if with_return_probe {
            &[Return::Probe, Return::Site]
        } else {
            &[Return::Site]
        };
        call(subject, returns, FIRST_BLOCK, &mut made);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("self-test".to_owned());
            let second = FIRST_BLOCK + 2 * CALLS * BLOCK_DISTANCE;
            let made = &mut made;
            let thread = thread.spawn_scoped(scope, move || call(subject, returns, second, made))?;
            thread.join().map_err(|_| io::Error::other("the thread panicked"))
        })?;
        drop(Mapped::touched(MAPPED)?);
        drop(links);
        Ok(made)
    });
    table.remove(slot);
    made
}

/// Allocates blocks from an address on, and gives every second one back.
fn call(subject: &Subject, returns: &[Return], first: u64, made: &mut Tally) {
    let mut address = first;
    for ret in returns {
        let (size, count) = match ret {
            Return::Probe => (BY_PROBE, &mut made.by_probe),
            Return::Site => (BY_SITE, &mut made.by_site),
        };
        for number in 0..CALLS {
            subject.allocate(*ret, size, address);
            *count += 1;
            if number % 2 == 0 {
                subject.release(address);
            } else {
                made.outstanding += size;
            }
            address += BLOCK_DISTANCE;
        }
    }
}

/// Lets a child run another program while it is a traced process.
fn run_a_program(table: &mut ProcessTable) -> Result<(), SelfTestError> {
    let child = WaitingChild::fork()?;
    let slot = table.add(process(child.pid(), PROCESS_ACTIVE, 0), OWN_USER)?;
    let ran = child.run();
    table.remove(slot);
    Ok(ran?)
}

/// Lets memory become resident while that is followed without probes. It stays resident as long as what is returned.
fn grow(kernel: &mut Kernel, table: &mut ProcessTable) -> Result<Mapped, SelfTestError> {
    let probes = kernel.attach_growth()?;
    let slot = table.add(process(std::process::id(), 0, GROWTH_INTERVAL), OWN_USER)?;
    let mapped = Mapped::touched(MAPPED);
    drop(probes);
    table.remove(slot);
    Ok(mapped?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{capability, features};

    fn made() -> Tally {
        Tally {
            by_probe: 16,
            by_site: 16,
            outstanding: 8 * BY_PROBE + 8 * BY_SITE,
            mapping: true,
            thread: true,
            exec: true,
        }
    }

    #[test]
    fn what_is_missing_is_named_by_its_step() {
        let short = |found: Tally| made().shortfall(&found).map(|shortfall| shortfall.to_string());
        assert_eq!(short(made()), None);
        let text = |found| short(found).unwrap_or_default();
        insta::assert_snapshot!(text(Tally::default()), @"of 16 calls with a return probe 0 were recorded");
        insta::assert_snapshot!(
            text(Tally { by_site: 3, ..made() }),
            @"of 16 calls with probes on return instructions 3 were recorded"
        );
        insta::assert_snapshot!(
            text(Tally { outstanding: 16 * BY_PROBE, ..made() }),
            @"16777216 bytes were recorded as outstanding in place of 8388616"
        );
        insta::assert_snapshot!(text(Tally { mapping: false, ..made() }), @"a call of mmap was not recorded");
        insta::assert_snapshot!(text(Tally { thread: false, ..made() }), @"a new thread was not noticed");
        insta::assert_snapshot!(text(Tally { exec: false, ..made() }), @"a call of execve was not recorded");
    }

    #[test]
    fn what_was_not_made_is_not_missing() {
        let made = Tally {
            by_probe: 0,
            mapping: false,
            thread: false,
            exec: false,
            ..made()
        };
        assert_eq!(made.shortfall(&made), None);
    }

    #[test]
    fn a_failure_says_what_was_lost() {
        let mut losses = Losses::new();
        losses.add("thread_table_full", 16, "calls not seen");
        let error = SelfTestError::Missing {
            shortfall: Shortfall::ByProbe { found: 0, made: 16 },
            losses,
        };
        assert_eq!(
            error.to_string(),
            "of 16 calls with a return probe 0 were recorded. Losses: 16 thread_table_full (calls not seen)"
        );
    }

    #[test]
    fn this_machine_passes() {
        let missing = capability::missing(capability::effective(), features::circumstances());
        if !missing.is_empty() || !features::in_first_pid_namespace() {
            eprintln!("skipped: loading the kernel side needs root");
            return;
        }
        let _alone = super::super::KERNEL_SIDE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let passed = run().expect("a recording works here");
        assert_eq!(passed.calls, 4 * CALLS);
        assert_eq!(passed.growth_problem, None);
    }
}
