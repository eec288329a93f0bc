//! Profiles on disk: written whole or not at all, listed by an index that survives a crash, kept within limits.
