//! The page that the daemon serves: its files, embedded.
