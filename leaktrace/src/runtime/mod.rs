//! Managed runtimes, read from outside: one seam for all of them, and a folder for each.
//!
//! A runtime is known in two ways. A *file* is recognised before anything runs: [`Code`] says how stacks pass through it,
//! what its functions are called, and which of them map memory for the runtime's own heap. A *process* is attached to:
//! [`Attached`] reads its heap, its tasks and its collector while it runs on. Whatever traces, reports or watches speaks to
//! these traits; which runtimes there are stands in the [`registry`](all), and nowhere else.
//!
//! Nothing here knows BPF. Invariant: a heap that is read says of which run of which program it is ([`Run`]), so that counts
//! of two runs are never taken from one another.

mod collector;
mod error;
pub mod go;
mod heap;
mod tasks;

use std::{fs::File, path::PathBuf, sync::Arc};

pub use collector::{Collection, Collector, CollectorState};
pub use error::RuntimeError;
pub use heap::{Heap, HeapMarks};
pub use tasks::{Place, TaskGroup, TaskQuery, TaskSnapshot, Tasks};

use crate::{model::ProcessKey, object::image::ElfImage, symbolize::Frame, unwind::ForcedRule};

/// A managed runtime that can be read.
pub trait Runtime: Sync {
    /// Its word in the API and in attributes of what is exported.
    fn name(&self) -> &'static str;

    /// What people call it.
    fn title(&self) -> &'static str;

    /// What an executable says of itself, as far as that is cheap: this runs for every new file on the machine.
    fn identify(&self, image: &ElfImage) -> Option<Identified>;

    /// The facts of a file's code; `None` for a file without code of this runtime.
    fn code(&self, file: &File) -> Option<Arc<dyn Code>>;

    /// Attaches to a running process. Nothing is stopped, and nothing is written.
    ///
    /// # Errors
    /// [`RuntimeError::Foreign`] where the process has nothing of this runtime; others where it cannot be read.
    fn attach(&self, pid: u32) -> Result<Box<dyn Attached>, RuntimeError>;
}

/// What an executable says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    /// Release of the runtime, without characters that a terminal must not see.
    pub version: String,
    /// Processes that run it can be attached to.
    pub is_readable: bool,
}

/// Facts of the code in one file. Addresses are those of the file.
pub trait Code: Send + Sync {
    /// Whose code it is.
    fn runtime(&self) -> &'static dyn Runtime;

    /// How stacks pass through it where call-frame information does not say it, the general rules first.
    fn unwind_rules(&self) -> Vec<ForcedRule>;

    /// Whether the code at an address is the runtime's or was made by its compiler; then its own names count.
    fn covers(&self, address: u64) -> bool;

    /// The functions at an address, innermost first. Empty where the runtime's own profiles show none.
    fn frames(&self, address: u64) -> Vec<Frame>;

    /// Whether a function of this code maps memory for the runtime's own heap, which the runtime counts itself.
    fn maps_heap(&self, function: &str) -> bool;
}

/// Which run of which program: counts go on within one, and begin again with the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The process.
    pub key: ProcessKey,
    /// The file that holds the runtime, as the process's mount namespace names it.
    pub file: PathBuf,
    /// Where in the process the runtime has its own tables.
    pub address: u64,
}

/// A process whose runtime can be read.
pub trait Attached: Send {
    /// Which runtime.
    fn runtime(&self) -> &'static dyn Runtime;

    /// Release of the runtime.
    fn version(&self) -> String;

    /// Which run was attached to.
    fn run(&self) -> Run;

    /// Still the process that was attached to.
    fn is_alive(&self) -> bool;

    /// Its heap now.
    ///
    /// # Errors
    /// The process is gone, or its heap cannot be read.
    fn heap(&self) -> Result<Box<dyn Heap>, RuntimeError>;

    /// Its tasks now.
    ///
    /// # Errors
    /// The process is gone, or its tasks cannot be read.
    fn tasks(&self) -> Result<Box<dyn TaskSnapshot>, RuntimeError>;

    /// Its collector, to be looked at again and again: holds a few addresses, and not what attaching took.
    ///
    /// # Errors
    /// The collector cannot be read.
    fn collector(&self) -> Result<Box<dyn Collector>, RuntimeError>;
}

/// All runtimes that are known.
pub fn all() -> &'static [&'static dyn Runtime] {
    &[&go::Go]
}

/// What an executable says of itself, and whose it is.
pub fn identify(image: &ElfImage) -> Option<(&'static dyn Runtime, Identified)> {
    all()
        .iter()
        .find_map(|runtime| Some((*runtime, runtime.identify(image)?)))
}

/// The facts of a file's code, if it is of a managed runtime.
pub fn code(file: &File) -> Option<Arc<dyn Code>> {
    all().iter().find_map(|runtime| runtime.code(file))
}

/// Attaches to the runtime of a process, whichever it is.
///
/// # Errors
/// [`RuntimeError::Foreign`] where it has none that is known; others where it cannot be read.
pub fn attach(pid: u32) -> Result<Box<dyn Attached>, RuntimeError> {
    let mut foreign = None;
    for runtime in all() {
        match runtime.attach(pid) {
            Err(error @ RuntimeError::Foreign(_)) => foreign = Some(error),
            result => return result,
        }
    }
    Err(foreign
        .unwrap_or_else(|| RuntimeError::Foreign(format!("no runtime is known that pid {pid} could have").into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_program_has_no_runtime() {
        let file = File::open("/proc/self/exe").expect("our own executable");
        assert!(code(&file).is_none());
        let error = attach(std::process::id()).err().expect("this is no managed program");
        assert!(matches!(error, RuntimeError::Foreign(_)), "{error}");
    }

    #[test]
    fn each_runtime_has_a_word_of_its_own() {
        let mut words: Vec<&str> = all().iter().map(|runtime| runtime.name()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all().len());
    }
}
