//! What the daemon may do: as many open files as it needs, and no capability that it does not.

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bpf::capability;

/// What tracing and watching need after start-up: what [`capability::DAEMON`] has, and the part of `CAP_SYS_ADMIN` that
/// stands in for it where it was not given.
fn kept() -> CapsHashSet {
    let needed = capability::DAEMON.into_iter().chain([capability::CHECKPOINT_RESTORE]);
    needed
        .filter_map(|capability| Capability::from_str(capability.name).ok())
        .collect()
}

/// Gives up every other capability, for this thread and those that it makes later, and for programs that they might run.
/// To be called before any other thread is made.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let kept = kept();
    // The bounding set first: taking from it needs a capability that goes next. A service manager that has cut the set
    // itself may not have left it, and then the rest goes all the same.
    let may_bound = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    for capability in caps::all() {
        if may_bound
            && !kept.contains(&capability)
            && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
        {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let remaining: CapsHashSet = permitted.intersection(&kept).copied().collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &remaining)?;
    caps::set(None, CapSet::Permitted, &remaining)
}

/// One file is held open for each process: as many as are allowed.
pub fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!("failed to raise the limit of open files from {soft} to {hard}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_is_known_by_its_name() {
        assert_eq!(kept().len(), capability::DAEMON.len() + 1);
    }
}
