//! Whose a symbol of a Rust program is, and how it is shown.
//!
//! Invariant: what is returned for display is printable ASCII and short, whatever the symbol holds.

use std::collections::BTreeSet;

use crate::object::image::ElfImage;
use crate::object::symbols::for_each_symbol;

/// Crates that every Rust program has: their code and variables serve everybody, not an allocator alone.
const LIBRARY: &[&str] = &[
    "std",
    "core",
    "alloc",
    "compiler_builtins",
    "panic_unwind",
    "panic_abort",
    "std_detect",
    "hashbrown",
    "__rustc",
];
/// Longest name that is shown.
const MAX_SHOWN: usize = 100;

/// Whether a symbol belongs to one of the program's own crates. Names of other languages do not.
pub(super) fn is_own(symbol: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(symbol) else {
        return false;
    };
    // The trait's default methods are compiled for the program's allocator.
    name.contains("11GlobalAlloc") || krate(name).is_some_and(|krate| !krate.is_empty() && !LIBRARY.contains(&krate))
}

/// The crate that a mangled name begins with.
fn krate(name: &str) -> Option<&str> {
    if let Some(path) = name.strip_prefix("_ZN") {
        let (length, rest) = number(path)?;
        let first = rest.get(..length)?;
        // `<Type as Trait>`: the type's crate.
        let first = first
            .strip_prefix("_$LT$")
            .or(first.strip_prefix("$LT$"))
            .unwrap_or(first);
        return first.split(['.', '$']).next();
    }
    // `C`, a disambiguator `s…_`, and the crate's name with its length.
    let path = name.strip_prefix("_R")?;
    let crates = path.match_indices("Cs").filter_map(|(at, _)| {
        let (disambiguator, rest) = path.get(at + 2..)?.split_once('_')?;
        if !disambiguator.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (length, rest) = number(rest)?;
        rest.strip_prefix('_').unwrap_or(rest).get(..length)
    });
    // An implementation begins with the crate that it stands in, before its type.
    crates.take(1).next()
}

/// A decimal number at the beginning of a text, and what follows it.
fn number(text: &str) -> Option<(usize, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, rest))
}

/// The mangled name of the function at an address.
pub(super) fn symbol_at(image: &ElfImage, address: u64) -> Option<String> {
    let mut names = BTreeSet::new();
    for_each_symbol(image, |_, symbol| {
        if symbol.address.0 == address && names.len() < 64 {
            names.insert(String::from_utf8_lossy(symbol.name).into_owned());
        }
    });
    names.into_iter().next()
}

/// A mangled name as it is shown.
pub(super) fn shown(symbol: &str) -> String {
    let demangled = match rustc_demangle::try_demangle(symbol) {
        Ok(name) if symbol.len() < 512 => format!("{name:#}"),
        _ => symbol.to_owned(),
    };
    let printable = demangled
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    printable.take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_of_both_manglings() {
        for (symbol, own) in [
            (
                "_ZN8dlmalloc8dlmalloc17Dlmalloc$LT$A$GT$4free17h94be7f657db2d187E",
                true,
            ),
            (
                "_ZN61_$LT$dlmalloc..sys..System$u20$as$u20$dlmalloc..Allocator$GT$4free17he6c7b02b6f294969E",
                true,
            ),
            (
                "_ZN4core3ptr42drop_in_place$LT$alloc..string..String$GT$17h0123456789abcdefE",
                false,
            ),
            ("_RNvCsfLfy6EI15iL_7___rustc12___rust_alloc", false),
            ("_RNvNtCsjrHSEGnQ3l9_3std5alloc8rust_oom", false),
            (
                "_RNvXCs1234_3ownNtB2_9FreeListsNtNtNtCs9_4core5alloc6global11GlobalAlloc5alloc",
                true,
            ),
            ("memcpy", false),
            ("_ZN", false),
            ("_ZN99x", false),
            ("_RCs", false),
        ] {
            assert_eq!(is_own(symbol.as_bytes()), own, "{symbol}");
        }
        assert_eq!(shown("a\u{1b}[2J"), "a?[2J");
    }
}
