//! Managed runtimes, read from outside. They know nothing of BPF.

pub mod go;
