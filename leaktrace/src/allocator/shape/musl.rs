//! musl's malloc (mallocng, since 1.2.1), by its table of size classes and two constants.
//!
//! All its parts look sizes up in one table of 48 numbers, which nothing else has. Of these functions `malloc` knows both the
//! largest size and from which on it maps memory; `realloc` does, too, and calls `malloc` and `free`; `free` calls
//! another one that calls a third; what else calls `malloc` and looks sizes up is `aligned_alloc`, which returns another
//! address than `malloc` returned to it. `calloc` needs no hook: it passes the product on.
//! Found so in musl 1.2.2 to 1.2.6. A program that never frees has another malloc, without a table, and is refused.
//! Invariant: each function is found by itself and confirmed by the others, or nothing is found.

use std::collections::BTreeSet;

use super::graph::{self, Graph, Search};
use super::{Found, only};
use crate::object::image::ElfImage;

/// `__malloc_size_classes`, in units of 16 bytes.
const SIZE_CLASSES: [u16; 48] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 31, 36, 42, 50, 63, 72, 84, 102, 127, 146, 170, 204, 255, 292,
    340, 409, 511, 584, 682, 818, 1023, 1169, 1364, 1637, 2047, 2340, 2730, 3276, 4095, 4680, 5460, 6552, 8191,
];
const TABLE: usize = 0;
const LIMIT: usize = 1;
const THRESHOLD: usize = 2;
/// `SIZE_MAX / 2 - 4096` and `MMAP_THRESHOLD`, compared with `<` or `<=`.
const CONSTANTS: &[(u64, usize)] = &[
    (0x7fff_ffff_ffff_efff, LIMIT),
    (0x7fff_ffff_ffff_effe, LIMIT),
    (131_052, THRESHOLD),
    (131_051, THRESHOLD),
];

/// Functions that look sizes up, at most: it is ten.
const MAX_SIZING: usize = 32;

/// Finds the functions.
///
/// # Errors
/// What is missing, or not clear.
pub(super) fn find(image: &ElfImage) -> Result<Vec<Found>, String> {
    let table: Vec<u8> = SIZE_CLASSES.iter().flat_map(|class| class.to_le_bytes()).collect();
    let places = graph::places(image, &[&table], false)?;
    if places.len() != 1 {
        return Err("it has not musl's table of sizes".into());
    }
    let search = Search {
        places: &places,
        constants: CONSTANTS,
        by_calls: true,
    };
    let graph = Graph::read(image, &search)?;
    let refers = |function: u64, what: usize| graph.function(function).is_some_and(|f| f.refers.contains(&what));
    let calls = |function: u64, callee: u64| graph.callees(function).any(|other| other == callee);
    let sizing: BTreeSet<u64> = graph.referring(&[TABLE]);
    if sizing.len() > MAX_SIZING {
        return Err("too many functions look sizes up as musl's do".into());
    }
    let allocating: BTreeSet<u64> = sizing
        .iter()
        .copied()
        .filter(|function| refers(*function, LIMIT) && refers(*function, THRESHOLD))
        .collect();
    let innermost: BTreeSet<u64> = allocating
        .iter()
        .copied()
        .filter(|function| !allocating.iter().any(|other| calls(*function, *other)))
        .collect();
    let malloc = only(&innermost, "musl's malloc")?;
    let mut others = allocating;
    others.remove(&malloc);
    let realloc = match others.len() {
        0 => None,
        _ => Some(only(&others, "musl's realloc")?),
    };
    // `free` does not allocate, and has two more of these functions one behind the other.
    let in_sizing = |function: u64| {
        graph
            .callees(function)
            .filter(|callee| sizing.contains(callee))
            .collect::<Vec<_>>()
    };
    let behind_malloc = in_sizing(malloc);
    let freeing: BTreeSet<u64> = sizing
        .iter()
        .copied()
        .filter(|function| *function != malloc && Some(*function) != realloc && !calls(*function, malloc))
        .filter(|function| !behind_malloc.contains(function))
        .filter(|function| {
            let mut inner = in_sizing(*function).into_iter().filter(|callee| callee != function);
            inner.any(|callee| in_sizing(callee).iter().any(|next| *next != callee && next != function))
        })
        .collect();
    let free = only(&graph.outermost(&freeing), "musl's free")?;
    if realloc.is_some_and(|realloc| !calls(realloc, malloc) || !calls(realloc, free)) {
        return Err("what looks like musl's realloc does not call what looks like its malloc and free".into());
    }
    let aligning: BTreeSet<u64> = graph
        .callers_of(malloc)
        .filter(|function| Some(*function) != realloc)
        .filter(|function| {
            refers(*function, TABLE)
                || !in_sizing(*function)
                    .iter()
                    .all(|callee| [malloc, free].contains(callee))
        })
        .collect();
    let mut found = vec![graph.found("malloc", malloc), graph.found("free", free)];
    found.extend(realloc.map(|realloc| graph.found("realloc", realloc)));
    if !aligning.is_empty() {
        found.push(graph.found("aligned_alloc", only(&aligning, "musl's aligned_alloc")?));
    }
    Ok(found)
}
