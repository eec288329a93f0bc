//! Profiles sent to other systems: OTLP over gRPC and HTTP, and Pyroscope.
//!
//! Owns the queue of each target, its retries and counters, and the forms that receivers take. Does not make profiles
//! and keeps none on disk. Invariant: every profile that was offered to a target is waiting there, or was counted as
//! sent or as dropped.
//!
//! Receivers sum allocations over what they get, so a profile that is sent tells those since the one before (`since`).
//! One that is dropped takes its allocations along: no later one tells them again.
//!
//! Delivery is at least once and in order: an answer that got lost makes a profile arrive twice, with the same id.

mod backoff;
mod failure;
mod grpc;
mod http;
mod otlp;
mod pusher;
mod pyroscope;
mod queue;
mod resource;
mod settings;
mod since;
mod target;
mod token;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use pusher::Pusher;
pub use settings::{Kind, QUEUE_BYTES, SettingsError, TargetSettings, is_reserved_header};
pub use since::{Origin, Origins, Since};
pub use target::try_out;

use crate::{api::Identity, report::profile::Profile};

/// A profile to be sent.
#[derive(Clone, Debug)]
pub struct Export {
    /// Of whom.
    pub identity: Arc<Identity>,
    /// What it tells begins here, in nanoseconds since 1970.
    pub begin: u64,
    /// And ends here.
    pub end: u64,
    /// What it tells; allocations are those between both times.
    pub profile: Arc<Profile>,
    /// The same as pprof, compressed with gzip.
    pub pprof: Arc<[u8]>,
}
