//! Names as the compiler wrote them to names as people write them: C++ (Itanium), Rust legacy and v0.
//!
//! Names come from target files. Invariant: time and memory are bounded by [`MAX_MANGLED`] and [`MAX_DEMANGLED`]; a name
//! beyond them, or one that is not mangled, stays as it is.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Longest name that is looked at. The longest names that compilers write have a few KiB.
pub const MAX_MANGLED: usize = 16 << 10;
/// Longest result. Back references let a short name stand for an exponentially long one.
pub const MAX_DEMANGLED: usize = 32 << 10;

/// The demangled name, or the name itself.
pub fn demangle(name: &str) -> Cow<'_, str> {
    if name.len() > MAX_MANGLED || !(name.starts_with('_') || name.starts_with("ZN") || name.starts_with('R')) {
        return Cow::Borrowed(name);
    }
    let mut text = Bounded(String::new());
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // The alternate form leaves out the hash.
        return if write!(text, "{rust:#}").is_ok() {
            Cow::Owned(text.0)
        } else {
            Cow::Borrowed(name)
        };
    }
    // Clones that the compiler made of a function (`.cold`, `.part.0`) carry a suffix that is no part of the grammar.
    let (mangled, clone) = match name.find('.') {
        Some(dot) => name.split_at(dot),
        None => (name, ""),
    };
    let options = cpp_demangle::DemangleOptions::default().recursion_limit(256);
    match cpp_demangle::Symbol::new(mangled) {
        Ok(symbol) if symbol.structured_demangle(&mut text, &options).is_ok() && !text.0.is_empty() => {
            if !clone.is_empty() {
                text.0.push_str(" [clone ");
                text.0.push_str(clone);
                text.0.push(']');
            }
            Cow::Owned(text.0)
        }
        _ => Cow::Borrowed(name),
    }
}

struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_DEMANGLED {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_manglings() {
        assert_eq!(demangle("_Znwm"), "operator new(unsigned long)");
        assert_eq!(demangle("_ZN5cache3putEi.cold"), "cache::put(int) [clone .cold]");
        assert_eq!(
            demangle("_ZN4core9panicking9panic_fmt17h5f1a6fd39197ad62E"),
            "core::panicking::panic_fmt"
        );
        assert_eq!(demangle("_RNvCs1234_7mycrate3foo"), "mycrate::foo");
        assert_eq!(
            demangle("_RNvCs5QKde7ScR4H_7___rustc12___rust_alloc"),
            "__rustc::__rust_alloc"
        );
    }

    #[test]
    fn other_names_stay() {
        for name in [
            "main",
            "malloc",
            "_start",
            "__libc_start_main",
            "_ZN5cache",
            "main.(*T).Put",
            "",
            "R",
            "_",
        ] {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn names_that_explode_stay() {
        // Each `PS_` level doubles the result through back references to an ever longer template argument.
        let mut name = "_Z1f".to_owned();
        name.push('I');
        for level in 0..200 {
            name += &format!("St4pairI{}{}E", if level == 0 { "ii" } else { "T_T_" }, "");
        }
        name.push('E');
        assert!(demangle(&name).len() <= MAX_DEMANGLED);
        let long = format!("_Z{}", "P".repeat(MAX_MANGLED));
        assert_eq!(demangle(&long), long);
        let deep = format!("_Z1f{}i", "P".repeat(MAX_MANGLED - 10));
        assert!(demangle(&deep).len() <= MAX_DEMANGLED);
    }

    proptest! {
        #[test]
        fn any_name_is_answered(name in "(_Z|_R|_ZN|)[A-Za-z0-9_.$]{0,80}") {
            prop_assert!(demangle(&name).len() <= MAX_DEMANGLED);
        }
    }
}
