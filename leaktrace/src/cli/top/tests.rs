//! Views and keys, as a person meets them.
