//! Patterns of rules: globs, or regular expressions after `re:`.
//!
//! Both match in time that is linear in the name, whatever that name is: it comes from a process.

use regex::{Regex, RegexBuilder};

/// Largest compiled pattern, in bytes.
const MAX_COMPILED: usize = 1 << 20;
/// Longest pattern.
const MAX_TEXT: usize = 1024;
/// What a regular expression begins with.
const REGEX: &str = "re:";

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles a pattern. A glob matches the whole name: `*` any run of characters (`/` too), `?` one, `[a-z]` and
    /// `[!a-z]` one of a set, `\` takes the next as it is. `re:` introduces a regular expression, which matches anywhere
    /// in the name unless it is anchored.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty pattern matches nothing".to_owned());
        }
        if text.len() > MAX_TEXT {
            return Err(format!("longer than {MAX_TEXT} bytes"));
        }
        let source = match text.strip_prefix(REGEX) {
            Some(regex) => regex.to_owned(),
            None => translate(text)?,
        };
        let regex = RegexBuilder::new(&source)
            .size_limit(MAX_COMPILED)
            .dot_matches_new_line(!text.starts_with(REGEX))
            .build()
            .map_err(|error| one_line(&error))?;
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

/// regex explains syntax errors over several lines; the last one says what is wrong.
fn one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "the pattern is too large; make its repetitions smaller".to_owned(),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

/// A glob as a regular expression for the whole name.
fn translate(glob: &str) -> Result<String, String> {
    let mut regex = String::from(r"\A");
    let mut rest = glob.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '\\' => match rest.next() {
                Some(next) => regex.push_str(&regex::escape(next.encode_utf8(&mut [0; 4]))),
                None => return Err(r"`\` at the end takes no character".to_owned()),
            },
            '[' => regex.push_str(&set(&mut rest)?),
            other => regex.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push_str(r"\z");
    Ok(regex)
}

/// What follows a `[`, up to its `]`.
fn set(rest: &mut std::str::Chars<'_>) -> Result<String, String> {
    let mut members = Vec::new();
    let mut negated = false;
    loop {
        match rest.next() {
            None => return Err("`[` without `]`".to_owned()),
            Some('!' | '^') if members.is_empty() && !negated => negated = true,
            // The first member may be the bracket itself.
            Some(']') if !members.is_empty() => break,
            Some(member) => members.push(member),
        }
    }
    let mut regex = String::from(if negated { "[^" } else { "[" });
    let last = members.len() - 1;
    for (index, &member) in members.iter().enumerate() {
        // A `-` between two members makes a range; at an end it is one itself.
        if member == '-' && index != 0 && index != last {
            regex.push('-');
        } else {
            // Everything that has a meaning inside of brackets is punctuation, which may always be escaped.
            if member.is_ascii_punctuation() {
                regex.push('\\');
            }
            regex.push(member);
        }
    }
    regex.push(']');
    Ok(regex)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(name)
    }

    #[test]
    fn globs_match_whole_names() {
        assert!(matches("nginx", "nginx") && !matches("nginx", "nginx2") && !matches("nginx", "xnginx"));
        assert!(matches("nginx*", "nginx") && matches("nginx*", "nginx: worker"));
        assert!(matches("/opt/*/bin/?", "/opt/a/b/bin/c") && !matches("/opt/*/bin/?", "/opt/bin/c"));
        assert!(matches("[a-c]x", "bx") && !matches("[a-c]x", "dx") && matches("[!a-c]x", "dx"));
        assert!(matches("[]x]", "]") && matches("[a-]", "-") && matches("[&&~~]", "&"));
        assert!(matches(r"\*", "*") && !matches(r"\*", "x") && matches("a.b", "a.b") && !matches("a.b", "axb"));
        assert!(matches("a*", "a\nb") && !matches("a", "a\n"));
    }

    #[test]
    fn regular_expressions_match_anywhere() {
        assert!(matches("re:work", "a worker") && !matches("re:^work", "a worker"));
        assert!(matches(r"re:^w-\d+$", "w-12"));
    }

    #[test]
    fn errors_are_one_line() {
        for (pattern, part) in [
            ("", "empty"),
            ("re:(", "unclosed group"),
            ("[a", "without"),
            ("x\\", "end"),
            ("[z-a]", "range"),
            ("re:(?:x{1000}){1000}", "too large"),
        ] {
            let error = Pattern::new(pattern).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{pattern}: {error}");
        }
        assert!(Pattern::new(&"x".repeat(MAX_TEXT + 1)).is_err());
    }

    proptest! {
        #[test]
        fn any_pattern_is_answered(text in "\\PC{0,40}", name in "\\PC{0,40}") {
            if let Ok(pattern) = Pattern::new(&text) {
                pattern.matches(&name);
            }
        }

        #[test]
        fn a_name_with_its_signs_escaped_matches_itself_alone(name in "\\PC{1,20}", other in "\\PC{1,20}") {
            let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
            let pattern = Pattern::new(&escaped).unwrap();
            prop_assert!(pattern.matches(&name));
            prop_assert_eq!(pattern.matches(&other), name == other);
        }
    }
}
