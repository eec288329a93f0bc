//! The kernel side, loaded: programs, maps and what this kernel can do with them.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError},
    programs::{Program, ProgramError, TracePoint},
};
use leaktrace_common::config::{
    EXPONENTIAL_ONE, EXPONENTIAL_TABLE, HELD_SAMPLES, HOME_BY_ID, HOME_STORAGE, HOME_STORAGE_OR_BY_ID, LOST_RELEASES,
    MAX_PROCESSES,
};

use super::{
    btf::{self, Places},
    counters::Counters,
    deferred::DeferredReleases,
    features::{self, Trial},
    grace::GracePeriod,
    log::KernelLog,
    lost::LostReleases,
    processes::ProcessTable,
    program::{self, ProgramSource},
    program_set::ProgramSet,
    requirements::{self, last_lines, with_causes},
    ring::Ring,
    sampled::SampledBlocks,
    syscall::{self, AttachType},
    tables::{MappedArray, UnwindArrays},
    tracefs::Tracefs,
};
use crate::{model::page_size, proc::release::Release};

/// The compiled kernel side.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/leaktrace.bpf.o"));

/// Why the kernel side could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object itself is not as expected.
    #[error("failed to read the built-in BPF object: {0}")]
    Object(String),
    /// Maps or programs were refused.
    #[error(
        "{preface}failed to load the BPF object: {cause}",
        preface = requirements::preface(),
        cause = with_causes(.0)
    )]
    Ebpf(#[from] EbpfError),
    /// Not loaded as this kernel needs it, since it was taken for another.
    #[error(
        "failed to load the BPF object: the kernel refused a trial of what it can do, for want of memory or descriptors \
         most likely; start leaktrace again: {cause}",
        cause = with_causes(.0)
    )]
    Misjudged(#[source] EbpfError),
    /// A map could not be used.
    #[error("failed to use BPF map `{name}`: {whole}", whole = with_causes(cause))]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        cause: MapError,
    },
    /// A map could not be mapped into memory.
    #[error("failed to map BPF array `{name}` into memory: {cause}")]
    Mmap {
        /// Which.
        name: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// The elements of an array could not be read or written all at once.
    #[error("{preface}failed to {verb} BPF array `{name}`: {cause}", preface = requirements::preface())]
    Elements {
        /// What was to be done: `read` or `fill`.
        verb: &'static str,
        /// Which.
        name: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// Type information was refused.
    #[error("{preface}failed to load BTF: {0}", preface = requirements::preface())]
    Btf(#[source] io::Error),
    /// A program was refused.
    #[error(
        "{preface}failed to load BPF program `{program}`: {cause}{tail}",
        preface = requirements::preface(),
        tail = last_lines(log)
    )]
    Verifier {
        /// Which.
        program: String,
        /// Why.
        cause: io::Error,
        /// What the verifier said.
        log: String,
    },
    /// The kernel keeps a program's stack per CPU.
    #[error(
        "{preface}BPF program `{program}` is not used: this kernel keeps its stack per CPU, where threads that preempt each \
         other would share it; please report this line",
        preface = requirements::preface()
    )]
    PrivateStack {
        /// Which.
        program: String,
    },
    /// A program that aya loads could not be, for another reason.
    #[error(
        "{preface}failed to load BPF program `{program}`: {whole}",
        preface = requirements::preface(),
        whole = with_causes(cause)
    )]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        cause: ProgramError,
    },
    /// The kernel does not tell where it keeps what is to be read.
    #[error(
        "{preface}its type information does not tell where it counts anonymous pages",
        preface = requirements::preface()
    )]
    Places,
    /// Tracepoints were not found where they are.
    #[error(
        "failed to attach to tracepoints: tracefs could not be looked at when that was tried first, for want of memory or \
         descriptors most likely; start leaktrace again: {0}"
    )]
    MisjudgedTracefs(#[source] ProgramError),
    /// A tracepoint is missing or cannot be used.
    #[error(
        "{preface}failed to attach to tracepoint `{category}:{name}`: {whole}",
        preface = requirements::preface(),
        whole = with_causes(cause)
    )]
    Tracepoint {
        /// Its group.
        category: &'static str,
        /// Its name.
        name: &'static str,
        /// Why.
        cause: ProgramError,
    },
}

impl LoadError {
    /// Whether the kernel has what was asked for, as far as is known, and refused it for another reason.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Tracepoint { cause, .. } => is_refusal(cause),
            _ => true,
        }
    }
}

fn is_refusal(error: &ProgramError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() != io::ErrorKind::NotFound
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What depends on what is to be traced and on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the ring buffer; a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Unwind rows over all files.
    pub rows: u32,
    /// Blocks over all files.
    pub blocks: u32,
    /// Executable mappings over all processes; the array has twice as many places.
    pub mappings: u32,
    /// Where the kernel keeps what growth is read from; with zeros growth cannot be followed.
    pub places: Places,
}

/// How uprobes are attached here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UprobeMechanism {
    /// `uprobe_session`: one program for entry and return (kernel 6.13).
    Session,
    /// One perf event a probe (any kernel).
    PerfEvent,
}

impl UprobeMechanism {
    /// What this kernel has, or `LEAKTRACE_UPROBES=perf` asks for.
    pub(super) fn of_this_kernel() -> Self {
        let forced = std::env::var_os("LEAKTRACE_UPROBES").is_some_and(|value| value == "perf");
        if !forced && matches!(features::try_uprobes(AttachType::Session), Trial::Works) {
            Self::Session
        } else {
            Self::PerfEvent
        }
    }
}

/// The loaded kernel side. Dropping it detaches every probe and frees every map.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    pub(super) source: ProgramSource,
    mechanism: UprobeMechanism,
    /// For processes without programs of their own.
    pub(super) shared: ProgramSet,
    pub(super) places: Places,
}

/// Threads that have room in the map `THREADS_BY_ID` where all have their records there, 15 KiB each,
const ALL_THREADS: u32 = 2048;
/// and where those alone have that the kernel refuses one while it is busy with another's.
const FEW_THREADS: u32 = 128;

/// Where the kernel side may remember threads (a `HOME_*` constant). Kernels that guard task-local storage by a counter for
/// each CPU refuse to make a record, and before 6.2 even to find one, while another thread of the CPU was preempted in the
/// middle of looking for its own.
fn homes_of_threads() -> u32 {
    match Release::running().version() {
        version if version < (6, 2) => HOME_BY_ID,
        _ if btf::names(STORAGE_GUARD) => HOME_STORAGE_OR_BY_ID,
        _ => HOME_STORAGE,
    }
}

/// The counter, as type information names it.
const STORAGE_GUARD: &str = "bpf_task_storage_busy";

fn threads_by_id(homes: u32) -> u32 {
    match homes {
        HOME_BY_ID => ALL_THREADS,
        HOME_STORAGE_OR_BY_ID => FEW_THREADS,
        _ => 1,
    }
}

/// Tracepoints: program, group, name.
pub(super) const TRACEPOINTS: [(&str, &str, &str); 11] = [
    ("task_created", "task", "task_newtask"),
    ("mmap_enter", "syscalls", "sys_enter_mmap"),
    ("mmap_leave", "syscalls", "sys_exit_mmap"),
    ("mprotect_enter", "syscalls", "sys_enter_mprotect"),
    ("mprotect_leave", "syscalls", "sys_exit_mprotect"),
    ("munmap_enter", "syscalls", "sys_enter_munmap"),
    ("mremap_enter", "syscalls", "sys_enter_mremap"),
    ("mremap_leave", "syscalls", "sys_exit_mremap"),
    ("process_exec", "sched", "sched_process_exec"),
    ("process_fork", "sched", "sched_process_fork"),
    ("thread_exit", "sched", "sched_process_exit"),
];

/// The same, where the kernel has the system call: it needs protection keys.
const OPTIONAL_TRACEPOINTS: [(&str, &str, &str); 2] = [
    ("mprotect_enter", "syscalls", "sys_enter_pkey_mprotect"),
    ("mprotect_leave", "syscalls", "sys_exit_pkey_mprotect"),
];

/// What the kernel side hands out to the parts that read and write its maps.
pub struct Parts {
    /// The loaded kernel side.
    pub kernel: Kernel,
    /// Reader of the records.
    pub ring: Ring,
    /// Releases that did not fit into the ring.
    pub deferred: DeferredReleases,
    /// Those that fitted nowhere.
    pub lost: LostReleases,
    /// Loss counters.
    pub counters: Counters,
    /// Unwind tables.
    pub arrays: UnwindArrays,
    /// Traced processes.
    pub processes: ProcessTable,
    /// What the kernel side logs.
    pub log: KernelLog,
}

impl Kernel {
    /// Makes maps; attaches nothing. Programs are loaded when they are needed.
    pub fn load(sizes: Sizes) -> Result<Parts, LoadError> {
        let homes = homes_of_threads();
        // Of two halves one is in use, so that its runs can be put together in the other.
        let mappings = sizes.mappings.max(1).saturating_mul(2);
        let mut ebpf = EbpfLoader::new()
            // aya 0.14 has no type for task-local storage, which only the kernel side uses.
            .allow_unsupported_maps()
            .override_global("FORK_CHILD_OFFSET", &features::fork_child_offset().unwrap_or(20), true)
            .override_global("ANON_PAGES_OFFSET", &sizes.places.anon_pages, true)
            .override_global("TASK_MEMORY_OFFSET", &sizes.places.task_memory, true)
            .override_global("THREAD_PAGES_OFFSET", &sizes.places.thread_pages, true)
            .override_global("PAGE_SHIFT", &page_size().ilog2(), true)
            .override_global("HOMES", &homes, true)
            .map_max_entries("THREADS_BY_ID", threads_by_id(homes))
            .map_max_entries("EVENTS", sizes.ring_bytes)
            .map_max_entries("ROWS", sizes.rows.max(1))
            .map_max_entries("BLOCKS", sizes.blocks.max(1))
            .map_max_entries("MAPPINGS", mappings)
            .load(OBJECT)
            .map_err(|error| match features::were_misjudged() {
                true => LoadError::Misjudged(error),
                false => error.into(),
            })?;
        let source = ProgramSource::new(OBJECT, |name| ebpf.map(name).and_then(map_fd))?;
        let mechanism = UprobeMechanism::of_this_kernel();
        let shared = ProgramSet::new(mechanism);
        fill_exponentials(&ebpf)?;
        let grace = Arc::new(GracePeriod::new());
        Ok(Parts {
            ring: {
                let ring = Ring::new(take(&mut ebpf, "EVENTS")?, sizes.ring_bytes);
                ring.map_err(|cause| LoadError::Mmap { name: "EVENTS", cause })?
            },
            deferred: DeferredReleases::new(duplicate(&ebpf, "DEFERRED_RELEASES")?),
            lost: {
                let fd = duplicate(&ebpf, "LOST_RELEASES")?;
                LostReleases::new(MappedArray::new("LOST_RELEASES", &fd, LOST_RELEASES)?)
            },
            counters: {
                let counters = Counters::new(duplicate(&ebpf, "COUNTERS")?).and_then(|counters| {
                    counters.read()?;
                    Ok(counters)
                });
                counters.map_err(|cause| LoadError::Elements {
                    verb: "read",
                    name: "COUNTERS",
                    cause,
                })?
            },
            arrays: UnwindArrays::new(
                MappedArray::new("MAPPINGS", &duplicate(&ebpf, "MAPPINGS")?, mappings)?,
                MappedArray::new("BLOCKS", &duplicate(&ebpf, "BLOCKS")?, sizes.blocks)?,
                MappedArray::new("ROWS", &duplicate(&ebpf, "ROWS")?, sizes.rows)?,
                Arc::clone(&grace),
            ),
            log: KernelLog::new(&mut ebpf),
            processes: {
                let array = MappedArray::new("PROCESSES", &duplicate(&ebpf, "PROCESSES")?, MAX_PROCESSES)?;
                let fd = duplicate(&ebpf, "SAMPLED")?;
                let held = MappedArray::new("HELD_SAMPLES", &duplicate(&ebpf, "HELD_SAMPLES")?, HELD_SAMPLES)?;
                let sampled = SampledBlocks::new(take(&mut ebpf, "SAMPLED")?, fd, held);
                ProcessTable::new(
                    array,
                    take(&mut ebpf, "SLOTS")?,
                    take(&mut ebpf, "SHARERS")?,
                    take(&mut ebpf, "GROWTH")?,
                    sampled,
                    grace,
                )
            },
            kernel: Self {
                ebpf,
                source,
                mechanism,
                shared,
                places: sizes.places,
            },
        })
    }

    /// How uprobes are attached on this kernel.
    pub fn mechanism(&self) -> UprobeMechanism {
        self.mechanism
    }

    /// Another instance of the uprobe programs.
    pub fn program_set(&self) -> ProgramSet {
        ProgramSet::new(self.mechanism)
    }

    /// The same, for a process whose first thread has ended: what the kernel attaches by pid looks at that thread's memory,
    /// which is gone. Perf events are attached to any thread, and serve all that share its memory.
    pub fn thread_program_set(&self) -> ProgramSet {
        ProgramSet::new(UprobeMechanism::PerfEvent)
    }

    /// Has the verifier look at every program that a recording needs; attaches nothing.
    pub fn load_programs(&mut self) -> Result<(), LoadError> {
        self.shared.load_all(&self.source)?;
        for (program, ..) in TRACEPOINTS {
            load_tracepoint(self.program(program)?, program)?;
        }
        Ok(())
    }

    /// Attaches the tracepoints; they act on traced processes only.
    pub fn attach_tracepoints(&mut self) -> Result<(), LoadError> {
        for (program, category, name) in TRACEPOINTS {
            let tracepoint: &mut TracePoint = self.program(program)?;
            load_tracepoint(tracepoint, program)?;
            tracepoint.attach(category, name).map_err(|cause| match cause {
                // aya looks for tracefs once in a process.
                ProgramError::IOError(_) if Tracefs::now() == Tracefs::Open => LoadError::MisjudgedTracefs(cause),
                cause => LoadError::Tracepoint { category, name, cause },
            })?;
        }
        for (program, category, name) in OPTIONAL_TRACEPOINTS {
            let tracepoint: &mut TracePoint = self.program(program)?;
            if let Err(cause) = tracepoint.attach(category, name) {
                if is_refusal(&cause) {
                    return Err(LoadError::Tracepoint { category, name, cause });
                }
                tracing::debug!("there is no `{category}:{name}`: {cause}");
            }
        }
        Ok(())
    }
}

impl Kernel {
    /// One of the programs that aya loads.
    pub(super) fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        self.ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| LoadError::Object(format!("program `{name}` is not in the object")))
    }
}

/// Loads a tracepoint's program unless it is loaded already.
fn load_tracepoint(tracepoint: &mut TracePoint, name: &'static str) -> Result<(), LoadError> {
    if tracepoint.fd().is_ok() {
        return Ok(());
    }
    program::load(name, || tracepoint.load())?;
    program::refuse_private_stack_of(name, tracepoint.fd())
}

/// Writes the table that distances between samples are drawn from. The map stays where programs that are loaded later
/// find it.
fn fill_exponentials(ebpf: &Ebpf) -> Result<(), LoadError> {
    const NAME: &str = "EXPONENTIALS";
    let map = duplicate(ebpf, NAME)?;
    syscall::set_elements(map.as_fd(), &exponential_table()).map_err(|cause| LoadError::Elements {
        verb: "fill",
        name: NAME,
        cause,
    })
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| LoadError::Object(format!("map `{name}` is not in the object")))?;
    T::try_from(map).map_err(|cause| LoadError::Map { name, cause })
}

fn duplicate(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let fd = ebpf.map(name).and_then(map_fd);
    let fd = fd.ok_or_else(|| LoadError::Object(format!("map `{name}` is not in the object")))?;
    fd.try_clone_to_owned().map_err(|cause| LoadError::Mmap { name, cause })
}

fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerfEventArray(data)
        | Map::RingBuf(data)
        // Task-local storage.
        | Map::Unsupported(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// Exponential variates with mean 1 in fixed point, one for each of [`EXPONENTIAL_TABLE`] slices of equal probability:
/// the mean over the slice. The last slice is the tail: its value is where it begins, and the kernel side draws again
/// from there.
fn exponential_table() -> Vec<u64> {
    let count = EXPONENTIAL_TABLE as f64;
    // Integral of -ln(u) over a slice: u - u ln u, between the slice's bounds, times the number of slices.
    let integral = |u: f64| if u <= 0.0 { 0.0 } else { u - u * u.ln() };
    (0..EXPONENTIAL_TABLE)
        .map(|slice| {
            let high = 1.0 - f64::from(slice) / count;
            let low = 1.0 - f64::from(slice + 1) / count;
            let value = if slice + 1 == EXPONENTIAL_TABLE {
                count.ln()
            } else {
                (integral(high) - integral(low)) * count
            };
            (value * EXPONENTIAL_ONE as f64).round() as u64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_variates_have_mean_one() {
        let table = exponential_table();
        // The tail adds one more variate, whose mean is one.
        let sum: f64 = table.iter().map(|value| *value as f64).sum::<f64>() + EXPONENTIAL_ONE as f64;
        let mean = sum / f64::from(EXPONENTIAL_TABLE) / EXPONENTIAL_ONE as f64;
        assert!((mean - 1.0).abs() < 1e-5, "mean {mean}");
        assert!(table.is_sorted());
    }
}
