//! Why something cannot be done with the store.

use std::io;
use std::path::PathBuf;

/// Why something cannot be done with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error("there is no profile store in `{}`; `leaktrace daemon` makes one", .0.display())]
    NotFound(PathBuf),
    /// The folder is something else, or what says that it is a store is damaged.
    #[error(
        "`{}` is no profile store: {reason}; name an empty folder, or move this one away", path.display()
    )]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The store has a format that this version does not know.
    #[error(
        "the profile store in `{}` belongs to another version of leaktrace: it has format {found}, this version has \
         format {known}; use that version, or move the store away", path.display()
    )]
    OtherVersion {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that this version writes.
        known: u64,
    },
    /// Another daemon writes to it.
    #[error(
        "the profile store in `{}` is in use by another daemon{}; stop that one, or give this one a folder of its own",
        path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who said last that it has the store.
        pid: Option<u32>,
    },
    /// Others may write to the folder, and it is not ours to change that.
    #[error("others may write to `{}`, which belongs to user {owner}; a store needs a folder of its own", path.display())]
    Insecure {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// No profile has this id.
    #[error("no profile `{id}` in the store `{}`; `leaktrace list` shows what there is", path.display())]
    NoSuchProfile {
        /// What was asked for, made harmless.
        id: String,
        /// The folder.
        path: PathBuf,
    },
    /// A profile is not what was written.
    #[error("the stored profile `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// What should be stored is no gzip-compressed profile.
    #[error("failed to store a profile: {0}")]
    NotGzip(&'static str),
    /// A profile is larger than a profile may be.
    #[error("failed to store a profile of {size} bytes: at most {limit} are kept")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk is full; the message is that of [`Store::paused`](super::Store::paused).
    #[error("{0}")]
    Paused(String),
    /// The system refused something.
    #[error("failed to {verb} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl StoreError {
    /// There is no room: no blocks, no inodes, or a quota is used up.
    pub(super) fn is_full(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// A file is not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
