//! This program's own code, for functions of it that are there to be probed: its file, and where a function lies in it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use crate::{
    model::ProcessAddress,
    proc::{
        ProcError,
        maps::{self, Mapping},
    },
};

/// Why a function of this program cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum OwnCodeError {
    /// There is none for it.
    #[error("there are no functions for it on this architecture")]
    Architecture,
    /// The file cannot be opened.
    #[error("failed to open this program's own file: {0}")]
    Open(#[source] io::Error),
    /// Where code lies cannot be told.
    #[error("failed to find this program's own code: {0}")]
    Mappings(#[from] ProcError),
    /// The code is in no file.
    #[error("this program's own code is not mapped from its file")]
    Unmapped,
}

/// The file and the mappings of this program.
pub struct OwnCode {
    file: File,
    mappings: Vec<Mapping>,
}

impl OwnCode {
    /// Looks where the code lies.
    ///
    /// # Errors
    /// When file or mappings cannot be read.
    pub fn open() -> Result<Self, OwnCodeError> {
        Ok(Self {
            file: File::open("/proc/self/exe").map_err(OwnCodeError::Open)?,
            mappings: maps::read_maps(std::process::id())?,
        })
    }

    /// The file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where in the file the code at an address lies.
    ///
    /// # Errors
    /// When it is in no file.
    pub fn offset(&self, address: usize) -> Result<u64, OwnCodeError> {
        let address = ProcessAddress(address as u64);
        let offset = self.mappings.iter().find_map(|mapping| mapping.file_offset(address));
        offset.map(|offset| offset.0).ok_or(OwnCodeError::Unmapped)
    }
}
