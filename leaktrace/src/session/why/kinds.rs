//! Resident memory by kind: each byte in one row.
//!
//! Pure: what `/proc` and the readers of runtimes say, in; rows, out. Invariant: the bytes of all rows of a [`Split`] are
//! the resident bytes of all areas.

use std::collections::{BTreeMap, BTreeSet};

use crate::proc::smaps::Area;

/// What memory is used for, as far as it shows from outside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What `brk` manages: a native allocator's heap.
    Brk,
    /// Heaps of glibc's further arenas.
    Arenas,
    /// Private memory without a file and without a name: large native blocks, other allocators, a runtime's heap that is
    /// not told apart.
    Anonymous,
    /// Memory that the program gave a name, by that name.
    Named(Box<str>),
    /// Go's heap: objects, and spans that are free.
    GoHeap,
    /// Stacks of goroutines.
    GoStacks,
    /// Tables of Go's runtime.
    GoRuntime,
    /// The Java heap.
    JavaHeap,
    /// Pages of V8's heap.
    V8Heap,
    /// Code that the program made itself.
    MadeCode,
    /// Stacks of threads.
    Stacks,
    /// Shared memory without a file.
    SharedAnonymous,
    /// Memory files (`memfd_create`).
    Memfd,
    /// System V shared memory.
    SysV,
    /// Files in memory: tmpfs, POSIX shared memory.
    Tmpfs,
    /// Files, as they are on disk: the kernel can drop these pages.
    FileClean,
    /// Files mapped shared, changed and not written back.
    FileDirty,
    /// Pages of files that the process has changed for itself.
    FilePrivate,
    /// The kernel's own mappings and objects.
    Kernel,
    /// What fits nowhere.
    Unknown,
}

impl Kind {
    /// Stable name, for programs. Memory with a name has it behind `named:`.
    pub fn key(&self) -> String {
        let key = match self {
            Self::Brk => "heap_brk",
            Self::Arenas => "heap_arenas",
            Self::Anonymous => "anonymous",
            Self::Named(name) => return format!("named:{name}"),
            Self::GoHeap => "go_heap",
            Self::GoStacks => "go_stacks",
            Self::GoRuntime => "go_runtime",
            Self::JavaHeap => "java_heap",
            Self::V8Heap => "v8_heap",
            Self::MadeCode => "made_code",
            Self::Stacks => "thread_stacks",
            Self::SharedAnonymous => "shared_anonymous",
            Self::Memfd => "memfd",
            Self::SysV => "sysv",
            Self::Tmpfs => "tmpfs",
            Self::FileClean => "file_clean",
            Self::FileDirty => "file_dirty",
            Self::FilePrivate => "file_private",
            Self::Kernel => "kernel",
            Self::Unknown => "unknown",
        };
        key.to_owned()
    }

    /// For people.
    pub fn title(&self, runtime: Option<Runtime>) -> String {
        let title = match self {
            Self::Brk => "native heap (brk)",
            Self::Arenas => "native heap (glibc arenas)",
            Self::Anonymous => {
                return match runtime {
                    Some(runtime) => format!("anonymous mappings ({})", runtime.anonymous()),
                    None => "anonymous mappings".to_owned(),
                };
            }
            Self::Named(name) => return format!("mapping named {name}"),
            Self::GoHeap => "Go heap",
            Self::GoStacks => "goroutine stacks",
            Self::GoRuntime => "Go runtime's tables",
            Self::JavaHeap => "Java heap",
            Self::V8Heap => "V8 heap",
            Self::MadeCode => "code made at run time",
            Self::Stacks => "thread stacks",
            Self::SharedAnonymous => "shared memory",
            Self::Memfd => "memfd",
            Self::SysV => "System V shared memory",
            Self::Tmpfs => "tmpfs and POSIX shared memory",
            Self::FileClean => "files, unchanged",
            Self::FileDirty => "files, changed (shared)",
            Self::FilePrivate => "files, changed (private copies)",
            Self::Kernel => "kernel's own mappings",
            Self::Unknown => "unknown",
        };
        title.to_owned()
    }

    /// Whether a native allocator alone manages it.
    pub fn is_native_heap(&self) -> bool {
        matches!(self, Self::Brk | Self::Arenas)
    }
}

/// A language runtime whose heap is not read, recognised by its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// HotSpot and its kin.
    Jvm,
    /// Node and other programs of V8.
    V8,
    /// CPython.
    Python,
    /// Ruby.
    Ruby,
    /// PHP.
    Php,
    /// .NET.
    DotNet,
    /// Lua's compiler.
    LuaJit,
}

impl Runtime {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jvm => "JVM",
            Self::V8 => "V8",
            Self::Python => "Python",
            Self::Ruby => "Ruby",
            Self::Php => "PHP",
            Self::DotNet => ".NET",
            Self::LuaJit => "LuaJIT",
        }
    }

    /// What its memory without names is.
    fn anonymous(self) -> &'static str {
        match self {
            Self::Jvm => "JVM: heap where it is not told apart, metaspace, collector",
            Self::V8 => "V8: large objects, array buffers, native blocks",
            Self::Python => "Python: object arenas, large blocks",
            Self::Ruby => "Ruby: object pages, large blocks",
            Self::Php => "PHP: chunks of its heap, large blocks",
            Self::DotNet => ".NET: heap segments, native blocks",
            Self::LuaJit => "LuaJIT: its heap, native blocks",
        }
    }

    /// What brings names of its functions into stacks.
    pub fn names_remedy(self, pid: u32) -> Option<String> {
        match self {
            Self::Jvm => Some(format!(
                "jcmd {pid} Compiler.perfmap names compiled Java functions in stacks (JDK 17 and later)"
            )),
            Self::V8 => Some("node --perf-basic-prof names JavaScript functions in stacks".to_owned()),
            Self::Python => Some("python3 -X perf names Python functions in stacks (3.12 and later)".to_owned()),
            Self::DotNet => Some("DOTNET_PerfMapEnabled=1 names .NET functions in stacks".to_owned()),
            Self::Ruby | Self::Php | Self::LuaJit => None,
        }
    }

    /// By a file that a process has mapped.
    fn of_file(base: &str) -> Option<Self> {
        let versioned = |stem: &str| {
            base.strip_prefix(stem)
                .is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
        };
        if base.starts_with("libjvm.so") {
            Some(Self::Jvm)
        } else if base.starts_with("libcoreclr.so") {
            Some(Self::DotNet)
        } else if base == "node" || base == "nodejs" || base.starts_with("libnode.so") || base.starts_with("libv8") {
            Some(Self::V8)
        } else if base.starts_with("libpython") || versioned("python") {
            Some(Self::Python)
        } else if base.starts_with("libruby") || versioned("ruby") {
            Some(Self::Ruby)
        } else if base.starts_with("libphp") || versioned("php") || base.starts_with("php-fpm") {
            Some(Self::Php)
        } else if base.starts_with("libluajit") || base.starts_with("luajit") {
            Some(Self::LuaJit)
        } else {
            None
        }
    }

    /// By the executable files of a process's mappings. One that only carries another in a library (a Java program that
    /// loads Python, say) is the first of them in the order above.
    pub fn of(areas: &[Area]) -> Option<Self> {
        let found: Vec<Self> = areas
            .iter()
            .filter(|area| area.execute && area.has_inode)
            .filter_map(|area| Self::of_file(crate::report::name::base(&area.name)))
            .collect();
        found.into_iter().min_by_key(|runtime| *runtime as u8)
    }
}

/// A part of the address space.
pub type Range = std::ops::Range<u64>;

/// What the readers know besides the areas.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Resident bytes of parts of areas whose kind was found out, by the area's first address.
    pub parts: BTreeMap<u64, Vec<(Kind, u64)>>,
    /// First addresses of areas that are all of one kind.
    pub whole: BTreeMap<u64, Kind>,
    /// Devices of file systems in memory.
    pub tmpfs: BTreeSet<u64>,
    /// The runtime, if it is a known one.
    pub runtime: Option<Runtime>,
    /// All plain anonymous memory that is nothing else belongs to Go's runtime: the process has no C code.
    pub only_go: bool,
}

/// Bytes by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Resident.
    pub rows: BTreeMap<Kind, u64>,
}

impl Split {
    /// Resident bytes of all kinds.
    pub fn total(&self) -> u64 {
        self.rows.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Resident bytes of a kind.
    pub fn get(&self, kind: &Kind) -> u64 {
        self.rows.get(kind).copied().unwrap_or(0)
    }

    /// Adds to a row.
    pub fn add(&mut self, kind: Kind, bytes: u64) {
        if bytes > 0 {
            let row = self.rows.entry(kind).or_default();
            *row = row.saturating_add(bytes);
        }
    }
}

/// Most names that get a row of their own; the others share one.
const MAX_NAMES: usize = 12;
/// Size and alignment of the pages of V8's heap.
const V8_PAGE: u64 = 256 << 10;
/// Where the JVM puts a heap that it refers to by 32 bits.
const COMPRESSED_END: u64 = 32 << 30;

/// Puts each resident byte into a row.
pub fn classify(areas: &[Area], facts: &Facts) -> Split {
    let mut split = Split::default();
    for area in areas {
        let mut left = area.rss;
        for (kind, bytes) in facts.parts.get(&area.start).into_iter().flatten() {
            // Measured at another moment than the area.
            let bytes = (*bytes).min(left);
            left -= bytes;
            split.add(kind.clone(), bytes);
        }
        if let Some(kind) = facts.whole.get(&area.start) {
            split.add(kind.clone(), left);
        } else if area.has_inode {
            of_file(area, left, facts, &mut split);
        } else {
            split.add(anonymous(area, facts), left);
        }
    }
    join_names(&mut split);
    split
}

fn anonymous(area: &Area, facts: &Facts) -> Kind {
    match area.name.as_str() {
        "[heap]" => return Kind::Brk,
        "[stack]" => return Kind::Stacks,
        "" => {}
        name => return bracketed(name),
    }
    if area.shared {
        return Kind::SharedAnonymous;
    }
    if area.execute {
        return Kind::MadeCode;
    }
    match facts.runtime {
        Some(Runtime::Jvm) if area.end <= COMPRESSED_END => Kind::JavaHeap,
        Some(Runtime::V8) if area.start.is_multiple_of(V8_PAGE) => Kind::V8Heap,
        _ if facts.only_go => Kind::GoRuntime,
        _ => Kind::Anonymous,
    }
}

/// A name in brackets: the kernel's, or one that the program gave by `prctl`.
fn bracketed(name: &str) -> Kind {
    let inside = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(']'));
    let Some(given) = inside("[anon:").or_else(|| inside("[anon_shmem:")) else {
        return Kind::Kernel;
    };
    match given.trim() {
        "Go: heap" => Kind::GoHeap,
        name if name.starts_with("Go:") => Kind::GoRuntime,
        name if name.starts_with("glibc: pthread stack") => Kind::Stacks,
        "glibc: malloc arena" => Kind::Arenas,
        name if name.starts_with("dalvik-main space") => Kind::JavaHeap,
        name => Kind::Named(name.into()),
    }
}

fn of_file(area: &Area, bytes: u64, facts: &Facts, split: &mut Split) {
    let in_memory = if area.deleted && area.name.starts_with("/memfd:") {
        Some(Kind::Memfd)
    } else if area.deleted && area.name.starts_with("/SYSV") {
        Some(Kind::SysV)
    } else if area.name == "/dev/zero" && !area.shared {
        // The old way to map anonymous memory.
        split.add(Kind::Anonymous, bytes);
        return;
    } else if area.name == "/dev/zero" {
        Some(Kind::SharedAnonymous)
    } else if facts.tmpfs.contains(&area.device) {
        Some(Kind::Tmpfs)
    } else {
        None
    };
    let private = area.anonymous.min(bytes);
    split.add(Kind::FilePrivate, private);
    let rest = bytes - private;
    if let Some(kind) = in_memory {
        split.add(kind, rest);
    } else if !area.name.starts_with('/') {
        split.add(Kind::Kernel, rest);
    } else {
        let dirty = if area.shared { area.dirty.min(rest) } else { 0 };
        split.add(Kind::FileDirty, dirty);
        split.add(Kind::FileClean, rest - dirty);
    }
}

/// Keeps the largest names; the program chooses how many there are.
fn join_names(split: &mut Split) {
    let mut names: Vec<(u64, Kind)> = split
        .rows
        .iter()
        .filter(|(kind, _)| matches!(kind, Kind::Named(_)))
        .map(|(kind, bytes)| (*bytes, kind.clone()))
        .collect();
    names.sort_by(|a, b| b.cmp(a));
    for (bytes, kind) in names.into_iter().skip(MAX_NAMES) {
        split.rows.remove(&kind);
        split.add(Kind::Named("other names".into()), bytes);
    }
}

#[cfg(test)]
mod tests;
