//! The allocation functions of a program that is linked statically and stripped, found by their shape: what they refer to and
//! who calls whom.
//!
//! A wrong function would show blocks that are freed as leaked, so each is confirmed from several sides, and where one is not
//! clear none is found.
//! Invariant: work is bounded by the limits of `graph`, whatever the file states.

mod glibc;
mod graph;
mod musl;

use std::collections::BTreeSet;

use crate::object::code::can_decode;
use crate::object::image::ElfImage;

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is called where it has a name.
    pub name: &'static str,
    /// Address of its first instruction.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Whose functions they are.
    pub library: &'static str,
    /// All of them.
    pub functions: Vec<Found>,
}

/// Searches a program.
///
/// # Errors
/// Why nothing was found.
pub fn find(image: &ElfImage) -> Result<Shape, String> {
    if !can_decode(image.machine()) {
        return Err("code of this architecture is not decoded".into());
    }
    let shape = |library| move |functions| Shape { library, functions };
    glibc::find(image).map(shape("glibc")).or_else(|not_glibc| {
        let found = musl::find(image).map(shape("musl"));
        found.map_err(|not_musl| format!("{not_glibc}; {not_musl}"))
    })
}

/// The one function that was found.
fn only(found: &BTreeSet<u64>, what: &str) -> Result<u64, String> {
    let mut found = found.iter();
    match (found.next(), found.next()) {
        (Some(function), None) => Ok(*function),
        (None, _) => Err(format!("nothing in it looks like {what}")),
        (Some(_), Some(_)) => Err(format!("more than one function looks like {what}")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
