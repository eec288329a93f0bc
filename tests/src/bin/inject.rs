//! Runs a program and lets one of its system calls fail, once: a small `strace -e inject` that counts over all threads.
//!
//! `inject REPORT SITE NTH ERRNO [--alone] COMMAND...`; an empty SITE lets nothing fail. A [`site`](Tracee::site) is a call and
//! what it is about: `openat /proc/N/maps`. REPORT gets a line `COUNT SITE` for each site that was passed, and `failed
//! SITE` if the fault came to pass. With `--alone` processes that the program starts are left alone, so that it can trace
//! them itself. The first line on standard error is the program's pid; the status is the program's, or 128 and its signal.
//!
//! Invariant: at most one call fails; every other one is as it would be, but slower. Nothing that the dynamic loader and
//! Rust's runtime ask for before `main` is counted: what fails there is not leaktrace's.

fn main() -> std::process::ExitCode {
    #[cfg(target_arch = "x86_64")]
    let result = tracer::main();
    #[cfg(not(target_arch = "x86_64"))]
    let result: anyhow::Result<u8> = Err(anyhow::anyhow!("registers are known of x86-64 alone"));
    match result {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("inject: {error:#}");
            125.into()
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod tracer {
    use std::collections::{BTreeMap, HashMap, HashSet};
    use std::fmt::Write as _;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use anyhow::{Context as _, Result, bail, ensure};
    use nix::errno::Errno;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    /// What tells what a call is about.
    #[derive(Clone, Copy)]
    enum About {
        /// Nothing but the call itself.
        Call,
        /// The descriptor in this argument.
        Descriptor(usize),
        /// The path in this argument.
        Path(usize),
        /// The number in this argument.
        Number(usize),
        /// The number in the second argument, and the descriptor in the first.
        Request,
        /// The file that is mapped, or the size class of anonymous memory.
        Mapping,
    }

    macro_rules! calls {
        ($($name:ident $number:ident $about:expr;)*) => {
            &[$((libc::$number, stringify!($name), $about)),*]
        };
    }

    /// Calls that may fail for lack of something. Who waits (futex, nanosleep) is not among them.
    const CALLS: &[(i64, &str, About)] = calls! {
        openat SYS_openat About::Path(1);
        openat2 SYS_openat2 About::Path(1);
        read SYS_read About::Descriptor(0);
        pread64 SYS_pread64 About::Descriptor(0);
        readv SYS_readv About::Descriptor(0);
        write SYS_write About::Descriptor(0);
        pwrite64 SYS_pwrite64 About::Descriptor(0);
        writev SYS_writev About::Descriptor(0);
        fstat SYS_fstat About::Descriptor(0);
        newfstatat SYS_newfstatat About::Path(1);
        statx SYS_statx About::Path(1);
        readlink SYS_readlink About::Path(0);
        readlinkat SYS_readlinkat About::Path(1);
        getdents64 SYS_getdents64 About::Descriptor(0);
        lseek SYS_lseek About::Descriptor(0);
        ftruncate SYS_ftruncate About::Descriptor(0);
        fsync SYS_fsync About::Descriptor(0);
        fdatasync SYS_fdatasync About::Descriptor(0);
        rename SYS_rename About::Path(0);
        renameat2 SYS_renameat2 About::Path(1);
        linkat SYS_linkat About::Path(1);
        link SYS_link About::Path(0);
        unlink SYS_unlink About::Path(0);
        unlinkat SYS_unlinkat About::Path(1);
        mkdir SYS_mkdir About::Path(0);
        chmod SYS_chmod About::Path(0);
        fchmod SYS_fchmod About::Descriptor(0);
        flock SYS_flock About::Descriptor(0);
        statfs SYS_statfs About::Path(0);
        fstatfs SYS_fstatfs About::Descriptor(0);
        mmap SYS_mmap About::Mapping;
        mprotect SYS_mprotect About::Call;
        memfd_create SYS_memfd_create About::Call;
        bpf SYS_bpf About::Number(0);
        perf_event_open SYS_perf_event_open About::Call;
        ioctl SYS_ioctl About::Request;
        fcntl SYS_fcntl About::Number(1);
        dup SYS_dup About::Call;
        process_vm_readv SYS_process_vm_readv About::Call;
        clone SYS_clone About::Call;
        clone3 SYS_clone3 About::Call;
        vfork SYS_vfork About::Call;
        wait4 SYS_wait4 About::Call;
        waitid SYS_waitid About::Call;
        ptrace SYS_ptrace About::Number(0);
        kill SYS_kill About::Call;
        epoll_create1 SYS_epoll_create1 About::Call;
        epoll_ctl SYS_epoll_ctl About::Number(1);
        epoll_wait SYS_epoll_wait About::Call;
        eventfd2 SYS_eventfd2 About::Call;
        timerfd_create SYS_timerfd_create About::Call;
        pipe2 SYS_pipe2 About::Call;
        socket SYS_socket About::Number(0);
        socketpair SYS_socketpair About::Call;
        bind SYS_bind About::Call;
        listen SYS_listen About::Call;
        accept4 SYS_accept4 About::Call;
        sendto SYS_sendto About::Call;
        sendmsg SYS_sendmsg About::Call;
        recvfrom SYS_recvfrom About::Call;
        getrandom SYS_getrandom About::Call;
        capget SYS_capget About::Call;
        capset SYS_capset About::Call;
        prlimit64 SYS_prlimit64 About::Call;
        sched_getaffinity SYS_sched_getaffinity About::Call;
    };

    /// Arguments of a stopped thread's call.
    struct Tracee {
        thread: Pid,
        call: i64,
        arguments: [u64; 6],
    }

    impl Tracee {
        /// The call and what it is about; `None` for calls that are not in the table.
        fn site(&self) -> Option<String> {
            let (_, name, about) = CALLS.iter().find(|(number, ..)| *number == self.call)?;
            let object = match *about {
                About::Call => String::new(),
                About::Descriptor(index) => self.descriptor(self.arguments[index]),
                About::Path(index) => self.path(self.arguments[index]),
                About::Number(index) => self.arguments[index].to_string(),
                About::Request => format!("{:#x} {}", self.arguments[1], self.descriptor(self.arguments[0])),
                About::Mapping if self.arguments[4] as i32 >= 0 => self.descriptor(self.arguments[4]),
                About::Mapping => "anonymous".to_owned(),
            };
            let site = format!("{name} {object}");
            Some(site.trim_end().to_owned())
        }

        fn descriptor(&self, number: u64) -> String {
            let link = format!("/proc/{}/fd/{}", self.thread, number as i32);
            fs::read_link(link).map_or_else(|_| "closed".to_owned(), |path| pattern(&path.to_string_lossy()))
        }

        fn path(&self, address: u64) -> String {
            let mut bytes = [0; 256];
            let memory = File::open(format!("/proc/{}/mem", self.thread));
            let length = memory
                .and_then(|memory| memory.read_at(&mut bytes, address))
                .unwrap_or(0);
            let end = bytes[..length].iter().position(|byte| *byte == 0).unwrap_or(length);
            pattern(&String::from_utf8_lossy(&bytes[..end]))
        }
    }

    /// A name without what differs from run to run: numbers, and the random part of temporary names.
    fn pattern(name: &str) -> String {
        let parts = name.split('/').map(|part| {
            for prefix in [".tmp", ".leaktrace."] {
                if part.starts_with(prefix) {
                    return format!("{prefix}*");
                }
            }
            if part.split('-').count() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
                return "RANGE".to_owned();
            }
            let mut result = String::new();
            for part in part.split_inclusive(|c: char| !c.is_ascii_digit()) {
                let digits = part.bytes().take_while(u8::is_ascii_digit).count();
                result.push_str(if digits > 0 { "N" } else { "" });
                result.push_str(&part[digits..]);
            }
            result
        });
        parts.collect::<Vec<_>>().join("/").replace(['\n', ' '], "_")
    }

    /// What is to fail.
    struct Fault {
        site: String,
        nth: u64,
        errno: i32,
    }

    struct Tracer {
        fault: Fault,
        /// Whether the program has begun: a stack for signals is the last thing that the Rust runtime needs.
        begun: bool,
        counts: BTreeMap<String, u64>,
        failed: bool,
        /// Threads in a call: the stops at entry and end take turns.
        inside: HashSet<Pid>,
        /// Threads whose call was made to fail, until it returns.
        failing: HashMap<Pid, i32>,
    }

    impl Tracer {
        fn enter(&mut self, thread: Pid) -> Result<(), Errno> {
            let mut registers = ptrace::getregs(thread)?;
            let call = registers.orig_rax as i64;
            if !self.begun {
                self.begun = call == libc::SYS_sigaltstack && registers.rdi != 0;
                return Ok(());
            }
            let arguments = [
                registers.rdi,
                registers.rsi,
                registers.rdx,
                registers.r10,
                registers.r8,
                registers.r9,
            ];
            let tracee = Tracee {
                thread,
                call,
                arguments,
            };
            let Some(site) = tracee.site() else { return Ok(()) };
            let is_wanted = site == self.fault.site;
            let count = self.counts.entry(site).or_default();
            *count += 1;
            if is_wanted && *count == self.fault.nth && !self.failed {
                self.failed = true;
                // No call has this number.
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers)?;
                self.failing.insert(thread, self.fault.errno);
            }
            Ok(())
        }

        fn leave(&mut self, thread: Pid) -> Result<(), Errno> {
            if let Some(errno) = self.failing.remove(&thread) {
                let mut registers = ptrace::getregs(thread)?;
                registers.rax = i64::from(-errno) as u64;
                ptrace::setregs(thread, registers)?;
            }
            Ok(())
        }

        /// Lets threads go from stop to stop until the program ends.
        fn follow(&mut self, program: Pid) -> Result<u8> {
            let mut status = None;
            loop {
                let event = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                    Ok(event) => event,
                    Err(Errno::ECHILD) => return status.context("the program's end was not seen"),
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                let (thread, signal) = match event {
                    WaitStatus::Exited(thread, code) => {
                        self.inside.remove(&thread);
                        if thread == program {
                            status = Some(code as u8);
                        }
                        continue;
                    }
                    WaitStatus::Signaled(thread, signal, _) => {
                        self.inside.remove(&thread);
                        if thread == program {
                            status = Some(128 + signal as u8);
                        }
                        continue;
                    }
                    WaitStatus::PtraceSyscall(thread) => {
                        // A thread can be killed at any moment.
                        let _ = if self.inside.remove(&thread) {
                            self.leave(thread)
                        } else {
                            self.inside.insert(thread);
                            self.enter(thread)
                        };
                        (thread, None)
                    }
                    WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                    WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                    _ => continue,
                };
                let _ = ptrace::syscall(thread, signal);
            }
        }
    }

    pub fn main() -> Result<u8> {
        let mut arguments: Vec<String> = std::env::args().skip(1).collect();
        ensure!(
            arguments.len() >= 5,
            "usage: inject REPORT SITE NTH ERRNO [--alone] COMMAND..."
        );
        let mut command = arguments.split_off(4);
        let mut options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
        if command.first().is_some_and(|word| word == "--alone") {
            command.remove(0);
        } else {
            options |= Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK | Options::PTRACE_O_TRACEEXEC;
        }
        let Some((program, words)) = command.split_first() else {
            bail!("there is no command");
        };
        let mut tracer = Tracer {
            fault: Fault {
                site: arguments[1].clone(),
                nth: arguments[2].parse().context("NTH is no number")?,
                errno: arguments[3].parse().context("ERRNO is no number")?,
            },
            begun: false,
            counts: BTreeMap::new(),
            failed: false,
            inside: HashSet::new(),
            failing: HashMap::new(),
        };
        // It stops itself, and becomes the program when it is held.
        let mut child = Command::new("sh");
        child
            .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\"", program])
            .args(words);
        child.process_group(0);
        let child = Pid::from_raw(i32::try_from(child.spawn()?.id())?);
        let stopped = waitpid(child, Some(WaitPidFlag::WUNTRACED))?;
        ensure!(
            matches!(stopped, WaitStatus::Stopped(..)),
            "the shell did not stop: {stopped:?}"
        );
        ptrace::seize(child, options).context("failed to hold the program")?;
        nix::sys::signal::kill(child, Signal::SIGCONT)?;
        eprintln!("{child}");
        let status = tracer.follow(child)?;
        let mut report = String::new();
        for (site, count) in &tracer.counts {
            writeln!(report, "{count} {site}")?;
        }
        if tracer.failed {
            writeln!(report, "failed {}", tracer.fault.site)?;
        }
        fs::write(&arguments[0], report).with_context(|| format!("failed to write `{}`", arguments[0]))?;
        Ok(status)
    }
}
