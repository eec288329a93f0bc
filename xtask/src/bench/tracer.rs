//! What watches a workload: nothing, bare probes, leaktrace, or a peer.
//!
//! Invariant: when [`Tracer::attach`] returns, the target's code holds the tracer's probes (or its library).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use leaktrace_tests::breakpoints;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use tempfile::TempDir;

use super::peers::Memleak;
use crate::workspace;

/// How long a tracer may take to be in place.
const PATIENCE: Duration = Duration::from_secs(60);
const HEAPTRACK_PRELOAD: &str = "/usr/lib/heaptrack/libheaptrack_preload.so";

/// The variants, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracer {
    /// Nothing.
    Untraced,
    /// BPF programs that only return, at leaktrace's sites.
    Bare,
    /// The same without return probes.
    BareEntry,
    /// leaktrace as it is by default.
    Exact,
    /// leaktrace, drawing a sample every 512 KiB.
    Sampled,
    /// libbpf-tools' memleak.
    Memleak,
    /// A bpftrace script with stacks.
    Bpftrace,
    /// heaptrack's library, loaded from the start.
    HeaptrackPreload,
    /// heaptrack's library, injected into the running program.
    HeaptrackAttach,
}

impl Tracer {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Untraced,
        Self::Bare,
        Self::BareEntry,
        Self::Exact,
        Self::Sampled,
        Self::Memleak,
        Self::Bpftrace,
        Self::HeaptrackPreload,
        Self::HeaptrackAttach,
    ];

    /// Not ours.
    pub fn is_peer(self) -> bool {
        matches!(
            self,
            Self::Memleak | Self::Bpftrace | Self::HeaptrackPreload | Self::HeaptrackAttach
        )
    }

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Bare => "bare probes",
            Self::BareEntry => "bare entry probes",
            Self::Exact => "leaktrace, exact",
            Self::Sampled => "leaktrace, sampled",
            Self::Memleak => "memleak (libbpf-tools 0.31)",
            Self::Bpftrace => "bpftrace script",
            Self::HeaptrackPreload => "heaptrack, preloaded",
            Self::HeaptrackAttach => "heaptrack, attached",
        }
    }

    /// What a target has to be started with for this tracer.
    ///
    /// # Errors
    /// When the peer is not there.
    pub fn prepare(self, target: &mut Command, scratch: &Path) -> Result<()> {
        if self == Self::HeaptrackPreload {
            ensure!(
                Path::new(HEAPTRACK_PRELOAD).exists(),
                "`{HEAPTRACK_PRELOAD}` is not there"
            );
            // What the heaptrack script does, without its background job, which would take the target's input away.
            target
                .env("LD_PRELOAD", HEAPTRACK_PRELOAD)
                .env("DUMP_HEAPTRACK_OUTPUT", scratch.join("heaptrack.raw"));
        }
        Ok(())
    }

    /// Attaches to a process and waits until it is in place.
    ///
    /// # Errors
    /// When it ends, or does not come so far in time; the message holds the end of what it said.
    pub fn attach(self, pid: u32, peers: &Peers) -> Result<Attached> {
        let scratch = TempDir::new()?;
        let text = pid.to_string();
        let mut leaktrace = Command::new(workspace::program());
        let command = match self {
            Self::Untraced | Self::HeaptrackPreload => {
                return Ok(Attached {
                    tracer: None,
                    _scratch: scratch,
                });
            }
            Self::Bare => leaktrace.args(["debug", "bare-probes", "-d", "1h", "-p", &text]),
            Self::BareEntry => leaktrace.args(["debug", "bare-probes", "--entry-only", "-d", "1h", "-p", &text]),
            Self::Exact => leaktrace
                .args(["record", "-p", &text, "-o"])
                .arg(scratch.path().join("profile.pb.gz")),
            Self::Sampled => leaktrace
                .args([
                    "record",
                    "--mode",
                    "sampled",
                    "--sample-interval",
                    "512KiB",
                    "-p",
                    &text,
                    "-o",
                ])
                .arg(scratch.path().join("profile.pb.gz")),
            Self::Memleak => {
                let memleak = peers.memleak.as_ref().map_err(|cause| anyhow::anyhow!("{cause}"))?;
                leaktrace = memleak.command();
                if let Some(library) = other_allocator(pid)? {
                    leaktrace.arg("-O").arg(library);
                }
                // One report at the end of time: printing is not what is measured.
                leaktrace.args(["-p", &text, "100000"])
            }
            Self::Bpftrace => {
                let script = scratch.path().join("leak.bt");
                let library = other_allocator(pid)?.unwrap_or_else(|| libc_of(pid));
                fs::write(&script, bpftrace_script(&library))?;
                leaktrace = Command::new("bpftrace");
                leaktrace.env("BPFTRACE_MAP_KEYS_MAX", "1000000").arg(script).arg(&text)
            }
            Self::HeaptrackAttach => {
                leaktrace = Command::new("heaptrack");
                leaktrace
                    .arg("-o")
                    .arg(scratch.path().join("heaptrack"))
                    .args(["--pid", &text])
            }
        };
        let log = scratch.path().join("log");
        let file = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let mut attached = Attached {
            tracer: Some(child),
            _scratch: scratch,
        };
        let said = || fs::read_to_string(&log).unwrap_or_default();
        attached.wait(self, pid, &said)?;
        Ok(attached)
    }
}

/// Peers that are no package of this machine.
pub struct Peers {
    memleak: Result<Memleak, String>,
}

impl Peers {
    /// None of them.
    pub fn none() -> Self {
        Self {
            memleak: Err("peers are left out".to_owned()),
        }
    }

    /// Those that can be had; the cause for the others.
    pub fn find() -> Self {
        Self {
            memleak: Memleak::ensure().map_err(|error| format!("{error:#}")),
        }
    }
}

/// A tracer at work; it is ended when this is dropped.
pub struct Attached {
    tracer: Option<Child>,
    _scratch: TempDir,
}

impl Attached {
    fn wait(&mut self, tracer: Tracer, pid: u32, said: &dyn Fn() -> String) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let in_place = match tracer {
                Tracer::HeaptrackAttach => said().contains("injection finished"),
                Tracer::Memleak | Tracer::Bpftrace => !breakpoints::changed_code(pid)?.is_empty(),
                _ => said().lines().any(|line| line.starts_with("tracing ")),
            };
            if in_place {
                break;
            }
            let ended = self.tracer.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let text = said();
                let end: String = text
                    .lines()
                    .rev()
                    .take(5)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<Vec<_>>()
                    .join("; ");
                bail!(
                    "it did not attach ({}): {end}",
                    ended.map_or("too slow".to_owned(), |status| status.to_string())
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        // Peers place one probe after the other; the first has been seen.
        if matches!(tracer, Tracer::Memleak | Tracer::Bpftrace) {
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(child) = &mut self.tracer else { return };
        let pid = i32::try_from(child.id()).expect("a process id fits");
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The jemalloc that a process has mapped: peers have to be told that its malloc is not libc's.
fn other_allocator(pid: u32) -> Result<Option<PathBuf>> {
    mapped(pid, "libjemalloc")
}

fn libc_of(pid: u32) -> PathBuf {
    mapped(pid, "/libc.so")
        .ok()
        .flatten()
        .unwrap_or_else(|| "/lib/x86_64-linux-gnu/libc.so.6".into())
}

fn mapped(pid: u32, name: &str) -> Result<Option<PathBuf>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the target is gone")?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    Ok(paths.into_iter().find(|path| path.contains(name)).map(PathBuf::from))
}

/// What people write to find a leak with bpftrace: sizes, stacks, and what is freed forgotten.
fn bpftrace_script(library: &Path) -> String {
    let library = library.display();
    format!(
        "uprobe:{library}:malloc /pid == $1/ {{ @size[tid] = arg0; }}\n\
         uretprobe:{library}:malloc /pid == $1 && @size[tid]/ {{\n\
         \x20 @bytes[retval] = @size[tid]; @stack[retval] = ustack; delete(@size[tid]);\n}}\n\
         uprobe:{library}:free /pid == $1 && @bytes[arg0]/ {{ delete(@bytes[arg0]); delete(@stack[arg0]); }}\n"
    )
}
