//! The neutral result model: what a profile holds, and the views of it that people read.
//!
//! Owns [`Profile`] and everything computed from one profile (flat and cumulative weights, trees, source listings,
//! differences). Does not know file formats (see `export`), processes or events.
//!
//! Invariant: every index inside a [`Profile`] that was made by [`ProfileBuilder`] or read by `export::pprof` is in
//! range, and every sample has one value per sample type.

pub mod builder;
pub mod diff;
pub mod graph;
pub mod list;
pub mod loss;
pub mod name;
pub mod profile;
pub mod prune;
pub mod sites;
pub mod stacks;
pub mod support;
pub mod table;
pub mod text;
pub mod tree;
pub mod unit;

pub use builder::{FrameLine, ProfileBuilder};
pub use loss::{Loss, Losses};
pub use profile::{
    Function, FunctionId, Line, Location, LocationId, Mapping, MappingId, Metadata, NumericLabel, Profile, Sample,
    TextLabel, Totals, Trend, Trends, ValueType,
};
