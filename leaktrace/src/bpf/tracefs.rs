//! tracefs, which tells the numbers of tracepoints: whether it is there and open to this user.

use std::{fs::File, io, path::Path};

use nix::mount::{MsFlags, mount};

use super::{
    capability::{self, DAC_READ_SEARCH},
    features::FeatureError,
};

/// Where it is mounted.
pub const MOUNT_POINT: &str = "/sys/kernel/tracing";

/// Whether it can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracefs {
    /// It can be read.
    Open,
    /// It is mounted, and this user may not read it: its folder is root's alone, unless it was mounted otherwise.
    Closed,
    /// It is not mounted.
    Absent,
}

impl Tracefs {
    /// As it is now; changes nothing.
    pub fn now() -> Self {
        // Each level has permissions of its own. Any tracepoint does: these are built into every kernel with tracepoints.
        let events = Path::new(MOUNT_POINT).join("events");
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match events.metadata() {
            Err(error) if denied(&error) => Self::Closed,
            Err(_) => Self::Absent,
            Ok(_) => match File::open(events.join("sched/sched_process_exit/id")) {
                Err(error) if denied(&error) => Self::Closed,
                _ => Self::Open,
            },
        }
    }
}

/// Mounts it if need be, as the kernel's own tools do.
pub(super) fn ensure() -> Result<(), FeatureError> {
    match Tracefs::now() {
        Tracefs::Open => return Ok(()),
        Tracefs::Closed => return Err(closed()),
        Tracefs::Absent => {}
    }
    let mounted = mount(
        Some("tracefs"),
        MOUNT_POINT,
        Some("tracefs"),
        MsFlags::empty(),
        None::<&str>,
    );
    // Somebody else may have been faster.
    match (Tracefs::now(), mounted) {
        (Tracefs::Open, _) => Ok(()),
        (Tracefs::Closed, _) => Err(closed()),
        (Tracefs::Absent, Err(cause)) => Err(FeatureError::Mount { cause: cause.into() }),
        (Tracefs::Absent, Ok(())) => Err(FeatureError::Mount {
            cause: io::ErrorKind::NotFound.into(),
        }),
    }
}

fn closed() -> FeatureError {
    if DAC_READ_SEARCH.is_in(capability::effective()) {
        FeatureError::Closed
    } else {
        FeatureError::Capability {
            names: vec![DAC_READ_SEARCH.name],
        }
    }
}
