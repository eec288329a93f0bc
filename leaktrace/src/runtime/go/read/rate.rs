//! Turning heap profiling on in a running program: the one thing that is ever written into a target.
//!
//! Invariant: the old value is put back when the guard goes, on every way out that runs destructors, unless the program
//! changed the value itself meanwhile. A way out that runs none (SIGKILL, a crash) leaves the new value in the program,
//! which then goes on sampling until it ends: correct in every way, a little slower, and its own profile shows it.

use super::memory::Target;
use crate::model::ProcessAddress;
use crate::runtime::go::error::{Area, GoError};
use crate::runtime::go::process::GoProcess;

/// Keeps profiling on while it lives.
#[derive(Debug)]
pub struct ProfilingGuard<'p> {
    process: &'p GoProcess,
    address: u64,
    previous: u64,
    written: u64,
    active: bool,
}

impl<'p> ProfilingGuard<'p> {
    /// Writes `rate` (mean bytes between samples) to `runtime.MemProfileRate`, 8 aligned bytes, after the heap's
    /// self-check has passed.
    pub fn enable(process: &'p GoProcess, rate: u64) -> Result<Self, GoError> {
        process.layout(Area::Heap)?;
        let pid = process.pid();
        let corrupt = |what: String| GoError::Corrupt {
            pid,
            area: Area::Heap,
            what,
        };
        let address = process.globals.profile_rate.filter(|at| at.is_multiple_of(8));
        let address = address.ok_or_else(|| corrupt("MemProfileRate was not found".to_owned()))?;
        let previous = process
            .memory()
            .u64_at(address)
            .map_err(|source| GoError::memory(pid, source))?;
        let guard = Self {
            process,
            address,
            previous,
            written: rate,
            active: true,
        };
        guard.write(rate)?;
        Ok(guard)
    }

    /// The rate before.
    pub fn previous(&self) -> u64 {
        self.previous
    }

    /// Puts the old rate back.
    pub fn restore(mut self) -> Result<(), GoError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), GoError> {
        if !std::mem::take(&mut self.active) || !self.process.is_alive() {
            return Ok(());
        }
        let pid = self.process.pid();
        let current = self
            .process
            .memory()
            .u64_at(self.address)
            .map_err(|source| GoError::memory(pid, source))?;
        if current == self.written {
            self.write(self.previous)
        } else {
            Ok(())
        }
    }

    fn write(&self, value: u64) -> Result<(), GoError> {
        let written = self
            .process
            .memory()
            .write(ProcessAddress(self.address), &value.to_le_bytes());
        written.map_err(|source| GoError::memory(self.process.pid(), source))
    }
}

impl Drop for ProfilingGuard<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell; `restore` reports errors.
        let _ = self.put_back();
    }
}
