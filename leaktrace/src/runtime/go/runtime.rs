//! Go behind the seam of all runtimes: recognising a file, attaching to a process.

use std::fs::File;
use std::sync::Arc;

use super::collector::GoCollector;
use super::offsets;
use super::process::GoProcess;
use super::read_heap::ReadHeap;
use super::tasks::Goroutines;
use super::version::GoVersion;
use super::{buildinfo, clock, rules};
use crate::object::image::{ElfImage, Machine};
use crate::runtime::{Attached, Code, Collector, Heap, Identified, Run, Runtime, RuntimeError, TaskSnapshot};

/// Most bytes of `.go.buildinfo` that are read; the module list of a large program takes some 30 KiB.
const MAX_BUILD_INFO: u64 = 1 << 20;
/// Where in the first writable segment of a file without sections the same is looked for.
const MAX_SEARCH: usize = 64 << 10;

/// Go.
pub struct Go;

impl Runtime for Go {
    fn name(&self) -> &'static str {
        "go"
    }

    fn title(&self) -> &'static str {
        "Go"
    }

    fn identify(&self, image: &ElfImage) -> Option<Identified> {
        let version = version_of(image)?;
        let (first, _) = offsets::supported();
        Some(Identified {
            version: version.to_string(),
            is_readable: version.at_least(first) && image.machine() == Machine::X86_64,
        })
    }

    fn code(&self, file: &File) -> Option<Arc<dyn Code>> {
        rules::read(file)
    }

    fn attach(&self, pid: u32) -> Result<Box<dyn Attached>, RuntimeError> {
        Ok(Box::new(Arc::new(GoProcess::attach(pid)?)))
    }
}

/// The toolchain that a program names. Looks where the linker puts that, and nowhere else.
fn version_of(image: &ElfImage) -> Option<GoVersion> {
    let info = if let Some(section) = image.section(".go.buildinfo") {
        let size = section.size.min(MAX_BUILD_INFO);
        let bytes = image.read(section.offset, size, MAX_BUILD_INFO, "a section").ok()?;
        buildinfo::parse(&bytes)?
    } else if image.sections().is_empty() {
        // Aligned to 16 bytes near the begin of the data segment.
        let segment = image.segments().iter().find(|segment| segment.writable)?;
        let bytes = image.bytes_at(segment.address, MAX_SEARCH);
        let at = bytes.chunks(16).position(|chunk| chunk.starts_with(buildinfo::MAGIC))?;
        buildinfo::parse(&bytes[at * 16..])?
    } else {
        return None;
    };
    // What the file says may be anything; the parser leaves out what a terminal must not see.
    GoVersion::parse(&info.version)
}

impl Attached for Arc<GoProcess> {
    fn runtime(&self) -> &'static dyn Runtime {
        &Go
    }

    fn version(&self) -> String {
        self.version.to_string()
    }

    fn run(&self) -> Run {
        Run {
            key: self.key,
            file: self.exe.clone(),
            address: self.module.address,
        }
    }

    fn is_alive(&self) -> bool {
        GoProcess::is_alive(self)
    }

    fn heap(&self) -> Result<Box<dyn Heap>, RuntimeError> {
        let snapshot = GoProcess::heap(self)?;
        let collector = GoProcess::collector(self).ok();
        Ok(Box::new(ReadHeap::new(Self::clone(self), snapshot, collector)))
    }

    fn tasks(&self) -> Result<Box<dyn TaskSnapshot>, RuntimeError> {
        let snapshot = GoProcess::goroutines(self)?;
        Ok(Box::new(Goroutines::new(
            Self::clone(self),
            snapshot,
            clock::monotonic(),
        )))
    }

    fn collector(&self) -> Result<Box<dyn Collector>, RuntimeError> {
        Ok(Box::new(GoCollector::of(self)?))
    }
}
