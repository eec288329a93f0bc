//! cli

pub mod go;
