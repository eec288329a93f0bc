//! symbolize

pub mod pclntab;
