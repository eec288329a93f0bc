//! What the daemon and `top -p` tell, version 1: the shapes of its JSON answers.
//!
//! Times are nanoseconds since 1970 unless a name says otherwise, sizes are bytes. What is not known is `null`, never 0.
//! Names that come from processes are given as they are (lossy UTF-8): whoever shows them makes them harmless. Fields may
//! be added within a version; none is removed or changes its meaning.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A process over its whole life; `start_time` tells those apart that had the same pid one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// Pid in the machine's own namespace.
    pub pid: u32,
    /// Clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

/// Who a process is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Identity {
    /// Pid in the machine's own namespace.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// When it started.
    pub started: u64,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// Arguments, shortened to 4 KiB in all.
    pub command_line: Vec<String>,
    /// Path of its executable as the process names it; ends in ` (deleted)` where the file is gone.
    pub executable: Option<String>,
    /// Build ID of the executable, hexadecimal.
    pub build_id: Option<String>,
    /// Real user id.
    pub uid: u32,
    /// Name of that user on this machine.
    pub user: Option<String>,
    /// Path of its control group (of the memory controller, with version 1).
    pub cgroup: Option<String>,
    /// The container that it runs in.
    pub container: Option<Container>,
    /// Its systemd unit, such as `nginx.service`.
    pub unit: Option<String>,
    /// What runs it.
    pub runtime: Runtime,
    /// Version of the runtime, such as `go1.23.4`.
    pub runtime_version: Option<String>,
}

/// A container, as the path of the control group names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, or `unknown`.
    pub engine: String,
    /// Full id, usually 64 hexadecimal digits.
    pub id: String,
}

/// What runs a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Machine code.
    #[default]
    Native,
    /// Go of a release that can be read.
    Go,
}

impl Runtime {
    const ALL: [Self; 2] = [Self::Native, Self::Go];

    /// That of a process which has this one.
    pub fn of(runtime: &dyn crate::runtime::Runtime) -> Self {
        let known = Self::ALL.into_iter().find(|known| known.name() == runtime.name());
        known.unwrap_or_default()
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Go => "go",
        }
    }

    /// Its name as people write it.
    pub fn title(self) -> &'static str {
        let known = crate::runtime::all()
            .iter()
            .find(|runtime| runtime.name() == self.name());
        known.map_or(self.name(), |runtime| runtime.title())
    }

    /// Whether it is a managed runtime whose heap, tasks and collector can be read.
    pub const fn is_managed(self) -> bool {
        !matches!(self, Self::Native)
    }
}

/// What the watch tier saw of a process last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// Resident bytes.
    pub rss: u64,
    /// Resident anonymous bytes.
    pub anonymous: u64,
    /// Swapped bytes.
    pub swap: u64,
    /// Bytes of the heap that `brk` made.
    pub brk: Option<u64>,
    /// Major page faults since the start.
    pub major_faults: u64,
    /// Live bytes of native allocations since tracing began.
    pub tracked: Option<u64>,
    /// Live bytes of the Go heap.
    pub go_heap: Option<u64>,
    /// Goroutines.
    pub goroutines: Option<u64>,
    /// Growth of anonymous and swapped memory over `watch.growth_time`, in bytes an hour; over the time that is known where
    /// that is shorter, from ten seconds on.
    pub growth: Option<f64>,
}

/// Why a process is, or is not, traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tracing {
    /// How it stands.
    pub state: TraceState,
    /// In a sentence.
    pub reason: String,
    /// Since when it stands so.
    pub since: u64,
    /// Mean bytes between samples, while traced.
    pub sample_interval: Option<u64>,
    /// Share of one CPU that the probes take in this process, 0.01 being one percent; while traced.
    pub cost: Option<f64>,
    /// Probe hits a second, while traced.
    pub hits: Option<f64>,
    /// Why its growth is followed by stack, without probes; while it is.
    pub suspect: Option<String>,
}

/// How a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TraceState {
    /// Looked at from outside.
    Watched,
    /// Probes are in place.
    Traced,
    /// It should be traced and cannot be; the reason says why.
    Refused,
    /// It was traced; probes were taken away to keep the budget.
    Detached,
    /// It ended a moment ago.
    Gone,
}

/// A row of the list of processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// What it holds.
    pub memory: Memory,
    /// Whether it is traced, and why.
    pub tracing: Tracing,
    /// Anonymous and swapped bytes over the last hour at most, oldest first, equally spaced; at most 60.
    pub spark: Vec<u64>,
}

/// Answer of `/api/v1/processes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Processes {
    /// When the figures were taken.
    pub time: u64,
    /// Number of processes that match, before `offset` and `limit`.
    pub total: usize,
    /// The rows asked for.
    pub processes: Vec<Process>,
}

/// Answer of `/api/v1/processes/{pid}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Details {
    /// The row of the list.
    #[serde(flatten)]
    pub process: Process,
    /// What was decided about it, newest first, at most 100.
    pub decisions: Vec<Decision>,
}

/// Something that the daemon decided, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// When.
    pub time: u64,
    /// About whom.
    pub process: Key,
    /// Its name then.
    pub comm: String,
    /// What: `trace`, `release`, `refuse`, `detach`, `interval`.
    pub action: String,
    /// Why, in a sentence with its numbers.
    pub reason: String,
}

/// Answer of `/api/v1/processes/{pid}/timeline`: columns of equal length, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// When each point was taken.
    pub time: Vec<u64>,
    /// Resident bytes.
    pub rss: Vec<u64>,
    /// Resident anonymous bytes.
    pub anonymous: Vec<u64>,
    /// Swapped bytes.
    pub swap: Vec<u64>,
    /// Live bytes of native allocations since tracing began.
    pub tracked: Vec<Option<u64>>,
    /// Live bytes of the Go heap.
    pub go_heap: Vec<Option<u64>>,
    /// Goroutines.
    pub goroutines: Vec<Option<u64>>,
    /// Collections of the Go heap that ended within the time told.
    pub collections: Vec<Collection>,
}

/// A collection of a Go heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Collection {
    /// Its number.
    pub number: u64,
    /// When it ended.
    pub end: Option<u64>,
    /// Nanoseconds for which the program stood still.
    pub pause: Option<u64>,
    /// Heap at its begin.
    pub before: Option<u64>,
    /// Heap at its end.
    pub after: Option<u64>,
    /// What it found live.
    pub live: Option<u64>,
    /// The goal that it was started for.
    pub goal: Option<u64>,
}

/// Answer of `/api/v1/processes/{pid}/gc`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Gc {
    /// Collections since the start of the program.
    pub collections_total: u64,
    /// Live bytes now.
    pub live: u64,
    /// The next goal.
    pub goal: u64,
    /// Bytes in spans in use.
    pub in_use: u64,
    /// Share of the CPU that collections took since the start.
    pub cpu_fraction: f64,
    /// `GOGC`; negative: off.
    pub gogc: i32,
    /// `GOMEMLIMIT`.
    pub memory_limit: Option<u64>,
    /// The last collections, oldest first; at most 256.
    pub collections: Vec<Collection>,
}

/// A group of goroutines that do the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GoroutineGroup {
    /// How many.
    pub count: u64,
    /// `waiting`, `running`, `runnable`, `syscall`, …
    pub state: String,
    /// What they wait for, such as `chan receive`.
    pub wait_reason: Option<String>,
    /// Longest wait, in nanoseconds.
    pub longest_wait: Option<u64>,
    /// Stack memory of all.
    pub stack_bytes: u64,
    /// Address of the channel that they wait on.
    pub channel: Option<u64>,
    /// Frames, innermost first.
    pub stack: Vec<Frame>,
    /// Where they were created.
    pub created_by: Option<Frame>,
    /// Some of their ids.
    pub ids: Vec<u64>,
}

/// A place in a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Frame {
    /// Function.
    pub function: String,
    /// Source file, where known.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u64>,
}

/// Answer of `/api/v1/processes/{pid}/goroutines`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Goroutines {
    /// All goroutines.
    pub total: u64,
    /// Largest group first.
    pub groups: Vec<GoroutineGroup>,
}

/// Answer of `/api/v1/processes/{pid}/top`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Top {
    /// Sample type shown: `inuse_space`, …
    pub sample_type: String,
    /// Sum over all samples.
    pub total: i64,
    /// Rows before `limit`.
    pub rows_total: usize,
    /// Largest first.
    pub rows: Vec<TopRow>,
    /// Comments of the profile: mode, losses.
    pub comments: Vec<String>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopRow {
    /// Its place.
    #[serde(flatten)]
    pub frame: Frame,
    /// What itself holds.
    pub flat: i64,
    /// With what it called.
    pub cum: i64,
}

/// Answer of `/api/v1/processes/{pid}/stacks`: a tree, flattened so that depth has no limit of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stacks {
    /// Sample type shown.
    pub sample_type: String,
    /// Frames by index.
    pub frames: Vec<Frame>,
    /// Nodes, parents before children; the first is the root, its own parent.
    pub nodes: Vec<StackNode>,
    /// Stacks that were folded into their callers because there were too many.
    pub folded: usize,
    /// Comments of the profile.
    pub comments: Vec<String>,
}

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StackNode {
    /// Index of the parent in `nodes`.
    pub parent: u32,
    /// Index in `frames`; `u32::MAX` for the root.
    pub frame: u32,
    /// What stacks that end here hold; may be negative in a difference.
    pub own: i64,
    /// With all below.
    pub total: i64,
}

/// A profile in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoredProfile {
    /// Its name in the store.
    pub id: String,
    /// Of whom.
    pub process: Key,
    /// The process's name then.
    pub comm: String,
    /// What it tells begins here.
    pub begin: u64,
    /// And ends here.
    pub end: u64,
    /// `native`, `go`, `both`, or `growth` for growth that was followed without probes.
    pub heap: String,
    /// Bytes of the file.
    pub size: u64,
    /// Outstanding bytes that it tells.
    pub in_use: i64,
}

/// Answer of `/api/v1/processes/{pid}/profiles`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoredProfiles {
    /// Newest first.
    pub profiles: Vec<StoredProfile>,
}

/// Answer of `/api/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Of leaktrace.
    pub version: String,
    /// Name of the machine.
    pub host: String,
    /// When the daemon started.
    pub started: u64,
    /// Processes watched.
    pub processes: usize,
    /// Processes traced.
    pub traced: usize,
    /// Processes whose growth is followed by stack, without probes.
    pub suspects: usize,
    /// What the daemon itself costs.
    pub own: Own,
    /// What a hit of a probe costs before any program runs; `null` before something was traced or suspected.
    pub traps: Option<Traps>,
    /// Losses since the start, by cause.
    pub losses: Vec<Loss>,
    /// Things that do not work and what to do about them, such as a full disk.
    pub troubles: Vec<String>,
    /// Profiles in the store and their bytes.
    pub store: StoreFigures,
    /// How each push target does.
    pub push: Vec<PushFigures>,
}

/// What the daemon itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Own {
    /// Share of one CPU over the last minute, 0.01 being one percent.
    pub cpu: f64,
    /// Its budget.
    pub cpu_budget: f64,
    /// Resident bytes.
    pub rss: u64,
    /// Its budget.
    pub rss_budget: u64,
    /// Share of one CPU that all probes take in all targets.
    pub probes: f64,
    /// Share of one CPU that following growth without probes takes in all processes; 0 while nobody's is followed.
    pub growth: f64,
    /// The budget of these two together.
    pub probes_budget: f64,
}

/// What a hit of a probe costs in the process that is traced, by where the probe stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traps {
    /// Nanoseconds at an instruction that the kernel emulates.
    pub emulated: u64,
    /// Nanoseconds at one that it executes step by step.
    pub stepped: u64,
    /// Nanoseconds at a function's return.
    pub returned: u64,
    /// Measured on this machine; else what is usual stands in, and the log says why.
    pub measured: bool,
}

/// A cause of loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    /// Name of the cause.
    pub name: String,
    /// How often.
    pub count: u64,
    /// What it means.
    pub meaning: String,
}

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreFigures {
    /// Profiles.
    pub profiles: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Profiles that were not written.
    pub dropped: u64,
    /// Writing pauses because the disk is full.
    pub paused: bool,
}

/// How a push target does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushFigures {
    /// Its name in the configuration.
    pub name: String,
    /// Profiles that arrived.
    pub sent: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Profiles that were given up.
    pub dropped: u64,
    /// Profiles waiting.
    pub queued: u64,
    /// What the last failed attempt met; `null` when the last one succeeded.
    pub error: Option<String>,
}

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// One line: what failed, on which object, why, what to do.
    pub error: String,
}
