//! The collector of a Go process, looked at again and again for a long time: what that needs and no more.
//!
//! A [`GoProcess`](super::process::GoProcess) holds the program's function table, which may be tens of megabytes; this
//! holds a few addresses.

use super::error::{Area, GoError};
use super::gc::{self, CollectorState};
use super::locate::Globals;
use super::offsets::Layout;
use super::process::GoProcess;
use crate::model::ProcessKey;
use crate::proc::memory::ProcessMemory;

/// A Go process whose collector is looked at.
#[derive(Debug)]
pub struct Collector {
    /// Which process.
    pub key: ProcessKey,
    /// Toolchain, such as `go1.23.4`.
    pub version: String,
    globals: Globals,
    layout: Layout,
}

impl Collector {
    /// Attaches to a process.
    ///
    /// # Errors
    /// It is gone, it is no Go program, or its runtime is not known.
    pub fn attach(pid: u32) -> Result<Self, GoError> {
        Self::of(&GoProcess::attach(pid)?)
    }

    /// Of a process that is attached to already.
    ///
    /// # Errors
    /// Its collector cannot be read.
    pub fn of(process: &GoProcess) -> Result<Self, GoError> {
        let (layout, _) = process.layout(Area::Collector)?;
        Ok(Self {
            key: process.key,
            version: process.version.to_string(),
            globals: process.globals,
            layout: layout.clone(),
        })
    }

    /// Its state now.
    ///
    /// # Errors
    /// The process is gone, or runs another program.
    pub fn state(&self) -> Result<CollectorState, GoError> {
        // Held open, a process's memory would be a descriptor for each.
        let memory = ProcessMemory::new(self.key.pid);
        gc::read(&memory, &self.globals, &self.layout).map_err(|error| GoError::collector(self.key.pid, error))
    }
}
