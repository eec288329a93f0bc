//! `go tool pprof`: the reference reader of our profiles.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::recording;

/// One line of a top table. Values as printed, in bytes or objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In this function itself.
    pub flat: u64,
    /// In it and what it calls.
    pub cum: u64,
    /// Its name, with ` (inline)` cut off.
    pub name: String,
}

/// The rows of `go tool pprof -top` on a profile, for one sample type, in exact numbers.
///
/// # Errors
/// When go is missing or does not read the profile.
pub fn top(profile: &Path, sample_type: &str) -> Result<Vec<Row>> {
    // Without a unit pprof rounds to MB; without these fractions it drops small nodes.
    let unit = if sample_type.ends_with("_space") {
        "-unit=B"
    } else {
        "-unit=count"
    };
    let mut command = Command::new("go");
    command.args([
        "tool",
        "pprof",
        "-top",
        "-nodecount=100000",
        "-nodefraction=0",
        "-edgefraction=0",
        unit,
    ]);
    command.arg(format!("-sample_index={sample_type}")).arg(profile);
    let answer = recording::run(&mut command, Duration::from_secs(120))?;
    ensure!(
        answer.status.success(),
        "go tool pprof does not read `{}`: {}",
        profile.display(),
        answer.stderr
    );
    rows(&answer.stdout)
}

/// The rows of a top table in pprof's columns, be it pprof's or leaktrace's.
///
/// # Errors
/// When there is no such table.
pub fn rows(table: &str) -> Result<Vec<Row>> {
    let mut lines = table.lines().skip_while(|line| !line.trim_start().starts_with("flat"));
    lines.next().context("no line with column titles in the table")?;
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let mut next = || words.next().with_context(|| format!("too few columns in `{line}`"));
        let (flat, _, _, cum, _) = (next()?, next()?, next()?, next()?, next()?);
        let (flat, cum) = (number(flat)?, number(cum)?);
        let name = words.collect::<Vec<_>>().join(" ");
        Ok(Row {
            flat,
            cum,
            name: name.trim_end_matches(" (inline)").to_owned(),
        })
    };
    // A table ends at the first line that is none of its rows.
    lines
        .take_while(|line| line.split_whitespace().nth(1).is_some_and(|word| word.ends_with('%')))
        .map(row)
        .collect()
}

/// `1024B`, `12`, `1.50kB` as a whole number of the base unit.
fn number(text: &str) -> Result<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: f64 = match unit {
        "" | "B" | "count" => 1.0,
        "kB" | "KB" | "KiB" => 1024.0,
        "MB" | "MiB" => 1024.0 * 1024.0,
        "GB" | "GiB" => 1024.0 * 1024.0 * 1024.0,
        other => anyhow::bail!("unknown unit `{other}` in `{text}`"),
    };
    let value: f64 = digits.parse().with_context(|| format!("`{text}` is no number"))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "values of a table are small and positive"
    )]
    Ok((value * factor).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read() -> Result<()> {
        let table = "File: x\nType: inuse_space\nShowing nodes accounting for 2400B, 100% of 2400B total\n      flat  flat%   \
                     sum%        cum   cum%\n     2400B   100%   100%      2400B   100%  leak_here\n         0     0%   \
                     100%      2400B   100%  frame_01 (inline)\n\nlost: nothing\n";
        let row = |flat, name: &str| Row {
            flat,
            cum: 2400,
            name: name.to_owned(),
        };
        assert_eq!(rows(table)?, [row(2400, "leak_here"), row(0, "frame_01")]);
        Ok(())
    }

    #[test]
    fn units_are_binary() -> Result<()> {
        assert_eq!(number("1.50kB")?, 1536);
        assert_eq!(number("12")?, 12);
        assert!(number("12 parsec").is_err());
        Ok(())
    }
}
