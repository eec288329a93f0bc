//! Starts a command such that its first allocation is seen.
//!
//! The command is held by ptrace from its `execve` on, before its first instruction, and runs from system call to system
//! call while the dynamic linker maps its libraries: each library is inspected and probed before any of its code can
//! run. The first system call after the dynamic linker has done its work ends the start-up, and the command is let go.
//!
//! The child is this program itself, which stops and then becomes the command (`leaktrace exec-stopped`), so that no
//! code has to run between fork and exec.

use std::{
    ffi::OsString,
    io,
    process::{Child, Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use self::linker::Linker;
use crate::proc::yama;

mod linker;

/// The hidden subcommand that stops and becomes the command.
pub const EXEC_STOPPED: &str = "exec-stopped";

/// Start-up is over after so many system calls, whoever makes them: a dynamic linker maps, reads and closes about five
/// times a library.
const MAX_STARTUP_CALLS: u32 = 100_000;
/// Or after so long.
const MAX_STARTUP: Duration = Duration::from_secs(20);

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It could not be run at all.
    #[error("failed to run `{command}`: {cause}")]
    Spawn {
        /// The command.
        command: String,
        /// Why.
        cause: io::Error,
    },
    /// It ended before it ran.
    #[error("failed to run `{command}`: it ended during its start ({status})")]
    Ended {
        /// The command.
        command: String,
        /// How.
        status: String,
    },
    /// It could not be held.
    #[error("failed to hold `{command}` at its start: {cause}{}", ptrace_remedy(*cause, yama::ptrace_scope()))]
    Trace {
        /// The command.
        command: String,
        /// Why.
        cause: Errno,
    },
}

/// What can be done about a refusal of ptrace, if anything is known to.
fn ptrace_remedy(cause: Errno, scope: Option<u32>) -> String {
    if cause != Errno::EPERM || !yama::forbids_attaching(scope) {
        return String::new();
    }
    format!(
        "; {} lets nobody attach: start the command and record it by its pid (record -p), or boot with a lower one",
        yama::SYSCTL
    )
}

/// A command that is held before its first instruction.
pub struct Held {
    command: String,
    child: Child,
    pid: Pid,
    /// The command's program runs in the child.
    running: bool,
}

/// Becomes the command, after a stop. For the child only; returns on failure, with the error number as the exit code.
pub fn exec_stopped(command: &[OsString]) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let error = match command.split_first() {
        None => io::Error::from_raw_os_error(libc::EINVAL),
        Some((program, arguments)) => match nix::sys::signal::raise(Signal::SIGSTOP) {
            Err(error) => error.into(),
            Ok(()) => Command::new(program).args(arguments).exec(),
        },
    };
    let number = error.raw_os_error().and_then(|number| u8::try_from(number).ok());
    ExitCode::from(number.unwrap_or(libc::EIO as u8))
}

impl Held {
    /// Starts a command and holds it after its `execve`.
    pub fn start(command: &[OsString]) -> Result<Self, LaunchError> {
        let name = command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let child = Command::new("/proc/self/exe")
            .arg(EXEC_STOPPED)
            .arg("--")
            .args(command)
            .spawn();
        let child = child.map_err(|cause| LaunchError::Spawn {
            command: name.clone(),
            cause,
        })?;
        let pid = Pid::from_raw(child.id() as i32);
        let mut held = Self {
            command: name,
            child,
            pid,
            running: false,
        };
        if let Err(error) = held.run_to_exec() {
            // It has not run yet, and nobody would let it go.
            let _ = held.child.kill();
            let _ = held.child.wait();
            return Err(error);
        }
        held.running = true;
        Ok(held)
    }

    fn trace_error(&self, cause: Errno) -> LaunchError {
        LaunchError::Trace {
            command: self.command.clone(),
            cause,
        }
    }

    fn wait(&self) -> Result<WaitStatus, LaunchError> {
        match waitpid(self.pid, Some(WaitPidFlag::WUNTRACED)) {
            // Before its `execve` the child exits with the error number of that.
            Ok(WaitStatus::Exited(_, number)) if !self.running => Err(LaunchError::Spawn {
                command: self.command.clone(),
                cause: io::Error::from_raw_os_error(number),
            }),
            Ok(WaitStatus::Exited(_, code)) => Err(LaunchError::Ended {
                command: self.command.clone(),
                status: format!("exit status {code}"),
            }),
            Ok(WaitStatus::Signaled(_, signal, _)) => Err(LaunchError::Ended {
                command: self.command.clone(),
                status: format!("signal {signal}"),
            }),
            Ok(status) => Ok(status),
            Err(cause) => Err(self.trace_error(cause)),
        }
    }

    fn run_to_exec(&self) -> Result<(), LaunchError> {
        // The child's own stop.
        self.wait()?;
        let options = Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(self.pid, options).map_err(|cause| self.trace_error(cause))?;
        nix::sys::signal::kill(self.pid, Signal::SIGCONT).map_err(|cause| self.trace_error(cause))?;
        loop {
            match self.wait()? {
                WaitStatus::PtraceEvent(_, _, event) if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 => {
                    return Ok(());
                }
                status => self.resume(&status, false)?,
            }
        }
    }

    /// Lets the command run on, with the signal that it stopped for if that is its own.
    fn resume(&self, status: &WaitStatus, to_system_call: bool) -> Result<(), LaunchError> {
        let signal = match status {
            WaitStatus::Stopped(_, signal)
                if !matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP | Signal::SIGCONT) =>
            {
                Some(*signal)
            }
            _ => None,
        };
        let result = if to_system_call {
            ptrace::syscall(self.pid, signal)
        } else {
            ptrace::cont(self.pid, signal)
        };
        result.map_err(|cause| self.trace_error(cause))
    }

    /// Ends a command that has not run an instruction.
    pub fn kill(mut self) {
        // Both fail where it has ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Runs the command through its start-up; `code_mapped` is called whenever it has mapped code. Then lets it go.
    pub fn run_startup<E: From<LaunchError>>(self, mut code_mapped: impl FnMut() -> Result<(), E>) -> Result<Child, E> {
        let linker = Linker::of(self.pid());
        let deadline = Instant::now() + MAX_STARTUP;
        let mut at_exit = false;
        self.resume(&WaitStatus::StillAlive, true)?;
        for _ in 0..MAX_STARTUP_CALLS {
            let status = self.wait()?;
            if let WaitStatus::PtraceSyscall(_) = status {
                let Some(call) = SystemCall::current(self.pid()) else {
                    break;
                };
                if !linker.as_ref().is_some_and(|linker| linker.is_at_work(call.pc)) {
                    break;
                }
                if at_exit && call.maps_code() {
                    code_mapped()?;
                }
                at_exit = !at_exit;
            }
            if Instant::now() > deadline {
                break;
            }
            self.resume(&status, true)?;
        }
        code_mapped()?;
        ptrace::detach(self.pid, None).map_err(|cause| self.trace_error(cause))?;
        Ok(self.child)
    }
}

/// A system call that a process is in.
struct SystemCall {
    number: i64,
    /// Third argument.
    third: u64,
    /// Where it was made.
    pc: u64,
}

impl SystemCall {
    /// From `/proc/PID/syscall`, which reads the same on every architecture.
    fn current(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?)
    }

    /// Number in decimal, six arguments, stack pointer and program counter in hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let hexadecimal = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let [number, _, _, third, _, _, _, _, pc] = words[..] else {
            return None;
        };
        Some(Self {
            number: number.parse().ok()?,
            third: hexadecimal(third)?,
            pc: hexadecimal(pc)?,
        })
    }

    fn maps_code(&self) -> bool {
        (self.number == libc::SYS_mmap || self.number == libc::SYS_mprotect) && self.third & libc::PROT_EXEC as u64 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_ptrace_has_its_remedy() {
        assert!(ptrace_remedy(Errno::EPERM, Some(3)).contains("record -p"));
        assert_eq!(ptrace_remedy(Errno::EPERM, Some(1)), "");
        assert_eq!(ptrace_remedy(Errno::EPERM, None), "");
        assert_eq!(ptrace_remedy(Errno::ESRCH, Some(3)), "");
    }

    #[test]
    fn a_system_call_is_read_from_its_line() {
        let line = "9 0x7f0e7a000000 0x155000 0x5 0x812 0x3 0x26000 0x7ffd1c2a5b58 0x7f0e7a5d2bd7\n";
        let call = SystemCall::parse(line).expect("the kernel's form");
        assert!(call.maps_code() && call.pc == 0x7f0e_7a5d_2bd7);
        assert!(SystemCall::parse("running\n").is_none());
        assert!(SystemCall::parse("-1 0x7ffd1c2a5b58 0x7f0e7a5d2bd7\n").is_none());
    }
}
