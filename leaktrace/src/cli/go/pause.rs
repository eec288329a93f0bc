//! Waiting that ends early on Ctrl-C, so that whatever was changed in the target can be put back.
//!
//! One system call a wait: looking at a program every 10 ms may cost 30 µs each time, most of which goes into waking up.
//! Invariant: this is the program's only thread while signals are held back, since another one would still take them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd as _;

/// Holds back SIGINT, SIGTERM, SIGHUP and SIGQUIT from its creation on until it goes.
pub struct Pause {
    signals: SignalFd,
    held: SigSet,
}

impl Pause {
    /// Holds the signals back.
    ///
    /// # Errors
    /// When other threads run, or the kernel refuses.
    pub fn new() -> anyhow::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task").context("failed to list `/proc/self/task`")?;
        ensure!(
            threads.count() == 1,
            "signals cannot be held back while other threads run"
        );
        Self::of([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT])
    }

    fn of(signals: impl IntoIterator<Item = Signal>) -> anyhow::Result<Self> {
        let held: SigSet = signals.into_iter().collect();
        let signals = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        let signals = signals.context("failed to open a signalfd")?;
        held.thread_block().context("failed to hold back signals")?;
        Ok(Self { signals, held })
    }

    /// Waits; `None` waits for a signal alone. True: a signal ended it.
    pub fn wait(&mut self, duration: Option<Duration>) -> bool {
        let deadline = duration.map(|duration| Instant::now().checked_add(duration));
        loop {
            // A time too far away to be told is none.
            let left = deadline
                .flatten()
                .map(|end| end.saturating_duration_since(Instant::now()));
            let mut sources = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut sources, left.map(TimeSpec::from), None) {
                Ok(0) => return false,
                // Taken off, so that it does not end the program when the signals are let through.
                Ok(_) => return matches!(self.signals.read_signal(), Ok(Some(_))),
                // Stopped and continued meanwhile.
                Err(Errno::EINTR) => {}
                // Nothing to wait with: better an early end than one that Ctrl-C does not bring about.
                Err(_) => return true,
            }
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // It can fail for a wrong argument alone.
        let _ = self.held.thread_unblock();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use nix::sys::pthread::{pthread_kill, pthread_self};

    #[test]
    fn a_wait_ends_in_time_or_by_a_signal() {
        // One that nothing else in this process waits for; sent to this thread, which holds it back.
        let mut pause = Pause::of([Signal::SIGUSR2]).unwrap();
        let begin = Instant::now();
        assert!(!pause.wait(Some(Duration::from_millis(20))));
        assert!(begin.elapsed() >= Duration::from_millis(20));
        assert!(!pause.wait(Some(Duration::ZERO)));
        pthread_kill(pthread_self(), Signal::SIGUSR2).unwrap();
        assert!(pause.wait(None));
        assert!(!pause.wait(Some(Duration::from_millis(1))), "it was taken off");
        pthread_kill(pthread_self(), Signal::SIGUSR2).unwrap();
        assert!(pause.wait(Some(Duration::MAX)));
    }
}
