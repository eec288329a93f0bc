//! Go processes read from outside.
