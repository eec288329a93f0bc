//! Addresses to names: function, file, line, with inlined functions.
//!
//! Works on files that the caller keeps open, so that it does not matter whether the process still lives or the file
//! still has a name. Knows nothing of processes, stacks or profiles. Invariant: every address gets at least one frame;
//! where nothing is known it is the placeholder `FILE+0xADDRESS`.
//!
//! # Use
//! When a profile is written, collect the distinct addresses of each mapped file and ask once per file:
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! use leaktrace::symbolize::{Addresses, SymbolSource, Symbolizer};
//! let file = std::fs::File::open("/proc/self/exe")?;
//! let symbolizer = Symbolizer::new();
//! let source = SymbolSource::File { file: &file, path: "/usr/bin/app" };
//! for frames in symbolizer.symbolize(&source, Addresses::Elf(&[0x1139])) {
//!     println!("{}", frames[0].function);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A return address points *behind* its call, which may be another line or another function. The caller passes it
//! decremented by 1; only the address of the innermost frame (and of a frame interrupted by a signal) is exact already.

use std::fs::File;
use std::sync::Arc;

pub mod debug_file;
pub mod demangle;
pub mod native;
pub mod perf_map;
pub mod snapshot;

pub use native::Symbolizer;
pub use perf_map::PerfMap;

/// Where symbols come from.
#[derive(Clone, Copy, Debug)]
pub enum SymbolSource<'a> {
    /// An ELF file.
    File {
        /// Open for reading. It is read by position; the file's own position does not matter.
        file: &'a File,
        /// Its path as the target sees it: for names, and to find its debug file on this machine. Never opened.
        path: &'a str,
    },
    /// An ELF image in memory, such as the vdso copied from the target.
    Image {
        /// The whole image.
        bytes: &'a [u8],
        /// Its name, such as `[vdso]`.
        name: &'a str,
    },
}

impl SymbolSource<'_> {
    /// Path or name.
    pub fn name(&self) -> &str {
        match self {
            Self::File { path, .. } => path,
            Self::Image { name, .. } => name,
        }
    }

    /// `FILE+0xADDRESS`.
    fn placeholder(&self, address: u64) -> Frame {
        let base = self.name().rsplit('/').next().unwrap_or_default();
        let name: Arc<str> = format!("{base}+{address:#x}").into();
        Frame {
            function: name.clone(),
            system_name: name,
            placeholder: true,
            ..Frame::default()
        }
    }
}

/// Addresses in one file.
#[derive(Clone, Copy, Debug)]
pub enum Addresses<'a> {
    /// As the file's own headers and symbols state them.
    Elf(&'a [u64]),
    /// Positions in the file.
    FileOffset(&'a [u64]),
}

impl<'a> Addresses<'a> {
    fn values(&self) -> &'a [u64] {
        match self {
            Self::Elf(values) | Self::FileOffset(values) => values,
        }
    }
}

/// One function at an address. Texts are shared among frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Demangled name; `FILE+0xADDRESS` if `placeholder`. Never empty.
    pub function: Arc<str>,
    /// Name in the symbol table.
    pub system_name: Arc<str>,
    /// Source file with its directory; empty when unknown.
    pub file: Arc<str>,
    /// Line; 0 when unknown.
    pub line: u32,
    /// Column; 0 when unknown.
    pub column: u32,
    /// Line where the function begins; 0 when unknown, as it is for inlined functions.
    pub start_line: u32,
    /// The function has no code of its own here: it is part of the next frame.
    pub inlined: bool,
    /// Nothing is known of this address.
    pub placeholder: bool,
}
