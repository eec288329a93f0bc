//! The trace tier: probes in selected processes, their ledgers, and profiles of these while it goes on.
