//! The reference and the commented example, written from the table.
//!
//! Deterministic: both are committed, and a test compares.

use std::fmt::Write;

use super::DEFAULT_PATH;
use super::schema::{Key, Kind, SECTIONS, duration_text, size_text};

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = format!(
        "# Configuration\n\n\
         <!-- Generated from leaktrace/src/daemon/config/schema.rs: edit there. -->\n\n\
         `leaktrace daemon` reads `{DEFAULT_PATH}`, or the file that `--config` names. Without a file at the default place \
         the defaults below hold. `leaktrace daemon --check` tells all that is wrong with a file, one line each with line \
         and column, and ends; so does the daemon at its start. `--check` also tries the files that it names: certificate \
         and key, tokens. On `SIGHUP` the file is read again: what is wrong then \
         leaves the old settings in force, and keys marked *restart* wait for the next start.\n\n\
         Kinds of values:\n\n\
         - *size*: `\"64KiB\"`, `\"1.5GiB\"`, or a number of bytes. Units are powers of 1024, with or without `i` and `B`.\n\
         - *duration*: `\"500ms\"`, `\"30s\"`, `\"10m\"`, `\"1h30m\"`, `\"7d\"`, or a number of seconds.\n\
         - *rate*: a size by `s`, `m`, `h` or `d`: `\"10MiB/h\"`.\n\
         - *percentage*: `\"5%\"`.\n\
         - *pattern*: a glob (`\"nginx*\"`), or a regular expression behind `re:` (`\"re:^worker-[0-9]+$\"`).\n"
    );
    for section in SECTIONS {
        let _ = write!(text, "\n## `{}`\n\n{}\n", section.header(), section.doc);
        if section.many {
            text.push_str("\nMay be there any number of times.\n");
        }
        text.push_str("\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let default = match (key.default, key.required) {
                (Some(default), _) => format!("`{default}`"),
                (None, true) => "required".to_owned(),
                (None, false) => "none".to_owned(),
            };
            let restart = if key.restart.is_some() { " *(restart)*" } else { "" };
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {}{restart} |",
                key.name,
                value(key.kind),
                key.doc
            );
        }
        if section.many {
            let _ = write!(text, "\n```toml\n{}\n", section.header());
            for key in section.keys.iter().filter(|key| key.required || key.example.is_some()) {
                let _ = writeln!(text, "{} = {}", key.name, shown(key));
            }
            text.push_str("```\n");
        }
    }
    text
}

/// `packaging/leaktrace.toml`: all keys with their defaults, as comments.
pub fn example() -> String {
    let mut text = format!(
        "# Configuration of `leaktrace daemon`; belongs at {DEFAULT_PATH}.\n\
         # Generated from leaktrace/src/daemon/config/schema.rs. Values in comments are the defaults, or examples where\n\
         # there is none. `leaktrace daemon --check` tells what is wrong with it; docs/configuration.md has the limits.\n"
    );
    for section in SECTIONS {
        text.push('\n');
        comment(&mut text, section.doc);
        let header = section.header();
        let _ = if section.many {
            writeln!(text, "#{header}")
        } else {
            writeln!(text, "{header}")
        };
        for (index, key) in section.keys.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            comment(&mut text, key.doc);
            let _ = writeln!(text, "#{} = {}", key.name, shown(key));
        }
    }
    text
}

fn shown(key: &Key) -> &'static str {
    key.default.or(key.example).unwrap_or_default()
}

/// Sentences as comments of at most 110 characters a line.
fn comment(text: &mut String, sentences: &str) {
    let mut width = 0;
    for word in sentences.split_whitespace() {
        let len = word.chars().count();
        if width == 0 || width + 1 + len > 110 {
            text.push_str(if width == 0 { "# " } else { "\n# " });
            width = 2;
        } else {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += len;
    }
    text.push('\n');
}

/// Kind and limits in words.
fn value(kind: Kind) -> String {
    match kind {
        Kind::Boolean => "`true` or `false`".to_owned(),
        Kind::Count { least, most } => format!("number, {least} to {most}"),
        Kind::Size { least, most } => format!("size, {} to {}", size_text(least), size_text(most)),
        Kind::Duration { least, most } => {
            format!("duration, {} to {}", duration_text(least), duration_text(most))
        }
        Kind::Rate => "rate, more than 0".to_owned(),
        Kind::Share { most } => format!("percentage, more than 0%, at most {}%", most * 100.0),
        Kind::Name => "name: letters, digits, `-`, `_`, `.`; at most 64".to_owned(),
        Kind::Path { empty: false } => "absolute path".to_owned(),
        Kind::Path { empty: true } => "absolute path, or `\"\"`".to_owned(),
        Kind::Pattern => "pattern".to_owned(),
        Kind::Choice(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(", ")
        }
        Kind::Url => "`http://` or `https://` URL".to_owned(),
        Kind::Headers => "table of names and values".to_owned(),
        Kind::Address => "IP address and port, or `\"\"`".to_owned(),
        Kind::HostNames => "array of DNS names, at most 64".to_owned(),
    }
}
