//! Profiles and what the store keeps beside them.

use crate::daemon::store;
use crate::export::{folded, json, pprof};
use crate::report::profile::Profile;

/// A profile, compressed or not. What is read can be written, and is the same when it is read again.
pub(super) fn pprof(data: &[u8]) {
    let Ok(profile) = pprof::read(data) else { return };
    let encoded = pprof::encode(&profile);
    let again = pprof::decode(&encoded).expect("what was written can be read");
    assert!(
        encoded == pprof::encode(&again),
        "a profile changes when it is written and read"
    );
    show(&profile);
}

fn show(profile: &Profile) {
    let _ = profile.totals();
    for sample in &profile.samples {
        for location in profile.stack(sample) {
            let _ = (profile.names(location).count(), profile.mapping(location));
        }
    }
    // Sinks: output is not of interest.
    let _ = folded::write(profile, 0, std::io::sink());
    let _ = json::write(profile, std::io::sink());
    let _ = crate::report::diff::diff(profile, profile);
}

/// A profile with its label, as it lies in the store.
pub(super) fn stored_profile(data: &[u8]) {
    store::read_any_profile(data);
}

/// The store's journal.
pub(super) fn journal(data: &[u8]) {
    store::read_any_journal(data);
}
