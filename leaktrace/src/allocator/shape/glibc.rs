//! glibc's malloc, by what it says of a corrupt heap and by who calls whom.
//!
//! Its strings name the functions inside: `_int_malloc`, `_int_free`, `_int_realloc` and `realloc` complain under their own
//! names, and assertions hold the names of others. `realloc` calls both `malloc` and `free`, so these are among its callees:
//! the one that leads to `_int_malloc`, and the one that leads to `_int_free`, which others outside of the allocator call
//! as well. Found so in glibc 2.31, 2.36, 2.41 and 2.43.
//! Invariant: each function is found by itself and confirmed by the others, or nothing is found.

use std::collections::BTreeSet;

use super::graph::{self, Graph, Search};
use super::{Found, only};
use crate::object::image::ElfImage;

const NEEDLES: &[&[u8]] = &[
    b"malloc(): corrupted top size\0",
    b"malloc(): invalid size (unsorted)\0",
    b"malloc(): unsorted double linked list corrupted\0",
    b"double free or corruption (out)\0",
    b"double free or corruption (!prev)\0",
    b"realloc(): invalid old size\0",
    b"realloc(): invalid next size\0",
    b"realloc(): invalid pointer\0",
    b"__libc_malloc\0",
    b"__libc_calloc\0",
    b"_mid_memalign\0",
    b"__libc_realloc\0",
];
const INT_MALLOC: &[usize] = &[0, 1, 2];
const INT_FREE: &[usize] = &[3, 4];
const INT_REALLOC: &[usize] = &[5, 6];
const REALLOC: &[usize] = &[7];
const NAME_MALLOC: &[usize] = &[8];
const NAME_CALLOC: &[usize] = &[9];
const NAME_MEMALIGN: &[usize] = &[10];
const NAME_REALLOC: &[usize] = &[11];

/// Functions outside of the allocator that call `malloc` or `free` at least: `fopen`, `strdup`, `setlocale` and others are in
/// every static program.
const MIN_CALLERS: usize = 3;

/// Calls between `malloc` and `_int_malloc`, or `free` and `_int_free`, at most.
const MAX_DISTANCE: usize = 3;

/// Functions that `realloc` calls, at most: it is twenty.
const MAX_CALLEES: usize = 64;

/// Finds the functions.
///
/// # Errors
/// What is missing, or not clear.
pub(super) fn find(image: &ElfImage) -> Result<Vec<Found>, String> {
    let places = graph::places(image, NEEDLES, true)?;
    if places.is_empty() {
        return Err("none of its strings are glibc's".into());
    }
    let search = Search {
        places: &places,
        constants: &[],
        by_calls: false,
    };
    let graph = Graph::read(image, &search)?;
    // Until 2.33 there is a second one, for the checks of `mcheck`; an assertion names the right one.
    let realloc = match &graph.referring(REALLOC) & &graph.referring(NAME_REALLOC) {
        named if named.len() == 1 => named,
        _ => graph.referring(REALLOC),
    };
    let realloc = only(&realloc, "glibc's realloc")?;
    let int_malloc = BTreeSet::from([only(&graph.referring(INT_MALLOC), "glibc's _int_malloc")?]);
    let int_free = BTreeSet::from([only(&graph.referring(INT_FREE), "glibc's _int_free")?]);
    let int_realloc = graph.referring(INT_REALLOC);
    let mut inner: BTreeSet<u64> = &int_malloc | &int_free;
    inner.extend(&int_realloc);
    inner.insert(realloc);

    let callees: BTreeSet<u64> = graph
        .callees(realloc)
        .filter(|callee| !inner.contains(callee))
        .collect();
    if callees.len() > MAX_CALLEES {
        return Err("what looks like glibc's realloc calls too many functions".into());
    }
    // `free` leads to `_int_malloc`, too, by what makes a thread's cache.
    let allocates = |callee: &u64| {
        let to_free = graph.distance(*callee, &int_free, MAX_DISTANCE).unwrap_or(usize::MAX);
        let to_malloc = graph.distance(*callee, &int_malloc, MAX_DISTANCE);
        to_malloc.is_some_and(|to_malloc| to_malloc < to_free)
    };
    let allocating: BTreeSet<u64> = callees.iter().copied().filter(allocates).collect();
    let malloc = match graph.referring(NAME_MALLOC) {
        // An assertion names it.
        named if named.len() == 1 => only(&(&named & &allocating), "glibc's malloc")?,
        _ => {
            let outer = graph.outermost(&allocating);
            only(
                &outer
                    .into_iter()
                    .filter(|f| callers(&graph, *f, &inner) >= MIN_CALLERS)
                    .collect(),
                "glibc's malloc",
            )?
        }
    };
    let freeing = callees.iter().copied().filter(|callee| *callee != malloc);
    let freeing: BTreeSet<u64> = freeing
        .filter(|callee| graph.distance(*callee, &int_free, MAX_DISTANCE).is_some())
        .filter(|callee| !graph.callees(malloc).any(|of_malloc| of_malloc == *callee))
        .collect();
    let outer = graph.outermost(&freeing);
    let free = only(
        &outer
            .into_iter()
            .filter(|function| callers(&graph, *function, &inner) >= MIN_CALLERS)
            .collect(),
        "glibc's free",
    )?;
    if graph.callees(free).any(|callee| callee == malloc) || callers(&graph, malloc, &inner) < MIN_CALLERS {
        return Err("what looks like its malloc and free do not call as these do".into());
    }
    let known = BTreeSet::from([malloc, free, realloc]);
    let calloc = match graph.referring(NAME_CALLOC) {
        named if named.len() == 1 => named,
        _ => {
            let direct = int_malloc.iter().flat_map(|function| graph.callers_of(*function));
            direct
                .filter(|function| graph.function(*function).is_some_and(|f| f.multiplies))
                .collect()
        }
    };
    let calloc: BTreeSet<u64> = &(&calloc - &known) - &inner;
    let calloc = only(&calloc, "glibc's calloc")?;
    let arrays = graph.function(calloc).is_some_and(|function| function.multiplies);
    if !arrays
        || graph.distance(calloc, &int_malloc, MAX_DISTANCE).is_none()
        || graph.callees(realloc).any(|callee| callee == calloc)
    {
        return Err("what looks like its calloc does not do as that does".into());
    }
    let found = |name, start| graph.found(name, start);
    let mut all = vec![
        found("malloc", malloc),
        found("free", free),
        found("realloc", realloc),
        found("calloc", calloc),
    ];
    // What stands behind all functions that align takes the same arguments as `memalign`.
    let aligning = &graph.referring(NAME_MEMALIGN) - &known;
    if let Ok(memalign) = only(&aligning, "glibc's memalign")
        && graph.callees(memalign).any(|callee| callee == malloc)
        && graph.callers_of(memalign).count() > 1
    {
        all.push(found("memalign", memalign));
    }
    Ok(all)
}

/// How many functions call one, but for these.
fn callers(graph: &Graph, function: u64, but: &BTreeSet<u64>) -> usize {
    graph
        .callers_of(function)
        .filter(|caller| !but.contains(caller))
        .count()
}
