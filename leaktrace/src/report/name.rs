//! Names from a profile, made fit for a terminal.
//!
//! Function and file names come from the traced program and may hold escape sequences; here they are made harmless.

use std::borrow::Cow;

/// The name with control characters (and the marks that reverse the writing direction) shown as escapes.
pub fn printable(name: &str) -> Cow<'_, str> {
    let dangerous = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !name.contains(dangerous) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(
        name.chars()
            .map(|c| {
                if dangerous(c) {
                    c.escape_unicode().to_string()
                } else {
                    c.to_string()
                }
            })
            .collect(),
    )
}

/// The last part of a path.
pub fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// Shortens a name to `width` characters with an ellipsis in its middle, so that both its package and its end show.
pub fn fit(name: &str, width: usize) -> Cow<'_, str> {
    let length = name.chars().count();
    if length <= width || width < 8 {
        return Cow::Borrowed(name);
    }
    let tail = (width - 1) * 2 / 3;
    let head = width - 1 - tail;
    let shortened = name
        .chars()
        .take(head)
        .chain(['…'])
        .chain(name.chars().skip(length - tail))
        .collect();
    Cow::Owned(shortened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_shown_not_obeyed() {
        assert_eq!(printable("main.λ"), "main.λ");
        assert_eq!(printable("a\u{1b}[2Jb\n\u{202e}"), "a\\u{1b}[2Jb\\u{a}\\u{202e}");
    }

    #[test]
    fn fitting_keeps_both_ends() {
        assert_eq!(fit("short", 10), "short");
        assert_eq!(
            fit("github.com/company/service/cache.(*Store).Put", 20),
            "github.…(*Store).Put"
        );
        assert_eq!(fit("ααααααααααα", 10).chars().count(), 10);
    }

    #[test]
    fn base_names() {
        assert_eq!(base("/usr/lib/libc.so.6"), "libc.so.6");
        assert_eq!(base("[vdso]"), "[vdso]");
        assert_eq!(base("/"), "");
    }
}
