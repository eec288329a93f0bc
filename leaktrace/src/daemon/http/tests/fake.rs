//! A daemon that exists in memory alone, with names as hostile as processes can choose them.
//!
//! Stands behind the tests of the server and `examples/http_demo.rs`, which includes this file. Its profiles are real
//! ones, made by [`ProfileBuilder`]; its figures move with the time since it was made.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{api, backend, export, model, report};
use backend::{Backend, Failure, ProfileKind, Snapshot};
use model::HeapKind;
use report::{FrameLine, Mapping, Profile, ProfileBuilder, TextLabel, ValueType};

/// Names that nothing may obey.
pub const HOSTILE: [&str; 8] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "a\nb\r\nSet-Cookie: c=d",
    "\u{1b}[31mred\u{1b}[0m\u{7}",
    "\u{202e}gnp.exe",
    "quote\"back\\slash'",
    "{{7*7}}${7*7}",
    "ünïcödé 中文 🦀",
];

/// The figures of one moment, and the profiles that were kept.
pub struct Fake {
    started: Instant,
    processes: u32,
    stacks: u32,
    /// Time that each call which reads from a process takes.
    pub delay: Duration,
    traced: Mutex<BTreeMap<u32, Option<u64>>>,
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

/// A sequence that looks random and is the same each time.
fn mix(seed: u64) -> u64 {
    let x = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const HOUR: u64 = 3_600_000_000_000;
/// The first pid; pids follow without a gap.
pub const FIRST: u32 = 100;

impl Fake {
    /// So many processes, with so many stacks in each profile.
    pub fn new(processes: u32, stacks: u32) -> Self {
        Self {
            started: Instant::now(),
            processes,
            stacks,
            delay: Duration::ZERO,
            traced: Mutex::default(),
        }
    }

    fn check(&self, pid: u32) -> Result<(), Failure> {
        if (FIRST..FIRST + self.processes).contains(&pid) {
            Ok(())
        } else {
            Err(Failure::UnknownProcess(pid))
        }
    }

    fn is_go(pid: u32) -> bool {
        pid.is_multiple_of(4)
    }

    fn check_go(&self, pid: u32) -> Result<(), Failure> {
        self.check(pid)?;
        std::thread::sleep(self.delay);
        if Self::is_go(pid) {
            Ok(())
        } else {
            Err(Failure::Nothing(format!("pid {pid} is not a Go program")))
        }
    }

    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn by_hand(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Option<u64>>> {
        self.traced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tracing(&self, pid: u32) -> api::Tracing {
        let by_hand = self.by_hand().get(&pid).copied();
        let (state, reason) = match (by_hand, pid % 50) {
            (Some(_), _) => (api::TraceState::Traced, "asked for by hand".to_owned()),
            (_, 0) => (
                api::TraceState::Traced,
                "anonymous memory grew by 12 MiB/h for 10 min".to_owned(),
            ),
            (_, 7) => (
                api::TraceState::Refused,
                format!("failed to read `/proc/{pid}/maps` for pid {pid}: {}", HOSTILE[0]),
            ),
            (_, 13) => (api::TraceState::Detached, "its probes took 9 % of one CPU".to_owned()),
            (_, 21) => (api::TraceState::Gone, "it ended with status 0".to_owned()),
            _ => (api::TraceState::Watched, "it does not grow".to_owned()),
        };
        let is_traced = state == api::TraceState::Traced;
        api::Tracing {
            state,
            reason,
            since: now() - HOUR / 2,
            sample_interval: is_traced.then(|| by_hand.flatten().unwrap_or(512 << 10)),
            cost: is_traced.then_some(0.012),
            hits: is_traced.then_some(18_300.5),
            suspect: None,
        }
    }

    fn process(&self, pid: u32) -> api::Process {
        let random = mix(u64::from(pid));
        let growth = match pid % 10 {
            0 => Some((random % (200 << 20)) as f64),
            9 => None,
            _ => Some((random % 4096) as f64 - 2048.0),
        };
        let anonymous = (random % (900 << 20)) + self.seconds() * growth.unwrap_or(0.0).max(0.0) as u64 / 3600;
        let name = match pid % 37 {
            0 => HOSTILE[(pid / 37) as usize % HOSTILE.len()].chars().take(15).collect(),
            other => ["nginx", "postgres", "redis-server", "api", "worker", "java"][other as usize % 6].to_owned(),
        };
        let tracing = self.tracing(pid);
        let is_traced = tracing.state == api::TraceState::Traced;
        let step = growth.unwrap_or(0.0) / 60.0;
        api::Process {
            identity: api::Identity {
                pid,
                start_time: u64::from(pid) * 100,
                started: now() - HOUR * (1 + random % 500),
                comm: name,
                command_line: vec![
                    format!("/usr/bin/program-{pid}"),
                    format!("--name={}", HOSTILE[pid as usize % HOSTILE.len()]),
                ],
                executable: Some(format!("/usr/bin/program-{pid}")),
                build_id: Some(format!("{random:016x}{:016x}", mix(random))),
                uid: pid % 3 * 1000,
                user: Some(["root", "www-data", "postgres"][pid as usize % 3].to_owned()),
                cgroup: Some(format!("/system.slice/program-{}.service", pid % 12)),
                container: pid.is_multiple_of(5).then(|| api::Container {
                    engine: "docker".to_owned(),
                    id: format!("{random:016x}").repeat(4),
                }),
                unit: Some(format!("program-{}.service", pid % 12)),
                runtime: if Self::is_go(pid) {
                    api::Runtime::Go
                } else {
                    api::Runtime::Native
                },
                runtime_version: Self::is_go(pid).then(|| "go1.23.4".to_owned()),
            },
            memory: api::Memory {
                rss: anonymous + (8 << 20),
                anonymous,
                swap: if pid.is_multiple_of(6) { 1 << 20 } else { 0 },
                brk: Some(anonymous / 3),
                major_faults: random % 1000,
                tracked: is_traced.then_some(anonymous / 2),
                go_heap: Self::is_go(pid).then_some(anonymous / 4),
                goroutines: Self::is_go(pid).then_some(10 + random % 5000),
                growth,
            },
            tracing,
            spark: (0..60)
                .map(|minute| (anonymous as f64 - step * f64::from(60 - minute)).max(0.0) as u64)
                .collect(),
        }
    }

    /// A heap profile as it was so many minutes ago.
    fn heap(&self, pid: u32, age: u64) -> Profile {
        let mut builder = ProfileBuilder::heap();
        let mapping = builder.mapping(Mapping {
            start: 0x40_0000,
            limit: 0x4000_0000,
            file: format!("/usr/bin/program-{pid}").into(),
            build_id: "0123456789abcdef".into(),
            ..Mapping::default()
        });
        for stack in 0..self.stacks {
            let random = mix(u64::from(pid) << 32 | u64::from(stack));
            let heap = match stack % 10 {
                0..5 => HeapKind::Native,
                5 => HeapKind::Mmap,
                _ => HeapKind::Go,
            };
            let depth = 5 + random % 35;
            let mut locations = Vec::new();
            let mut path = u64::from(stack);
            // From the root: stacks share their outer frames, as they do in programs.
            for level in 0..depth {
                let width = 1u64 << (level / 2).min(16);
                path = if level + 2 >= depth { path } else { mix(path) };
                let branch = if level == 0 { 0 } else { path % width };
                locations.push(frame(&mut builder, mapping, level, branch, stack));
            }
            locations.reverse();
            let size = 16 << (random % 16);
            let objects = 1 + (random >> 20) % 50;
            let growth = if stack % 7 == 0 {
                240u64.saturating_sub(age)
            } else {
                120
            };
            let live = objects * growth / 120;
            let all = live + objects * 3;
            let count = |objects: u64| objects as i64;
            builder.sample(
                locations,
                &[count(all), count(all * size), count(live), count(live * size)],
                vec![TextLabel::heap(heap)],
                Vec::new(),
            );
        }
        let profile = builder.profile_mut();
        profile.time_nanos = (now() - age * 60_000_000_000) as i64;
        profile.period = 512 << 10;
        profile.metadata.comm = "program".to_owned();
        profile.metadata.pid = Some(pid);
        profile.metadata.mode = "sampled".to_owned();
        profile
            .metadata
            .losses
            .add("ring_full", 3, "allocations that are missing");
        profile.comments = vec![format!("rule: comm = {}", HOSTILE[0])];
        builder.finish()
    }

    fn id(pid: u32, minutes: u64) -> String {
        format!("{pid}-{minutes:03}m")
    }
}

fn frame(
    builder: &mut ProfileBuilder,
    mapping: report::MappingId,
    level: u64,
    branch: u64,
    stack: u32,
) -> report::LocationId {
    let function = match (level, stack % 97) {
        (0, _) => "main".to_owned(),
        (4, 0) => HOSTILE[(stack / 97) as usize % HOSTILE.len()].to_owned(),
        _ => format!("module_{level}::Handler<{branch}>::call"),
    };
    let file = format!("/src/module_{level}.rs");
    let frame = FrameLine {
        function: &function,
        file: &file,
        line: 10 + (branch % 200) as u32,
        start_line: 5,
        ..FrameLine::default()
    };
    let address = 0x40_0000 + level * 0x10_0000 + branch * 16 + u64::from(stack.is_multiple_of(97));
    builder.location(Some(mapping), address, &[frame])
}

impl Backend for Fake {
    fn processes(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            time: now(),
            processes: (FIRST..FIRST + self.processes).map(|pid| self.process(pid)).collect(),
        })
    }

    fn decisions(&self, pid: Option<u32>) -> Vec<api::Decision> {
        let pids = match pid {
            Some(pid) => vec![pid],
            None => (FIRST..FIRST + self.processes.min(100)).collect(),
        };
        let decision = |pid: u32| api::Decision {
            time: now() - u64::from(pid) * 1_000_000_000,
            process: api::Key {
                pid,
                start_time: u64::from(pid) * 100,
            },
            comm: HOSTILE[pid as usize % HOSTILE.len()].chars().take(15).collect(),
            action: "trace".to_owned(),
            reason: "anonymous memory grew by 12 MiB/h for 10 min".to_owned(),
        };
        pids.into_iter().map(decision).collect()
    }

    fn timeline(&self, pid: u32, since: u64, until: u64) -> Result<api::Timeline, Failure> {
        self.check(pid)?;
        let process = self.process(pid);
        let points = 600;
        let step = (until.saturating_sub(since) / points).max(1);
        let time: Vec<u64> = (0..points).map(|point| since + point * step).collect();
        let saw = |point: u64| process.memory.anonymous / 2 + process.memory.anonymous / 2 * (point % 100) / 100;
        let column = |value: &dyn Fn(u64) -> u64| (0..points).map(value).collect::<Vec<u64>>();
        let optional = |known: bool, column: Vec<u64>| column.into_iter().map(|value| known.then_some(value)).collect();
        let is_go = Self::is_go(pid);
        Ok(api::Timeline {
            rss: column(&|point| saw(point) + (8 << 20)),
            anonymous: column(&saw),
            swap: column(&|_| process.memory.swap),
            tracked: optional(process.memory.tracked.is_some(), column(&|point| saw(point) / 2)),
            go_heap: optional(is_go, column(&|point| saw(point) / 4)),
            goroutines: optional(is_go, column(&|point| 10 + point)),
            collections: if is_go {
                (0..6)
                    .map(|number| collection(number, since + number * 100 * step))
                    .collect()
            } else {
                Vec::new()
            },
            time,
        })
    }

    fn profile(&self, pid: u32, kind: ProfileKind) -> Result<Profile, Failure> {
        self.check(pid)?;
        match kind {
            ProfileKind::Heap => {
                std::thread::sleep(self.delay);
                Ok(self.heap(pid, 0))
            }
            ProfileKind::Goroutines => {
                self.check_go(pid)?;
                let mut builder = ProfileBuilder::new(vec![ValueType::new("goroutine", "count")]);
                for group in 0..20u32 {
                    let main = builder.location(None, 0x1000, &[named("main.main")]);
                    let name = format!("main.worker{group}");
                    let leaf = builder.location(None, 0x2000 + u64::from(group), &[named(&name)]);
                    builder.sample(vec![leaf, main], &[i64::from(100 - group)], Vec::new(), Vec::new());
                }
                builder.profile_mut().default_sample_type = "goroutine".to_owned();
                Ok(builder.finish())
            }
        }
    }

    fn goroutines(&self, pid: u32, min_wait: Duration) -> Result<api::Goroutines, Failure> {
        self.check_go(pid)?;
        let groups: Vec<api::GoroutineGroup> = (0..40u64)
            .map(|group| api::GoroutineGroup {
                count: 2000 / (group + 1),
                state: "waiting".to_owned(),
                wait_reason: Some("chan receive".to_owned()),
                longest_wait: Some(group * 60_000_000_000),
                stack_bytes: 8192 * (group + 1),
                channel: group.is_multiple_of(2).then_some(0xc000_0000 + group * 96),
                stack: (0..12)
                    .map(|depth| api::Frame {
                        function: if depth == 3 && group < 8 {
                            HOSTILE[group as usize].to_owned()
                        } else {
                            format!("example.com/app.(*Server).step{depth}")
                        },
                        file: Some(format!("/src/app/step{depth}.go")),
                        line: Some(10 + group),
                    })
                    .collect(),
                created_by: Some(api::Frame {
                    function: "example.com/app.Start".to_owned(),
                    file: Some("/src/app/start.go".into()),
                    line: Some(7),
                }),
                ids: (0..10).map(|id| group * 100 + id).collect(),
            })
            .filter(|group| u128::from(group.longest_wait.unwrap_or(0)) >= min_wait.as_nanos())
            .collect();
        Ok(api::Goroutines {
            total: groups.iter().map(|group| group.count).sum(),
            groups,
        })
    }

    fn goroutine_dump(&self, pid: u32) -> Result<String, Failure> {
        self.check_go(pid)?;
        Ok("goroutine 1 [chan receive, 5 minutes]:\nmain.main()\n\t/src/app/main.go:10 +0x1f\n".to_owned())
    }

    fn gc(&self, pid: u32) -> Result<api::Gc, Failure> {
        self.check_go(pid)?;
        Ok(api::Gc {
            collections_total: 1234,
            live: 64 << 20,
            goal: 128 << 20,
            in_use: 140 << 20,
            cpu_fraction: 0.013,
            gogc: 100,
            memory_limit: None,
            collections: (0..256)
                .map(|number| collection(number, now() - (256 - number) * 1_000_000_000))
                .collect(),
        })
    }

    fn stored(&self, pid: Option<u32>) -> Result<Vec<api::StoredProfile>, Failure> {
        let pids = match pid {
            Some(pid) if self.check(pid).is_ok() => vec![pid],
            Some(_) => Vec::new(),
            None => (FIRST..FIRST + self.processes).step_by(50).collect(),
        };
        let profile = |pid: u32, minutes: u64| api::StoredProfile {
            id: Self::id(pid, minutes),
            process: api::Key {
                pid,
                start_time: u64::from(pid) * 100,
            },
            comm: self.process(pid).identity.comm,
            begin: now() - HOUR * 4,
            end: now() - minutes * 60_000_000_000,
            heap: if Self::is_go(pid) { "both" } else { "native" }.to_owned(),
            size: 123_456,
            in_use: 1 << 26,
        };
        let of = |pid: u32| [10, 60, 120].map(|minutes| profile(pid, minutes));
        Ok(pids.into_iter().flat_map(of).collect())
    }

    fn stored_profile(&self, id: &str) -> Result<Vec<u8>, Failure> {
        let unknown = || Failure::UnknownProfile(id.to_owned());
        let (pid, minutes) = id.split_once('-').ok_or_else(unknown)?;
        let pid = pid.parse().map_err(|_| unknown())?;
        let minutes = minutes.trim_end_matches('m').parse().map_err(|_| unknown())?;
        let mut bytes = Vec::new();
        export::pprof::write(&self.heap(pid, minutes), &mut bytes)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(bytes)
    }

    fn start_trace(&self, pid: u32, interval: Option<u64>) -> Result<api::Tracing, Failure> {
        self.check(pid)?;
        std::thread::sleep(self.delay);
        if pid % 50 == 7 {
            return Err(Failure::Refused(self.tracing(pid).reason));
        }
        self.by_hand().insert(pid, interval);
        Ok(self.tracing(pid))
    }

    fn stop_trace(&self, pid: u32) -> Result<api::Tracing, Failure> {
        self.check(pid)?;
        if self.by_hand().remove(&pid).is_none() {
            return Err(Failure::Nothing(format!("pid {pid} is not traced")));
        }
        Ok(self.tracing(pid))
    }

    fn status(&self) -> api::Status {
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: "demo".to_owned(),
            started: now() - self.seconds() * 1_000_000_000,
            processes: self.processes as usize,
            traced: self.processes as usize / 50,
            suspects: 0,
            own: api::Own {
                cpu: 0.011,
                cpu_budget: 0.05,
                rss: 60 << 20,
                rss_budget: 150 << 20,
                probes: 0.013,
                growth: 0.001,
                probes_budget: 0.02,
            },
            traps: Some(api::Traps {
                emulated: 640,
                stepped: 9_200,
                returned: 480,
                measured: true,
            }),
            losses: vec![api::Loss {
                name: "ring_full".into(),
                count: 17,
                meaning: "allocations that are missing".to_owned(),
            }],
            troubles: vec![format!("failed to push to `{}`: connection refused", HOSTILE[1])],
            store: api::StoreFigures {
                profiles: 60,
                bytes: 7_400_000,
                dropped: 2,
                paused: false,
            },
            push: vec![api::PushFigures {
                name: "pyroscope".into(),
                sent: 100,
                failed: 3,
                dropped: 1,
                queued: 4,
                error: Some("connection refused".to_owned()),
            }],
        }
    }
}

fn named(function: &str) -> FrameLine<'_> {
    FrameLine {
        function,
        file: "/src/app/main.go",
        line: 10,
        ..FrameLine::default()
    }
}

fn collection(number: u64, end: u64) -> api::Collection {
    api::Collection {
        number,
        end: Some(end),
        pause: Some(120_000 + number * 1000),
        before: Some(128 << 20),
        after: Some(70 << 20),
        live: Some(64 << 20),
        goal: Some(128 << 20),
    }
}
