//! What the store does when the disk is full.
//!
//! The oldest profiles go first, but only as many as the new one needs, and only where that makes room: if all profiles
//! together would not free enough, or others take what was freed, none is given up and the store pauses. Profiles that
//! come then are dropped and counted. It goes on by itself when a profile can be written again.

use super::Store;
use super::entry::{Entry, footprint};
use super::error::StoreError;
use crate::model::quantity::bytes;

/// A pause.
#[derive(Debug)]
pub(super) struct Pause {
    message: String,
    /// The room that is waited for, in bytes. `None`: the system said that it is full although it tells of free space,
    /// as with a quota or without free inodes; only trying tells whether there is room again.
    needed: Option<u64>,
}

impl Pause {
    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl Store {
    /// Writes a profile and, if the disk is full, makes room for it.
    pub(super) fn write_with_room(&mut self, entry: &Entry, parts: &[&[u8]]) -> Result<(), StoreError> {
        let needed = footprint(entry.file_size);
        self.make_room(needed)?;
        let name = entry.file_name();
        let mut result = self.reader.directory.replace(&name, parts);
        // During a pause old profiles were given up in vain already.
        if result.as_ref().is_err_and(StoreError::is_full) && self.pause.is_none() && self.give_up(needed) {
            result = self.reader.directory.replace(&name, parts);
        }
        let Err(error) = result else {
            self.end_pause();
            return Ok(());
        };
        // It may have got its name without being on the disk for certain: what is not stored is not there.
        let _ = self.reader.directory.remove(&name);
        if error.is_full() {
            return Err(self.begin_pause(None, &error.to_string()));
        }
        Err(error)
    }

    /// Sees to it that so many bytes are free above the reserve.
    fn make_room(&mut self, needed: u64) -> Result<(), StoreError> {
        let wanted = needed.saturating_add(self.settings.free_reserve);
        let short = |store: &Self| -> Result<u64, StoreError> {
            Ok(wanted.saturating_sub(store.reader.directory.available()?))
        };
        let shortage = short(self)?;
        if shortage == 0 || (self.give_up(shortage) && short(self)? == 0) {
            return Ok(());
        }
        let free = self.reader.directory.available()?;
        let cause = format!(
            "{} are free, {} are wanted for a profile and {} for others",
            bytes(free as f64),
            bytes(needed as f64),
            bytes(self.settings.free_reserve as f64)
        );
        Err(self.begin_pause(Some(wanted), &cause))
    }

    /// Removes the oldest profiles that take so many bytes; none if all together take less.
    fn give_up(&mut self, bytes: u64) -> bool {
        if self.reader.index.bytes() < bytes {
            return false;
        }
        let oldest = self.reader.index.oldest(bytes);
        tracing::info!("removing the {} oldest profiles: the disk is full", oldest.len());
        let freed: u64 = oldest.into_iter().map(|sequence| self.remove(sequence)).sum();
        // Some file systems free blocks when the removal is on the disk.
        let _ = self.reader.directory.sync();
        freed >= bytes
    }

    fn begin_pause(&mut self, needed: Option<u64>, cause: &str) -> StoreError {
        let message = format!(
            "the disk of the profile store `{}` is full: {cause}; profiles are dropped until there is room, so free some \
             space or give the store another folder",
            self.reader.directory.path().display()
        );
        if self.pause.is_none() {
            tracing::warn!("{message}");
        }
        self.pause = Some(Pause {
            message: message.clone(),
            needed,
        });
        StoreError::Paused(message)
    }

    fn end_pause(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!(
                "there is room again: profiles are stored in `{}`",
                self.reader.directory.path().display()
            );
        }
    }

    /// Ends a pause if the room that was waited for is there.
    pub(super) fn end_pause_if_there_is_room(&mut self) {
        let Some(Pause {
            needed: Some(needed), ..
        }) = self.pause
        else {
            return;
        };
        if self
            .reader
            .directory
            .available()
            .is_ok_and(|available| available >= needed)
        {
            self.end_pause();
        }
    }
}
